//! The memory of what was heard: exact while it is small, Bloom filters past a budget. Pure: no clock, no randomness but the
//! key.
//!
//! | | |
//! |---|---|
//! | exact | the [`EXACT_IDS`] most recent ids, 256 KiB at most |
//! | beyond them | two keyed Bloom filters of [`GENERATION_IDS`] ids each, 3.4 MiB each, made when first needed |
//! | most memory | 7.2 MiB |
//! | false positives | at most 10⁻⁶ for each filter when it is full, so at most 2×10⁻⁶ |
//!
//! A false positive takes a new message for an old one: it is dropped here, without a penalty for whoever sent it, and still
//! reaches other nodes, whose keys differ. That is tolerable for a line of text and for nothing that decides money, and it is
//! not used for what has an exact identity.
//!
//! An adversary who knew the positions of an id could choose ids that fill the filter or hit one message. So positions come
//! from SipHash with a secret key of each start; only *valid* messages are put in ([`super::gate`]), and a filter that holds
//! as many ids as it is made for is sealed: more ids push out old ones, and never raise the error.

mod bloom;

use std::collections::{HashSet, VecDeque};

use self::bloom::Filter;
use super::Id;

/// Ids kept exactly. 20 bytes in a queue and 20 in a set that is a third empty: about 64 bytes each, 256 KiB.
pub const EXACT_IDS: usize = 4096;

/// Ids in one filter: a line a millisecond for a quarter of an hour, longer than lines are believed.
pub const GENERATION_IDS: usize = 1_000_000;

/// Bytes for one id in the exact part.
const EXACT_BYTES: usize = 64;

/// What the dedup stage holds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DedupFigures {
    /// Ids in the exact part.
    pub exact_ids: usize,
    /// Ids in the filters.
    pub bloom_ids: usize,
    /// Bytes of memory.
    pub bytes: usize,
    /// Share of the bits that are set in the fuller filter, 0 to 1. Half, when it is sealed.
    pub fill: f64,
    /// The likelihood that an id that was never put in is taken for one that was, from the share of set bits.
    pub false_positives: f64,
}

/// The dedup stage.
#[derive(Debug)]
pub struct Dedup {
    key: [u8; 16],
    exact_ids: usize,
    generation_ids: usize,
    exact: HashSet<Id>,
    /// The same, oldest first.
    order: VecDeque<Id>,
    /// How many of them were there at the last [`Dedup::rotate`].
    aged: usize,
    current: Option<Filter>,
    sealed: Option<Filter>,
}

impl Dedup {
    /// An empty one. `key` is secret and fresh for every start.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        Self::with_sizes(key, EXACT_IDS, GENERATION_IDS)
    }

    /// With other sizes than the node's own.
    #[must_use]
    pub fn with_sizes(key: [u8; 16], exact_ids: usize, generation_ids: usize) -> Self {
        Self {
            key,
            exact_ids,
            generation_ids,
            exact: HashSet::new(),
            order: VecDeque::new(),
            aged: 0,
            current: None,
            sealed: None,
        }
    }

    /// Whether `id` was put in and is still remembered; or, rarely, a false positive.
    #[must_use]
    pub fn contains(&self, id: &Id) -> bool {
        let filters = [&self.current, &self.sealed];
        self.exact.contains(id) || filters.into_iter().flatten().any(|filter| filter.contains(&self.key, id))
    }

    /// Remembers the id of a message that was found valid. At least the next `generation_ids` ids do not push it out.
    pub fn insert(&mut self, id: Id) {
        if !self.exact.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > self.exact_ids
            && let Some(oldest) = self.forget_oldest()
        {
            self.spill(&oldest);
        }
    }

    /// Time has passed: forgets what has been here for long. With a call every `t`, an id is remembered for `t` at least, and
    /// for `3t` at most unless others push it along.
    pub fn rotate(&mut self) {
        for _ in 0..self.aged {
            self.forget_oldest();
        }
        self.aged = self.order.len();
        // A filter that got ids since the last call stays for one more period.
        if !self.sealed.as_mut().is_some_and(Filter::aged) {
            self.sealed = self.current.take();
            self.sealed.as_mut().map(Filter::aged);
        }
    }

    /// What it holds.
    #[must_use]
    pub fn figures(&self) -> DedupFigures {
        let filters = || [&self.current, &self.sealed].into_iter().flatten();
        let passes: f64 = filters().map(|filter| 1.0 - filter.false_positives()).product();
        DedupFigures {
            exact_ids: self.exact.len(),
            bloom_ids: filters().map(Filter::ids).fold(0, usize::saturating_add),
            bytes: filters()
                .map(Filter::bytes)
                .fold(self.exact.len().saturating_mul(EXACT_BYTES), usize::saturating_add),
            fill: filters().map(Filter::fill).fold(0.0, f64::max),
            false_positives: 1.0 - passes,
        }
    }

    fn forget_oldest(&mut self) -> Option<Id> {
        let oldest = self.order.pop_front()?;
        self.exact.remove(&oldest);
        self.aged = self.aged.saturating_sub(1);
        Some(oldest)
    }

    /// Moves an id from the exact part into the current filter. When that is full it is sealed, and the one before goes.
    fn spill(&mut self, id: &Id) {
        if self.current.as_ref().is_some_and(|filter| filter.ids() >= self.generation_ids) {
            // The buffer of the one that goes is used again: no more than two are ever there.
            let spare = std::mem::replace(&mut self.sealed, self.current.take());
            self.current = spare.map(Filter::cleared);
        }
        let size = self.generation_ids;
        self.current.get_or_insert_with(|| Filter::new(size)).insert(&self.key, id);
    }
}

#[cfg(test)]
mod tests;
