//! What services keep.

use std::path::Path;

use libp2p::PeerId;

use super::super::{
    Db,
    services::{RESULTS_MAX, ResultRow},
};

fn open(path: &Path) -> Db {
    Db::open(path, Box::new(|_| {})).unwrap()
}

fn row(n: u64, bytes: usize) -> ResultRow {
    let mut call = [0; 16];
    call[..8].copy_from_slice(&n.to_le_bytes());
    ResultRow { peer: PeerId::random(), call, expires_ms: 1000 + n, amount: n, job: [7; 32], output: vec![9; bytes] }
}

#[tokio::test]
async fn results_come_back_until_they_expire() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = open(&path);
    let rows = [row(1, 0), row(2, 70_000)];
    for row in &rows {
        db.put_service_result(row.clone(), 10).await.unwrap();
    }
    db.close().await.unwrap();
    let db = open(&path);
    assert_eq!(db.service_results(10).await.unwrap(), rows);
    assert_eq!(db.service_results(1002).await.unwrap(), rows[1..], "the first is over");
    // With the next one it is let go.
    db.put_service_result(row(3, 1), 1002).await.unwrap();
    assert_eq!(db.service_results(0).await.unwrap().len(), 2);
    for n in 0..RESULTS_MAX {
        db.put_service_result(row(n + 10, 1), 1002).await.unwrap();
    }
    let left = db.service_results(0).await.unwrap();
    assert_eq!((left.len() as u64, left[0].amount), (RESULTS_MAX, 10), "the oldest went");
    db.close().await.unwrap();
}

#[tokio::test]
async fn what_is_offered_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = open(&path);
    db.put_service("echo".into(), true, 2000).await.unwrap();
    db.put_service("echo".into(), false, 3000).await.unwrap();
    db.put_service("compute".into(), true, 0).await.unwrap();
    db.close().await.unwrap();
    let kept = open(&path).services().await.unwrap();
    assert_eq!(kept, [("compute".into(), true, 0), ("echo".into(), false, 3000)]);
}
