//! The tables of schema 4: what is kept of the swarm besides who was seen.
//!
//! | table          | key                      | value                                             |
//! |----------------|--------------------------|---------------------------------------------------|
//! | `conduct_v1`   | peer id, its bytes       | u16: 0 to 10,000; below 0, 10,000 more than without sign; no row is 0 |
//! | `anchors_v1`   | rank, 0 the best         | (peer id, CBOR `[multiaddr bytes, …]`)            |
//! | `bootstrap_v1` | full multiaddr, as text  | when it was added, Unix milliseconds              |

use libp2p::{Multiaddr, PeerId};
use minicbor::{Decoder, Encoder};
use redb::{ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition};

use super::tables::{ADDRS_MAX, PEERS_MAX, bad_row};

/// See the module's table.
pub(super) const CONDUCT: TableDefinition<'static, &[u8], u16> = TableDefinition::new("conduct_v1");
/// See the module's table.
pub(super) const ANCHORS: TableDefinition<'static, u8, (&[u8], &[u8])> = TableDefinition::new("anchors_v1");
/// See the module's table.
pub(super) const BOOTSTRAP: TableDefinition<'static, &str, u64> = TableDefinition::new("bootstrap_v1");

/// Anchors kept: Bitcoin Core keeps two. Four survive that some of them are gone.
pub const ANCHORS_MAX: usize = 4;
/// Peers to start from that the operator may list.
pub const BOOTSTRAP_MAX: u64 = 64;

/// A peer that was one of the best outbound ones, and where it was.
pub type Anchor = (PeerId, Vec<Multiaddr>);

/// The best and the worst score.
const BEST: i32 = 10_000;

/// A score as it is stored.
fn stored_as(score: i32) -> u16 {
    let score = score.clamp(-BEST, BEST);
    u16::try_from(if score < 0 { BEST - score } else { score }).unwrap_or_default()
}

/// A score from what is stored.
fn score_of(stored: u16) -> i32 {
    let stored = i32::from(stored).min(2 * BEST);
    if stored > BEST { BEST - stored } else { stored }
}

/// Notes a peer's conduct; 0 is what newcomers have, and takes no row. Beyond the peers remembered, newcomers are not noted.
pub(super) fn put_conduct(table: &mut Table<'_, &[u8], u16>, peer: &PeerId, conduct: i32) -> Result<bool, redb::Error> {
    let conduct = stored_as(conduct);
    let key = peer.to_bytes();
    let stored = table.get(key.as_slice())?.map(|value| value.value());
    if stored.unwrap_or(0) == conduct || (stored.is_none() && table.len()? >= PEERS_MAX) {
        return Ok(false);
    }
    if conduct == 0 {
        table.remove(key.as_slice())?;
    } else {
        table.insert(key.as_slice(), conduct)?;
    }
    Ok(true)
}

/// The conduct of every peer that has one.
pub(super) fn read_conduct(txn: &ReadTransaction) -> Result<Vec<(PeerId, i32)>, redb::Error> {
    let table = txn.open_table(CONDUCT)?;
    let mut all = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        all.push((PeerId::from_bytes(key.value()).map_err(|e| bad_row("peer id", &e))?, score_of(value.value())));
    }
    Ok(all)
}

/// Replaces the anchors, best first.
pub(super) fn put_anchors(table: &mut Table<'_, u8, (&[u8], &[u8])>, anchors: &[Anchor]) -> Result<bool, redb::Error> {
    let mut changed = false;
    for rank in 0..u8::try_from(ANCHORS_MAX).unwrap_or(u8::MAX) {
        let row = anchors.get(usize::from(rank)).map(|(peer, addrs)| (peer.to_bytes(), encode(addrs)));
        let stored = table.get(rank)?.map(|value| (value.value().0.to_vec(), value.value().1.to_vec()));
        if row == stored {
            continue;
        }
        changed = true;
        match row {
            Some((peer, addrs)) => drop(table.insert(rank, (peer.as_slice(), addrs.as_slice()))?),
            None => drop(table.remove(rank)?),
        }
    }
    Ok(changed)
}

/// The anchors, best first.
pub(super) fn read_anchors(txn: &ReadTransaction) -> Result<Vec<Anchor>, redb::Error> {
    let table = txn.open_table(ANCHORS)?;
    let mut anchors = Vec::new();
    for entry in table.iter()? {
        let (_, value) = entry?;
        let (peer, addrs) = value.value();
        let peer = PeerId::from_bytes(peer).map_err(|e| bad_row("peer id", &e))?;
        anchors.push((peer, decode(addrs).map_err(|e| bad_row("anchor", &e))?));
    }
    Ok(anchors)
}

/// Lists a peer to start from. `None` when there are [`BOOTSTRAP_MAX`] already; else whether it is new.
pub(super) fn add_bootstrap(
    table: &mut Table<'_, &str, u64>,
    addr: &str,
    now_ms: u64,
) -> Result<Option<bool>, redb::Error> {
    if table.get(addr)?.is_some() {
        return Ok(Some(false));
    }
    if table.len()? >= BOOTSTRAP_MAX {
        return Ok(None);
    }
    table.insert(addr, now_ms)?;
    Ok(Some(true))
}

/// The operator's list, and when each was added.
pub(super) fn read_bootstrap(txn: &ReadTransaction) -> Result<Vec<(String, u64)>, redb::Error> {
    let table = txn.open_table(BOOTSTRAP)?;
    let mut all = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        all.push((key.value().to_owned(), value.value()));
    }
    Ok(all)
}

fn encode(addrs: &[Multiaddr]) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    let kept = addrs.len().min(ADDRS_MAX);
    // Writing to a vector cannot fail.
    let written = (|| {
        e.array(kept as u64)?;
        for addr in addrs.iter().take(kept) {
            e.bytes(addr.as_ref())?;
        }
        Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
    })();
    debug_assert!(written.is_ok());
    e.into_writer()
}

fn decode(bytes: &[u8]) -> Result<Vec<Multiaddr>, minicbor::decode::Error> {
    let mut d = Decoder::new(bytes);
    let mut addrs = Vec::new();
    for _ in 0..d.array()?.unwrap_or(0).min(ADDRS_MAX as u64) {
        addrs.push(Multiaddr::try_from(d.bytes()?.to_vec()).map_err(minicbor::decode::Error::custom)?);
    }
    Ok(addrs)
}
