//! The tables of services.
//!
//! | table                | key                                              | value                                        |
//! |----------------------|--------------------------------------------------|----------------------------------------------|
//! | `services_v1`        | a service's name                                 | (whether it is offered, micro-credits)       |
//! | `service_results_v1` | expiry in ms, big-endian ‖ call id ‖ peer id     | amount u64 ‖ job hash ‖ what came out        |
//!
//! Results expire within minutes, and the oldest go when there are more than [`RESULTS_MAX`]: the key begins with when.

use libp2p::PeerId;
use redb::{ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, TableDefinition, WriteTransaction};

use super::tables::bad_row;

/// See the module's table.
pub(super) const SERVICES: TableDefinition<'static, &str, (bool, u64)> = TableDefinition::new("services_v1");
/// See the module's table.
pub(super) const RESULTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("service_results_v1");

/// Results that are kept on disk. At the 256 KiB that the largest of our services gives they are 128 MiB, and mostly one.
pub(super) const RESULTS_MAX: u64 = 512;

/// Services whose settings are kept: more than are ever offered.
const SERVICES_MAX: usize = 1024;

/// What a call came to, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResultRow {
    pub(crate) peer: PeerId,
    pub(crate) call: [u8; 16],
    /// Until when, in Unix milliseconds.
    pub(crate) expires_ms: u64,
    /// Micro-credits.
    pub(crate) amount: u64,
    pub(crate) job: [u8; 32],
    pub(crate) output: Vec<u8>,
}

/// A change of the tables.
#[derive(Debug)]
pub(super) enum Change {
    Result { row: Box<ResultRow>, now_ms: u64 },
    Service { name: String, enabled: bool, price: u64 },
}

impl ResultRow {
    fn key(&self) -> Vec<u8> {
        [&self.expires_ms.to_be_bytes()[..], &self.call, &self.peer.to_bytes()].concat()
    }

    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let (expires, rest) = key.split_first_chunk::<8>()?;
        let (call, peer) = rest.split_first_chunk::<16>()?;
        let (amount, rest) = value.split_first_chunk::<8>()?;
        let (job, output) = rest.split_first_chunk::<32>()?;
        Some(Self {
            peer: PeerId::from_bytes(peer).ok()?,
            call: *call,
            expires_ms: u64::from_be_bytes(*expires),
            amount: u64::from_le_bytes(*amount),
            job: *job,
            output: output.to_vec(),
        })
    }
}

pub(super) fn apply(txn: &WriteTransaction, change: Change) -> Result<(), redb::Error> {
    match change {
        Change::Service { name, enabled, price } => {
            txn.open_table(SERVICES)?.insert(name.as_str(), (enabled, price))?;
        }
        Change::Result { row, now_ms } => {
            let mut table = txn.open_table(RESULTS)?;
            let value = [&row.amount.to_le_bytes()[..], &row.job, &row.output].concat();
            table.insert(row.key().as_slice(), value.as_slice())?;
            let over = now_ms.to_be_bytes();
            table.retain_in(..over.as_slice(), |_, _| false)?;
            while table.len()? > RESULTS_MAX {
                table.pop_first()?;
            }
        }
    }
    Ok(())
}

/// What is kept of calls and has not expired.
pub(super) fn read_results(txn: &ReadTransaction, now_ms: u64) -> Result<Vec<ResultRow>, redb::Error> {
    let table = txn.open_table(RESULTS)?;
    let mut rows = Vec::new();
    let from = now_ms.to_be_bytes();
    for entry in table.range(from.as_slice()..)? {
        let (key, value) = entry?;
        let row = ResultRow::decode(key.value(), value.value());
        rows.push(row.ok_or_else(|| bad_row("result of a call", &"fields are missing"))?);
    }
    Ok(rows)
}

/// What the operator has set: name, whether it is offered, micro-credits.
pub(super) fn read_services(txn: &ReadTransaction) -> Result<Vec<(String, bool, u64)>, redb::Error> {
    let table = txn.open_table(SERVICES)?;
    let mut all = Vec::new();
    for entry in table.iter()?.take(SERVICES_MAX) {
        let (name, value) = entry?;
        let (enabled, price) = value.value();
        all.push((name.value().to_owned(), enabled, price));
    }
    Ok(all)
}
