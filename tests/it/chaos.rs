//! Workers killed, stopped and slowed at random, in every phase of an answer and at every place of the chain, while several
//! answers are under way: each is the answer of the whole model, in time, and nothing is left of it afterwards.
//!
//! There is always somebody left for every layer, so that no answer may fail. `QUELEA_CHAOS=200` has so many workers lost,
//! at least [`EACH`] in every phase at every stage; `QUELEA_CHAOS_SEED` draws another schedule. With
//! `QUELEA_CHAOS_APART=10ms` all are that far from each other, one way: on one machine, with a small model in a release build, a
//! replay is over before anybody can be lost in it.

mod crowd;
mod schedule;
mod table;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use self::{
    crowd::Crowd,
    schedule::{Fault, Phase, Question, Round},
    table::{Gap, Loss, Table},
};
use crate::harness::{Asking, ids, quelea};

/// Workers that are lost where nothing else is said.
const FEW: usize = 12;

/// How many in every phase and at every stage, where so many are lost that there can be.
const EACH: usize = 5;

/// An answer that takes so long hangs.
const HANG: Duration = Duration::from_secs(120);

/// How long a phase is waited for.
const PHASE: Duration = Duration::from_secs(60);

/// How long a worker is slowed.
const SLOWED: Duration = Duration::from_secs(5);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value:?}")))
}

#[tokio::test]
async fn answers_go_on_whoever_is_lost_and_whenever() {
    let wanted = setting("QUELEA_CHAOS").map_or(FEW, |n| n as usize);
    let seed = setting("QUELEA_CHAOS_SEED").unwrap_or(1);
    let each = if wanted >= 2 * EACH * schedule::STAGES * schedule::PHASES.len() { EACH } else { 0 };
    let loud = wanted > FEW;
    let apart = std::env::var("QUELEA_CHAOS_APART").ok();
    let mut run = Run { crowd: Crowd::start(apart.as_deref()).await, table: Table::default(), whole: HashMap::new() };
    run.crowd.until_known().await;
    let started = Instant::now();
    for number in 0.. {
        if run.table.lost() >= wanted && run.table.least() >= each {
            break;
        }
        assert!(number < 4 * wanted, "phases are missed too often:\n{}", run.table);
        let round = Round::draw(seed, number);
        // What was not asserted shows with the test's output: only where it fails.
        println!("seed {seed}, {:.0} s: {round}", started.elapsed().as_secs_f64());
        let losses = run.round(&round).await;
        let over = Instant::now();
        run.table.count(&losses);
        let (leaks, ()) = tokio::join!(run.crowd.leaks(), run.crowd.until_known());
        println!("    {} lost; {:.1} s until all is clean and known", losses.len(), over.elapsed().as_secs_f64());
        assert!(leaks.is_empty(), "seed {seed}, {round}: left over: {leaks:#?}");
    }
    if loud {
        println!("seed {seed}, {:.0} s\n{}", started.elapsed().as_secs_f64(), run.table);
        println!("differing tokens: 0, hangs: 0, leaks: 0");
    }
}

struct Run {
    crowd: Crowd,
    table: Table,
    /// The whole model's tokens, for questions that come again.
    whole: HashMap<String, Vec<u64>>,
}

impl Run {
    async fn round(&mut self, round: &Round) -> Vec<Loss> {
        let mut asked: Vec<Asking> = Vec::new();
        for (n, question) in round.questions.iter().enumerate() {
            asked.push(Asking::new(&self.crowd.askers[n % 2], &question.body()));
        }
        let losses = match round.slow {
            Some(part) => {
                self.table.slowed += usize::from(self.slowed(round, &mut asked[0], part).await);
                Vec::new()
            }
            None => self.lost(round, &mut asked[0]).await,
        };
        // Who was killed comes back, in the middle of what is left of the answers.
        for loss in &losses {
            if let Fault::Kill { again_after } = loss.fault {
                self.crowd.kill_and_start(loss.worker, again_after).await;
            }
        }
        for (n, mut asking) in asked.into_iter().enumerate() {
            let summary = self.answered(round, n, &mut asking).await;
            if n == 0 {
                self.table.gaps.extend(gap(&summary, &asking, &losses));
            }
        }
        for loss in &losses {
            match loss.fault {
                Fault::Stop { goes_on: true } => self.crowd.workers[loss.worker].signal(Signal::CONT),
                Fault::Stop { goes_on: false } => self.crowd.kill_and_start(loss.worker, Duration::ZERO).await,
                Fault::Kill { .. } => {}
            }
        }
        losses
    }

    /// Waits for the round's moment, and loses who is to be lost then; nobody if it is missed.
    async fn lost(&mut self, round: &Round, watched: &mut Asking) -> Vec<Loss> {
        let began = watched.until(PHASE, |seen| !seen.route.is_empty()).await;
        let route = watched.seen().route.clone();
        if !began {
            return Vec::new();
        }
        let serves = |at: usize| self.crowd.of_peer(&route[at].0);
        let (worker, other) = (serves(round.at), serves(round.other));
        let [first, second] = round.faults;
        let after = round.after_tokens;
        match round.phase {
            Phase::Prefill => tokio::time::sleep(round.after).await,
            Phase::Chunk => self.until_computing(worker, watched).await,
            Phase::Decode | Phase::Guessing | Phase::Both | Phase::Replay => {
                watched.until(PHASE, |seen| seen.tokens.len() >= after).await;
            }
        }
        if watched.seen().over {
            return Vec::new();
        }
        match round.phase {
            Phase::Both => {
                let first = self.lose(other, round.other, Phase::Both, first);
                vec![first, self.lose(worker, round.at, Phase::Both, second)]
            }
            Phase::Replay => {
                let before = self.crowd.rows_at(round.other).await;
                let tokens = watched.seen().tokens.len();
                let mut losses = vec![self.lose(other, round.other, Phase::Decode, first)];
                let successor = self.successor(round.other, &before, watched, tokens).await;
                let lost = if round.at == round.other { successor } else { successor.map(|_| worker) };
                if let Some(worker) = lost {
                    let in_replay = !watched.seen().over && watched.seen().tokens.len() == tokens;
                    let phase = if in_replay { Phase::Replay } else { Phase::Decode };
                    losses.push(self.lose(worker, round.at, phase, second));
                }
                losses
            }
            Phase::Prefill | Phase::Chunk if !watched.seen().tokens.is_empty() => {
                vec![self.lose(worker, round.at, Phase::Decode, second)]
            }
            phase => vec![self.lose(worker, round.at, phase, second)],
        }
    }

    fn lose(&mut self, worker: usize, at: usize, phase: Phase, fault: Fault) -> Loss {
        let signal = if matches!(fault, Fault::Stop { .. }) { Signal::STOP } else { Signal::KILL };
        self.crowd.workers[worker].signal(signal);
        Loss { worker, at, phase, fault, when: Instant::now() }
    }

    /// Waits until `worker` computes, as long as the prompt is computed.
    async fn until_computing(&self, worker: usize, watched: &Asking) {
        let given_up = Instant::now() + PHASE;
        while !self.crowd.workers[worker].computes() && Instant::now() < given_up {
            if watched.seen().over || !watched.seen().tokens.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Who computes for the stage at `at` since one of its workers is lost; nobody if the answer goes on before that shows.
    async fn successor(&self, at: usize, before: &[(usize, f64)], watched: &Asking, tokens: usize) -> Option<usize> {
        let given_up = Instant::now() + PHASE;
        while !watched.seen().over && watched.seen().tokens.len() == tokens && Instant::now() < given_up {
            let rows = self.crowd.rows_at(at).await;
            let more = |(n, rows): &&(usize, f64)| before.iter().any(|(m, had)| n == m && rows > had);
            if let Some((worker, _)) = rows.iter().find(more) {
                return Some(*worker);
            }
        }
        None
    }

    /// Stops a worker of the chain again and again, for as long as the answer takes but no more than a few seconds.
    async fn slowed(&mut self, round: &Round, watched: &mut Asking, (stopped, runs): (Duration, Duration)) -> bool {
        if !watched.until(PHASE, |seen| !seen.route.is_empty()).await {
            return false;
        }
        let worker = self.crowd.of_peer(&watched.seen().route[round.at].0.clone());
        let until = Instant::now() + SLOWED;
        while !watched.seen().over && Instant::now() < until {
            self.crowd.workers[worker].signal(Signal::STOP);
            tokio::time::sleep(stopped).await;
            self.crowd.workers[worker].signal(Signal::CONT);
            tokio::time::sleep(runs).await;
        }
        true
    }

    /// Waits for an answer, which has to be the whole model's.
    async fn answered(&mut self, round: &Round, n: usize, asking: &mut Asking) -> Value {
        let asked = Instant::now();
        let ended = asking.end(HANG).await;
        let waited = asked.elapsed().as_secs_f64();
        let summary = match ended {
            Some(Ok(summary)) => summary,
            Some(Err(error)) => panic!("answer {n} of {round} failed: {error}"),
            None => panic!("answer {n} of {round} hangs, after {} tokens", asking.seen().tokens.len()),
        };
        let whole = self.whole(&round.questions[n]).await;
        assert_eq!(ids(&summary), whole, "answer {n} of {round} is another than in one piece: {summary}");
        println!("    answer {n}: {waited:.1} s more, recoveries: {}", summary["recoveries"]);
        self.table.answers += 1;
        self.table.recoveries += recoveries(&summary);
        summary
    }

    /// The tokens of the whole model, in a process of its own.
    async fn whole(&mut self, question: &Question) -> Vec<u64> {
        let args = question.here();
        let known = args.join(" ");
        if !self.whole.contains_key(&known) {
            let answer = quelea(&args).await.expect(0).json();
            self.whole.insert(known.clone(), ids(&answer));
        }
        self.whole[&known].clone()
    }
}

fn recoveries(summary: &Value) -> usize {
    summary["recoveries"].as_array().map_or(0, Vec::len)
}

/// For how long no token came, where tokens came before and all that was lost was lost at once.
fn gap(summary: &Value, asking: &Asking, losses: &[Loss]) -> Option<Gap> {
    let last = losses.last().filter(|last| losses.iter().all(|loss| loss.phase == last.phase))?;
    let seen = asking.seen();
    let after = seen.tokens.iter().position(|at| *at > last.when).filter(|n| *n > 0)?;
    if recoveries(summary) == 0 {
        return None;
    }
    let whole = seen.tokens[after].duration_since(losses[0].when);
    // What the successors say that a row takes them, for as many rows as there were.
    let rows = (summary["prompt_ids"].as_array()?.len() + after) as f64;
    let hops = summary["hops"].as_array()?;
    let compute = |loss: &Loss| hops.get(loss.at)?["compute_ms_per_row"].as_f64();
    let again: f64 = losses.iter().filter_map(compute).map(|ms| ms * rows / 1e3).sum();
    let silent = losses.iter().any(Loss::is_silent);
    Some(Gap { silent, whole, beyond: whole.saturating_sub(Duration::from_secs_f64(again)) })
}
