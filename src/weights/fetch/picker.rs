//! Which chunks to ask whom for next. Pure: no clock, no network.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use quelea_engine::Outline;
use quelea_weights::{Bitmap, MAX_BYTES, MAX_RUN};

/// Questions to one peer at once: the second is answered while the first is on its way.
const PER_PEER: u8 = 2;

/// Between two questions to one peer in the long run: 40 a second, of the 64 that it answers ([`quelea_weights::PEER_RATE`]). Who
/// asks more is taken for a flood.
const PACE: Duration = Duration::from_millis(25);

/// Questions that may come before their time, so that a wait for the next look at a peer loses none.
const AHEAD: u32 = 16;

/// Failures in a row after which a peer is left alone for the rest of the pull.
const FAULTS: u8 = 5;

/// Wait after the first failure; each further one doubles it.
const BACKOFF: Duration = Duration::from_millis(500);

/// For how long a question is waited for before its chunks are asked of another peer, too: 1 MiB at 2 Mbit/s takes 4 s.
const SLOW: Duration = Duration::from_secs(5);

/// How long an order of chunks is used after peers have told of more: sorting tens of thousands takes milliseconds.
const ORDER_FOR: Duration = Duration::from_secs(1);

/// Peers that are asked for one model at once.
pub(super) const MAX_PEERS: usize = 16;

/// A run of chunks that one question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u16,
}

impl Run {
    pub(super) fn chunks(self) -> std::ops::Range<u32> {
        self.first..self.first.saturating_add(u32::from(self.count))
    }
}

/// How a question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The chunks are kept.
    Stored,
    /// The bytes were others.
    Corrupt,
    /// The peer does not have them (any more).
    Missing,
    /// The peer asks for time.
    Busy(Duration),
    /// No answer.
    Failed,
}

#[derive(Debug)]
struct Source {
    have: Bitmap,
    asked: u8,
    faults: u8,
    not_before: Instant,
    /// When all questions so far have had their time.
    paced: Instant,
}

impl Source {
    fn is_free(&self, now: Instant) -> bool {
        self.asked < PER_PEER && self.not_before <= now && self.paced <= now + PACE * AHEAD
    }
}

/// A question that has no answer yet.
#[derive(Debug)]
struct Asked {
    peer: PeerId,
    run: Run,
    since: Instant,
    /// Its chunks may be asked of others.
    slow: bool,
}

/// What is missing, who has it, and what is under way.
#[derive(Debug)]
pub(super) struct Picker {
    /// Not here yet, under way or not.
    missing: BTreeSet<u32>,
    /// Those that may be asked for, the rarest first; all others of `missing` are under way.
    ranked: Vec<u32>,
    /// Peers have told more since chunks were ranked.
    told: bool,
    ranked_at: Option<Instant>,
    under_way: Vec<Asked>,
    sources: HashMap<PeerId, Source>,
    /// Peers that are not asked again.
    out: HashSet<PeerId>,
    /// Orders chunks that are equally rare, differently on each node, so that nodes that pull together have something for
    /// each other.
    order: RandomState,
}

impl Picker {
    pub(super) fn new(missing: BTreeSet<u32>) -> Self {
        let mut picker = Self {
            missing: BTreeSet::new(),
            ranked: Vec::new(),
            told: false,
            ranked_at: None,
            under_way: Vec::new(),
            sources: HashMap::new(),
            out: HashSet::new(),
            order: RandomState::new(),
        };
        picker.add(missing);
        picker
    }

    /// More that is missing.
    pub(super) fn add(&mut self, missing: BTreeSet<u32>) {
        self.missing.extend(missing);
        self.ranked_at = None;
    }

    /// Whether nothing is missing.
    pub(super) fn is_done(&self) -> bool {
        self.missing.is_empty()
    }

    /// Whether a peer may be asked what it has.
    pub(super) fn wants(&self, peer: &PeerId) -> bool {
        !self.out.contains(peer)
            && (self.sources.contains_key(peer)
                || self.sources.len() < MAX_PEERS
                || self.sources.values().any(|source| self.is_useless(source)))
    }

    /// A peer has told what it has.
    pub(super) fn learn(&mut self, peer: PeerId, have: Bitmap, now: Instant) {
        if !self.wants(&peer) {
            return;
        }
        if !self.sources.contains_key(&peer) && self.sources.len() >= MAX_PEERS {
            let useless = self.sources.iter().find(|(_, source)| self.is_useless(source)).map(|(peer, _)| *peer);
            useless.and_then(|peer| self.sources.remove(&peer));
        }
        let new = Source { have: Bitmap::default(), asked: 0, faults: 0, not_before: now, paced: now };
        self.sources.entry(peer).or_insert(new).have = have;
        self.told = true;
    }

    /// Whether a peer has nothing for us, at least at present.
    fn is_useless(&self, source: &Source) -> bool {
        source.asked == 0 && !self.missing.iter().any(|chunk| source.have.has(*chunk))
    }

    /// Peers that are asked at present.
    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Whether anybody has any of what is missing.
    pub(super) fn has_hope(&self) -> bool {
        !self.under_way.is_empty() || self.missing.iter().any(|c| self.sources.values().any(|s| s.have.has(*c)))
    }

    /// The next question. What it asks for counts as under way until [`Picker::ended`].
    pub(super) fn next(&mut self, outline: &Outline, now: Instant) -> Option<(PeerId, Run)> {
        if !self.sources.values().any(|source| source.is_free(now)) {
            return None;
        }
        self.rank(now);
        let can = |chunk: u32| self.sources.values().any(|source| source.is_free(now) && source.have.has(chunk));
        let at = self.ranked.iter().position(|chunk| can(*chunk));
        let (first, again) = match at {
            Some(at) => (self.ranked.remove(at), false),
            // Nothing else is left to ask: whoever is slow is not waited for alone.
            None => (self.slow_chunk(now)?, true),
        };
        let late = |peer: &PeerId| again && self.has_under_way(peer, first);
        let able = self.sources.iter().filter(|(peer, s)| s.is_free(now) && s.have.has(first) && !late(peer));
        let peer = *able.min_by_key(|(peer, source)| (source.asked, source.faults, self.order.hash_one(peer)))?.0;
        let mut run = Run { first, count: 1 };
        if !again {
            self.lengthen(&mut run, peer, outline);
        }
        let source = self.sources.get_mut(&peer)?;
        source.asked = source.asked.saturating_add(1);
        source.paced = source.paced.max(now) + PACE;
        self.under_way.push(Asked { peer, run, since: now, slow: false });
        Some((peer, run))
    }

    /// Small neighbours travel with a chunk.
    fn lengthen(&mut self, run: &mut Run, peer: PeerId, outline: &Outline) {
        let Some(source) = self.sources.get(&peer) else { return };
        let mut bytes = outline.chunk_len(run.first);
        while run.count < MAX_RUN {
            let next = run.first.saturating_add(u32::from(run.count));
            bytes = bytes.saturating_add(outline.chunk_len(next));
            if bytes > u64::from(MAX_BYTES) || !source.have.has(next) || !self.missing.contains(&next) {
                return;
            }
            // What is missing but not ranked is under way.
            let Some(at) = self.ranked.iter().position(|chunk| *chunk == next) else { return };
            self.ranked.remove(at);
            run.count = run.count.saturating_add(1);
        }
    }

    /// Puts what may be asked for in order, when there is more to say about it than before.
    fn rank(&mut self, now: Instant) {
        let fresh = self.ranked_at.is_some_and(|at| !self.told || now.saturating_duration_since(at) < ORDER_FOR);
        if fresh {
            return;
        }
        let busy: HashSet<u32> = self.under_way.iter().flat_map(|asked| asked.run.chunks()).collect();
        let rarity = |chunk: u32| self.sources.values().filter(|source| source.have.has(chunk)).count();
        let free = self.missing.iter().copied().filter(|chunk| !busy.contains(chunk));
        let mut ranked: Vec<_> = free.map(|chunk| (rarity(chunk), self.order.hash_one(chunk), chunk)).collect();
        ranked.sort_unstable();
        self.ranked = ranked.into_iter().map(|(.., chunk)| chunk).collect();
        (self.told, self.ranked_at) = (false, Some(now));
    }

    /// A chunk that is waited for longer than usual, and that somebody else could give.
    fn slow_chunk(&mut self, now: Instant) -> Option<u32> {
        for asked in &mut self.under_way {
            asked.slow |= now.saturating_duration_since(asked.since) >= SLOW;
        }
        let slow = self.under_way.iter().filter(|asked| asked.slow).flat_map(|asked| asked.run.chunks());
        slow.filter(|chunk| self.missing.contains(chunk)).find(|chunk| {
            let asked_of = self.under_way.iter().filter(|asked| asked.run.chunks().contains(chunk));
            let other = |(peer, source): (&PeerId, &Source)| {
                source.is_free(now) && source.have.has(*chunk) && !self.has_under_way(peer, *chunk)
            };
            // Two at once are enough.
            asked_of.count() < 2 && self.sources.iter().any(other)
        })
    }

    fn has_under_way(&self, peer: &PeerId, chunk: u32) -> bool {
        self.under_way.iter().any(|asked| asked.peer == *peer && asked.run.chunks().contains(&chunk))
    }

    /// A question has ended. How many chunks are here by it that were not before.
    pub(super) fn ended(&mut self, peer: PeerId, run: Run, outcome: Outcome, now: Instant) -> u32 {
        if let Some(at) = self.under_way.iter().position(|asked| asked.peer == peer && asked.run == run) {
            self.under_way.swap_remove(at);
        }
        let mut new = 0_u32;
        if outcome == Outcome::Stored {
            new = run.chunks().fold(0, |sum, chunk| sum.saturating_add(u32::from(self.missing.remove(&chunk))));
            // Somebody faster may have given what was asked for again.
            self.ranked.retain(|chunk| !run.chunks().contains(chunk));
        } else {
            // First again: they were the rarest when they were asked for.
            let again = run.chunks().filter(|chunk| self.missing.contains(chunk));
            let again: Vec<u32> =
                again.filter(|c| !self.under_way.iter().any(|a| a.run.chunks().contains(c))).collect();
            self.ranked.splice(0..0, again);
        }
        let Some(source) = self.sources.get_mut(&peer) else { return new };
        source.asked = source.asked.saturating_sub(1);
        match outcome {
            Outcome::Stored => source.faults = 0,
            Outcome::Corrupt => self.drop_out(peer),
            Outcome::Missing => {
                run.chunks().for_each(|chunk| source.have.set(chunk, false));
                // Now and then a chunk goes; who always has less than it said is no source.
                self.fault(peer);
            }
            Outcome::Busy(retry) => source.not_before = now + retry,
            Outcome::Failed => {
                source.not_before = now + BACKOFF * 2_u32.pow(u32::from(source.faults.min(FAULTS)));
                self.fault(peer);
            }
        }
        new
    }

    fn fault(&mut self, peer: PeerId) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.faults = source.faults.saturating_add(1);
            if source.faults >= FAULTS {
                self.drop_out(peer);
            }
        }
    }

    fn drop_out(&mut self, peer: PeerId) {
        self.sources.remove(&peer);
        self.out.insert(peer);
        self.told = true;
    }
}

#[cfg(test)]
mod tests;
