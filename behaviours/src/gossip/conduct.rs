//! What a peer's control traffic costs it (P5). Pure: time is an argument.
//!
//! gossipsub itself answers or ignores requests (IWANT), notes (IDONTWANT), grafts to topics that nobody has and
//! subscriptions to them, within limits and for ever: none of it costs the sender anything. Here every RPC and every control
//! message in it counts one, into a bucket that leaks [`LEAK`] a second. What is above [`FREE`] is taken off the score, a
//! tenth of a point each.
//!
//! An honest neighbour on all topics sends an advertisement per topic and heartbeat, some requests, grafts and prunes: some
//! fifty a second at the worst. Messages themselves are not counted; they pay by P4 when they are invalid.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// Units a second that cost nothing: twice what an honest neighbour sends.
pub const LEAK: u32 = 100;

/// How long one unit takes to leak, in milliseconds.
const UNIT_MS: u64 = 1000 / LEAK as u64;

/// Units at once that cost nothing: ten seconds' worth, for a peer that comes and subscribes, or whose line stood still.
pub const FREE: u32 = 1000;

/// Where the bucket ends: whoever floods is heard again a minute and a half after it has stopped.
pub const FULL: u32 = 10_000;

/// Units for one point: the graylist at -80 begins at 1,800 units.
const UNITS_PER_POINT: f64 = 10.0;

/// Peers whose bucket is not empty. Four times as many as there are connections; 64 KiB.
const MAX_PEERS: usize = 1024;

/// The buckets.
#[derive(Debug, Default)]
pub struct Conduct {
    levels: HashMap<PeerId, Level>,
    /// Peers that have something taken off their score now.
    penalised: usize,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    units: u32,
    at: Instant,
    score: f64,
}

impl Level {
    fn leak(&mut self, now: Instant) {
        let passed = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        let units = passed / UNIT_MS;
        self.units = self.units.saturating_sub(u32::try_from(units).unwrap_or(u32::MAX));
        // What is left of the last unit's time counts for the next.
        let taken = Duration::from_millis(units.saturating_mul(UNIT_MS));
        self.at = self.at.checked_add(taken).unwrap_or(now);
    }

    fn points(&self) -> f64 {
        -f64::from(self.units.saturating_sub(FREE)) / UNITS_PER_POINT
    }
}

impl Conduct {
    /// `peer` sent an RPC with so many control messages and subscriptions. Its score, when it has changed by a point or
    /// more, or to or from zero.
    pub fn sent(&mut self, peer: PeerId, messages: usize, now: Instant) -> Option<f64> {
        if !self.levels.contains_key(&peer) && self.levels.len() >= MAX_PEERS {
            self.make_room(now);
        }
        let level = self.levels.entry(peer).or_insert(Level { units: 0, at: now, score: 0.0 });
        level.leak(now);
        let units = u32::try_from(messages.saturating_add(1)).unwrap_or(u32::MAX);
        level.units = level.units.saturating_add(units).min(FULL);
        update(level, &mut self.penalised)
    }

    /// A peer's score, as it was told last.
    #[must_use]
    pub fn score(&self, peer: &PeerId) -> f64 {
        self.levels.get(peer).map_or(0.0, |level| level.score)
    }

    /// The scores that have changed because time has passed. Call it now and then; it forgets empty buckets.
    pub fn passed(&mut self, now: Instant) -> Vec<(PeerId, f64)> {
        let penalised = &mut self.penalised;
        let mut changed = Vec::new();
        self.levels.retain(|peer, level| {
            level.leak(now);
            changed.extend(update(level, penalised).map(|score| (*peer, score)));
            level.units > 0
        });
        changed
    }

    /// Peers that have something taken off their score now.
    #[must_use]
    pub fn penalised(&self) -> usize {
        self.penalised
    }

    /// Peers whose bucket is not empty.
    #[must_use]
    pub fn len(&self) -> usize {
        self.levels.len()
    }

    /// Whether all buckets are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Forgets the emptiest bucket: fresh identities push each other out, never one that floods.
    fn make_room(&mut self, now: Instant) {
        self.levels.values_mut().for_each(|level| level.leak(now));
        let emptiest = self.levels.iter().min_by_key(|(_, level)| level.units).map(|(peer, _)| *peer);
        if let Some(level) = emptiest.and_then(|peer| self.levels.remove(&peer))
            && level.score < 0.0
        {
            self.penalised = self.penalised.saturating_sub(1);
        }
    }
}

fn update(level: &mut Level, penalised: &mut usize) -> Option<f64> {
    let (before, after) = (level.score, level.points());
    // Most RPCs change nothing; of the rest, gossipsub wants to hear no finer than a point.
    let crossed = (before < 0.0) != (after < 0.0);
    if !crossed && (after - before).abs() < 1.0 {
        return None;
    }
    level.score = after;
    match (crossed, after < 0.0) {
        (true, true) => *penalised = penalised.saturating_add(1),
        (true, false) => *penalised = penalised.saturating_sub(1),
        (false, _) => {}
    }
    Some(after)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn an_honest_neighbour_pays_nothing() {
        let (mut conduct, peer, start) = (Conduct::default(), PeerId::random(), Instant::now());
        for beat in 0..600 {
            // A heartbeat: an advertisement for each topic, a request, some grafts.
            for n in 0..30 {
                assert_eq!(conduct.sent(peer, 1, start + seconds(f64::from(beat) + f64::from(n) * 0.001)), None);
            }
        }
        assert_eq!(conduct.penalised(), 0);
    }

    #[test]
    fn who_floods_pays_and_is_forgiven_in_time() {
        let (mut conduct, peer, start) = (Conduct::default(), PeerId::random(), Instant::now());
        let scores: Vec<f64> = (0..200).filter_map(|_| conduct.sent(peer, 99, start)).collect();
        assert!(scores.iter().any(|score| *score < -80.0) && scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
        assert_eq!((conduct.penalised(), scores.last()), (1, Some(&-900.0)));
        assert_eq!(conduct.passed(start + seconds(95.0)), [(peer, 0.0)]);
        assert_eq!(conduct.penalised(), 0);
        conduct.passed(start + seconds(101.0));
        assert!(conduct.is_empty());
    }

    #[test]
    fn fresh_identities_do_not_push_out_one_that_floods() {
        let (mut conduct, flooder, start) = (Conduct::default(), PeerId::random(), Instant::now());
        conduct.sent(flooder, FULL as usize, start);
        for _ in 0..3 * MAX_PEERS {
            conduct.sent(PeerId::random(), 0, start);
        }
        assert_eq!((conduct.len(), conduct.penalised()), (MAX_PEERS, 1));
    }

    proptest! {
        #[test]
        fn prop_scores_are_bounded_and_end_at_zero(sent in proptest::collection::vec((0_u8..4, 0_usize..5000, 0_u64..3000), 1..60)) {
            let mut conduct = Conduct::default();
            let peers: Vec<PeerId> = (0..4).map(quiet).collect();
            let mut now = Instant::now();
            for (who, messages, wait) in sent {
                now += Duration::from_millis(wait);
                if let Some(score) = conduct.sent(peers[usize::from(who)], messages, now) {
                    prop_assert!((-900.0..=0.0).contains(&score));
                }
            }
            conduct.passed(now + seconds(101.0));
            prop_assert!(conduct.is_empty() && conduct.penalised() == 0);
        }
    }

    fn quiet(n: u8) -> PeerId {
        libp2p::identity::Keypair::ed25519_from_bytes([n + 1; 32]).unwrap().public().to_peer_id()
    }
}
