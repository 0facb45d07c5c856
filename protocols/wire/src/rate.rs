//! How many requests a peer may make: a token bucket per peer, in a map with a bound.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// Peers remembered at once. Four times the connections a node holds: a peer that reconnects finds its bucket as it left
/// it. Some 80 bytes each, so 80 KiB at most.
pub const MAX_PEERS: usize = 1024;

/// Token buckets by peer: `burst` requests at once, then one each `period / burst`.
///
/// A full bucket is the same as none, so those are dropped when room is needed. When every remembered peer has spent
/// something and there is no room, newcomers are refused: whoever fills the map with fresh identities delays other fresh
/// identities, never a peer that is already served.
#[derive(Debug)]
pub struct PeerBuckets {
    period: Duration,
    step: Duration,
    /// When each bucket will be full again; never more than `period` ahead.
    full_at: HashMap<PeerId, Instant>,
}

impl PeerBuckets {
    /// `burst` requests per `period`; zero is taken as one.
    #[must_use]
    pub fn new(burst: u32, period: Duration) -> Self {
        let step = period.checked_div(burst.max(1)).unwrap_or(period);
        Self { period, step, full_at: HashMap::new() }
    }

    /// Whether `peer` may make one more request at `now`; if so it is counted.
    pub fn admit(&mut self, peer: PeerId, now: Instant) -> bool {
        if !self.full_at.contains_key(&peer) && self.full_at.len() >= MAX_PEERS {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= MAX_PEERS {
                return false;
            }
        }
        let full_at = self.full_at.get(&peer).copied().unwrap_or(now).max(now);
        // Both sums are of durations of seconds: they cannot leave the clock's range, and if they did, the answer is no.
        let (Some(after), Some(limit)) = (full_at.checked_add(self.step), now.checked_add(self.period)) else {
            return false;
        };
        if after > limit {
            return false;
        }
        self.full_at.insert(peer, after);
        true
    }

    /// Peers remembered now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether no peer is remembered.
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
        assert!(buckets.admit(peer, start + Duration::from_secs(1)));
        assert!(!buckets.admit(peer, start + Duration::from_secs(1)));
        assert_eq!((0..50).filter(|_| buckets.admit(peer, start + Duration::from_secs(100))).count(), 10);
    }

    #[test]
    fn the_map_is_bounded_and_the_served_are_still_served() {
        let mut buckets = PeerBuckets::new(2, Duration::from_secs(10));
        let (known, now) = (PeerId::random(), Instant::now());
        assert!(buckets.admit(known, now));
        for _ in 0..2 * MAX_PEERS {
            buckets.admit(PeerId::random(), now);
        }
        assert_eq!(buckets.len(), MAX_PEERS);
        assert!(!buckets.admit(PeerId::random(), now));
        assert!(buckets.admit(known, now));
        assert!(buckets.admit(PeerId::random(), now + Duration::from_secs(10)));
        assert!(buckets.len() < MAX_PEERS);
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
