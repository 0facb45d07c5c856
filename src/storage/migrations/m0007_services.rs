//! Schema 7: which services are offered, and what calls came to.

use redb::WriteTransaction;

use crate::storage::services::{RESULTS, SERVICES};

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(SERVICES)?;
    txn.open_table(RESULTS)?;
    Ok(())
}
