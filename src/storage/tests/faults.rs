//! Every way a file or a disk can be wrong.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn after_an_error_nothing_is_written_any_more() {
    for (errno, expected) in [(NO_SPACE, "the disk is full"), (IO_ERROR, "cannot be used")] {
        // Each operation of a commit in turn is the one that fails.
        let mut failed = 0;
        for operations in 0..50 {
            let disk = Disk::default();
            let db = db_on(&disk, quiet()).unwrap();
            db.put_own_announcement(1, b"one".to_vec()).await.unwrap();
            disk.fail_after(operations, errno);
            let Err(error) = db.put_own_announcement(2, b"two".to_vec()).await else { break };
            failed += 1;
            let text = error.to_string();
            assert!(matches!(error, WriteError::Fault(_)) && text.contains(expected), "{text}");
            assert!(text.contains("/the/disk/quelea.redb") && text.contains("restart"), "{text}");
            assert_eq!(db.health().unwrap_err().to_string(), text);

            // The disk is well again. The node is not, until it is restarted.
            disk.fail_after(0, 0);
            assert_eq!(db.put_own_announcement(3, b"three".to_vec()).await.unwrap_err().to_string(), text);
            assert_eq!(db.try_record_peer(row(peer(), 0, &[])), Err(NotRecorded::Unavailable));
            assert_eq!(db.health().unwrap_err().to_string(), text);
            if let Err(error) = db.peers().await {
                assert_eq!(error.to_string(), text);
            }
            assert_eq!(db.close().await.unwrap_err().to_string(), text);

            let db = db_on(&disk, quiet()).unwrap();
            let stored = db.own_announcement().await.unwrap().unwrap();
            assert!(stored == (1, b"one".to_vec()) || stored == (2, b"two".to_vec()), "{stored:?}");
            db.put_own_announcement(3, b"three".to_vec()).await.unwrap();
        }
        assert!(failed >= 3, "only {failed} operations could fail");
    }
}

#[tokio::test]
async fn a_full_disk_when_the_file_is_made() {
    let disk = Disk::default();
    disk.fail_after(0, NO_SPACE);
    let error = db_on(&disk, quiet()).unwrap_err();
    assert_eq!(error, OpenError::DiskFull("/the/disk/quelea.redb".into()));
    assert!(error.to_string().contains("free some space"), "{error}");
}

#[tokio::test]
async fn damage_anywhere_is_an_error_and_never_a_panic() {
    let (_dir, path, db) = temp_db();
    for n in 0..200 {
        db.try_record_peer(row(peer(), n, &["/ip4/192.0.2.1/tcp/8468"])).unwrap();
    }
    settle(&db, 1).await;
    let intact = db.peers().await.unwrap();
    db.close().await.unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut kinds = BTreeSet::new();
    // Every kind of page: the header, then a byte in each.
    for at in (0..512).step_by(37).chain((700..good.len()).step_by(4096)) {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        std::fs::write(&path, &bad).unwrap();
        match Db::open(&path, quiet()) {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(path.to_str().unwrap()), "{text}");
                kinds.insert(format!("{error:?}").split(['(', ' ', '{']).next().unwrap().to_string());
            }
            // Bytes that nothing refers to may be anything.
            Ok(db) => {
                assert_eq!(db.peers().await.unwrap(), intact, "byte {at}");
                db.close().await.unwrap();
            }
        }
    }
    assert!(kinds.contains("Corrupted") && kinds.contains("NotADatabase"), "{kinds:?}");

    for length in [1, 100, 4096, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = Db::open(&path, quiet()).unwrap_err();
        assert!(
            matches!(error, OpenError::Corrupted { .. } | OpenError::NotADatabase(_)),
            "{length} of {} bytes: {error}",
            good.len()
        );
    }
}

#[tokio::test]
async fn other_files_are_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, "a letter\n".repeat(1000)).unwrap();
    assert_eq!(Db::open(&path, quiet()).unwrap_err(), OpenError::NotADatabase(path.clone()));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter\n".repeat(1000));
    assert_eq!(Db::open(dir.path(), quiet()).unwrap_err(), OpenError::NotADatabase(dir.path().into()));
    let missing = Db::open(&dir.path().join("no").join("x"), quiet()).unwrap_err();
    assert!(matches!(missing, OpenError::Io { .. }) && missing.to_string().contains("no/x"), "{missing}");

    let foreign = redb_file(&dir.path().join("foreign"), |txn| {
        txn.open_table(redb::TableDefinition::<u8, u8>::new("theirs")).unwrap();
    });
    assert_eq!(Db::open(&foreign, quiet()).unwrap_err(), OpenError::NotADatabase(foreign));
}

fn redb_file(path: &Path, fill: impl FnOnce(&redb::WriteTransaction)) -> PathBuf {
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let backend = redb::backends::FileBackend::new(file).unwrap();
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let txn = database.begin_write().unwrap();
    fill(&txn);
    txn.commit().unwrap();
    path.to_path_buf()
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let newer = redb_file(&dir.path().join("newer"), |txn| {
        txn.open_table(tables::META).unwrap().insert(tables::SCHEMA_VERSION, migrations::CURRENT + 1).unwrap();
    });
    let error = Db::open(&newer, quiet()).unwrap_err();
    assert_eq!(
        error,
        OpenError::Newer { path: newer.clone(), found: migrations::CURRENT + 1, known: migrations::CURRENT }
    );
    assert!(error.to_string().contains("newer version"), "{error}");
    let database = redb::Builder::new().open(&newer).unwrap();
    let txn = database.begin_read().unwrap();
    assert_eq!(tables::read_schema(&txn).unwrap(), Some(migrations::CURRENT + 1));
    assert!(txn.open_table(tables::PEERS).is_err(), "nothing was added");
}

#[tokio::test]
async fn a_second_opener_is_told() {
    let (_dir, path, db) = temp_db();
    assert_eq!(Db::open(&path, quiet()).unwrap_err(), OpenError::InUse(path.clone()));
    db.close().await.unwrap();
    Db::open(&path, quiet()).unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_row_that_cannot_be_read_poisons() {
    let (_dir, path, db) = temp_db();
    db.close().await.unwrap();
    {
        let database = redb::Builder::new().open(&path).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(tables::PEERS).unwrap().insert(&b"no peer id"[..], &b"no row"[..]).unwrap();
        txn.commit().unwrap();
    }
    let db = Db::open(&path, quiet()).unwrap();
    let error = db.peers().await.unwrap_err();
    assert!(matches!(error, ReadError::Fault(Fault::Corrupted { .. })), "{error}");
    assert!(matches!(db.put_own_announcement(1, vec![]).await, Err(WriteError::Fault(Fault::Corrupted { .. }))));
    assert!(db.health().is_err());
}
