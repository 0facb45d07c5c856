//! How often something may be done: the generic cell rate algorithm (GCRA), by key, and by peer, address range and all
//! together.
//!
//! A cell remembers one instant: when its bucket will be full again. That is a token bucket without a timer, and the
//! clock is an argument, so that everything here is a pure function of what it was asked.

mod limiter;

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use libp2p::PeerId;

pub use self::limiter::{Limiter, Limits, Scope};

/// Keys remembered at once unless said otherwise. Four times the connections a node holds: a peer that reconnects finds its
/// bucket as it left it. Some 80 bytes each, so 80 KiB at most.
pub const MAX_KEYS: usize = 1024;

/// The longest period a quota may have; longer ones are cut to it. No limit of ours is about more than an hour, and sums
/// with instants stay far from the end of the clock.
pub const MAX_PERIOD: Duration = Duration::from_secs(3600);

/// `burst` at once, then one each `period / burst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    step: Duration,
    period: Duration,
}

impl Quota {
    /// `burst` per `period`; a burst of zero is taken as one, a period past [`MAX_PERIOD`] as that.
    #[must_use]
    pub fn new(burst: u32, period: Duration) -> Self {
        let period = period.min(MAX_PERIOD);
        let step = period.checked_div(burst.max(1)).unwrap_or(period);
        Self { step, period }
    }

    /// `burst` per second.
    #[must_use]
    pub fn per_second(burst: u32) -> Self {
        Self::new(burst, Duration::from_secs(1))
    }

    /// When a bucket that is full at `full_at` will be full after one more at `now`; `None` when there is no room.
    fn after(&self, full_at: Option<Instant>, now: Instant) -> Option<Instant> {
        let after = full_at.unwrap_or(now).max(now).checked_add(self.step)?;
        (after <= now.checked_add(self.period)?).then_some(after)
    }
}

/// One bucket.
#[derive(Debug, Clone)]
pub struct Cell {
    quota: Quota,
    full_at: Option<Instant>,
}

impl Cell {
    /// A full one.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self { quota, full_at: None }
    }

    /// Whether one more would be admitted at `now`. Nothing is counted.
    #[must_use]
    pub fn has_room(&self, now: Instant) -> bool {
        self.quota.after(self.full_at, now).is_some()
    }

    /// Whether one more may be done at `now`; if so it is counted.
    pub fn admit(&mut self, now: Instant) -> bool {
        let after = self.quota.after(self.full_at, now);
        self.full_at = after.or(self.full_at);
        after.is_some()
    }
}

/// Buckets by peer.
pub type PeerBuckets = Buckets<PeerId>;

/// Buckets by key, in a map with a bound.
///
/// A full bucket is the same as none, so those are dropped when room is needed. When every remembered key has spent
/// something and there is no room, the one that will be full soonest is forgotten: whoever fills the map with fresh
/// identities gains the little that one of them had spent, and keeps nobody out.
#[derive(Debug)]
pub struct Buckets<K> {
    quota: Quota,
    capacity: usize,
    /// When each bucket will be full again; never more than a period ahead.
    full_at: HashMap<K, Instant>,
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    /// `burst` per `period` for each of [`MAX_KEYS`] keys; zero is taken as one.
    #[must_use]
    pub fn new(burst: u32, period: Duration) -> Self {
        Self::with_capacity(Quota::new(burst, period), MAX_KEYS)
    }

    /// `quota` for each of at most `capacity` keys.
    #[must_use]
    pub fn with_capacity(quota: Quota, capacity: usize) -> Self {
        Self { quota, capacity: capacity.max(1), full_at: HashMap::new() }
    }

    /// Whether one more of `key` would be admitted at `now`. Nothing is counted.
    #[must_use]
    pub fn has_room(&self, key: &K, now: Instant) -> bool {
        self.quota.after(self.full_at.get(key).copied(), now).is_some()
    }

    /// Whether `key` may do one more at `now`; if so it is counted.
    pub fn admit(&mut self, key: K, now: Instant) -> bool {
        let Some(after) = self.quota.after(self.full_at.get(&key).copied(), now) else { return false };
        if self.full_at.len() >= self.capacity && !self.full_at.contains_key(&key) {
            self.make_room(now);
        }
        self.full_at.insert(key, after);
        true
    }

    fn make_room(&mut self, now: Instant) {
        self.sweep(now);
        if self.full_at.len() >= self.capacity {
            let least = self.full_at.iter().min_by_key(|(_, full_at)| **full_at).map(|(key, _)| *key);
            if let Some(least) = least {
                self.full_at.remove(&least);
            }
        }
    }

    /// Forgets the buckets that are full.
    pub fn sweep(&mut self, now: Instant) {
        self.full_at.retain(|_, full_at| *full_at > now);
    }

    /// Keys remembered now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether no key is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_one_per_step() {
        let mut buckets = PeerBuckets::new(10, Duration::from_secs(10));
        let (peer, start) = (PeerId::random(), Instant::now());
        assert_eq!((0..50).filter(|_| buckets.admit(peer, start)).count(), 10);
        assert!(!buckets.admit(peer, start + Duration::from_millis(999)));
        assert!(buckets.has_room(&peer, start + Duration::from_secs(1)));
        assert!(buckets.admit(peer, start + Duration::from_secs(1)));
        assert!(!buckets.admit(peer, start + Duration::from_secs(1)));
        assert_eq!((0..50).filter(|_| buckets.admit(peer, start + Duration::from_secs(100))).count(), 10);
    }

    #[test]
    fn the_map_is_bounded_and_whoever_has_spent_most_is_remembered() {
        let mut buckets = PeerBuckets::with_capacity(Quota::new(2, Duration::from_secs(10)), 100);
        let (spent, now) = (PeerId::random(), Instant::now());
        assert!(buckets.admit(spent, now) && buckets.admit(spent, now));
        for _ in 0..1000 {
            assert!(buckets.admit(PeerId::random(), now), "a newcomer is never kept out");
        }
        assert_eq!(buckets.len(), 100);
        assert!(!buckets.admit(spent, now));
        assert!(buckets.admit(PeerId::random(), now + Duration::from_secs(10)));
        assert_eq!(buckets.len(), 1);
    }

    #[test]
    fn numbers_at_the_ends_are_taken() {
        let now = Instant::now();
        for quota in [Quota::new(0, Duration::ZERO), Quota::new(u32::MAX, Duration::MAX), Quota::new(1, Duration::MAX)]
        {
            let mut cell = Cell::new(quota);
            assert!(cell.admit(now));
            assert!(Cell::new(quota).has_room(now));
        }
        let mut slow = Cell::new(Quota::new(1, Duration::MAX));
        assert!(slow.admit(now) && !slow.admit(now));
        assert!(slow.admit(now + MAX_PERIOD), "a period is an hour at most");
    }

    proptest! {
        #[test]
        fn never_more_than_burst_in_any_period(gaps in proptest::collection::vec(0_u64..2000, 1..200)) {
            let (burst, period) = (5, Duration::from_secs(5));
            let mut buckets = PeerBuckets::new(burst, period);
            let peer = PeerId::random();
            let mut now = Instant::now();
            let mut admitted: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if buckets.admit(peer, now) {
                    admitted.push(now);
                }
            }
            // A bucket lets through its burst and what trickles in during one period: twice the burst, never more.
            for (i, start) in admitted.iter().enumerate() {
                let within = admitted[i..].iter().filter(|t| **t < *start + period).count();
                prop_assert!(within <= 2 * burst as usize);
            }
        }
    }
}
