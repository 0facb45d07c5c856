//! What of the store outlives a restart: our own values, and those of others.

use std::time::{Duration, Instant};

use libp2p::{
    PeerId,
    kad::{Record, RecordKey, store::RecordStore as _},
};

use super::{OwnValue, Store};

/// Until when a value without an end is published.
pub const FOREVER: u64 = u64::MAX;

/// What to write down of one key, or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Forget every value: what follows is all there is.
    Clear,
    /// How `key` stands now.
    Key {
        /// The key.
        key: Vec<u8>,
        /// Our own value: until when it is published (Unix ms, or [`FOREVER`]), and its bytes.
        own: Option<(u64, Vec<u8>)>,
        /// The value of another peer: who brought it, until when it is held (Unix ms), and its bytes.
        held: Option<(PeerId, u64, Vec<u8>)>,
    },
}

impl Store {
    /// Notes from now on which values change. Without this nothing is noted.
    pub fn track_changes(&mut self) {
        self.changes.track(self.limits.values.saturating_add(self.limits.own).saturating_mul(2));
    }

    /// What has changed since it was last asked, at most `limit` keys of it; the rest follows when it is asked again.
    /// `now` and `now_ms` are the same moment.
    pub fn take_changes(&mut self, limit: usize, now: Instant, now_ms: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.changes.take_lost() {
            changes.push(Change::Clear);
            let all: Vec<RecordKey> = self.own_values.keys().chain(self.values.keys()).cloned().collect();
            all.iter().for_each(|key| self.changes.note(key));
        }
        for key in self.changes.take(limit) {
            let own = self.own_values.get(&key).map(|own| {
                let until = own.record.expires.map_or(FOREVER, |at| to_ms(at, now, now_ms));
                (until, own.record.value.clone())
            });
            let held = self.values.get(&key).and_then(|held| {
                let until = held.record.expires.map_or(FOREVER, |at| to_ms(at, now, now_ms));
                Some((*self.values_quota.owner(held.ticket)?, until, held.record.value.clone()))
            });
            changes.push(Change::Key { key: key.to_vec(), own, held });
        }
        changes
    }

    /// This change could not be written down: it is told of again.
    pub fn not_taken(&mut self, change: &Change) {
        match change {
            Change::Clear => self.changes.lose(),
            Change::Key { key, .. } => self.changes.note(&RecordKey::new(key)),
        }
    }

    /// Takes back a value of our own; it is due to be published at once. Says whether it was taken.
    pub fn restore_own(&mut self, key: Vec<u8>, until_ms: u64, value: Vec<u8>, now: Instant, now_ms: u64) -> bool {
        let expires = match until_ms {
            FOREVER => None,
            until_ms => match from_ms(until_ms, now, now_ms) {
                Some(at) => Some(at),
                None => return false,
            },
        };
        let record = Record { key: key.into(), value, publisher: Some(self.local), expires };
        let key = record.key.clone();
        let taken = self.put(record).is_ok();
        self.unpublished(&key);
        taken
    }

    /// Takes back a value of another peer, if it is still valid and there is room. Says whether it was taken.
    pub fn restore_held(
        &mut self,
        key: Vec<u8>,
        source: PeerId,
        until_ms: u64,
        value: Vec<u8>,
        now: Instant,
        now_ms: u64,
    ) -> bool {
        let Some(expires) = from_ms(until_ms, now, now_ms) else { return false };
        let record = Record { key: key.into(), value, publisher: None, expires: Some(expires) };
        !self.own_values.contains_key(&record.key) && self.hold(source, record, now).is_ok()
    }
}

/// `at` on the other clock.
fn to_ms(at: Instant, now: Instant, now_ms: u64) -> u64 {
    let left = at.saturating_duration_since(now).as_millis();
    now_ms.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
}

/// The other way; `None` when it has passed, or lies beyond all clocks.
fn from_ms(at_ms: u64, now: Instant, now_ms: u64) -> Option<Instant> {
    let left = at_ms.checked_sub(now_ms).filter(|left| *left > 0)?;
    now.checked_add(Duration::from_millis(left))
}

impl OwnValue {
    /// Whether its time is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.record.expires.is_some_and(|expires| expires <= now)
    }
}
