//! Schema 4: conduct, anchors and the operator's list of peers to start from.

use redb::WriteTransaction;

use crate::storage::neighbours::{ANCHORS, BOOTSTRAP, CONDUCT};

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(CONDUCT)?;
    txn.open_table(ANCHORS)?;
    txn.open_table(BOOTSTRAP)?;
    Ok(())
}
