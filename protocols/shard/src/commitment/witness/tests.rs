//! Chains of stages in one thread: honest ones never disagree, whatever happens to them; whoever lies is found.

use std::collections::VecDeque;

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::commitment::{Roots, digests};

const WIDTH: usize = 3;
const LAYERS: u16 = 6;
const SESSION: SessionId = SessionId([7; 16]);

fn terms(first: u32) -> Terms {
    let (model, profile) = (ModelId([1; 32]), Profile::Exact);
    Terms { session: SESSION, model, profile, exact: true, first, max_rows: 100_000 }
}

/// What somebody does wrong, at a stage and a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Gives another row on than it commits to.
    Gives,
    /// Commits to another row than it gives on.
    Commits,
}

struct SimStage {
    peer: PeerId,
    span: SpanRange,
    roots: Roots,
    /// What it gives on, by position; rows from before are there, too.
    out: Vec<[f32; WIDTH]>,
    kept: usize,
    unread: VecDeque<Commitment>,
}

struct Sim {
    rng: StdRng,
    witness: Witness,
    stages: Vec<SimStage>,
    epoch: u32,
    first: usize,
    ids: Vec<u32>,
    /// Rows that came back.
    back: usize,
    wrong: (Wrong, usize, usize),
    found: Vec<Finding>,
}

/// The row that goes into `layer` after these tokens.
fn row(layer: u16, ids: &[u32]) -> [f32; WIDTH] {
    let state =
        ids.iter().fold(u32::from(layer) + 1, |state, id| state.wrapping_mul(0x9e37_79b1).wrapping_add(*id) >> 1);
    [state as f32, f32::from(layer), ids.len() as f32]
}

impl Sim {
    fn new(seed: u64, spans: &[(u16, u16)], first: usize, wrong: (Wrong, usize, usize)) -> Self {
        let stages = spans.iter().map(|(start, end)| {
            let span = SpanRange::new(*start, *end).unwrap();
            let out = (1..=first).map(|rows| row(*end, &vec![0; rows])).collect();
            let roots = Roots::new(first as u32, 1);
            SimStage { peer: PeerId::random(), span, roots, out, kept: first, unread: VecDeque::new() }
        });
        let mut sim = Self {
            rng: StdRng::seed_from_u64(seed),
            witness: Witness::new(terms(first as u32)),
            stages: stages.collect(),
            epoch: 1,
            first,
            ids: vec![0; first],
            back: first,
            wrong,
            found: Vec::new(),
        };
        sim.arrange();
        sim
    }

    fn arrange(&mut self) {
        let stages: Vec<_> = self.stages.iter().map(|stage| (stage.peer, stage.span)).collect();
        self.witness.arrange(self.epoch, &stages);
    }

    fn input(&self, n: usize, pos: usize, end: usize) -> Vec<[f32; WIDTH]> {
        match n.checked_sub(1) {
            Some(before) => self.stages[before].out[pos..end].to_vec(),
            None => (pos..end).map(|pos| row(0, &self.ids[..=pos])).collect(),
        }
    }

    /// The stage at `n` computes rows `pos..end` of what came before it.
    fn compute(&mut self, n: usize, pos: usize, end: usize, chunk: bool) {
        let input = self.input(n, pos, end);
        let (what, at, bad) = self.wrong;
        let is_last = n + 1 == self.stages.len();
        let stage = &mut self.stages[n];
        let true_rows: Vec<_> = (pos..end).map(|pos| row(stage.span.end(), &self.ids[..=pos])).collect();
        let mut other = true_rows.clone();
        if at == n && (pos..end).contains(&bad) {
            other[bad - pos][1] += 1.0;
        }
        let (given, signed) = match what {
            Wrong::Nothing => (&true_rows, &true_rows),
            Wrong::Gives => (&other, &true_rows),
            Wrong::Commits => (&true_rows, &other),
        };
        stage.out.truncate(pos);
        stage.out.extend(given);
        let of = [digests(&input.concat(), WIDTH), digests(&signed.concat(), WIDTH)];
        let points = stage.roots.computed(pos as u32, [&of[0], &of[1]], chunk, is_last);
        let epoch = self.epoch;
        stage.unread.extend(points.iter().map(|point| commitment(stage.span, epoch, point)));
    }

    /// Gives rows to the chain; only the first `reach` stages get them.
    fn give(&mut self, pos: usize, end: usize, chunk: bool, reach: usize) {
        let rows = self.input(0, pos, end);
        self.witness.sent(pos as u32, true, &digests(&rows.concat(), WIDTH));
        for n in 0..reach.min(self.stages.len()) {
            self.compute(n, pos, end, chunk);
            self.listen(3);
        }
        if reach >= self.stages.len() {
            self.come_back(if chunk { end - 1 } else { pos }, end);
        }
    }

    fn come_back(&mut self, from: usize, end: usize) {
        let rows = self.stages.last().unwrap().out[from..end].concat();
        self.found.extend(self.witness.received(from as u32, &digests(&rows, WIDTH)));
        self.back = end;
    }

    /// Some of the commitments arrive.
    fn listen(&mut self, one_in: u32) {
        for n in 0..self.stages.len() {
            while !self.stages[n].unread.is_empty() && self.rng.random_range(0..one_in) == 0 {
                let of = self.stages[n].unread.pop_front().unwrap();
                self.found.extend(self.witness.claim(self.stages[n].peer, &of, &[]).err().map(|finding| *finding));
            }
        }
    }

    /// The coordinator tells the stage at `n` to go on, the last one giving rows back from `wanted` on.
    fn resume(&mut self, n: usize, wanted: usize) {
        let (is_last, epoch, first) = (n + 1 == self.stages.len(), self.epoch, self.first as u32);
        let stage = &mut self.stages[n];
        let points = stage.roots.resumed(first, is_last.then_some(wanted as u32));
        stage.unread.extend(points.iter().map(|point| commitment(stage.span, epoch, point)));
    }

    /// Another takes the place of the stage at `n`; rows from `wanted` on are to come back.
    fn replace(&mut self, n: usize, wanted: usize, rewound: bool) {
        self.epoch += 1;
        let (peer, span) = (PeerId::random(), self.stages[n].span);
        for stage in &mut self.stages {
            stage.roots.rerouted();
        }
        let roots = Roots::new(0, self.epoch);
        self.stages[n] = SimStage { peer, span, roots, out: Vec::new(), kept: 0, unread: VecDeque::new() };
        self.arrange();
        let mut lacks = wanted;
        for stage in self.stages.iter_mut().rev() {
            let sure = if rewound { wanted } else { usize::MAX };
            let keep = if stage.kept > lacks { lacks } else { stage.out.len().min(sure) };
            if keep < stage.out.len() {
                stage.roots.cut(keep as u32);
                stage.out.truncate(keep);
                stage.kept = stage.kept.min(keep);
            }
            lacks = stage.out.len();
        }
        for n in 0..self.stages.len() {
            let mut told = self.rng.random_bool(0.7);
            if told {
                self.resume(n, wanted);
            }
            while self.stages[n].out.len() < self.ids.len() {
                let pos = self.stages[n].out.len();
                let end = (pos + self.rng.random_range(1..=64)).min(self.ids.len());
                self.compute(n, pos, end, false);
                if !told && self.rng.random_bool(0.5) {
                    (told, ()) = (true, self.resume(n, wanted));
                }
                self.listen(2);
            }
            if !told {
                self.resume(n, wanted);
            }
        }
        // What the coordinator waits for comes of itself, without another row.
        if self.rng.random_bool(0.5) {
            self.listen(1);
            let unproven = self.witness.unproven(self.ids.len() as u32).next();
            assert!(unproven.is_none() || !self.found.is_empty(), "{n} of {} rows: {unproven:?}", self.ids.len());
        }
        if wanted < self.ids.len() {
            self.come_back(wanted, self.ids.len());
        }
    }

    /// A prompt, then an answer with guesses; a stage is lost now and then.
    fn run(&mut self, prompt: usize, passes: usize, losses: bool) {
        let ids: Vec<u32> = (0..prompt).map(|_| self.rng.random_range(0..500)).collect();
        for chunk in ids.chunks(64) {
            let pos = self.ids.len();
            self.ids.extend(chunk);
            self.pass(pos, true, losses, false);
        }
        let mut pos = self.ids.len();
        for _ in 0..passes {
            let rewound = pos < self.ids.len();
            self.ids.truncate(pos);
            let rows = if self.rng.random_bool(0.5) { 1 } else { self.rng.random_range(1..=8) };
            let new: Vec<u32> = (0..rows).map(|_| self.rng.random_range(0..500)).collect();
            self.ids.extend(new);
            self.pass(pos, false, losses, rewound);
            pos += self.rng.random_range(1..=rows);
        }
        self.close();
    }

    /// The session ends, and all commitments arrive.
    fn close(&mut self) {
        for stage in &mut self.stages {
            let point = stage.roots.closing();
            stage.unread.extend(point.map(|point| commitment(stage.span, self.epoch, &point)));
        }
        self.listen(1);
    }

    fn pass(&mut self, pos: usize, chunk: bool, losses: bool, rewound: bool) {
        let end = self.ids.len();
        if losses && self.rng.random_range(0..12) == 0 {
            let reach = self.rng.random_range(0..=self.stages.len());
            self.give(pos, end, chunk, reach);
            let n = self.rng.random_range(0..self.stages.len());
            let all = reach >= self.stages.len();
            let wanted = if all {
                end
            } else if chunk {
                end - 1
            } else {
                pos
            };
            self.replace(n, wanted, rewound);
        } else {
            self.give(pos, end, chunk, usize::MAX);
        }
        self.listen(4);
    }
}

fn commitment(span: SpanRange, epoch: u32, point: &crate::commitment::Point) -> Commitment {
    let Terms { session, model, profile, .. } = terms(0);
    let crate::commitment::Point { first, rows, in_root, out_root } = *point;
    Commitment { session, epoch, model, profile, span, first, rows, in_root, out_root }
}

const SPLITS: [&[(u16, u16)]; 4] =
    [&[(0, LAYERS)], &[(0, 3), (3, LAYERS)], &[(0, 2), (2, 4), (4, LAYERS)], &[(0, 1), (1, 2), (2, 5), (5, LAYERS)]];

proptest! {
    #[test]
    fn honest_stages_always_agree(
        seed: u64,
        split in 0..SPLITS.len(),
        prefix in 0..4_usize,
        prompt in 1..300_usize,
        passes in 0..60_usize,
        losses: bool,
    ) {
        let mut sim = Sim::new(seed, SPLITS[split], prefix * 32, (Wrong::Nothing, 0, 0));
        sim.run(prompt, passes, losses);
        prop_assert!(sim.found.is_empty(), "{:?}", sim.found);
        let end = sim.ids.len() as u32;
        prop_assert!(sim.witness.lacking(end).is_empty() && sim.witness.unproven(end).next().is_none());
        for stage in &sim.stages {
            prop_assert_eq!(sim.witness.latest(&stage.peer).unwrap().rows, end);
        }
    }

    #[test]
    fn who_lies_is_named(
        seed: u64,
        split in 0..SPLITS.len(),
        prompt in 1..200_usize,
        passes in 1..40_usize,
        at: prop::sample::Index,
        bad: prop::sample::Index,
        commits: bool,
    ) {
        let at = at.index(SPLITS[split].len());
        // Of the last stage's rows of a prompt only the very last counts for anything.
        let is_last = at + 1 == SPLITS[split].len();
        let bad = if is_last && !commits { prompt - 1 } else { bad.index(prompt) };
        let wrong = if commits { Wrong::Commits } else { Wrong::Gives };
        let mut sim = Sim::new(seed, SPLITS[split], 0, (wrong, at, bad));
        sim.run(prompt, passes, false);
        let liar = sim.stages[at].peer;
        match sim.found.first() {
            Some(Finding::Lie { peer, .. }) => prop_assert!(at + 1 == sim.stages.len() && *peer == liar),
            Some(Finding::Differ { peers, layer, .. }) => {
                prop_assert_eq!(*peers, [liar, sim.stages[at + 1].peer]);
                prop_assert_eq!(*layer, sim.stages[at].span.end());
            }
            // Nobody gets that row, and nobody else has to do with it.
            None => prop_assert!(is_last && bad < prompt - 1),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn one_that_is_lost_is_held_to_what_it_said() {
    // The last stage gave one row of the answer wrongly and is gone before it committed; or it committed to a wrong one.
    for wrong in [Wrong::Gives, Wrong::Commits] {
        let mut sim = Sim::new(1, SPLITS[1], 0, (wrong, 1, 70));
        let gone = sim.stages[1].peer;
        sim.ids = (0..40).collect();
        sim.give(0, 40, true, usize::MAX);
        for pos in 40..90 {
            sim.ids.push(pos as u32);
            sim.give(pos, pos + 1, false, usize::MAX);
            // What is given and not committed to in the end is not heard of in time.
            if wrong == Wrong::Gives {
                sim.stages[1].unread.retain(|of| of.rows <= 64);
            }
            sim.listen(1);
            sim.found.retain(|finding| !matches!(finding, Finding::Lie { .. }));
        }
        sim.wrong = (Wrong::Nothing, 0, 0);
        sim.replace(1, 90, false);
        let new = sim.stages[1].peer;
        sim.close();
        let named = |finding: &Finding| matches!(finding, Finding::Differ { peers, .. } if *peers == [gone, new]);
        assert!(sim.found.iter().any(named), "{wrong:?}: {:?}", sim.found);
    }
}

#[test]
fn what_is_not_of_this_session_is_invalid() {
    let mut sim = Sim::new(1, SPLITS[1], 0, (Wrong::Nothing, 0, 0));
    sim.ids = (0..40).collect();
    let rows = sim.input(0, 0, 40);
    sim.witness.sent(0, false, &digests(&rows.concat(), WIDTH));
    sim.compute(0, 0, 40, true);
    let (peer, good) = (sim.stages[0].peer, sim.stages[0].unread.pop_back().unwrap());
    let mut claim = |of: Commitment| sim.witness.claim(peer, &of, &[]);
    let session = SessionId([8; 16]);
    for bad in [
        Commitment { session, ..good.clone() },
        Commitment { epoch: 2, ..good.clone() },
        Commitment { model: ModelId([2; 32]), ..good.clone() },
        Commitment { profile: Profile::ExactKvF16, ..good.clone() },
        Commitment { span: SpanRange::new(0, 2).unwrap(), ..good.clone() },
        Commitment { first: 1, ..good.clone() },
        Commitment { rows: 41, ..good.clone() },
    ] {
        assert!(matches!(claim(bad).err().as_deref(), Some(Finding::Invalid { .. })));
    }
    assert_eq!(claim(Commitment { epoch: 0, ..good.clone() }), Ok(Heard::Late));
    assert_eq!(claim(good.clone()), Ok(Heard::Kept));
    // Other rows than it was given; and two results of the same.
    let lie = claim(Commitment { in_root: [0; 32], ..good.clone() }).err();
    assert!(matches!(lie.as_deref(), Some(Finding::Lie { .. })));
    let lie = claim(Commitment { out_root: [0; 32], ..good.clone() }).err();
    assert!(matches!(lie.as_deref(), Some(Finding::Lie { .. })));
    assert_eq!(sim.witness.claim(PeerId::random(), &good, &[]), Ok(Heard::Late));
}

#[test]
fn no_more_is_kept_or_checked_than_a_session_has_rows() {
    let mut sim = Sim::new(1, SPLITS[0], 0, (Wrong::Nothing, 0, 0));
    sim.witness.terms.max_rows = 10_000;
    for pos in (0..10_000).step_by(100) {
        sim.ids.extend(pos as u32..pos as u32 + 100);
        sim.give(pos, pos + 100, false, usize::MAX);
        sim.listen(1);
    }
    assert!(sim.found.is_empty(), "{:?}", sim.found);
    let peer = sim.stages[0].peer;
    assert_eq!(sim.witness.records[0].at.len(), KEPT);
    let point = sim.stages[0].roots.closing().unwrap();
    let again = commitment(SpanRange::new(0, LAYERS).unwrap(), 1, &point);
    let refused = (0..SPARE + 10_000 / 4).find_map(|_| sim.witness.claim(peer, &again, &[]).err());
    assert!(matches!(refused.as_deref(), Some(Finding::Invalid { .. })));
}

#[test]
fn inexact_rows_are_not_compared_once_others_have_computed_them() {
    let mut sim = Sim::new(1, SPLITS[1], 0, (Wrong::Nothing, 0, 0));
    sim.witness.terms.exact = false;
    sim.ids = (0..60).collect();
    sim.give(0, 60, true, usize::MAX);
    sim.wrong = (Wrong::Commits, 0, 20);
    sim.replace(0, 60, false);
    sim.close();
    assert!(sim.found.is_empty(), "{:?}", sim.found);
    assert_eq!(sim.witness.latest(&sim.stages[0].peer).unwrap().rows, 60);
}

#[test]
fn who_says_nothing_is_known() {
    let mut sim = Sim::new(1, SPLITS[1], 0, (Wrong::Nothing, 0, 0));
    sim.ids = (0..40).collect();
    sim.give(0, 40, false, usize::MAX);
    let silent = sim.stages[1].peer;
    sim.stages[1].unread.clear();
    sim.listen(1);
    assert_eq!(sim.witness.owing(40), [silent]);
    assert!(sim.witness.owing(23).is_empty(), "nothing is due yet");
}
