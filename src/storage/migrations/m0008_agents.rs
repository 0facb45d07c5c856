//! Schema 8: agents.

use redb::WriteTransaction;

use crate::storage::agents::{AGENTS, KV, LOGS, MODULES};

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(AGENTS)?;
    txn.open_table(MODULES)?;
    txn.open_table(KV)?;
    txn.open_table(LOGS)?;
    Ok(())
}
