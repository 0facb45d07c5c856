//! What is done to whom and when: drawn from a seed, so that a run can be had again.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::harness::long_model;

/// Stages of the chain.
pub const STAGES: usize = 3;

/// When a worker is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The session is open and its prompt is on the way.
    Prefill,
    /// A chunk of the prompt is being computed by the one that is lost.
    Chunk,
    /// Tokens come one by one.
    Decode,
    /// Tokens are guessed, and several verified at once.
    Guessing,
    /// Another one has been lost, and its successor is given its rows.
    Replay,
    /// With another one at the same moment.
    Both,
}

pub const PHASES: [Phase; 6] =
    [Phase::Prefill, Phase::Chunk, Phase::Decode, Phase::Guessing, Phase::Replay, Phase::Both];

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Killed, and started again after so long.
    Kill { again_after: Duration },
    /// Stopped; when the answer is over it goes on, or is killed and started again.
    Stop { goes_on: bool },
}

/// Random numbers that are the same everywhere (SplitMix64).
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low)
    }

    fn millis(&mut self, most: usize) -> Duration {
        Duration::from_millis(self.below(most) as u64)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What is asked, and how the answer is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The first number and the length of a prompt of digits; a text that goes in circles without.
    pub prompt: Option<(usize, usize)>,
    pub tokens: usize,
    pub seed: Option<usize>,
    pub guesses: bool,
}

impl Question {
    /// The body of a request for it to be answered by peers.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "model": long_model(), "prompt": self.text(), "form": "raw", "ignore_eos": true, "max_tokens": self.tokens,
            "step_timeout_ms": 30_000, "route": "swarm",
        });
        if let Some(seed) = self.seed {
            body["temperature"] = 0.8.into();
            body["seed"] = seed.into();
            // As the command has it, where nothing is said.
            body["top_k"] = 40.into();
            body["top_p"] = 0.95.into();
        }
        if self.guesses {
            body["speculate"] = 4.into();
        }
        body
    }

    /// The command that answers it with the whole model.
    pub fn here(&self) -> Vec<String> {
        let tokens = self.tokens.to_string();
        let mut args = vec!["infer", "--json", "--route", "local", "--model", long_model(), "--raw", "--ignore-eos"];
        args.extend(["--timeout", "60s", "--max-tokens", &tokens]);
        let seed = self.seed.map(|seed| seed.to_string());
        if let Some(seed) = &seed {
            args.extend(["--temperature", "0.8", "--seed", seed]);
        }
        let text = self.text();
        args.push(&text);
        args.into_iter().map(str::to_owned).collect()
    }

    fn text(&self) -> String {
        match self.prompt {
            Some((first, tokens)) => {
                (first..).flat_map(|n| n.to_string().into_bytes()).take(tokens).map(char::from).collect()
            }
            None => "one two three one two three".into(),
        }
    }
}

/// Some requests at once, and what happens meanwhile.
#[derive(Debug, Clone)]
pub struct Round {
    pub number: usize,
    pub phase: Phase,
    /// The stage of the worker that is lost in this phase.
    pub at: usize,
    /// The stage of the one that is lost before, or with it.
    pub other: usize,
    /// How the two are lost; the second of them is the one at `at`.
    pub faults: [Fault; 2],
    /// How long after the beginning of the phase, or after how many tokens.
    pub after: Duration,
    pub after_tokens: usize,
    /// For how long the worker at `at` is slowed instead, a part of each of these: stopped, and running.
    pub slow: Option<(Duration, Duration)>,
    /// What is asked: the one that is watched, and those beside it.
    pub questions: Vec<Question>,
}

impl Round {
    /// The round of this number.
    pub fn draw(seed: u64, number: usize) -> Self {
        let mut draw = Draw::new(seed ^ (number as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
        // Every cell of the table in turn, each turn in another order.
        let cells = STAGES * PHASES.len();
        let mut order: Vec<usize> = (0..cells).collect();
        let mut shuffle = Draw::new(seed.wrapping_add((number / cells) as u64));
        (1..cells).rev().for_each(|i| order.swap(i, shuffle.below(i + 1)));
        let cell = order[number % cells];
        let (at, phase) = (cell % STAGES, PHASES[cell / STAGES]);
        let other = if phase == Phase::Both { (at + 1 + draw.below(STAGES - 1)) % STAGES } else { draw.below(STAGES) };
        let mut fault = || {
            if draw.one_in(4) {
                Fault::Stop { goes_on: draw.one_in(2) }
            } else {
                Fault::Kill { again_after: draw.millis(1_000) }
            }
        };
        let faults = [fault(), fault()];
        let tokens = match phase {
            Phase::Prefill | Phase::Chunk => draw.between(8, 32),
            Phase::Replay => draw.between(48, 96),
            Phase::Decode | Phase::Guessing | Phase::Both => draw.between(100, 300),
        };
        let prompt = match phase {
            Phase::Guessing => None,
            Phase::Decode | Phase::Both => Some(draw.between(20, 400)),
            Phase::Prefill | Phase::Chunk | Phase::Replay => Some(draw.between(1_200, 2_600)),
        };
        // Never the same digits twice: what was kept of an earlier prompt would not be computed.
        let prompt = prompt.map(|tokens| (100_000 + 1_000 * number, tokens));
        let seed = draw.one_in(2).then(|| draw.below(1_000));
        let watched = Question { prompt, tokens, seed, guesses: phase == Phase::Guessing };
        let mut questions = vec![watched];
        for _ in 0..2 {
            // From a few, so that some find rows of theirs kept.
            questions.push(match draw.below(4) {
                0 => Question { prompt: Some((500_000, 700)), tokens: 40, seed: None, guesses: false },
                1 => Question { prompt: Some((500_000, 900)), tokens: 20, seed: Some(5), guesses: true },
                2 => Question { prompt: None, tokens: 120, seed: None, guesses: true },
                _ => Question { prompt: Some((600_000, 60)), tokens: 80, seed: Some(3), guesses: false },
            });
        }
        let slow = (number % 8 == 7).then(|| (draw.millis(400), draw.millis(200)));
        let (after, after_tokens) = (draw.millis(200), draw.between(1, tokens * 2 / 3));
        Self { number, phase, at, other, faults, after, after_tokens, slow, questions }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, phase, at, other, faults: [first, second], after, after_tokens, slow, questions } = self;
        write!(f, "round {number}: ")?;
        match (slow, phase) {
            (Some((stopped, running)), _) => write!(f, "stage {at} stopped for {stopped:?} of each {running:?} more")?,
            (None, Phase::Replay) => write!(f, "stage {other} {first:?}, then in its replay stage {at} {second:?}")?,
            (None, Phase::Both) => write!(f, "stage {other} {first:?} and stage {at} {second:?} at once")?,
            (None, phase) => write!(f, "stage {at} {second:?} in {phase:?}")?,
        }
        write!(f, ", after {after:?} or {after_tokens} token(s), of {:?} beside {:?}", questions[0], &questions[1..])
    }
}
