//! Peers that are not asked for a while, because a dial failed or they died in a session.
//!
//! A mark is this node's own experience and is told to nobody. It is doubled each time, and ends by itself, or when the peer
//! signs something newer than the mark: who speaks again has started again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// How long the first mark stands: longer than a fault that heals by itself takes.
const FIRST: Duration = Duration::from_secs(5);

/// The longest: as long as an announcement may live.
const LONGEST: Duration = Duration::from_secs(600);

/// Peers marked at once. The mark that ends first gives way: it is of the least use.
const MAX_MARKS: usize = 1024;

/// How long after its end a mark still counts towards the next.
const MEMORY: Duration = Duration::from_secs(1800);

#[derive(Debug, Clone)]
struct Mark {
    until: Instant,
    strikes: u32,
    /// In Unix milliseconds; what the peer signed later ends the mark.
    made_ms: u64,
    reason: String,
}

/// Peers that are not asked for a while.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    marks: HashMap<PeerId, Mark>,
}

impl Marks {
    /// A peer has failed. `reason` is for people.
    pub(crate) fn failed(&mut self, peer: PeerId, reason: &str, now: Instant, now_ms: u64) {
        let strikes = match self.marks.get(&peer) {
            // One death is noticed in several places.
            Some(mark) if mark.until > now => return,
            Some(mark) => mark.strikes.saturating_add(1),
            None => 0,
        };
        if strikes == 0 && self.marks.len() >= MAX_MARKS && !self.make_room(now) {
            return;
        }
        let rest = FIRST.saturating_mul(1 << strikes.min(10)).min(LONGEST);
        let mark = Mark { until: now + rest, strikes, made_ms: now_ms, reason: reason.to_owned() };
        self.marks.insert(peer, mark);
    }

    fn make_room(&mut self, now: Instant) -> bool {
        self.marks.retain(|_, mark| mark.until + MEMORY > now);
        let ends_first = self.marks.iter().min_by_key(|(_, mark)| mark.until).map(|(peer, _)| *peer);
        self.marks.len() < MAX_MARKS || ends_first.is_some_and(|peer| self.marks.remove(&peer).is_some())
    }

    /// It did what was asked of it.
    pub(crate) fn worked(&mut self, peer: &PeerId) {
        self.marks.remove(peer);
    }

    /// Why a peer is not asked now. `signed_ms` is when it signed its newest announcement.
    pub(crate) fn against(&self, peer: &PeerId, signed_ms: Option<u64>, now: Instant) -> Option<&str> {
        let mark = self.marks.get(peer).filter(|mark| mark.until > now)?;
        let speaks_again = signed_ms.is_some_and(|signed| signed > mark.made_ms);
        (!speaks_again).then_some(mark.reason.as_str())
    }

    /// Peers marked or remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_ends_by_itself_and_the_next_one_lasts_longer() {
        let (mut marks, peer, start) = (Marks::default(), PeerId::random(), Instant::now());
        marks.failed(peer, "it is gone", start, 1000);
        assert_eq!(marks.against(&peer, None, start), Some("it is gone"));
        // The same death, seen again.
        marks.failed(peer, "still", start + Duration::from_secs(1), 2000);
        assert_eq!(marks.against(&peer, None, start + FIRST), None);
        marks.failed(peer, "again", start + FIRST, 3000);
        assert_eq!(marks.against(&peer, None, start + FIRST * 2), Some("again"));
        assert_eq!(marks.against(&peer, None, start + FIRST * 3), None);
        for n in 0..100 {
            let at = start + LONGEST * (n + 1);
            marks.failed(peer, "and again", at, 4000);
            assert!(marks.against(&peer, None, at + LONGEST).is_none());
        }
        marks.worked(&peer);
        assert_eq!(marks.len(), 0);
    }

    #[test]
    fn who_speaks_again_is_asked_again() {
        let (mut marks, peer, now) = (Marks::default(), PeerId::random(), Instant::now());
        marks.failed(peer, "gone", now, 1000);
        assert!(marks.against(&peer, Some(1000), now).is_some(), "said before it died");
        assert!(marks.against(&peer, Some(1001), now).is_none());
    }

    #[test]
    fn they_are_bounded() {
        let (mut marks, now) = (Marks::default(), Instant::now());
        for n in 0..3 * MAX_MARKS {
            marks.failed(PeerId::random(), "gone", now + Duration::from_millis(n as u64), 0);
        }
        assert_eq!(marks.len(), MAX_MARKS);
    }
}
