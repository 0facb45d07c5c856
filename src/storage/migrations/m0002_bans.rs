//! Schema 2: bans.

use redb::WriteTransaction;

use crate::storage::bans::BANS;

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(BANS)?;
    Ok(())
}
