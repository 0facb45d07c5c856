//! The tables and the rows in them. Those of the DHT are in [`super::dht`], those of the ledger in
//! [`super::ledger`].
//!
//! | table              | key                  | value                                                                     |
//! |--------------------|----------------------|---------------------------------------------------------------------------|
//! | `meta_v1`          | `"schema_version"`   | u64                                                                       |
//! | `peers_v1`         | peer id, its bytes   | CBOR `[first_seen_ms, last_seen_ms, source, [multiaddr bytes, …]]`        |
//! | `bans_v1`          | peer id or range, as text | see [`super::bans`]                                                 |
//! | `announcements_v1` | `"own"`              | (sequence number, the exact signed bytes)                                 |

use libp2p::{Multiaddr, PeerId};
use minicbor::{Decoder, Encoder};
use quelea_behaviours::peers::Source;
use redb::{ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition, TableError};

/// See the module's table.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta_v1");
/// See the module's table.
pub(super) const PEERS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("peers_v1");
/// See the module's table.
pub(super) const ANNOUNCEMENTS: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("announcements_v1");

/// The key of our own announcement.
const OWN: &str = "own";

/// Peers that are remembered. More than a routing table ever holds (256 buckets of 20), at about 500 bytes each.
pub(super) const PEERS_MAX: u64 = 10_000;

/// What is left after forgetting: below the maximum, so that the scan that finds the oldest runs once in 500 new peers.
pub(super) const PEERS_KEPT: usize = 9_500;

/// Addresses kept of one peer: the most an announcement carries.
pub(super) const ADDRS_MAX: usize = 8;

/// Bytes of one address; longer ones are left out. A relayed address with two peer ids has about 110.
const ADDR_BYTES_MAX: usize = 256;

/// A peer seen again within this time with nothing new to tell is not written again, in milliseconds.
const REFRESH_MS: u64 = 60_000;

/// A peer that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRow {
    /// Who.
    pub peer: PeerId,
    /// Where it can be dialled, best first. Eight are kept, of 256 bytes each at most.
    pub addrs: Vec<Multiaddr>,
    /// When it was seen first, in Unix milliseconds.
    pub first_seen_ms: u64,
    /// When it was seen last, in Unix milliseconds.
    pub last_seen_ms: u64,
    /// How it was found first.
    pub source: Source,
}

fn source_to_u8(source: Source) -> u8 {
    match source {
        Source::Bootstrap => 1,
        Source::Mdns => 2,
        Source::Dht => 3,
        Source::Inbound => 4,
        Source::Exchange => 5,
        Source::Rendezvous => 6,
        _ => 0,
    }
}

pub(super) fn source_from_u8(n: u8) -> Source {
    match n {
        1 => Source::Bootstrap,
        2 => Source::Mdns,
        3 => Source::Dht,
        4 => Source::Inbound,
        5 => Source::Exchange,
        6 => Source::Rendezvous,
        _ => Source::Other,
    }
}

impl PeerRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        // Writing to a vector cannot fail.
        let written = (|| {
            e.array(4)?.u64(self.first_seen_ms)?.u64(self.last_seen_ms)?.u8(source_to_u8(self.source))?;
            e.array(self.addrs.len() as u64)?;
            for addr in &self.addrs {
                e.bytes(addr.as_ref())?;
            }
            Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
        })();
        debug_assert!(written.is_ok());
        e.into_writer()
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, redb::Error> {
        let peer = PeerId::from_bytes(key).map_err(|e| bad_row("peer id", &e))?;
        let mut d = Decoder::new(value);
        let mut fields = || {
            if d.array()? != Some(4) {
                return Err(minicbor::decode::Error::message("not four fields"));
            }
            let (first, last, source) = (d.u64()?, d.u64()?, d.u8()?);
            let mut addrs = Vec::new();
            for _ in 0..d.array()?.unwrap_or(0).min(ADDRS_MAX as u64) {
                let addr = Multiaddr::try_from(d.bytes()?.to_vec()).map_err(minicbor::decode::Error::custom)?;
                addrs.push(addr);
            }
            Ok((first, last, source, addrs))
        };
        let (first_seen_ms, last_seen_ms, source, addrs) = fields().map_err(|e| bad_row("peer", &e))?;
        Ok(Self { peer, addrs, first_seen_ms, last_seen_ms, source: source_from_u8(source) })
    }

    /// Cuts the row to what is kept.
    fn bounded(mut self) -> Self {
        let mut kept: Vec<Multiaddr> = Vec::with_capacity(self.addrs.len().min(ADDRS_MAX));
        for addr in self.addrs {
            if kept.len() < ADDRS_MAX && addr.len() <= ADDR_BYTES_MAX && !kept.contains(&addr) {
                kept.push(addr);
            }
        }
        self.addrs = kept;
        self
    }

    /// This row and what was known before.
    fn merged(mut self, known: &Self) -> Self {
        self.addrs.extend_from_slice(&known.addrs);
        self.first_seen_ms = self.first_seen_ms.min(known.first_seen_ms);
        self.last_seen_ms = self.last_seen_ms.max(known.last_seen_ms);
        self.source = known.source;
        self.bounded()
    }
}

pub(super) fn bad_row(what: &str, why: &dyn std::fmt::Display) -> redb::Error {
    redb::Error::Corrupted(format!("a row that is no {what}: {why}"))
}

/// Records one sighting; `false` when there was nothing new to write.
pub(super) fn record_peer(table: &mut Table<'_, &[u8], &[u8]>, row: PeerRow) -> Result<bool, redb::Error> {
    let key = row.peer.to_bytes();
    let known = table.get(key.as_slice())?.map(|value| PeerRow::decode(&key, value.value())).transpose()?;
    let row = match known {
        None => row.bounded(),
        Some(known) => {
            let merged = row.merged(&known);
            let age = merged.last_seen_ms.saturating_sub(known.last_seen_ms);
            if age < REFRESH_MS && (PeerRow { last_seen_ms: known.last_seen_ms, ..merged.clone() }) == known {
                return Ok(false);
            }
            merged
        }
    };
    table.insert(key.as_slice(), row.encode().as_slice())?;
    Ok(true)
}

/// Forgets the peers seen longest ago when there are more than [`PEERS_MAX`].
pub(super) fn forget_peers(table: &mut Table<'_, &[u8], &[u8]>) -> Result<(), redb::Error> {
    if table.len()? <= PEERS_MAX {
        return Ok(());
    }
    let mut by_age = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        by_age.push((PeerRow::decode(key.value(), value.value())?.last_seen_ms, key.value().to_vec()));
    }
    by_age.sort_unstable();
    let excess = by_age.len().saturating_sub(PEERS_KEPT);
    for (_, key) in by_age.iter().take(excess) {
        table.remove(key.as_slice())?;
    }
    tracing::debug!(forgotten = excess, "forgot the peers seen longest ago");
    Ok(())
}

/// All peers, the one seen last first.
pub(super) fn read_peers(txn: &ReadTransaction) -> Result<Vec<PeerRow>, redb::Error> {
    let table = txn.open_table(PEERS)?;
    let mut rows = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        rows.push(PeerRow::decode(key.value(), value.value())?);
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.last_seen_ms));
    Ok(rows)
}

/// Stores our announcement unless `seq` is not above the stored one, which is then returned.
pub(super) fn put_own_announcement(
    table: &mut Table<'_, &str, (u64, &[u8])>,
    seq: u64,
    raw: &[u8],
) -> Result<Option<u64>, redb::Error> {
    let stored = table.get(OWN)?.map(|value| value.value().0);
    if let Some(stored) = stored.filter(|stored| *stored >= seq) {
        return Ok(Some(stored));
    }
    table.insert(OWN, (seq, raw))?;
    Ok(None)
}

/// Our announcement as stored.
pub(super) fn read_own_announcement(txn: &ReadTransaction) -> Result<Option<(u64, Vec<u8>)>, redb::Error> {
    let table = txn.open_table(ANNOUNCEMENTS)?;
    Ok(table.get(OWN)?.map(|value| {
        let (seq, raw) = value.value();
        (seq, raw.to_vec())
    }))
}

/// The schema's number, `None` in a file without one.
pub(super) fn read_schema(txn: &ReadTransaction) -> Result<Option<u64>, redb::Error> {
    match txn.open_table(META) {
        Ok(meta) => Ok(meta.get(SCHEMA_VERSION)?.map(|v| v.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The key of the schema's number.
pub(super) const SCHEMA_VERSION: &str = "schema_version";
