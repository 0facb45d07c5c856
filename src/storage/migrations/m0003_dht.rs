//! The DHT: our own values and provider keys, values of others, the routing table.

use redb::WriteTransaction;

use crate::storage::dht::{HELD, OWN, PROVIDED, ROUTING};

pub(super) fn up(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(OWN)?;
    txn.open_table(HELD)?;
    txn.open_table(PROVIDED)?;
    txn.open_table(ROUTING)?;
    Ok(())
}
