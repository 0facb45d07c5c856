//! Where the ledger is kept: in the node's database, or in memory by a node that keeps nothing, not even who it is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use libp2p::PeerId;
use quelea_ledger::{
    Unit,
    book::{KEPT_STEPS, Key, Lane, Side, Write},
};
use tokio::sync::oneshot;

use super::LedgerError;
use crate::storage::{Db, LedgerBatch, LedgerRows, WriteError};

type Rows = BTreeMap<Key, Vec<u8>>;

/// See the module. Clones share what is kept.
#[derive(Clone)]
pub(super) enum Store {
    Disk(Db),
    Memory(Arc<Mutex<Rows>>),
}

/// Tells when a unit is durable; nothing where it is so already.
pub(super) type Durable = Option<oneshot::Receiver<Result<(), WriteError>>>;

fn unusable(error: impl std::fmt::Display) -> LedgerError {
    LedgerError::Storage(error.to_string())
}

impl Store {
    pub(super) fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// What the keeper begins with.
    pub(super) async fn load(&self) -> Result<LedgerRows, LedgerError> {
        match self {
            Self::Disk(db) => db.ledger_load().await.map_err(unusable),
            Self::Memory(_) => Ok(LedgerRows::default()),
        }
    }

    /// Begins to write a unit. Units become durable in the order of these calls.
    pub(super) async fn submit(&self, batch: LedgerBatch) -> Result<Durable, LedgerError> {
        match self {
            Self::Disk(db) => db.ledger_submit(batch).await.map(Some).map_err(unusable),
            Self::Memory(rows) => {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                batch.writes.into_iter().for_each(|write| apply(&mut rows, write));
                Ok(None)
            }
        }
    }

    /// Values by key, in the order asked for.
    pub(super) async fn read(&self, keys: Vec<Key>) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        match self {
            Self::Disk(db) => db.ledger_read(keys).await.map_err(unusable),
            Self::Memory(rows) => {
                let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(keys.iter().map(|key| rows.get(key).cloned()).collect())
            }
        }
    }

    /// The envelopes of an account's steps, newest first.
    pub(super) async fn steps(
        &self,
        peer: PeerId,
        unit: Unit,
        most: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, LedgerError> {
        match self {
            Self::Disk(db) => db.ledger_steps(peer, unit, most).await.map_err(unusable),
            Self::Memory(rows) => {
                let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                let mut found: Vec<(u64, Key, Vec<u8>)> = Vec::new();
                for (lane, side) in LANES {
                    let range = step(lane, side, peer, unit, 0)..=step(lane, side, peer, unit, u64::MAX);
                    found.extend(rows.range(range).filter_map(|(key, value)| match key {
                        Key::Step(.., seq) => Some((*seq, *key, value.clone())),
                        _ => None,
                    }));
                }
                found.sort_by_key(|step| std::cmp::Reverse(step.0));
                Ok(found.into_iter().take(most).map(|(_, key, value)| (key, value)).collect())
            }
        }
    }
}

/// All counters of an account, and the acknowledgements of their notes.
const LANES: [(Lane, Side); 6] = [
    (Lane::Note, Side::Mine),
    (Lane::Note, Side::Theirs),
    (Lane::Redeem, Side::Mine),
    (Lane::Redeem, Side::Theirs),
    (Lane::Ack, Side::Mine),
    (Lane::Ack, Side::Theirs),
];

fn step(lane: Lane, side: Side, peer: PeerId, unit: Unit, seq: u64) -> Key {
    Key::Step(lane, side, peer, unit, seq)
}

fn apply(rows: &mut Rows, write: Write) {
    match write {
        Write::Put(key, value) => drop(rows.insert(key, value)),
        Write::Delete(key) => drop(rows.remove(&key)),
        Write::Prune(lane, side, peer, unit) => {
            let range = step(lane, side, peer, unit, 0)..=step(lane, side, peer, unit, u64::MAX);
            let old: Vec<Key> = rows.range(range).rev().skip(KEPT_STEPS).map(|(key, _)| *key).collect();
            old.iter().for_each(|key| drop(rows.remove(key)));
        }
    }
}
