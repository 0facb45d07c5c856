//! What the DHT asks this node to hold, within quotas.
//!
//! libp2p's store in memory counts other peers' provider keys against our own, never sweeps what expired, and turns
//! newcomers away from full keys. This one keeps three things apart: what we publish (bounded only by ourselves), values of
//! others, and provider records of others; each of the last two has a quota per peer and a bound in all.
//!
//! | full | then |
//! |---|---|
//! | a peer's share | its new record is refused; refreshing an old one is not |
//! | a key's providers | the one that expires first gives way |
//! | the store | the peer that holds most gives up what expires first |

mod quota;
#[cfg(test)]
mod tests;
mod types;

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore},
    },
};
use quelea_wire::rate::PeerBuckets;

use self::quota::{Quota, Room, Ticket};
pub use self::types::{Refusal, StoreLimits, StoreStats};

/// Keys under this prefix are open to everybody; all other values are refused.
pub const USER_PREFIX: &[u8] = b"/user/";

/// Peers whose addresses are remembered for provider records that came without. Four times the connections a node holds;
/// at four addresses of 128 bytes, 0.5 MiB.
pub const KNOWN_PEERS: usize = 1024;

struct Held<T> {
    record: T,
    ticket: Ticket,
}

struct OwnValue {
    record: Record,
    published: Instant,
}

/// The store of one node; see the module.
pub struct Store {
    local: PeerId,
    limits: StoreLimits,
    own_values: HashMap<RecordKey, OwnValue>,
    own_providers: HashMap<RecordKey, ProviderRecord>,
    values: HashMap<RecordKey, Held<Record>>,
    values_quota: Quota<RecordKey>,
    value_bytes: usize,
    providers: HashMap<RecordKey, Vec<Held<ProviderRecord>>>,
    providers_quota: Quota<RecordKey>,
    rate: PeerBuckets,
    known: HashMap<PeerId, Vec<Multiaddr>>,
    /// The same peers, longest known first.
    known_order: VecDeque<PeerId>,
    refused: u64,
    replaced: u64,
    expired: u64,
}

impl Store {
    /// An empty store of `local`.
    #[must_use]
    pub fn new(local: PeerId, limits: StoreLimits) -> Self {
        Self {
            local,
            own_values: HashMap::new(),
            own_providers: HashMap::new(),
            values: HashMap::new(),
            values_quota: Quota::new(limits.values_per_peer, limits.values),
            value_bytes: 0,
            providers: HashMap::new(),
            providers_quota: Quota::new(limits.providers_per_peer, limits.providers),
            rate: PeerBuckets::new(limits.values_per_10_s, Duration::from_secs(10)),
            known: HashMap::new(),
            known_order: VecDeque::new(),
            limits,
            refused: 0,
            replaced: 0,
            expired: 0,
        }
    }

    /// Takes a value that `source` asks us to hold. In the open user namespace the last writer wins, as it does at every
    /// other holder of the key.
    ///
    /// # Errors
    /// Says why it is not held.
    pub fn put_from(&mut self, source: PeerId, record: Record, now: Instant) -> Result<(), Refusal> {
        let result = self.try_put_from(source, record, now);
        self.refused = self.refused.saturating_add(u64::from(result.is_err()));
        result
    }

    fn try_put_from(&mut self, source: PeerId, mut record: Record, now: Instant) -> Result<(), Refusal> {
        self.check_value(&record)?;
        if self.own_values.contains_key(&record.key) {
            return Err(Refusal::Own);
        }
        if !self.rate.admit(source, now) {
            return Err(Refusal::Rate);
        }
        self.sweep(now);
        let expires = clamp(record.expires, now, self.limits.value_ttl).ok_or(Refusal::Expired)?;
        let old = self.values.get(&record.key).map(|held| held.ticket);
        let refreshes = old.is_some_and(|old| self.values_quota.owner(old) == Some(&source));
        if !refreshes {
            // A value written over gives its place to the new one, so nobody else's has to go.
            let evicted = match (self.values_quota.room(&source), old) {
                (Room::None, _) => return Err(Refusal::Quota),
                (Room::Replace(ticket), None) => Some(ticket),
                (Room::Replace(_), Some(_)) | (Room::Free, _) => None,
            };
            if let Some(ticket) = evicted {
                self.drop_value(ticket);
                self.replaced = self.replaced.saturating_add(1);
            }
        }
        if let Some(old) = old {
            self.drop_value(old);
        }
        record.expires = Some(expires);
        self.value_bytes = self.value_bytes.saturating_add(record.value.len());
        let ticket = self.values_quota.take(source, record.key.clone(), expires);
        self.values.insert(record.key.clone(), Held { record, ticket });
        Ok(())
    }

    /// Takes a provider record of another peer. That the provider is who sent it has been checked by Kademlia.
    ///
    /// # Errors
    /// Says why it is not held.
    pub fn provide_from(&mut self, record: ProviderRecord, now: Instant) -> Result<(), Refusal> {
        let result = self.try_provide_from(record, now);
        self.refused = self.refused.saturating_add(u64::from(result.is_err()));
        result
    }

    fn try_provide_from(&mut self, mut record: ProviderRecord, now: Instant) -> Result<(), Refusal> {
        if record.key.as_ref().len() > self.limits.key_bytes {
            return Err(Refusal::KeyTooLong);
        }
        if record.provider == self.local {
            return Err(Refusal::Own);
        }
        self.sweep(now);
        let expires = clamp(record.expires, now, self.limits.provider_ttl).ok_or(Refusal::Expired)?;
        record.expires = Some(expires);
        let provider = record.provider;
        if let Some(old) = self.provider_ticket(&record.key, &provider) {
            self.drop_provider(old);
        } else {
            // Whose place it is going to be: the key's own when the key is full, else what the quota says.
            let room = self.providers_quota.room(&provider);
            let evicted = match (self.full_key(&record.key), room) {
                (_, Room::None) => return Err(Refusal::Quota),
                (Some(soonest), _) => Some(soonest),
                (None, Room::Replace(ticket)) => Some(ticket),
                (None, Room::Free) => None,
            };
            if let Some(ticket) = evicted {
                self.drop_provider(ticket);
                self.replaced = self.replaced.saturating_add(1);
            }
        }
        let ticket = self.providers_quota.take(provider, record.key.clone(), expires);
        self.providers.entry(record.key.clone()).or_default().push(Held { record, ticket });
        Ok(())
    }

    /// Drops what has expired; returns how much. Also done before anything is added.
    pub fn sweep(&mut self, now: Instant) -> usize {
        let mut swept = 0_usize;
        while let Some(ticket) = self.values_quota.expired(now) {
            self.drop_value(ticket);
            swept = swept.saturating_add(1);
        }
        while let Some(ticket) = self.providers_quota.expired(now) {
            self.drop_provider(ticket);
            swept = swept.saturating_add(1);
        }
        self.expired = self.expired.saturating_add(u64::try_from(swept).unwrap_or(u64::MAX));
        swept
    }

    /// Remembers where a peer says that it listens. libp2p sends a provider record with confirmed external addresses only,
    /// so that of a worker which just started has none; this node, which is connected to it, knows better.
    pub fn note_addresses(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) {
        if self.known.insert(peer, addrs).is_none() {
            self.known_order.push_back(peer);
            if self.known_order.len() > KNOWN_PEERS
                && let Some(oldest) = self.known_order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    fn with_addresses(&self, record: &ProviderRecord) -> ProviderRecord {
        let mut record = record.clone();
        if record.addresses.is_empty() {
            record.addresses = self.known.get(&record.provider).cloned().unwrap_or_default();
        }
        record
    }

    /// Our own values that were last published at least `every` ago.
    #[must_use]
    pub fn due(&self, now: Instant, every: Duration) -> Vec<Record> {
        let due = |own: &&OwnValue| now.saturating_duration_since(own.published) >= every;
        self.own_values.values().filter(due).map(|own| own.record.clone()).collect()
    }

    /// Counts for metrics.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            values: self.values.len(),
            value_bytes: self.value_bytes,
            own_values: self.own_values.len(),
            providers: self.providers_quota.len(),
            provider_keys: self.providers.len(),
            own_providers: self.own_providers.len(),
            peers: self.values_quota.peers().max(self.providers_quota.peers()),
            refused: self.refused,
            replaced: self.replaced,
            expired: self.expired,
        }
    }

    fn check_value(&self, record: &Record) -> Result<(), Refusal> {
        if record.key.as_ref().len() > self.limits.key_bytes {
            Err(Refusal::KeyTooLong)
        } else if record.value.len() > self.limits.value_bytes {
            Err(Refusal::ValueTooLong)
        } else if !record.key.as_ref().starts_with(USER_PREFIX) {
            Err(Refusal::Namespace)
        } else {
            Ok(())
        }
    }

    fn drop_value(&mut self, ticket: Ticket) {
        if let Some((_, key)) = self.values_quota.give_back(ticket)
            && let Some(held) = self.values.remove(&key)
        {
            self.value_bytes = self.value_bytes.saturating_sub(held.record.value.len());
        }
    }

    fn drop_provider(&mut self, ticket: Ticket) {
        if let Some((peer, key)) = self.providers_quota.give_back(ticket)
            && let Entry::Occupied(mut entry) = self.providers.entry(key)
        {
            entry.get_mut().retain(|held| held.record.provider != peer);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }

    fn provider_ticket(&self, key: &RecordKey, provider: &PeerId) -> Option<Ticket> {
        let held = self.providers.get(key)?.iter().find(|held| held.record.provider == *provider)?;
        Some(held.ticket)
    }

    /// When `key` has as many providers as it may: the ticket that expires first.
    fn full_key(&self, key: &RecordKey) -> Option<Ticket> {
        let held = self.providers.get(key).filter(|held| held.len() >= self.limits.providers_per_key)?;
        held.iter().map(|held| held.ticket).min()
    }
}

/// The earlier of what the record says and what we allow; `None` when it has passed.
fn clamp(expires: Option<Instant>, now: Instant, ttl: Duration) -> Option<Instant> {
    let latest = now.checked_add(ttl)?;
    let expires = expires.map_or(latest, |expires| expires.min(latest));
    (expires > now).then_some(expires)
}

impl RecordStore for Store {
    type RecordsIter<'a> = Box<dyn Iterator<Item = Cow<'a, Record>> + 'a>;
    type ProvidedIter<'a> = Box<dyn Iterator<Item = Cow<'a, ProviderRecord>> + 'a>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let own = self.own_values.get(key).map(|own| &own.record);
        own.or_else(|| self.values.get(key).map(|held| &held.record)).map(Cow::Borrowed)
    }

    /// Puts a value of our own: Kademlia calls this when we publish. Those of others come by [`Store::put_from`].
    fn put(&mut self, record: Record) -> Result<(), Error> {
        self.check_value(&record).map_err(|_| Error::ValueTooLarge)?;
        if self.own_values.len() >= self.limits.own && !self.own_values.contains_key(&record.key) {
            return Err(Error::MaxRecords);
        }
        if let Some(ticket) = self.values.get(&record.key).map(|held| held.ticket) {
            self.drop_value(ticket);
        }
        self.own_values.insert(record.key.clone(), OwnValue { record, published: Instant::now() });
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.own_values.remove(key);
        if let Some(ticket) = self.values.get(key).map(|held| held.ticket) {
            self.drop_value(ticket);
        }
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        let own = self.own_values.values().map(|own| Cow::Borrowed(&own.record));
        Box::new(own.chain(self.values.values().map(|held| Cow::Borrowed(&held.record))))
    }

    /// Adds a provider record: our own when we start providing, else as [`Store::provide_from`].
    fn add_provider(&mut self, record: ProviderRecord) -> Result<(), Error> {
        if record.provider != self.local {
            return self.provide_from(record, Instant::now()).map_err(|_| Error::MaxProvidedKeys);
        }
        if self.own_providers.len() >= self.limits.own && !self.own_providers.contains_key(&record.key) {
            return Err(Error::MaxProvidedKeys);
        }
        self.own_providers.insert(record.key.clone(), record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let others = self.providers.get(key).into_iter().flatten().map(|held| self.with_addresses(&held.record));
        self.own_providers.get(key).cloned().into_iter().chain(others).collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        Box::new(self.own_providers.values().map(Cow::Borrowed))
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.own_providers.remove(key);
        } else if let Some(ticket) = self.provider_ticket(key, provider) {
            self.drop_provider(ticket);
        }
    }
}
