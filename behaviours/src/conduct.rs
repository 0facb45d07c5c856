//! How peers behave: one score in fixed point, which rises with what is of use and falls with what only a broken or hostile peer
//! does. It is the only one: bans, who gives way, who is remembered and dialled first, and gossip's scores follow it, and it
//! is kept across restarts.
//!
//! Scores are in ten-thousandths, −10,000 to [`MAX`]; a stranger has 0. The steps are those of the trust table.
//!
//! | what | score |
//! |---|---|
//! | a session that was served to its end | +100, less the nearer to [`MAX`] |
//! | a valid message that was new, an answer with something new in it that was true | +10, up to [`MOST`] |
//! | something invalid: a bad signature, bytes that are no message | −200 |
//! | a protocol broken on a stream of ours | −500 |
//! | signing for rows that are others than it gave or was given | −2,500 |
//! | a proof in its own hand that it cheats: two notes under one number | the worst |
//! | not signing for what it computed | −100 |
//! | asking faster than allowed | −20 |
//! | a minute | 50 of what is below 0 |
//!
//! What a peer says rightly gains little and never much: messages are no way to earn trust. Nor is credit a licence: a tenth of
//! it goes with each fault besides. At [`BAN_BELOW`] a peer is banned. One that floods at the limits' edge, with a few refusals
//! a minute, is not; ten broken streams within minutes are.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// Peers remembered: some 100 bytes each. The least remarkable is forgotten first.
pub const MAX_PEERS: usize = 2048;
/// The best score.
pub const MAX: i32 = 10_000;
/// The score at which a peer is banned.
pub const BAN_BELOW: i32 = -5_000;
/// The best score that messages alone reach.
pub const MOST: i32 = 3_000;
/// The score after a ban: the next is nearer.
const AFTER_BAN: i32 = -2_500;
/// Of credit, the part that a fault costs besides.
const FORFEIT: i32 = 10;
/// What each [`STEP`] forgives.
const PER_STEP: i32 = 50;
const STEP: Duration = Duration::from_secs(60);

/// Something that a peer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deed {
    /// A valid message that was new, or an answer with something new in it that was true.
    Valid,
    /// It served a session to its end.
    Served,
    /// Something invalid: a bad signature, bytes that are no message.
    Invalid,
    /// It broke a protocol of ours on a stream.
    Violation,
    /// It signed for rows that are others than it gave or was given.
    Lie,
    /// It signed what contradicts itself: whoever has both can prove that it cheats.
    Fraud,
    /// It did not sign for what it computed.
    Withheld,
    /// It asked faster than allowed.
    Flood,
}

impl Deed {
    /// A score after this.
    fn done_at(self, score: i32) -> i32 {
        let fault = |points: i32| score.saturating_sub(points).saturating_sub(score.max(0) / FORFEIT);
        let after = match self {
            Self::Valid => score.max(score.saturating_add(10).min(MOST)),
            // Never nothing, and never past the end.
            Self::Served => score.saturating_add((MAX.saturating_sub(score.max(0)) / 100).max(1)),
            Self::Invalid => fault(200),
            Self::Violation => fault(500),
            Self::Lie => fault(2_500),
            // Nothing that it did before is worth anything beside this.
            Self::Fraud => BAN_BELOW,
            Self::Withheld => fault(100),
            Self::Flood => fault(20),
        };
        after.min(MAX)
    }

    /// As the reason of a ban.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid messages",
            Self::Served => "sessions served",
            Self::Invalid => "invalid messages",
            Self::Violation => "broken protocols",
            Self::Lie => "lies",
            Self::Fraud => "fraud",
            Self::Withheld => "commitments withheld",
            Self::Flood => "floods",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    score: i32,
    at: Instant,
}

impl Mark {
    /// What time has made of it.
    fn at(self, now: Instant) -> Self {
        let steps = now.saturating_duration_since(self.at).as_secs().checked_div(STEP.as_secs()).unwrap_or(0);
        let steps = i32::try_from(steps).unwrap_or(i32::MAX);
        let worth = PER_STEP.saturating_mul(steps);
        let score = if self.score < 0 { self.score.saturating_add(worth).min(0) } else { self.score };
        // Part of a step is not lost: the mark stays where the last whole one ended.
        let at = self.at.checked_add(STEP.saturating_mul(u32::try_from(steps).unwrap_or(0))).unwrap_or(now);
        Self { score, at: if score < 0 { at } else { now } }
    }
}

/// The scores of those who did something.
#[derive(Debug, Default)]
pub struct Conduct {
    marks: HashMap<PeerId, Mark>,
}

impl Conduct {
    /// Notes a deed. `true` when it is the one too many, and the peer is to be banned.
    pub fn note(&mut self, peer: PeerId, deed: Deed, now: Instant) -> bool {
        if self.marks.len() >= MAX_PEERS && !self.marks.contains_key(&peer) {
            self.make_room(now);
        }
        let mark = self.marks.entry(peer).or_insert(Mark { score: 0, at: now });
        *mark = mark.at(now);
        mark.score = deed.done_at(mark.score);
        let banned = mark.score <= BAN_BELOW;
        if banned {
            mark.score = AFTER_BAN;
        }
        banned
    }

    /// Takes in a score of an earlier run; what it was since does not count.
    pub fn restore(&mut self, peer: PeerId, score: i32, now: Instant) {
        if score != 0 && self.marks.len() < MAX_PEERS {
            self.marks.insert(peer, Mark { score: score.clamp(AFTER_BAN, MAX), at: now });
        }
    }

    /// A peer's score, in ten-thousandths.
    #[must_use]
    pub fn score(&self, peer: &PeerId, now: Instant) -> i32 {
        self.marks.get(peer).map_or(0, |mark| mark.at(now).score)
    }

    /// Forgets whoever is back at 0, or the one nearest to it.
    fn make_room(&mut self, now: Instant) {
        self.marks.retain(|_, mark| mark.at(now).score != 0);
        if self.marks.len() >= MAX_PEERS {
            let least = self.marks.iter().min_by_key(|(_, mark)| mark.at(now).score.unsigned_abs());
            if let Some(least) = least.map(|(peer, _)| *peer) {
                self.marks.remove(&least);
            }
        }
    }

    /// Peers remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(start: Instant, minutes: u64) -> Instant {
        start + STEP * u32::try_from(minutes).unwrap()
    }

    #[test]
    fn ten_violations_at_once_are_too_many_and_one_a_quarter_hour_is_not() {
        let (mut conduct, peer, now) = (Conduct::default(), PeerId::random(), Instant::now());
        let banned = (0..10).map(|_| conduct.note(peer, Deed::Violation, now)).position(|banned| banned);
        assert_eq!(banned, Some(9));
        let again = (0..10).map(|_| conduct.note(peer, Deed::Violation, now)).position(|banned| banned);
        assert_eq!(again, Some(4), "the second time it takes less");
        let clumsy = PeerId::random();
        assert!(!(0..1000).any(|n| conduct.note(clumsy, Deed::Violation, after(now, 15 * n))));
    }

    #[test]
    fn messages_gain_little_service_much_and_faults_are_forgiven() {
        let (mut conduct, peer, now) = (Conduct::default(), PeerId::random(), Instant::now());
        (0..10_000).for_each(|_| assert!(!conduct.note(peer, Deed::Valid, now)));
        assert_eq!(conduct.score(&peer, now), MOST);
        (0..10_000).for_each(|_| assert!(!conduct.note(peer, Deed::Served, now)));
        assert_eq!(conduct.score(&peer, now), MAX);
        conduct.note(peer, Deed::Valid, now);
        assert_eq!(conduct.score(&peer, after(now, 60)), MAX, "a message takes nothing, nor does time");
        let wrong = PeerId::random();
        conduct.note(wrong, Deed::Invalid, now);
        assert_eq!(conduct.score(&wrong, after(now, 2)), -100);
        assert_eq!(conduct.score(&wrong, after(now, 1_000_000)), 0);
    }

    /// What each fault costs is written down, and so is how many of them in a row a stranger and the best peer may afford.
    #[test]
    fn each_fault_has_its_weight() {
        for (deed, costs, stranger, best) in [
            (Deed::Invalid, 200, 25, 43),
            (Deed::Violation, 500, 10, 21),
            (Deed::Lie, 2_500, 2, 6),
            (Deed::Withheld, 100, 50, 73),
            (Deed::Flood, 20, 250, 288),
        ] {
            let (mut conduct, now) = (Conduct::default(), Instant::now());
            for (score, most) in [(0, stranger), (MAX, best)] {
                let peer = PeerId::random();
                conduct.restore(peer, score, now);
                let banned = (1..=most).find(|_| conduct.note(peer, deed, now));
                assert_eq!(banned, Some(most), "{deed:?} at {score}");
            }
            let peer = PeerId::random();
            conduct.note(peer, deed, now);
            assert_eq!(conduct.score(&peer, now), -costs);
        }
    }

    #[test]
    fn one_fraud_bans_whatever_was_before() {
        let now = Instant::now();
        for score in [-2_000, 0, MAX] {
            let (mut conduct, peer) = (Conduct::default(), PeerId::random());
            conduct.restore(peer, score, now);
            assert!(conduct.note(peer, Deed::Fraud, now));
            assert_eq!(conduct.score(&peer, now), AFTER_BAN);
        }
    }

    /// A line that stands still and comes back brings what waited at once: some of it is refused.
    #[test]
    fn two_refusals_a_minute_for_a_month_ban_nobody() {
        let (mut conduct, peer, now) = (Conduct::default(), PeerId::random(), Instant::now());
        for minute in 0..30 * 24 * 60 {
            (0..2).for_each(|_| assert!(!conduct.note(peer, Deed::Flood, after(now, minute)), "minute {minute}"));
        }
        assert_eq!(conduct.score(&peer, after(now, 30 * 24 * 60)), 0);
    }

    #[test]
    fn credit_is_no_licence() {
        let (mut conduct, peer, now) = (Conduct::default(), PeerId::random(), Instant::now());
        conduct.restore(peer, MAX, now);
        let banned = (0..100).map(|_| conduct.note(peer, Deed::Violation, now)).position(|banned| banned);
        assert!(banned.is_some_and(|n| n < 25), "{banned:?}");
    }

    #[test]
    fn what_was_kept_is_taken_back_within_bounds() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        for (kept, taken) in [(i32::MIN, AFTER_BAN), (-300, -300), (0, 0), (400, 400), (i32::MAX, MAX)] {
            let peer = PeerId::random();
            conduct.restore(peer, kept, now);
            assert_eq!(conduct.score(&peer, now), taken);
        }
        (0..2 * MAX_PEERS).for_each(|_| conduct.restore(PeerId::random(), 7, now));
        assert_eq!(conduct.len(), MAX_PEERS);
    }

    #[test]
    fn fresh_identities_do_not_have_the_worst_forgotten() {
        let (mut conduct, bad, now) = (Conduct::default(), PeerId::random(), Instant::now());
        (0..5).for_each(|_| assert!(!conduct.note(bad, Deed::Violation, now)));
        for _ in 0..3 * MAX_PEERS {
            conduct.note(PeerId::random(), Deed::Flood, now);
        }
        assert_eq!(conduct.len(), MAX_PEERS);
        assert_eq!(conduct.score(&bad, now), -2_500);
    }

    const DEEDS: [Deed; 8] = [
        Deed::Valid,
        Deed::Served,
        Deed::Invalid,
        Deed::Violation,
        Deed::Lie,
        Deed::Fraud,
        Deed::Withheld,
        Deed::Flood,
    ];

    proptest! {
        #[test]
        fn scores_stay_in_range_whatever_is_done_when(deeds in proptest::collection::vec((0_u8..8, 0_u64..100_000), 0..300)) {
            let (mut conduct, peer, start) = (Conduct::default(), PeerId::random(), Instant::now());
            for (deed, at) in deeds {
                let deed = DEEDS[usize::from(deed)];
                let now = start + Duration::from_secs(at);
                conduct.note(peer, deed, now);
                prop_assert!((BAN_BELOW..=MAX).contains(&conduct.score(&peer, now)));
            }
        }
    }
}
