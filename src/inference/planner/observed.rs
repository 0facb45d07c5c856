//! How fast peers turned out to be: moving averages over this node's own requests.
//!
//! What a request took is measured here, from rows sent to rows received. Stages report what they spent computing, and
//! that divides the time among them; but what no report explains is charged to them as well, by layers. So a stage that
//! computes slowly and reports little gains nothing: the time is gone either way, and it is in its account. Those that
//! shared a chain with it share the charge, and lose it with the next chain without it.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;
use quelea_wire::{ModelId, SpanRange};

use super::{Local, Source, cost::nanos};

/// So many requests make an average that is believed over what a peer claims.
const ENOUGH: u32 = 3;

/// Peers and models remembered; those that were measured longest ago give way.
const MAX_SPEEDS: usize = 1024;
/// Pairs of peers.
const MAX_HOPS: usize = 4096;

/// A new sample weighs one part in this many: the last few requests decide.
const WEIGHT: u64 = 3;

/// Sessions that count as having gone well before a peer's first: one failure in ten is what a stranger is trusted with.
const PRIOR_GOOD: u32 = 18;
const PRIOR_BAD: u32 = 2;
/// Sessions after which older ones begin to be forgotten.
const REMEMBERED: u32 = 200;

/// A prompt's row costs at least this part of an answer's, whatever a short request makes of it.
const PREFILL_FLOOR: u64 = 50;

/// A moving average.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mean {
    value: u64,
    samples: u32,
}

impl Mean {
    fn add(&mut self, sample: u64) {
        // The first few are a plain mean, so that the first one does not weigh more than the rest.
        let weight = WEIGHT.min(u64::from(self.samples) + 1);
        self.value = self.value - self.value / weight + sample / weight;
        self.samples = self.samples.saturating_add(1);
    }

    fn enough(self) -> Option<u64> {
        (self.samples >= ENOUGH).then_some(self.value)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Speed {
    decode: Mean,
    prefill: Mean,
    queue: Mean,
    touched: u64,
}

#[derive(Debug, Clone, Copy)]
struct Reliability {
    good: u32,
    bad: u32,
    touched: u64,
}

/// What one stage of a finished request did, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StageSaid {
    pub(crate) peer: PeerId,
    pub(crate) span: SpanRange,
    /// Nanoseconds that it computed, in all.
    pub(crate) compute_ns: u64,
    /// Nanoseconds that its batches waited, in all.
    pub(crate) queue_ns: u64,
    /// Nanoseconds one way to the next stage.
    pub(crate) hop_ns: Option<u64>,
}

/// What a request took, measured here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Took {
    /// Rows of the prompt that were computed, and the time until the last of them was back.
    pub(crate) prompt_rows: u64,
    pub(crate) prompt_ns: u64,
    /// Rows of the answer, the passes that they took, and the time of all passes.
    pub(crate) answer_rows: u64,
    pub(crate) passes: u64,
    pub(crate) answer_ns: u64,
}

impl Took {
    /// One pass of `rows` rows of the answer.
    pub(crate) fn pass(&mut self, rows: u64, time: Duration) {
        self.answer_rows = self.answer_rows.saturating_add(rows);
        self.passes = self.passes.saturating_add(1);
        self.answer_ns = self.answer_ns.saturating_add(nanos(time));
    }
}

/// What is known of a peer's speed with a model, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) decode_ns: Option<u64>,
    pub(crate) prefill_ns: Option<u64>,
    pub(crate) queue_ns: Option<u64>,
}

/// Moving averages by peer and model, by pair of peers, and by peer.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// This node's, with whole models.
    unsplit: HashMap<ModelId, Speed>,
    speeds: HashMap<(PeerId, ModelId), Speed>,
    hops: HashMap<(PeerId, PeerId), (Mean, u64)>,
    reliability: HashMap<PeerId, Reliability>,
    bandwidth: HashMap<PeerId, (Mean, u64)>,
    clock: u64,
}

impl Observed {
    /// Takes a request that a chain has answered. `ways_ns` is what rows spent on their way, all links of the chain
    /// together, as far as it is known.
    pub(crate) fn answered(&mut self, model: ModelId, stages: &[StageSaid], took: Took, ways_ns: u64) {
        let layers: u64 = stages.iter().map(|stage| u64::from(stage.span.count())).sum();
        if layers == 0 || took.passes == 0 {
            return;
        }
        let clock = self.tick();
        let pass = took.answer_ns / took.passes;
        let computing = pass.saturating_sub(ways_ns);
        // What a prompt's row costs beside an answer's, in parts of a thousand: reports do not keep the two apart.
        let per_prompt_row = took.prompt_ns.saturating_sub(ways_ns) / took.prompt_rows.max(1);
        let ratio = (per_prompt_row.saturating_mul(1000) / computing.max(1)).clamp(1000 / PREFILL_FLOOR, 1000);
        let rows = took.passes.saturating_add(took.prompt_rows.saturating_mul(ratio) / 1000).max(1);
        let said = |stage: &StageSaid| (stage.compute_ns / rows, stage.queue_ns / rows);
        let explained: u64 = stages.iter().map(|stage| said(stage).0.saturating_add(said(stage).1)).sum();
        let unexplained = computing.saturating_sub(explained);
        for stage in stages {
            let (mut compute, mut queue) = said(stage);
            if explained > computing {
                // More than there was: the parts count, not the sum.
                let scale = |ns: u64| scaled(ns, computing, explained);
                (compute, queue) = (scale(compute), scale(queue));
            }
            let own = u64::from(stage.span.count());
            let charged = scaled(unexplained, own, layers);
            let decode = compute.saturating_add(charged) / own.max(1);
            let entry = self.speeds.entry((stage.peer, model)).or_default();
            entry.touched = clock;
            entry.decode.add(decode);
            entry.queue.add(queue);
            if took.prompt_rows > 0 {
                entry.prefill.add(scaled(decode, ratio, 1000));
            }
        }
        for (from, to) in stages.iter().zip(stages.iter().skip(1)) {
            if let Some(ns) = from.hop_ns {
                let (mean, touched) = self.hops.entry((from.peer, to.peer)).or_default();
                mean.add(ns);
                *touched = clock;
            }
        }
        self.forget();
    }

    /// Takes a request that this node has answered with the whole model.
    pub(crate) fn answered_here(&mut self, model: ModelId, layers: u64, took: Took) {
        let clock = self.tick();
        let speed = self.unsplit.entry(model).or_default();
        speed.touched = clock;
        if let Some(pass) = took.answer_ns.checked_div(took.passes) {
            speed.decode.add(pass / layers.max(1));
        }
        if let Some(row) = took.prompt_ns.checked_div(took.prompt_rows) {
            speed.prefill.add(row / layers.max(1));
        }
        self.forget();
    }

    /// How fast this node runs a whole model, once that is known.
    pub(crate) fn unsplit(&self, model: ModelId) -> Option<Local> {
        let speed = self.unsplit.get(&model)?;
        let decode_ns = speed.decode.enough()?;
        let prefill_ns = speed.prefill.enough().unwrap_or(decode_ns);
        Some(Local { decode_ns, prefill_ns, source: Source::Measured })
    }

    /// Rows took so long from one peer to another.
    pub(crate) fn way(&mut self, from: PeerId, to: PeerId, one_way_ns: u64) {
        let clock = self.tick();
        let (mean, touched) = self.hops.entry((from, to)).or_default();
        mean.add(one_way_ns);
        *touched = clock;
        self.forget();
    }

    /// A session went well, or this peer ended it.
    pub(crate) fn ended(&mut self, peer: PeerId, well: bool) {
        let clock = self.tick();
        let new = Reliability { good: PRIOR_GOOD, bad: PRIOR_BAD, touched: clock };
        let known = self.reliability.entry(peer).or_insert(new);
        known.touched = clock;
        let count = if well { &mut known.good } else { &mut known.bad };
        *count += 1;
        if known.good + known.bad > REMEMBERED {
            known.good /= 2;
            known.bad = known.bad.div_ceil(2);
        }
        self.forget();
    }

    /// Bytes per second that a peer took in.
    pub(crate) fn carried(&mut self, peer: PeerId, bytes_per_s: u64) {
        let clock = self.tick();
        let (mean, touched) = self.bandwidth.entry(peer).or_default();
        mean.add(bytes_per_s);
        *touched = clock;
        self.forget();
    }

    /// What is believed of a peer's speed.
    pub(crate) fn speed(&self, peer: PeerId, model: ModelId) -> Seen {
        let Some(speed) = self.speeds.get(&(peer, model)) else { return Seen::default() };
        Seen { decode_ns: speed.decode.enough(), prefill_ns: speed.prefill.enough(), queue_ns: speed.queue.enough() }
    }

    /// Of a million sessions, those that a peer does not finish.
    pub(crate) fn risk_ppm(&self, peer: PeerId) -> u32 {
        let (good, bad) = self.reliability.get(&peer).map_or((PRIOR_GOOD, PRIOR_BAD), |known| (known.good, known.bad));
        u32::try_from(u64::from(bad) * 1_000_000 / u64::from(good + bad).max(1)).unwrap_or(u32::MAX)
    }

    /// Bytes per second to a peer, once there is anything to go by.
    pub(crate) fn bytes_per_s(&self, peer: PeerId) -> Option<u64> {
        self.bandwidth.get(&peer).map(|(mean, _)| mean.value)
    }

    /// Mean one-way times between peers, in nanoseconds.
    pub(crate) fn hops(&self) -> impl Iterator<Item = (PeerId, PeerId, u64)> {
        self.hops.iter().map(|((from, to), (mean, _))| (*from, *to, mean.value))
    }

    /// How much is remembered, by kind; the pairs of peers last.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        [self.speeds.len(), self.reliability.len(), self.bandwidth.len(), self.hops.len()]
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Drops the older half of what has outgrown its bound.
    fn forget(&mut self) {
        halve(&mut self.unsplit, MAX_SPEEDS, |speed| speed.touched);
        halve(&mut self.speeds, MAX_SPEEDS, |speed| speed.touched);
        halve(&mut self.hops, MAX_HOPS, |(_, touched)| *touched);
        halve(&mut self.reliability, MAX_SPEEDS, |known| known.touched);
        halve(&mut self.bandwidth, MAX_SPEEDS, |(_, touched)| *touched);
    }
}

fn halve<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, max: usize, touched: impl Fn(&V) -> u64) {
    if map.len() <= max {
        return;
    }
    let mut ages: Vec<u64> = map.values().map(&touched).collect();
    let middle = max / 2;
    let (_, from, _) = ages.select_nth_unstable_by(middle, |a, b| b.cmp(a));
    let from = *from;
    map.retain(|_, value| touched(value) > from);
}

/// `ns` times `part` of `whole`.
fn scaled(ns: u64, part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(part) / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}
