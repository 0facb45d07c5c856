//! Schema 6: when peers' promises are due.

use redb::WriteTransaction;

use crate::storage::ledger::DEBTS;

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(DEBTS)?;
    Ok(())
}
