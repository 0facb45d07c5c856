//! Who has how many pages, and which pages are kept for prompts that begin alike: plain accounting.
//!
//! A page is counted once: as a session's own, or as a block of the prefix cache, however many sessions share it. A
//! block that some session uses cannot go; the others are free for whoever needs pages, least recently used first, and
//! of a prompt the end before the beginning; after [`FORGET`] they go without being needed. `own + blocks <= total` always.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::prefix::PrefixKey;

/// What somebody has asked does not stay in memory for ever because nobody else comes: blocks that no session has used for
/// so long, at most twice as long, are forgotten. Longer than most conversations pause.
const FORGET: Duration = Duration::from_secs(3600);

/// The pages of a stage. `B` is what a block keeps.
#[derive(Debug)]
pub(super) struct Pages<B> {
    total: u32,
    /// Pages that sessions have for themselves, used or not yet.
    own: u32,
    blocks: BTreeMap<PrefixKey, Block<B>>,
    /// Blocks that no session uses, the next to go first.
    unused: BTreeSet<(u64, Reverse<usize>, PrefixKey)>,
    /// Counts what happens, to tell how recently a block was used.
    clock: u64,
    /// When old blocks were last forgotten, and what the clock said.
    swept: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct Block<B> {
    kept: B,
    /// Its place in the prompt.
    index: usize,
    /// Sessions that use it.
    users: u32,
    used: u64,
}

impl<B> Pages<B> {
    pub(super) fn new(total: u32) -> Self {
        Self { total, own: 0, blocks: BTreeMap::new(), unused: BTreeSet::new(), clock: 0, swept: None }
    }

    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Pages that a session could have now.
    pub(super) fn free(&self) -> u32 {
        let in_use = self.blocks.len().saturating_sub(self.unused.len());
        self.total.saturating_sub(self.own).saturating_sub(u32::try_from(in_use).unwrap_or(u32::MAX))
    }

    /// Pages of the prefix cache, used or not.
    pub(super) fn cached(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    /// Takes pages for a session, out of the prefix cache if need be; says whether there were enough.
    pub(super) fn take(&mut self, pages: u32) -> bool {
        if pages > self.free() {
            return false;
        }
        self.own = self.own.saturating_add(pages);
        while self.own.saturating_add(self.cached()) > self.total {
            let Some((.., key)) = self.unused.pop_first() else { break };
            self.blocks.remove(&key);
        }
        true
    }

    /// Forgets blocks that no session has used since the sweep before the last; see [`FORGET`].
    pub(super) fn forget_old(&mut self, now: Instant) {
        let (at, clock) = *self.swept.get_or_insert((now, self.clock));
        if now.saturating_duration_since(at) < FORGET {
            return;
        }
        while let Some((.., key)) = self.unused.first().copied().filter(|(used, ..)| *used <= clock) {
            self.unused.pop_first();
            self.blocks.remove(&key);
        }
        self.swept = Some((now, self.clock));
    }

    /// A session gives pages of its own back.
    pub(super) fn give_back(&mut self, pages: u32) {
        self.own = self.own.saturating_sub(pages);
    }

    /// What is kept under a key.
    pub(super) fn get(&self, key: &PrefixKey) -> Option<&B> {
        self.blocks.get(key).map(|block| &block.kept)
    }

    /// A session uses a block from now on; says whether it is there.
    pub(super) fn pin(&mut self, key: &PrefixKey) -> bool {
        let Some(block) = self.blocks.get_mut(key) else { return false };
        self.unused.remove(&(block.used, Reverse(block.index), *key));
        block.users = block.users.saturating_add(1);
        true
    }

    /// A session uses these blocks, which it has pinned, no more.
    pub(super) fn unpin(&mut self, keys: &[PrefixKey]) {
        self.clock = self.clock.wrapping_add(1);
        for key in keys {
            let Some(block) = self.blocks.get_mut(key) else { continue };
            block.users = block.users.saturating_sub(1);
            block.used = self.clock;
            if block.users == 0 {
                self.unused.insert((block.used, Reverse(block.index), *key));
            }
        }
    }

    /// Makes a session's own page the block `index` of its prompt, which the session goes on using. The key must be new.
    pub(super) fn publish(&mut self, key: PrefixKey, index: usize, kept: B) {
        self.give_back(1);
        self.blocks.insert(key, Block { kept, index, users: 1, used: self.clock });
    }

    /// That the books are right.
    #[cfg(test)]
    pub(super) fn check(&self, own: u32, users: &BTreeMap<PrefixKey, u32>) {
        assert_eq!(self.own, own, "pages of sessions");
        assert!(self.own + self.cached() <= self.total, "{} + {} of {}", self.own, self.cached(), self.total);
        for (key, block) in &self.blocks {
            assert_eq!(block.users, users.get(key).copied().unwrap_or(0), "users of a block");
            assert_eq!(block.users == 0, self.unused.contains(&(block.used, Reverse(block.index), *key)));
        }
        assert!(users.keys().all(|key| self.blocks.contains_key(key)), "a used block has gone");
        assert_eq!(self.unused.len(), self.blocks.values().filter(|block| block.users == 0).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_nobody_asks_for_are_forgotten() {
        let mut pages = Pages::new(8);
        let (start, key) = (Instant::now(), |n: u8| [n; 32]);
        assert!(pages.take(3));
        (0..3_u8).for_each(|n| pages.publish(key(n), usize::from(n), ()));
        pages.unpin(&[key(1), key(2)]);
        pages.forget_old(start);
        pages.forget_old(start + FORGET - Duration::from_secs(1));
        assert_eq!(pages.cached(), 3);
        assert!(pages.pin(&key(2)));
        pages.unpin(&[key(2)]);
        pages.forget_old(start + FORGET);
        assert_eq!([0, 1, 2].map(|n| pages.get(&key(n)).is_some()), [true, false, true], "one was used again");
        pages.forget_old(start + 2 * FORGET);
        assert_eq!([0, 1, 2].map(|n| pages.get(&key(n)).is_some()), [true, false, false], "one is in use");
        assert_eq!((pages.free(), pages.cached()), (7, 1));
    }

    #[test]
    fn blocks_give_way_from_the_end_of_the_prompt_used_longest_ago() {
        let mut pages = Pages::new(8);
        let key = |n: u8| [n; 32];
        assert!(pages.take(6));
        (0..3_u8).for_each(|n| pages.publish(key(n), usize::from(n), ()));
        (3..6_u8).for_each(|n| pages.publish(key(n), usize::from(n - 3), ()));
        assert_eq!((pages.free(), pages.cached()), (2, 6));
        pages.unpin(&[key(0), key(1), key(2)]);
        pages.unpin(&[key(3), key(4), key(5)]);
        assert_eq!((pages.free(), pages.cached()), (8, 6));
        assert!(pages.take(4));
        assert_eq!([1, 2, 3].map(|n| pages.get(&key(n)).is_some()), [false, false, true]);
        assert!(pages.pin(&key(3)) && !pages.pin(&key(1)));
        assert!(!pages.take(4) && pages.take(3), "one is in use");
        assert_eq!((pages.free(), pages.cached()), (0, 1));
    }
}
