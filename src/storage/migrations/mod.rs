//! From one schema to the next: one file a step, each applied in a transaction of its own together with the new number.
//! A file with a newer schema is left alone.

mod m0001_first_tables;
mod m0002_bans;
mod m0003_dht;
mod m0004_neighbours;
mod m0005_ledger;
mod m0006_debts;
mod m0007_services;
mod m0008_agents;

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase as _, WriteTransaction};

use super::{OpenError, tables};

type Step = fn(&WriteTransaction) -> Result<(), redb::Error>;

/// Step `n` (from 1) leads to schema `n`.
const STEPS: &[Step] = &[
    m0001_first_tables::up,
    m0002_bans::up,
    m0003_dht::up,
    m0004_neighbours::up,
    m0005_ledger::up,
    m0006_debts::up,
    m0007_services::up,
    m0008_agents::up,
];

/// The schema this version reads and writes.
pub(super) const CURRENT: u64 = STEPS.len() as u64;

/// Brings the database to [`CURRENT`].
pub(super) fn run(path: &Path, database: &Database) -> Result<(), OpenError> {
    let found = read_version(path, database)?;
    if found > CURRENT {
        return Err(OpenError::Newer { path: path.to_path_buf(), found, known: CURRENT });
    }
    for (step, version) in STEPS.iter().zip(1u64..).filter(|(_, version)| *version > found) {
        apply(database, *step, version).map_err(|e| OpenError::from_redb(path, &e))?;
        tracing::debug!(version, "database schema");
    }
    Ok(())
}

/// 0 for an empty file.
fn read_version(path: &Path, database: &Database) -> Result<u64, OpenError> {
    let failed = |e: redb::Error| OpenError::from_redb(path, &e);
    let txn = database.begin_read().map_err(|e| failed(e.into()))?;
    match tables::read_schema(&txn).map_err(failed)? {
        Some(version) => Ok(version),
        // A redb file of somebody else's is not ours to fill.
        None if txn.list_tables().map_err(|e| failed(e.into()))?.next().is_some() => {
            Err(OpenError::NotADatabase(path.to_path_buf()))
        }
        None => Ok(0),
    }
}

fn apply(database: &Database, step: Step, version: u64) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_quick_repair(true);
    step(&txn)?;
    txn.open_table(tables::META)?.insert(tables::SCHEMA_VERSION, version)?;
    txn.commit()?;
    Ok(())
}
