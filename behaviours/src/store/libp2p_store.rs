//! The store as Kademlia uses it.

use std::borrow::Cow;

use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore},
    },
};
use quelea_wire::time::unix_ms;

use super::{Instant, OwnValue, Store, is_stale};

impl RecordStore for Store {
    type RecordsIter<'a> = Box<dyn Iterator<Item = Cow<'a, Record>> + 'a>;
    type ProvidedIter<'a> = Box<dyn Iterator<Item = Cow<'a, ProviderRecord>> + 'a>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let own = self.own_values.get(key).map(|own| &own.record);
        own.or_else(|| self.values.get(key).map(|held| &held.record)).map(Cow::Borrowed)
    }

    /// Puts a value of our own: Kademlia calls this when we publish. Those of others come by [`Store::put_from`].
    fn put(&mut self, record: Record) -> Result<(), Error> {
        let judged = self.rules.judge(record.key.as_ref(), &record.value, unix_ms());
        let standing = judged.map_err(|_| Error::ValueTooLarge)?;
        let own = self.own_values.get(&record.key);
        if own.is_some_and(|own| is_stale(&record, standing, &own.record, own.sequence)) {
            return Err(Error::ValueTooLarge);
        }
        if self.own_values.len() >= self.limits.own && !self.own_values.contains_key(&record.key) {
            return Err(Error::MaxRecords);
        }
        if let Some(ticket) = self.values.get(&record.key).map(|held| held.ticket) {
            self.drop_value(ticket);
        }
        self.changes.note(&record.key);
        let published = Some(Instant::now());
        self.own_values.insert(record.key.clone(), OwnValue { record, sequence: standing.sequence, published });
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.forget(key);
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
