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

mod changes;
mod libp2p_store;
mod quota;
mod saved;
#[cfg(test)]
mod tests;
mod types;
pub(crate) mod value;

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{ProviderRecord, Record, RecordKey},
};
use quelea_wire::{NetworkId, rate::PeerBuckets, time::unix_ms};

use crate::kad::table::Crowd;

use self::changes::Changes;
use self::quota::{Quota, Room, Ticket};
pub use self::saved::{Change, FOREVER};
pub use self::types::{Refusal, StoreLimits, StoreStats};
use self::value::{Rules, Standing};

/// Keys under this prefix are open to everybody.
pub const USER_PREFIX: &[u8] = b"/quelea/user/";

/// Peers whose addresses are remembered for provider records that came without. Four times the connections a node holds;
/// at four addresses of 128 bytes, 0.5 MiB.
pub const KNOWN_PEERS: usize = 1024;

struct Held<T> {
    record: T,
    ticket: Ticket,
    /// Of a signed value.
    sequence: Option<u64>,
}

struct OwnValue {
    record: Record,
    sequence: Option<u64>,
    /// When it was last handed to Kademlia; `None` while it has reached nobody.
    published: Option<Instant>,
}

/// The store of one node; see the module.
pub struct Store {
    local: PeerId,
    limits: StoreLimits,
    rules: Rules,
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
    changes: Changes,
    /// Of the routing table, which has no other place of ours.
    pub(crate) crowd: Crowd,
    refused: u64,
    replaced: u64,
    expired: u64,
}

impl Store {
    /// An empty store of `local`, a member of `network`.
    #[must_use]
    pub fn new(local: PeerId, network: NetworkId, limits: StoreLimits) -> Self {
        Self {
            local,
            rules: Rules::new(network, &limits),
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
            changes: Changes::default(),
            crowd: Crowd::default(),
            refused: 0,
            replaced: 0,
            expired: 0,
        }
    }

    /// Takes a value that `source` asks us to hold. In the open user namespace the last writer wins, as it does at every
    /// other holder of the key; of signed values the one with the highest sequence number.
    ///
    /// # Errors
    /// Says why it is not held.
    pub fn put_from(&mut self, source: PeerId, record: Record, now: Instant) -> Result<(), Refusal> {
        let result = self.try_put_from(source, record, now);
        self.refused = self.refused.saturating_add(u64::from(result.is_err()));
        result
    }

    fn try_put_from(&mut self, source: PeerId, record: Record, now: Instant) -> Result<(), Refusal> {
        self.rules.glance(record.key.as_ref(), &record.value)?;
        if self.own_values.contains_key(&record.key) {
            return Err(Refusal::Own);
        }
        if !self.rate.admit(source, now) {
            return Err(Refusal::Rate);
        }
        self.hold(source, record, now)
    }

    /// Holds a value of another peer, if it is valid and there is room.
    fn hold(&mut self, source: PeerId, mut record: Record, now: Instant) -> Result<(), Refusal> {
        let now_ms = unix_ms();
        let standing = self.rules.judge(record.key.as_ref(), &record.value, now_ms)?;
        self.sweep(now);
        if self.values.get(&record.key).is_some_and(|held| is_stale(&record, standing, &held.record, held.sequence)) {
            return Err(Refusal::Stale);
        }
        let by_its_word = standing.expires_ms.map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
        let ttl = by_its_word.unwrap_or(self.limits.value_ttl).min(self.limits.value_ttl);
        let expires = clamp(record.expires, now, ttl).ok_or(Refusal::Expired)?;
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
        self.changes.note(&record.key);
        self.values.insert(record.key.clone(), Held { record, ticket, sequence: standing.sequence });
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
        self.providers.entry(record.key.clone()).or_default().push(Held { record, ticket, sequence: None });
        Ok(())
    }

    /// Drops what has expired; returns how much. Also done before anything is added.
    pub fn sweep(&mut self, now: Instant) -> usize {
        let mut swept = 0_usize;
        for (key, _) in self.own_values.extract_if(|_, own| own.is_over(now)) {
            self.changes.note(&key);
            swept = swept.saturating_add(1);
        }
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

    /// Of our own values that were never published or last at least `every` ago, at most `limit`.
    #[must_use]
    pub fn due(&self, now: Instant, every: Duration, limit: usize) -> Vec<Record> {
        let due = |own: &&OwnValue| own.published.is_none_or(|at| now.saturating_duration_since(at) >= every);
        self.own_values.values().filter(due).take(limit).map(|own| own.record.clone()).collect()
    }

    /// Our own value under `key` reached nobody: it is due again at once.
    pub fn unpublished(&mut self, key: &RecordKey) {
        if let Some(own) = self.own_values.get_mut(key) {
            own.published = None;
        }
    }

    /// Stops publishing a value of our own. What others hold of it goes when its time is over.
    pub fn forget(&mut self, key: &RecordKey) {
        if self.own_values.remove(key).is_some() {
            self.changes.note(key);
        }
    }

    /// Whether we provide this key.
    #[must_use]
    pub fn provides(&self, key: &RecordKey) -> bool {
        self.own_providers.contains_key(key)
    }

    /// Whether we publish a value under this key.
    #[must_use]
    pub fn is_own(&self, key: &RecordKey) -> bool {
        self.own_values.contains_key(key)
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
            crowded: self.crowd.refused,
        }
    }

    fn drop_value(&mut self, ticket: Ticket) {
        if let Some((_, key)) = self.values_quota.give_back(ticket)
            && let Some(held) = self.values.remove(&key)
        {
            self.changes.note(&held.record.key);
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

/// Whether a signed value that is held is newer than `record`, or claims the same number for something else.
fn is_stale(record: &Record, standing: Standing, held: &Record, held_sequence: Option<u64>) -> bool {
    match (standing.sequence, held_sequence) {
        (Some(new), Some(held_sequence)) => new < held_sequence || (new == held_sequence && record.value != held.value),
        _ => false,
    }
}

/// The earlier of what the record says and what we allow; `None` when it has passed.
fn clamp(expires: Option<Instant>, now: Instant, ttl: Duration) -> Option<Instant> {
    let latest = now.checked_add(ttl)?;
    let expires = expires.map_or(latest, |expires| expires.min(latest));
    (expires > now).then_some(expires)
}
