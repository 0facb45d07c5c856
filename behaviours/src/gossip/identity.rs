//! What has an exact identity is remembered exactly: announcements, by (peer, sequence) and topic.

use std::collections::HashMap;

use libp2p::PeerId;
use quelea_announce::{Announcement, DEFAULT_CAPACITY};

/// The newest announcement of each peer, and on which topics it was heard. As many peers as the book of announcements
/// keeps, some 100 bytes each: 400 KiB.
#[derive(Debug)]
pub(super) struct Announced {
    capacity: usize,
    peers: HashMap<PeerId, Heard>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    seq: u64,
    expires_ms: u64,
    /// Bit n for topic n: one announcement travels on several, and each must carry it on.
    topics: u16,
}

impl Default for Announced {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

impl Announced {
    fn new(capacity: usize) -> Self {
        Self { capacity, peers: HashMap::new() }
    }

    /// Takes note of a valid announcement on topic `index`. False when it is no news: its author has said as much or more
    /// there, or there is no room for one that expires so soon.
    pub(super) fn note(&mut self, peer: PeerId, said: &Announcement, index: u8, now_ms: u64) -> bool {
        let bit = 1_u16.checked_shl(index.into()).unwrap_or(0);
        if let Some(heard) = self.peers.get_mut(&peer) {
            if said.seq < heard.seq || (said.seq == heard.seq && heard.topics & bit != 0) {
                return false;
            }
            let topics = if said.seq == heard.seq { heard.topics | bit } else { bit };
            *heard = Heard { seq: said.seq, expires_ms: said.expires_ms, topics };
            return true;
        }
        if self.peers.len() >= self.capacity && !self.make_room(said.expires_ms, now_ms) {
            return false;
        }
        self.peers.insert(peer, Heard { seq: said.seq, expires_ms: said.expires_ms, topics: bit });
        true
    }

    /// Forgets what has expired: it would be refused by its date. If that is not enough, what expires next.
    fn make_room(&mut self, expires_ms: u64, now_ms: u64) -> bool {
        self.peers.retain(|_, heard| heard.expires_ms > now_ms);
        if self.peers.len() < self.capacity {
            return true;
        }
        let next = self.peers.iter().map(|(peer, heard)| (heard.expires_ms, *peer)).min();
        next.is_some_and(|(soonest, peer)| soonest < expires_ms && self.peers.remove(&peer).is_some())
    }

    /// Peers remembered.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(peer: PeerId, seq: u64, issued: u64) -> Announcement {
        Announcement::new(peer, seq, issued)
    }

    #[test]
    fn once_per_sequence_number_and_topic() {
        let (mut seen, peer) = (Announced::default(), PeerId::random());
        let one = said(peer, 5, 1000);
        assert!(seen.note(peer, &one, 0, 1000) && seen.note(peer, &one, 15, 1000));
        assert!(!seen.note(peer, &one, 0, 1000) && !seen.note(peer, &one, 15, 1000));
        assert!(!seen.note(peer, &said(peer, 4, 1000), 3, 1000), "older");
        assert!(seen.note(peer, &said(peer, 6, 1000), 0, 1000), "newer");
        assert!(!seen.note(peer, &one, 3, 1000), "older by now");
    }

    #[test]
    fn it_is_bounded_and_keeps_what_lives_longer() {
        let mut seen = Announced::new(2);
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let late = said(peers[0], 1, 10_000);
        assert!(seen.note(peers[0], &late, 0, 10_000));
        assert!(seen.note(peers[1], &said(peers[1], 1, 5000), 0, 10_000));
        assert!(!seen.note(peers[2], &said(peers[2], 1, 4000), 0, 10_000), "it expires before all others");
        assert!(seen.note(peers[3], &said(peers[3], 1, 20_000), 0, 10_000));
        assert_eq!(seen.len(), 2);
        assert!(!seen.note(peers[0], &late, 0, 10_000), "still known");
        // Everything expires within ten minutes; then there is room again.
        assert!(seen.note(peers[2], &said(peers[2], 1, 4_000_000), 0, 4_000_000));
        assert_eq!(seen.len(), 1);
    }
}
