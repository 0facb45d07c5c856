//! What is known of whom: the newest announcement of each peer, as a pure map without clock or network.

use std::collections::HashMap;

use libp2p::PeerId;
use quelea_wire::ModelId;

use crate::{message::Offer, signed::SignedAnnouncement};

/// Peers kept by default: at most 1 KiB signed and about as much decoded each, so some 8 MiB.
pub const DEFAULT_CAPACITY: usize = 4096;

/// What an insertion changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The peer was not known.
    Added,
    /// A newer word of a known peer.
    Updated,
    /// The peer leaves; what it offered is forgotten.
    Left,
    /// Not newer than what is known; nothing changed.
    Stale,
    /// Already expired; nothing changed.
    Expired,
    /// The book is full of announcements that live longer; nothing changed.
    Full,
}

/// Announcements by peer. The greater sequence number wins, so any order of arrival ends in the same state. A tombstone
/// stays, without offers, until it expires: an older announcement that arrives late cannot bring its peer back.
#[derive(Debug, Clone)]
pub struct Book {
    capacity: usize,
    entries: HashMap<PeerId, SignedAnnouncement>,
}

impl Default for Book {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

impl Book {
    /// A book of at most `capacity` peers.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new() }
    }

    /// Takes a checked announcement. When the book is full, expired entries go first, then the one that expires next if
    /// the new one outlives it.
    pub fn insert(&mut self, signed: SignedAnnouncement, now_ms: u64) -> Change {
        let (peer, new) = (signed.peer(), signed.announcement());
        if new.expires_ms <= now_ms {
            return Change::Expired;
        }
        let known = match self.entries.get(&peer) {
            Some(old) if old.announcement().seq >= new.seq => return Change::Stale,
            Some(_) => true,
            None => false,
        };
        if !known && self.entries.len() >= self.capacity {
            self.sweep(now_ms);
            if self.entries.len() >= self.capacity && !self.make_room(new.expires_ms) {
                return Change::Full;
            }
        }
        let change = match (new.tombstone, known) {
            (true, _) => Change::Left,
            (false, true) => Change::Updated,
            (false, false) => Change::Added,
        };
        self.entries.insert(peer, signed);
        change
    }

    fn make_room(&mut self, expires_ms: u64) -> bool {
        let next = self.entries.iter().map(|(peer, entry)| (entry.announcement().expires_ms, *peer)).min();
        match next {
            Some((soonest, peer)) if soonest < expires_ms => self.entries.remove(&peer).is_some(),
            _ => false,
        }
    }

    /// The newest announcement of `peer`, unless it expired or the peer left.
    #[must_use]
    pub fn get(&self, peer: &PeerId, now_ms: u64) -> Option<&SignedAnnouncement> {
        self.entries.get(peer).filter(|entry| is_live(entry, now_ms))
    }

    /// Every live announcement.
    pub fn live(&self, now_ms: u64) -> impl Iterator<Item = &SignedAnnouncement> {
        self.entries.values().filter(move |entry| is_live(entry, now_ms))
    }

    /// Peers that have said goodbye and have not come back since.
    pub fn left(&self, now_ms: u64) -> impl Iterator<Item = PeerId> {
        let gone = move |entry: &&SignedAnnouncement| {
            entry.announcement().tombstone && entry.announcement().expires_ms > now_ms
        };
        self.entries.values().filter(gone).map(SignedAnnouncement::peer)
    }

    /// Who offers layers of `model`, in whatever state; one item per offer, ordered by peer.
    #[must_use]
    pub fn serving(&self, model: &ModelId, now_ms: u64) -> Vec<(PeerId, &Offer)> {
        let mut found: Vec<_> = self
            .live(now_ms)
            .flat_map(|entry| entry.announcement().offers.iter().map(move |offer| (entry.peer(), offer)))
            .filter(|(_, offer)| offer.model == *model)
            .collect();
        found.sort_by_key(|(peer, offer)| (*peer, offer.span));
        found
    }

    /// Forgets a peer at once, as after a failed dial. A newer word of it is taken again, and so is the same one. A goodbye
    /// stays: without it what the peer said before would bring it back.
    pub fn forget(&mut self, peer: &PeerId) -> bool {
        match self.entries.get(peer) {
            Some(entry) if entry.announcement().tombstone => false,
            known => known.is_some() && self.entries.remove(peer).is_some(),
        }
    }

    /// Drops what has expired; returns how many.
    pub fn sweep(&mut self, now_ms: u64) -> usize {
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.announcement().expires_ms > now_ms);
        before.saturating_sub(self.entries.len())
    }

    /// Entries held, tombstones included; never more than the capacity.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn is_live(entry: &SignedAnnouncement, now_ms: u64) -> bool {
    let announcement = entry.announcement();
    !announcement.tombstone && announcement.expires_ms > now_ms
}
