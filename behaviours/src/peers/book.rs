//! The peers a node remembers: bounded, by address group and by who told of them, too; the worst is forgotten first.
//!
//! A pure map: the clock is an argument. What it holds of a peer costs some 500 bytes, 2 MiB at most.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use libp2p::{Multiaddr, PeerId};
use quelea_wire::prefix::{Prefix, ip_of, is_local};

use crate::{identify::dialable, nat::is_relayed};

/// Peers remembered at once: more than a node ever dials between two restarts.
pub const MAX_PEERS: usize = 4_096;
/// Of one address group. Whoever rents one group fills these places and no others.
pub const MAX_PER_GROUP: usize = 16;
/// Told of by one peer and never met.
pub const MAX_PER_TELLER: usize = 256;
/// Addresses of one peer: those it claims now and those it was seen at before.
pub const MAX_ADDRS: usize = 8;
/// What one customer of a provider can rent, as in the routing table: an IPv4 /24, an IPv6 /48.
const GROUP: (u8, u8) = (24, 48);
/// The best conduct there is; newcomers begin at 0. One step of the trust table (0.001) is 10.
pub const CONDUCT_MAX: u16 = 10_000;
/// How long a peer that could not be dialled is left alone at first; doubles each time.
const RETRY: Duration = Duration::from_secs(2);
/// And at most: who has been away for hours is tried again within the hour.
pub const RETRY_MAX: Duration = Duration::from_secs(3600);

/// How a peer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Source {
    /// Named by the operator.
    Bootstrap,
    /// It answered on the local network.
    Mdns,
    /// A lookup in Kademlia led to it.
    Dht,
    /// It connected to us.
    Inbound,
    /// Another peer told of it.
    Exchange,
    /// A rendezvous point told of it.
    Rendezvous,
    /// Anything else, or written by a later version.
    Other,
}

impl Source {
    /// Whether another peer told of it, who may lie.
    fn is_hearsay(self) -> bool {
        matches!(self, Self::Exchange | Self::Rendezvous)
    }

    /// For people and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Mdns => "mdns",
            Self::Dht => "dht",
            Self::Inbound => "inbound",
            Self::Exchange => "exchange",
            Self::Rendezvous => "rendezvous",
            Self::Other => "other",
        }
    }
}

/// What time it is.
pub use quelea_exchange::Now;

/// A peer that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Where it can be dialled, what it claims now first; at most [`MAX_ADDRS`].
    pub addrs: Vec<Multiaddr>,
    /// How it was found first.
    pub source: Source,
    /// Who told of it, when it was another peer.
    pub teller: Option<PeerId>,
    /// When it was heard of first, in Unix milliseconds.
    pub first_seen_ms: u64,
    /// When it was connected last, in Unix milliseconds; `None` if never.
    pub last_seen_ms: Option<u64>,
    /// What of its score is above 0, at most [`CONDUCT_MAX`]: see [`conduct`](crate::conduct).
    pub conduct: u16,
    /// What it calls itself.
    pub agent: Option<String>,
    /// One of the best outbound peers when the node stopped last: tried first.
    pub anchor: bool,
    /// Dials that failed, and connections that soon ended, since one lasted.
    pub failures: u32,
    /// It is not dialled by ourselves before.
    pub retry_at: Duration,
    /// When it was heard of since the start of this process.
    pub learnt_at: Duration,
    group: Option<Prefix>,
}

impl Known {
    /// The address group that it takes a place of; `None` at home.
    #[must_use]
    pub fn group(&self) -> Option<Prefix> {
        self.group
    }

    /// Whether we have been connected to it.
    #[must_use]
    pub fn met(&self) -> bool {
        self.last_seen_ms.is_some()
    }

    /// What is forgotten last.
    fn worth(&self) -> impl Ord + use<> {
        let named = self.anchor || self.source == Source::Bootstrap;
        (named, self.met(), self.conduct, Reverse(self.failures), self.last_seen_ms, Reverse(self.first_seen_ms))
    }
}

/// Where a peer was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// How.
    pub source: Source,
    /// By whom, when it was another peer.
    pub teller: Option<PeerId>,
}

impl From<Source> for Told {
    fn from(source: Source) -> Self {
        Self { source, teller: None }
    }
}

/// The map.
#[derive(Debug)]
pub struct Book {
    local: PeerId,
    peers: BTreeMap<PeerId, Known>,
    groups: BTreeMap<Prefix, usize>,
    tellers: BTreeMap<PeerId, usize>,
}

impl Book {
    /// Of the node `local`, which it never holds.
    #[must_use]
    pub fn new(local: PeerId) -> Self {
        Self { local, peers: BTreeMap::new(), groups: BTreeMap::new(), tellers: BTreeMap::new() }
    }

    /// Whose book this is.
    #[must_use]
    pub fn local(&self) -> PeerId {
        self.local
    }

    /// What is known of a peer.
    #[must_use]
    pub fn get(&self, peer: &PeerId) -> Option<&Known> {
        self.peers.get(peer)
    }

    /// Every peer, by its id.
    pub fn iter(&self) -> impl Iterator<Item = (&PeerId, &Known)> {
        self.peers.iter()
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether nobody is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Entries in each of its maps, for watching their bounds: peers, groups, tellers.
    #[must_use]
    pub fn sizes(&self) -> [usize; 3] {
        [self.peers.len(), self.groups.len(), self.tellers.len()]
    }

    /// Hears of a peer and of where it is now. Returns whether it is remembered and was not before.
    pub fn learn(&mut self, peer: PeerId, addrs: &[Multiaddr], told: impl Into<Told>, now: Now) -> bool {
        let (claimed, told) = (dialable(&peer, addrs), told.into());
        if peer == self.local {
            return false;
        }
        if self.peers.contains_key(&peer) {
            self.change(&peer, |known| {
                let before = std::mem::replace(&mut known.addrs, claimed);
                known.addrs.extend(before);
                dedup(&mut known.addrs);
                if told.source == Source::Bootstrap {
                    known.source = Source::Bootstrap;
                }
            });
            return false;
        }
        if claimed.is_empty() && told.source.is_hearsay() {
            return false;
        }
        let known = Known {
            group: group_of(&claimed),
            addrs: claimed,
            source: told.source,
            teller: told.teller.filter(|_| told.source.is_hearsay()),
            first_seen_ms: now.unix_ms,
            last_seen_ms: None,
            conduct: 0,
            agent: None,
            anchor: false,
            failures: 0,
            retry_at: Duration::ZERO,
            learnt_at: now.at,
        };
        self.insert(peer, known)
    }

    /// Takes in what was written down before the node stopped.
    pub fn restore(&mut self, peer: PeerId, addrs: &[Multiaddr], source: Source, seen: (u64, u64), conduct: u16) {
        let addrs = dialable(&peer, addrs);
        let known = Known {
            group: group_of(&addrs),
            addrs,
            source,
            teller: None,
            first_seen_ms: seen.0,
            last_seen_ms: Some(seen.1),
            conduct: conduct.min(CONDUCT_MAX),
            agent: None,
            anchor: false,
            failures: 0,
            retry_at: Duration::ZERO,
            learnt_at: Duration::ZERO,
        };
        if peer != self.local && !self.peers.contains_key(&peer) {
            self.insert(peer, known);
        }
    }

    fn insert(&mut self, peer: PeerId, known: Known) -> bool {
        let (group, teller) = (known.group, known.teller);
        self.count(group, teller);
        self.peers.insert(peer, known);
        // The newcomer itself may be the worst; then nobody gives way to it.
        if let Some(teller) = teller.filter(|teller| self.tellers.get(teller).is_some_and(|n| *n > MAX_PER_TELLER)) {
            self.drop_worst(|known| known.teller == Some(teller) && !known.met());
        }
        if let Some(group) = group.filter(|group| self.groups.get(group).is_some_and(|n| *n > MAX_PER_GROUP)) {
            self.drop_worst(|known| known.group == Some(group));
        }
        if self.peers.len() > MAX_PEERS {
            self.drop_worst(|_| true);
        }
        self.peers.contains_key(&peer)
    }

    fn drop_worst(&mut self, among: impl Fn(&Known) -> bool) {
        let worst = self.peers.iter().filter(|(_, known)| among(known)).min_by_key(|(peer, k)| (k.worth(), **peer));
        if let Some(peer) = worst.map(|(peer, _)| *peer) {
            self.forget(&peer);
        }
    }

    /// Forgets a peer.
    pub fn forget(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.remove(peer) {
            self.uncount(known.group, known.teller);
        }
    }

    fn change(&mut self, peer: &PeerId, f: impl FnOnce(&mut Known)) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        let before = (known.group, known.teller);
        f(known);
        known.group = group_of(&known.addrs);
        let after = (known.group, known.teller);
        self.uncount(before.0, before.1);
        self.count(after.0, after.1);
    }

    fn count(&mut self, group: Option<Prefix>, teller: Option<PeerId>) {
        if let Some(group) = group {
            add(self.groups.entry(group).or_default());
        }
        if let Some(teller) = teller {
            add(self.tellers.entry(teller).or_default());
        }
    }

    fn uncount(&mut self, group: Option<Prefix>, teller: Option<PeerId>) {
        if let Some(group) = group {
            take(&mut self.groups, &group);
        }
        if let Some(teller) = teller {
            take(&mut self.tellers, &teller);
        }
    }

    /// A connection to the peer stands. It is what we know of it now, not what somebody told.
    pub fn met(&mut self, peer: &PeerId, now: Now) {
        self.change(peer, |known| {
            known.last_seen_ms = Some(now.unix_ms);
            known.teller = None;
        });
    }

    /// A connection to the peer has lasted: what failed before is forgotten.
    pub fn lasted(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.failures = 0;
        }
    }

    /// What a connected peer calls itself.
    pub fn named(&mut self, peer: &PeerId, agent: String) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.agent = Some(agent);
        }
    }

    /// The peer could not be dialled, or soon hung up: it is left alone, longer each time. `chance` spreads those that failed
    /// together.
    pub fn failed(&mut self, peer: &PeerId, chance: u64, now: Now) {
        if let Some(known) = self.peers.get_mut(peer) {
            let pause = RETRY.saturating_mul(1_u32.checked_shl(known.failures).unwrap_or(u32::MAX)).min(RETRY_MAX);
            let quarter = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) / 4;
            let more = chance.checked_rem(quarter.max(1)).unwrap_or_default();
            known.failures = known.failures.saturating_add(1);
            let until = now.at.saturating_add(pause).saturating_add(Duration::from_millis(more));
            known.retry_at = known.retry_at.max(until);
        }
    }

    /// The operator does not want the peer dialled before `until`.
    pub fn hold_off(&mut self, peer: &PeerId, until: Duration) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.retry_at = until;
        }
    }

    /// A peer's conduct is this now.
    pub fn set_conduct(&mut self, peer: &PeerId, conduct: u16) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.conduct = conduct.min(CONDUCT_MAX);
        }
    }

    /// Marks the peers that were the best outbound ones when the node stopped.
    pub fn set_anchor(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.anchor = true;
        }
    }
}

/// The group of the first public address at which the peer itself listens.
fn group_of(addrs: &[Multiaddr]) -> Option<Prefix> {
    let ips = addrs.iter().filter(|addr| !is_relayed(addr)).filter_map(ip_of);
    ips.into_iter().find(|ip| !is_local(*ip)).map(|ip| Prefix::around(ip, GROUP))
}

fn dedup(addrs: &mut Vec<Multiaddr>) {
    let mut kept: Vec<Multiaddr> = Vec::with_capacity(MAX_ADDRS);
    for addr in addrs.drain(..) {
        if kept.len() < MAX_ADDRS && !kept.contains(&addr) {
            kept.push(addr);
        }
    }
    *addrs = kept;
}

fn add(count: &mut usize) {
    *count = count.saturating_add(1);
}

fn take<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
