//! How peers behave: a score in fixed point that falls with what only a broken or hostile peer does, recovers with time,
//! and ends in a ban.
//!
//! Scores are in millionths, −1,000,000 to [`MOST`]; a stranger has 0. What a peer says rightly gains little and never much:
//! messages are no way to earn trust.
//!
//! | what | score |
//! |---|---|
//! | a valid message that was new | +1,000 |
//! | something invalid: a bad signature, bytes that are no message | −20,000 |
//! | a protocol broken on a stream of ours | −50,000 |
//! | asking faster than allowed | −2,000 |
//! | a minute | 5,000 towards 0 |
//!
//! At [`BAN_BELOW`] it is banned. A peer that floods at the limits' edge, with a few refusals a minute, is not; ten broken
//! streams within minutes are.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// Peers remembered: some 100 bytes each. The least remarkable is forgotten first.
pub const MAX_PEERS: usize = 2048;
/// The score at which a peer is banned.
pub const BAN_BELOW: i32 = -500_000;
/// The best score that messages alone reach.
pub const MOST: i32 = 300_000;
/// The score after a ban: the next is nearer.
const AFTER_BAN: i32 = -250_000;
/// What each [`STEP`] forgives, or takes.
const PER_STEP: i32 = 5_000;
const STEP: Duration = Duration::from_secs(60);

/// Something that a peer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deed {
    /// A valid message that was new.
    Valid,
    /// Something invalid: a bad signature, bytes that are no message.
    Invalid,
    /// It broke a protocol of ours on a stream.
    Violation,
    /// It asked faster than allowed.
    Flood,
}

impl Deed {
    fn points(self) -> i32 {
        match self {
            Self::Valid => 1_000,
            Self::Invalid => -20_000,
            Self::Violation => -50_000,
            Self::Flood => -2_000,
        }
    }

    /// As the reason of a ban.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid messages",
            Self::Invalid => "invalid messages",
            Self::Violation => "broken protocols",
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
        let score = match self.score {
            bad @ ..0 => bad.saturating_add(worth).min(0),
            good => good.saturating_sub(worth).max(0),
        };
        // Part of a step is not lost: the mark stays where the last whole one ended.
        let at = self.at.checked_add(STEP.saturating_mul(u32::try_from(steps).unwrap_or(0))).unwrap_or(now);
        Self { score, at: if score == 0 { now } else { at } }
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
        mark.score = mark.score.saturating_add(deed.points()).min(MOST);
        let banned = mark.score <= BAN_BELOW;
        if banned {
            mark.score = AFTER_BAN;
        }
        banned
    }

    /// A peer's score, in millionths.
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
    fn messages_gain_little_and_all_is_forgotten() {
        let (mut conduct, peer, now) = (Conduct::default(), PeerId::random(), Instant::now());
        (0..10_000).for_each(|_| assert!(!conduct.note(peer, Deed::Valid, now)));
        assert_eq!(conduct.score(&peer, now), MOST);
        assert_eq!(conduct.score(&peer, after(now, 10)), MOST - 50_000);
        assert_eq!(conduct.score(&peer, after(now, 60)), 0);
        conduct.note(peer, Deed::Invalid, after(now, 60));
        assert_eq!(conduct.score(&peer, after(now, 62)), -10_000);
        assert_eq!(conduct.score(&peer, after(now, 1_000_000)), 0);
    }

    #[test]
    fn fresh_identities_do_not_have_the_worst_forgotten() {
        let (mut conduct, bad, now) = (Conduct::default(), PeerId::random(), Instant::now());
        (0..5).for_each(|_| assert!(!conduct.note(bad, Deed::Violation, now)));
        for _ in 0..3 * MAX_PEERS {
            conduct.note(PeerId::random(), Deed::Flood, now);
        }
        assert_eq!(conduct.len(), MAX_PEERS);
        assert_eq!(conduct.score(&bad, now), -250_000);
    }

    proptest! {
        #[test]
        fn scores_stay_in_range_whatever_is_done_when(deeds in proptest::collection::vec((0_u8..4, 0_u64..100_000), 0..300)) {
            let (mut conduct, peer, start) = (Conduct::default(), PeerId::random(), Instant::now());
            for (deed, at) in deeds {
                let deed = [Deed::Valid, Deed::Invalid, Deed::Violation, Deed::Flood][usize::from(deed)];
                let now = start + Duration::from_secs(at);
                conduct.note(peer, deed, now);
                prop_assert!((BAN_BELOW..=MOST).contains(&conduct.score(&peer, now)));
            }
        }
    }
}
