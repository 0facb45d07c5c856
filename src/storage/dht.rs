//! What the node's part of the DHT outlives a restart with.
//!
//! | table             | key                | value                                                            |
//! |-------------------|--------------------|------------------------------------------------------------------|
//! | `dht_own_v1`      | key of a value     | (until when it is published in Unix ms or `u64::MAX`, the value)  |
//! | `dht_held_v1`     | key of a value     | (who brought it, until when it is held in Unix ms, the value)     |
//! | `dht_provided_v1` | key we provide     | since when, in Unix ms                                           |
//! | `dht_routing_v1`  | peer id, its bytes | CBOR `[multiaddr bytes, …]`: its addresses in the routing table   |
//!
//! Provider records of others are not kept: they live for minutes.

use libp2p::{Multiaddr, PeerId};
use minicbor::{Decoder, Encoder};
use redb::{ReadTransaction, ReadableTable as _, TableDefinition, WriteTransaction};

use super::{Db, NotRecorded, ReadError};
use crate::storage::writer::Write;

/// Who brought a value, until when it is held, the value.
type HeldRow<'a> = (&'a [u8], u64, &'a [u8]);

/// See the module's table.
pub(super) const OWN: TableDefinition<'static, &[u8], (u64, &[u8])> = TableDefinition::new("dht_own_v1");
/// See the module's table.
pub(super) const HELD: TableDefinition<'static, &[u8], HeldRow<'static>> = TableDefinition::new("dht_held_v1");
/// See the module's table.
pub(super) const PROVIDED: TableDefinition<'static, &[u8], u64> = TableDefinition::new("dht_provided_v1");
/// See the module's table.
pub(super) const ROUTING: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("dht_routing_v1");

/// Rows read of one table. Above what the DHT's limits let there be; a file with more was not written by us.
const ROWS_MAX: usize = 16_384;

/// Addresses read of one peer; the routing table has four.
const ADDRS_MAX: u64 = 8;

/// One change. Rows are below 1.3 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DhtWrite {
    /// A value of our own: until when it is published, and its bytes; `None` when it is given up.
    Own { key: Vec<u8>, row: Option<(u64, Vec<u8>)> },
    /// A value of another peer: who brought it, until when it is held, and its bytes; `None` when it is gone.
    Held { key: Vec<u8>, row: Option<(PeerId, u64, Vec<u8>)> },
    /// A key that we provide, since when; `None` when no more.
    Provided { key: Vec<u8>, since: Option<u64> },
    /// A peer of the routing table; `None` when it has left.
    Routing { peer: PeerId, addrs: Option<Vec<Multiaddr>> },
    /// Forget every value, our own and those of others: what follows is all there is.
    ClearValues,
}

/// Everything that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DhtSaved {
    pub(crate) own: Vec<(Vec<u8>, u64, Vec<u8>)>,
    pub(crate) held: Vec<(Vec<u8>, PeerId, u64, Vec<u8>)>,
    pub(crate) provided: Vec<Vec<u8>>,
    pub(crate) routing: Vec<(PeerId, Vec<Multiaddr>)>,
}

impl Db {
    /// What was kept of the DHT.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub(crate) async fn dht(&self) -> Result<DhtSaved, ReadError> {
        self.read(read).await
    }

    /// Writes a change down. Never blocks; there is no answer, because nothing hangs on it.
    ///
    /// # Errors
    /// When it was not even queued.
    pub(crate) fn try_dht(&self, write: DhtWrite) -> Result<(), NotRecorded> {
        self.try_write(Write::Dht(write))
    }
}

/// Makes one change; `false` when there was nothing to change.
pub(super) fn apply(txn: &WriteTransaction, write: DhtWrite) -> Result<bool, redb::Error> {
    Ok(match write {
        DhtWrite::Own { key, row } => {
            let mut table = txn.open_table(OWN)?;
            match row {
                Some((until, value)) => {
                    table.insert(key.as_slice(), (until, value.as_slice()))?;
                    true
                }
                None => table.remove(key.as_slice())?.is_some(),
            }
        }
        DhtWrite::Held { key, row } => {
            let mut table = txn.open_table(HELD)?;
            match row {
                Some((source, until, value)) => {
                    table.insert(key.as_slice(), (source.to_bytes().as_slice(), until, value.as_slice()))?;
                    true
                }
                None => table.remove(key.as_slice())?.is_some(),
            }
        }
        DhtWrite::Provided { key, since } => {
            let mut table = txn.open_table(PROVIDED)?;
            match since {
                Some(since) => {
                    table.insert(key.as_slice(), since)?;
                    true
                }
                None => table.remove(key.as_slice())?.is_some(),
            }
        }
        DhtWrite::Routing { peer, addrs } => {
            let mut table = txn.open_table(ROUTING)?;
            match addrs {
                Some(addrs) => {
                    table.insert(peer.to_bytes().as_slice(), encode(&addrs).as_slice())?;
                    true
                }
                None => table.remove(peer.to_bytes().as_slice())?.is_some(),
            }
        }
        DhtWrite::ClearValues => {
            txn.open_table(OWN)?.retain(|_, _| false)?;
            txn.open_table(HELD)?.retain(|_, _| false)?;
            true
        }
    })
}

fn read(txn: &ReadTransaction) -> Result<DhtSaved, redb::Error> {
    let mut saved = DhtSaved::default();
    for entry in txn.open_table(OWN)?.iter()?.take(ROWS_MAX) {
        let (key, row) = entry?;
        let (until, value) = row.value();
        saved.own.push((key.value().to_vec(), until, value.to_vec()));
    }
    for entry in txn.open_table(HELD)?.iter()?.take(ROWS_MAX) {
        let (key, row) = entry?;
        let (source, until, value) = row.value();
        let source = PeerId::from_bytes(source).map_err(|e| bad_row("peer id", &e))?;
        saved.held.push((key.value().to_vec(), source, until, value.to_vec()));
    }
    for entry in txn.open_table(PROVIDED)?.iter()?.take(ROWS_MAX) {
        saved.provided.push(entry?.0.value().to_vec());
    }
    for entry in txn.open_table(ROUTING)?.iter()?.take(ROWS_MAX) {
        let (peer, addrs) = entry?;
        let peer = PeerId::from_bytes(peer.value()).map_err(|e| bad_row("peer id", &e))?;
        saved.routing.push((peer, decode(addrs.value()).map_err(|e| bad_row("list of addresses", &e))?));
    }
    Ok(saved)
}

fn encode(addrs: &[Multiaddr]) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    // Writing to a vector cannot fail.
    let written = (|| {
        e.array(addrs.len() as u64)?;
        for addr in addrs {
            e.bytes(addr.as_ref())?;
        }
        Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
    })();
    debug_assert!(written.is_ok());
    e.into_writer()
}

fn decode(row: &[u8]) -> Result<Vec<Multiaddr>, minicbor::decode::Error> {
    let mut d = Decoder::new(row);
    let count = d.array()?.unwrap_or(0).min(ADDRS_MAX);
    (0..count).map(|_| Multiaddr::try_from(d.bytes()?.to_vec()).map_err(minicbor::decode::Error::custom)).collect()
}

fn bad_row(what: &str, why: &dyn std::fmt::Display) -> redb::Error {
    redb::Error::Corrupted(format!("a row that is no {what}: {why}"))
}
