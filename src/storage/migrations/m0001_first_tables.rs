//! Schema 1: peers seen and our own announcement.

use redb::WriteTransaction;

use crate::storage::tables::{ANNOUNCEMENTS, PEERS};

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(PEERS)?;
    txn.open_table(ANNOUNCEMENTS)?;
    Ok(())
}
