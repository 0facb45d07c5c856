//! Databases as older versions left them, for tests elsewhere.

use std::path::Path;

/// Makes the database one of the version that did not keep when what is due.
pub(crate) fn forget_dates(home: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(home.join("quelea.redb")).unwrap();
    let backend = redb::backends::FileBackend::new(file).unwrap();
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let txn = database.begin_write().unwrap();
    txn.delete_table(redb::TableDefinition::<&[u8], &[u8]>::new("ledger_debt_v1")).unwrap();
    txn.open_table(redb::TableDefinition::<&str, u64>::new("meta_v1")).unwrap().insert("schema_version", 5).unwrap();
    txn.commit().unwrap();
}
