//! Who holds how many of a bounded number of places, and which of them expires first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    time::Instant,
};

use libp2p::PeerId;

/// Names one place; the earlier ticket expires earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket {
    expires: Instant,
    number: u64,
}

/// Places taken by peers. Every operation is logarithmic in the number of places; memory is bounded by it.
#[derive(Debug)]
pub(super) struct Quota<Id> {
    per_peer: usize,
    total: usize,
    by_expiry: BTreeMap<Ticket, (PeerId, Id)>,
    by_peer: HashMap<PeerId, BTreeSet<Ticket>>,
    /// The same counts, ordered: the last peer holds most.
    by_count: BTreeSet<(usize, PeerId)>,
    next: u64,
}

/// What taking a place would cost.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is a place.
    Free,
    /// This one has to give way.
    Replace(Ticket),
    /// None: the peer has its share, or holds more than anyone else.
    None,
}

impl<Id: Clone + Eq + Hash> Quota<Id> {
    pub(super) fn new(per_peer: usize, total: usize) -> Self {
        Self {
            per_peer,
            total,
            by_expiry: BTreeMap::new(),
            by_peer: HashMap::new(),
            by_count: BTreeSet::new(),
            next: 0,
        }
    }

    /// Whether `peer` may take one more place. When all are taken, whoever holds most gives one up, the one that expires
    /// first: a flood under one name pushes out itself, and a newcomer always finds room.
    pub(super) fn room(&self, peer: &PeerId) -> Room {
        let held = self.count(peer);
        if held >= self.per_peer {
            return Room::None;
        }
        if self.by_expiry.len() < self.total {
            return Room::Free;
        }
        let most = self.by_count.last().filter(|(count, _)| *count > held);
        match most.and_then(|(_, richest)| self.by_peer.get(richest)?.first()) {
            Some(ticket) => Room::Replace(*ticket),
            None => Room::None,
        }
    }

    /// Takes a place without asking for [`Quota::room`].
    pub(super) fn take(&mut self, peer: PeerId, id: Id, expires: Instant) -> Ticket {
        let ticket = Ticket { expires, number: self.next };
        self.next = self.next.wrapping_add(1);
        self.by_expiry.insert(ticket, (peer, id));
        let before = self.count(&peer);
        self.by_peer.entry(peer).or_default().insert(ticket);
        self.recount(peer, before);
        ticket
    }

    /// Gives a place back; says whose it was and for what.
    pub(super) fn give_back(&mut self, ticket: Ticket) -> Option<(PeerId, Id)> {
        let (peer, id) = self.by_expiry.remove(&ticket)?;
        let before = self.count(&peer);
        if let Some(tickets) = self.by_peer.get_mut(&peer) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
        self.recount(peer, before);
        Some((peer, id))
    }

    /// Whose place this is.
    pub(super) fn owner(&self, ticket: Ticket) -> Option<&PeerId> {
        self.by_expiry.get(&ticket).map(|(peer, _)| peer)
    }

    /// The next place whose time has passed at `now`.
    pub(super) fn expired(&self, now: Instant) -> Option<Ticket> {
        self.by_expiry.first_key_value().map(|(ticket, _)| *ticket).filter(|ticket| ticket.expires <= now)
    }

    pub(super) fn len(&self) -> usize {
        self.by_expiry.len()
    }

    /// Peers that hold a place.
    pub(super) fn peers(&self) -> usize {
        self.by_peer.len()
    }

    pub(super) fn count(&self, peer: &PeerId) -> usize {
        self.by_peer.get(peer).map_or(0, BTreeSet::len)
    }

    fn recount(&mut self, peer: PeerId, before: usize) {
        self.by_count.remove(&(before, peer));
        let after = self.count(&peer);
        if after > 0 {
            self.by_count.insert((after, peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whoever_holds_most_gives_way() {
        let mut quota = Quota::new(10, 10);
        let (rich, poor, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let first = quota.take(rich, 0, now + Duration::from_secs(1));
        for i in 1..10 {
            quota.take(rich, i, now + Duration::from_secs(2));
        }
        assert_eq!(quota.room(&rich), Room::None);
        assert_eq!(quota.room(&poor), Room::Replace(first));
        quota.give_back(first);
        quota.take(poor, 11, now);
        assert_eq!(quota.room(&rich), Room::None, "the richest does not push out the poor");
        assert!(matches!(quota.room(&poor), Room::Replace(_)));
    }

    proptest! {
        #[test]
        fn counts_agree_and_bounds_hold(ops in proptest::collection::vec((0_usize..6, 0_u64..20, any::<bool>()), 0..300)) {
            let peers: Vec<PeerId> = (0..6).map(|_| PeerId::random()).collect();
            let start = Instant::now();
            let mut quota: Quota<usize> = Quota::new(5, 12);
            let mut held: Vec<Ticket> = Vec::new();
            for (i, (who, seconds, add)) in ops.into_iter().enumerate() {
                if add {
                    match quota.room(&peers[who]) {
                        Room::None => {}
                        Room::Free => held.push(quota.take(peers[who], i, start + Duration::from_secs(seconds))),
                        Room::Replace(ticket) => {
                            let (loser, _) = quota.give_back(ticket).unwrap();
                            prop_assert!(loser != peers[who]);
                            held.retain(|t| *t != ticket);
                            held.push(quota.take(peers[who], i, start + Duration::from_secs(seconds)));
                        }
                    }
                } else if let Some(ticket) = held.pop() {
                    prop_assert!(quota.give_back(ticket).is_some());
                    prop_assert!(quota.give_back(ticket).is_none());
                }
                prop_assert!(quota.len() <= 12);
                prop_assert_eq!(quota.len(), held.len());
                prop_assert_eq!(peers.iter().map(|p| quota.count(p)).sum::<usize>(), held.len());
                prop_assert!(peers.iter().all(|p| quota.count(p) <= 5));
                prop_assert_eq!(quota.by_count.len(), quota.by_peer.len());
                prop_assert_eq!(quota.expired(start + Duration::from_secs(99)), held.iter().min().copied());
            }
        }
    }
}
