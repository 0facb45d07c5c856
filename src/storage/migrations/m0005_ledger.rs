//! Schema 5: the ledger.

use redb::WriteTransaction;

use crate::storage::ledger::{EVIDENCE, HOLDS, LOSSES, MESSAGES, PAIRS, STEPS, TRUST};

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    for table in [PAIRS, HOLDS, STEPS, MESSAGES, EVIDENCE, TRUST, LOSSES] {
        txn.open_table(table)?;
    }
    Ok(())
}
