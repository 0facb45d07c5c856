//! What a point holds: registrations by namespace, bounded by peer, by address group and altogether. A pure machine; the clock
//! is an argument.
//!
//! | bound | what it keeps off |
//! |---|---|
//! | [`MAX_PER_PEER`] | one peer with ten thousand namespaces |
//! | [`MAX_PER_GROUP`] | one address group with ten thousand identities |
//! | [`MAX_REGISTRATIONS`] | everybody together: some 2 KiB each, 8 MiB |
//! | [`MAX_TTL`] | those who ask for 72 hours |
//! | cookies are numbers | an asker has nothing kept for it: a cookie says after which registration to go on |
//!
//! A peer that registers again replaces what it had. When all places are taken, the oldest registration of the group that has
//! most gives way to a newcomer whose own group has fewer: a flood from one place throws out itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use libp2p::PeerId;
use quelea_wire::prefix::Prefix;

use crate::{
    codec::Page,
    message::{MAX_LISTED, Status},
    record::Record,
};

/// Registrations held at once.
pub const MAX_REGISTRATIONS: usize = 4_096;
/// Of one peer: it is in one network, or a few.
pub const MAX_PER_PEER: usize = 4;
/// Of one public address group, an IPv4 /24 or IPv6 /48.
pub const MAX_PER_GROUP: usize = 64;
/// How long one is held at most, and when nothing is said: the specification's default. Who asks for more gets this.
pub const MAX_TTL: Duration = Duration::from_secs(2 * 60 * 60);

#[derive(Debug)]
struct Held {
    namespace: String,
    record: Record,
    ttl: Duration,
    ends: Duration,
    group: Option<Prefix>,
}

/// The registrations. Numbers count them in the order in which they came.
#[derive(Debug)]
pub struct Registry {
    /// The cookie that stands for the beginning: drawn at random, so that one of an earlier life is not taken for one of ours.
    first: u64,
    last: u64,
    held: BTreeMap<u64, Held>,
    by_peer: BTreeMap<PeerId, BTreeMap<String, u64>>,
    by_name: BTreeMap<String, BTreeSet<u64>>,
    /// `None` for those at home and behind relays, whom no group tells apart.
    by_group: BTreeMap<Option<Prefix>, BTreeSet<u64>>,
    by_end: BTreeSet<(Duration, u64)>,
}

impl Registry {
    /// Holds nothing; cookies count from `first`.
    #[must_use]
    pub fn new(first: u64) -> Self {
        Self {
            first,
            last: 0,
            held: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_group: BTreeMap::new(),
            by_end: BTreeSet::new(),
        }
    }

    /// How many registrations are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Entries of each of its maps, for watching their bounds: registrations, peers, namespaces, groups, ends.
    #[must_use]
    pub fn sizes(&self) -> [usize; 5] {
        [self.held.len(), self.by_peer.len(), self.by_name.len(), self.by_group.len(), self.by_end.len()]
    }

    /// Keeps a record that its peer brought from `group`. Returns for how many seconds.
    ///
    /// # Errors
    /// When the time is none, or there is no room.
    pub fn register(
        &mut self,
        namespace: &str,
        record: Record,
        ttl: Option<u64>,
        group: Option<Prefix>,
        now: Duration,
    ) -> Result<u64, Status> {
        self.sweep(now);
        let ttl = ttl.map_or(MAX_TTL, Duration::from_secs).min(MAX_TTL);
        if ttl.is_zero() {
            return Err(Status::InvalidTtl);
        }
        let own = self.by_peer.get(&record.peer());
        let before = own.and_then(|own| own.get(namespace)).copied();
        if before.is_none() && own.is_some_and(|own| own.len() >= MAX_PER_PEER) {
            return Err(Status::Unavailable);
        }
        let of_group = self.by_group.get(&group);
        let stays = before.is_some_and(|before| of_group.is_some_and(|all| all.contains(&before)));
        let count = of_group.map_or(0, BTreeSet::len);
        if group.is_some() && !stays && count >= MAX_PER_GROUP {
            return Err(Status::Unavailable);
        }
        if before.is_none() && self.held.len() >= MAX_REGISTRATIONS {
            let fullest = self.by_group.values().max_by_key(|all| all.len());
            let victim = fullest.filter(|all| all.len() > count.saturating_add(1)).and_then(BTreeSet::first).copied();
            self.remove(victim.ok_or(Status::Unavailable)?);
        }
        if let Some(before) = before {
            self.remove(before);
        }
        self.insert(Held { namespace: namespace.to_owned(), record, ttl, ends: now.saturating_add(ttl), group });
        Ok(ttl.as_secs())
    }

    /// Forgets what `peer` registered under `namespace`. Returns whether there was anything.
    pub fn unregister(&mut self, namespace: &str, peer: &PeerId) -> bool {
        let number = self.by_peer.get(peer).and_then(|own| own.get(namespace)).copied();
        number.inspect(|number| self.remove(*number)).is_some()
    }

    /// Registrations under `namespace`, or all, after those that `cookie` stands for, of whom `tells` lets the asker hear:
    /// at most `limit` and [`MAX_LISTED`], the oldest first.
    ///
    /// # Errors
    /// When the cookie is none of ours, or of another namespace.
    pub fn discover(
        &mut self,
        namespace: Option<&str>,
        cookie: Option<&[u8]>,
        limit: Option<u64>,
        now: Duration,
        tells: impl Fn(&Record) -> bool,
    ) -> Result<Page, Status> {
        self.sweep(now);
        let after = cookie.map_or(Some(0), |cookie| self.number_of(namespace, cookie)).ok_or(Status::InvalidCookie)?;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MAX_LISTED).min(MAX_LISTED);
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let mut numbers: Box<dyn Iterator<Item = u64>> = match namespace {
            Some(name) => Box::new(self.by_name.get(name).into_iter().flat_map(|all| all.range(range)).copied()),
            None => Box::new(self.held.range(range).map(|(number, _)| *number)),
        };
        let (mut records, mut seen) = (Vec::new(), self.last);
        while records.len() < limit {
            let Some(number) = numbers.next() else { break };
            let told = self.held.get(&number).filter(|held| tells(&held.record));
            records.extend(told.map(|held| (held.namespace.clone(), held.record.clone(), held.ttl.as_secs())));
            if records.len() >= limit {
                seen = number;
            }
        }
        if limit == 0 {
            seen = after;
        }
        let mut cookie = self.first.wrapping_add(seen).to_be_bytes().to_vec();
        cookie.extend(namespace.unwrap_or_default().as_bytes());
        Ok(Page { records, invalid: 0, cookie })
    }

    /// After which registration a cookie goes on: eight bytes of number, then the namespace, as libp2p's clients expect.
    fn number_of(&self, namespace: Option<&str>, cookie: &[u8]) -> Option<u64> {
        let (number, name) = cookie.split_first_chunk::<8>()?;
        let number = u64::from_be_bytes(*number).wrapping_sub(self.first);
        (number <= self.last && name == namespace.unwrap_or_default().as_bytes()).then_some(number)
    }

    /// Forgets what has ended.
    pub fn sweep(&mut self, now: Duration) {
        while let Some((_, number)) = self.by_end.first().copied().filter(|(ends, _)| *ends <= now) {
            self.remove(number);
        }
    }

    fn insert(&mut self, held: Held) {
        self.last = self.last.saturating_add(1);
        let number = self.last;
        self.by_peer.entry(held.record.peer()).or_default().insert(held.namespace.clone(), number);
        self.by_name.entry(held.namespace.clone()).or_default().insert(number);
        self.by_group.entry(held.group).or_default().insert(number);
        self.by_end.insert((held.ends, number));
        self.held.insert(number, held);
    }

    fn remove(&mut self, number: u64) {
        let Some(held) = self.held.remove(&number) else { return };
        self.by_end.remove(&(held.ends, number));
        drop_from(&mut self.by_name, &held.namespace, number);
        drop_from(&mut self.by_group, &held.group, number);
        let peer = held.record.peer();
        if let Some(own) = self.by_peer.get_mut(&peer) {
            own.remove(&held.namespace);
            if own.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
    }
}

fn drop_from<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<u64>>, key: &K, number: u64) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&number);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
