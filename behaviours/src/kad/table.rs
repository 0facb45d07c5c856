//! How peers enter the routing table, and leave it when they crowd it.

use std::collections::{BTreeSet, HashMap};

use libp2p::{
    Multiaddr, PeerId,
    kad::{KBucketKey, RoutingUpdate},
};

use super::{
    Behaviour,
    diversity::{Group, Seats, group_of},
};
use crate::identify;

/// From where the peers of the table are connected, and whom it kept out.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// Only of peers that stand in the table.
    from: HashMap<PeerId, Group>,
    pub(crate) refused: u64,
}

impl Crowd {
    fn refuse(&mut self) {
        self.refused = self.refused.saturating_add(1);
    }
}

/// Puts a peer into the routing table, unless its address group has its share already; see [`diversity`](super::diversity).
/// `from` is the address of a connection to it, if there is one. Returns how many addresses were taken. Where it has as many
/// as are kept, one that it claims no more makes room: peers move, and an address of yesterday must not keep out that of
/// today.
pub fn insert(kad: &mut Behaviour, peer: PeerId, addrs: &[Multiaddr], from: Option<&Multiaddr>) -> usize {
    let Some(bucket) = bucket_of(kad, &peer) else { return 0 };
    let from = from.and_then(group_of);
    let mut seats = seats(kad);
    if from.as_ref().is_some_and(|from| !seats.has_room(from, &peer, bucket)) {
        kad.store_mut().crowd.refuse();
        return 0;
    }
    let claimed: Vec<Multiaddr> = addrs.iter().map(|addr| named(addr, peer)).collect();
    // Oldest first.
    let mut held = addresses(kad, &peer);
    let mut taken = 0_usize;
    for addr in &claimed {
        if held.contains(addr) {
            continue;
        }
        let group = group_of(addr);
        if group.as_ref().is_some_and(|group| !seats.has_room(group, &peer, bucket)) {
            kad.store_mut().crowd.refuse();
            continue;
        }
        if held.len() >= identify::MAX_ADDRESSES {
            let Some(old) = held.iter().position(|old| !claimed.contains(old)) else { break };
            kad.remove_address(&peer, &held.remove(old));
        }
        if kad.add_address(&peer, addr.clone()) != RoutingUpdate::Failed {
            taken = taken.saturating_add(1);
            held.push(addr.clone());
            if let Some(group) = group {
                seats.take(group, peer, bucket);
            }
        }
    }
    if let Some(from) = from
        && !held.is_empty()
    {
        kad.store_mut().crowd.from.insert(peer, from);
    }
    taken
}

/// Takes from `peer` the addresses for which its groups have no room. To be called when the table has changed by itself:
/// Kademlia adds the address at which a peer of the table is dialled, and fills a gap from those who wait. Returns how many
/// were taken.
pub fn enforce(kad: &mut Behaviour, peer: &PeerId) -> usize {
    let Some(bucket) = bucket_of(kad, peer) else { return 0 };
    let seats = seats(kad);
    let crowded = |addr: &Multiaddr| group_of(addr).is_some_and(|group| !seats.has_room(&group, peer, bucket));
    let too_many: Vec<Multiaddr> = addresses(kad, peer).into_iter().filter(crowded).collect();
    for addr in &too_many {
        kad.remove_address(peer, addr);
        kad.store_mut().crowd.refuse();
    }
    too_many.len()
}

/// Takes out a peer that could not be dialled, and says whether it stood there. Kademlia itself keeps such until their bucket is
/// full, and begins a lookup with the twenty of the table that are closest, whether they are there or not: where those are all
/// gone, nothing is found for as long as the node runs. Whoever comes back says who it is, and is taken in again. Not for who is
/// cut off itself: it would forget everybody.
pub fn unreachable(kad: &mut Behaviour, peer: &PeerId) -> bool {
    kad.store_mut().crowd.from.remove(peer);
    kad.remove_peer(peer).is_some()
}

/// The addresses of `peer` in the routing table, oldest first.
#[must_use]
pub fn addresses(kad: &mut Behaviour, peer: &PeerId) -> Vec<Multiaddr> {
    let Some(bucket) = kad.kbucket(*peer) else { return Vec::new() };
    let entry = bucket.iter().find(|entry| entry.node.key.preimage() == peer);
    entry.map(|entry| entry.node.value.iter().cloned().collect()).unwrap_or_default()
}

/// Which bucket a peer belongs into: the logarithm of its distance. Our own id has none.
fn bucket_of(kad: &mut Behaviour, peer: &PeerId) -> Option<u32> {
    kad.kbucket(*peer)?.range().0.ilog2()
}

/// As the table keeps it: ending in the peer's id.
fn named(addr: &Multiaddr, peer: PeerId) -> Multiaddr {
    addr.clone().with_p2p(peer).unwrap_or_else(|addr| addr)
}

/// Who stands where, by the table itself; whoever has left it is forgotten.
fn seats(kad: &mut Behaviour) -> Seats {
    let mut standing: Vec<(PeerId, u32, BTreeSet<Group>)> = Vec::new();
    for bucket in kad.kbuckets() {
        let number = bucket.range().0.ilog2().unwrap_or(0);
        for entry in bucket.iter() {
            let key: &KBucketKey<PeerId> = entry.node.key;
            standing.push((*key.preimage(), number, entry.node.value.iter().filter_map(group_of).collect()));
        }
    }
    let before = std::mem::take(&mut kad.store_mut().crowd.from);
    let mut seats = Seats::default();
    for (peer, bucket, mut groups) in standing {
        if let Some(from) = before.get(&peer) {
            groups.insert(from.clone());
            kad.store_mut().crowd.from.insert(peer, from.clone());
        }
        groups.into_iter().for_each(|group| seats.take(group, peer, bucket));
    }
    seats
}

#[cfg(test)]
mod tests;
