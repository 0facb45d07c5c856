//! What a stage and a link cost, in nanoseconds.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;
use quelea_announce::Announcement;

use super::{Candidate, Objective, Query, Room};

/// Rows of a prompt that travel as one batch.
pub(super) const CHUNK_ROWS: u64 = quelea_engine::PREFILL_CHUNK as u64;

/// The round trip to a peer that nobody has measured: pessimistic, so that a measured one is preferred.
pub(crate) const UNKNOWN_RTT: Duration = Duration::from_millis(200);

/// What a session costs that a stage does not finish: noticing, and computing its rows again elsewhere.
const RECOVERY_NS: u64 = 5_000_000_000;

/// What it costs to ask a peer that may be full: a refusal, and opening another chain.
const ASK_IN_VAIN_NS: u64 = 2_000_000_000;

/// What a peer that sees something of a private request counts: more than any answer takes.
const SEEN_NS: u64 = 100_000_000_000_000;

/// A thousandth of a micro-credit, in nanoseconds of a request that is to be cheap: no time that is saved is worth one.
const PRICE_NS: u64 = 1_000_000;

/// Where time is not the objective, it still decides between equals.
const TIE_SHARE: u64 = 1000;

/// Where throughput is, a chain that is twice as slow for each needs to be a little faster for all.
const LATENCY_SHARE: u64 = 50;

/// One-way times between peers, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    here: Option<PeerId>,
    /// Between this node and a peer: half of the round trip.
    ours: HashMap<PeerId, u64>,
    /// The same, by what others say.
    estimated: HashMap<PeerId, u64>,
    /// From one peer to another, as measured by stages of our own sessions.
    measured: HashMap<(PeerId, PeerId), u64>,
    /// Between two peers, as one of them says.
    attested: HashMap<(PeerId, PeerId), u64>,
}

impl Links {
    pub(crate) fn new(here: PeerId) -> Self {
        Self { here: Some(here), ..Self::default() }
    }

    /// What ping says.
    pub(crate) fn set_rtt(&mut self, peer: PeerId, rtt: Duration) {
        self.ours.insert(peer, nanos(rtt) / 2);
    }

    /// The mean one-way time of the fragments that `from` sent to `to` for us.
    pub(crate) fn set_measured(&mut self, from: PeerId, to: PeerId, one_way_ns: u64) {
        self.measured.insert((from, to), one_way_ns);
    }

    /// `from` says that `to` is so far away.
    pub(crate) fn set_attested(&mut self, from: PeerId, to: PeerId, rtt: Duration) {
        self.attested.insert(pair(from, to), nanos(rtt) / 2);
    }

    /// What peers say of their distances to each other, and to those that we have not measured ourselves.
    pub(crate) fn attest(&mut self, said: &[&Announcement]) {
        for announcement in said {
            for (to, ms) in &announcement.rtt {
                self.set_attested(announcement.peer, *to, Duration::from_millis(u64::from(*ms)));
            }
        }
        // To a peer that we have no ping of: by way of those that have one, the middle one of their words, and never nearer
        // than half of what a stranger is taken for.
        for announcement in said {
            let peer = announcement.peer;
            if self.ours.contains_key(&peer) || self.here == Some(peer) {
                continue;
            }
            let by_way = |via: &&&Announcement| {
                let (ours, theirs) = (self.ours.get(&via.peer)?, self.attested.get(&pair(via.peer, peer))?);
                Some(ours.saturating_add(*theirs))
            };
            let mut ways: Vec<u64> = said.iter().filter_map(|via| by_way(&via)).collect();
            ways.sort_unstable();
            if let Some(way) = ways.get(ways.len() / 2) {
                let unknown = nanos(UNKNOWN_RTT) / 2;
                self.estimated.insert(peer, (*way).clamp(unknown / 2, unknown * 2));
            }
        }
    }

    /// Whether anything but a guess is known.
    pub(crate) fn knows(&self, a: PeerId, b: PeerId) -> bool {
        self.measured.contains_key(&(a, b)) || self.of_us(a, b).is_some_and(|peer| self.ours.contains_key(&peer))
    }

    fn of_us(&self, a: PeerId, b: PeerId) -> Option<PeerId> {
        match self.here {
            Some(here) if here == a => Some(b),
            Some(here) if here == b => Some(a),
            _ => None,
        }
    }

    fn known(&self, peer: PeerId) -> u64 {
        let known = self.ours.get(&peer).or_else(|| self.estimated.get(&peer));
        known.copied().unwrap_or(nanos(UNKNOWN_RTT) / 2)
    }

    /// One way from `a` to `b`: as measured, else as attested within what geometry allows, else by way of us.
    ///
    /// What others say moves an estimate no further than the triangle of the three: a peer that claims to be next to
    /// everybody gains nothing over what we measured to both ends.
    pub(crate) fn one_way(&self, a: PeerId, b: PeerId) -> u64 {
        if a == b {
            return 0;
        }
        if let Some(ns) = self.measured.get(&(a, b)) {
            return *ns;
        }
        if let Some(peer) = self.of_us(a, b) {
            return self.known(peer);
        }
        let (near, far) = (self.known(a), self.known(b));
        // Half the way through us is what two peers at random directions have.
        let guess = near.saturating_add(far) / 2;
        match self.attested.get(&pair(a, b)) {
            Some(ns) => (*ns).clamp(near.abs_diff(far), near.saturating_add(far)),
            None => guess.max(near.abs_diff(far)),
        }
    }
}

fn pair(a: PeerId, b: PeerId) -> (PeerId, PeerId) {
    if a < b { (a, b) } else { (b, a) }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Time for `bytes` at `per_s`.
pub(crate) fn transfer(bytes: u64, per_s: u64) -> u64 {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(per_s.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Something that grows with the number of layers.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    fixed: u64,
    per_layer: u64,
}

impl Line {
    fn at(self, layers: u16) -> u64 {
        self.fixed.saturating_add(self.per_layer.saturating_mul(u64::from(layers)))
    }
}

/// A query's costs: those of its stages and links add up; of their peaks the greatest counts, [`Costs::peaks`] times.
pub(super) struct Costs<'a> {
    query: &'a Query,
    candidates: &'a [Candidate],
    links: &'a Links,
    stages: Vec<(Line, Line)>,
    /// How often the greatest peak counts.
    pub(super) peaks: u64,
}

/// What is added to a path, and what it must bear at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) sum: u64,
    pub(super) peak: u64,
}

impl Cost {
    pub(super) fn plus(self, other: Self) -> Self {
        Self { sum: self.sum.saturating_add(other.sum), peak: self.peak.max(other.peak) }
    }

    pub(super) fn score(self, peaks: u64) -> u128 {
        u128::from(self.sum) + u128::from(self.peak) * u128::from(peaks)
    }
}

impl<'a> Costs<'a> {
    pub(super) fn new(query: &'a Query, candidates: &'a [Candidate], links: &'a Links) -> Self {
        let chunks = query.chunks();
        let peaks = match query.objective {
            Objective::Latency | Objective::Private => chunks - 1,
            Objective::Throughput => query.answer_rows.saturating_add(chunks),
            // What is cheap is cheap at any speed.
            Objective::Price => 0,
        };
        let stages = candidates.iter().map(|candidate| stage(query, candidate)).collect();
        Self { query, candidates, links, stages, peaks }
    }

    /// `layers` layers at a candidate.
    pub(super) fn stage(&self, candidate: usize, layers: u16) -> Cost {
        let (sum, peak) = self.stages.get(candidate).copied().unwrap_or_default();
        Cost { sum: sum.at(layers), peak: peak.at(layers) }
    }

    /// From the stage before, or from whoever gives the rows.
    pub(super) fn link(&self, before: Option<usize>, candidate: usize) -> Cost {
        let Some(to) = self.candidates.get(candidate) else { return Cost::default() };
        let from = before.and_then(|before| self.candidates.get(before));
        let from_peer = from.map_or(self.query.from, |from| from.peer);
        if from_peer == to.peer {
            return Cost::default();
        }
        let one_way = self.links.one_way(from_peer, to.peer);
        let per_s = from.map_or(to.bytes_per_s, |from| from.bytes_per_s.min(to.bytes_per_s));
        let row = if from.is_none() { self.query.bytes_in() } else { self.query.row_bytes };
        self.weigh(one_way, per_s, row, self.query.chunk_rows())
    }

    /// To whoever takes the rows. Of a prompt only its last row comes back.
    pub(super) fn back(&self, last: usize) -> Cost {
        let Some(from) = self.candidates.get(last).filter(|from| from.peer != self.query.to) else {
            return Cost::default();
        };
        let rows = if self.query.to == self.query.here { 1 } else { self.query.chunk_rows() };
        self.weigh(self.links.one_way(from.peer, self.query.to), from.bytes_per_s, self.query.bytes_out(), rows)
    }

    fn weigh(&self, one_way: u64, per_s: u64, row_bytes: u64, chunk_rows: u64) -> Cost {
        let query = self.query;
        let row = transfer(row_bytes, per_s);
        let chunk = transfer(row_bytes.saturating_mul(chunk_rows), per_s);
        let decode = query.answer_rows.saturating_mul(one_way.saturating_add(row));
        let time = decode.saturating_add(one_way).saturating_add(chunk);
        match query.objective {
            Objective::Latency | Objective::Private => Cost { sum: time, peak: chunk },
            Objective::Throughput => Cost { sum: time / LATENCY_SHARE, peak: row },
            Objective::Price => Cost { sum: time / TIE_SHARE, peak: 0 },
        }
    }
}

impl Query {
    /// Batches of the prompt.
    pub(super) fn chunks(&self) -> u64 {
        self.prompt_rows.div_ceil(CHUNK_ROWS).max(1)
    }

    /// Rows of one of them.
    pub(super) fn chunk_rows(&self) -> u64 {
        self.prompt_rows.clamp(1, CHUNK_ROWS)
    }
}

fn stage(query: &Query, candidate: &Candidate) -> (Line, Line) {
    let (answer, chunk) = (query.answer_rows, query.chunk_rows());
    let chunk_layer = chunk.saturating_mul(candidate.prefill_ns);
    let risk = u64::try_from(u128::from(RECOVERY_NS) * u128::from(candidate.risk_ppm) / 1_000_000).unwrap_or(u64::MAX);
    let waits = answer.saturating_add(1).saturating_mul(candidate.queue_ns);
    // One nanosecond for being there: of two chains that are alike otherwise the shorter one wins.
    let in_vain = if candidate.room(query) == Room::Enough { 0 } else { ASK_IN_VAIN_NS };
    let fixed = waits.saturating_add(risk).saturating_add(in_vain).saturating_add(1);
    let per_layer = answer.saturating_mul(candidate.decode_ns).saturating_add(chunk_layer);
    match query.objective {
        Objective::Latency => (Line { fixed, per_layer }, Line { fixed: candidate.queue_ns, per_layer: chunk_layer }),
        Objective::Private => {
            let seen = if candidate.peer == query.here { 0 } else { SEEN_NS };
            let sum = Line { fixed: fixed.saturating_add(seen), per_layer };
            (sum, Line { fixed: candidate.queue_ns, per_layer: chunk_layer })
        }
        Objective::Throughput => {
            let sum = Line { fixed: fixed / LATENCY_SHARE + 1, per_layer: per_layer / LATENCY_SHARE };
            (sum, Line { fixed: candidate.queue_ns, per_layer: candidate.decode_ns })
        }
        Objective::Price => {
            let (decode, prefill) = (candidate.price_decode, candidate.price_prefill);
            let thousandths = query.prompt_rows.saturating_mul(prefill).saturating_add(answer.saturating_mul(decode));
            let per_layer = thousandths.saturating_mul(PRICE_NS).saturating_add(per_layer / TIE_SHARE);
            (Line { fixed: fixed / TIE_SHARE + 1, per_layer }, Line::default())
        }
    }
}
