//! Conduct, anchors and the list of peers to start from.

use super::*;
use crate::storage::tables::{ANNOUNCEMENTS, META, PEERS, SCHEMA_VERSION};

fn addrs(port: u16) -> Vec<Multiaddr> {
    vec![format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()]
}

#[tokio::test]
async fn they_survive_a_restart() {
    let (_dir, path, db) = temp_db();
    let (good, bad, forgiven) = (peer(), peer(), peer());
    let anchors: Vec<Anchor> = (1..=6).map(|port| (peer(), addrs(port))).collect();
    db.try_save_anchors(anchors[2..].to_vec()).unwrap();
    db.try_save_anchors(anchors.clone()).unwrap();
    for (of, conduct) in [(good, 900), (bad, -2_500), (forgiven, 30), (forgiven, 0)] {
        db.try_record_conduct(of, conduct).unwrap();
    }
    db.add_bootstrap("/dns4/a.example/tcp/1/p2p/x".into(), 7).await.unwrap();
    db.add_bootstrap("/dns4/a.example/tcp/1/p2p/x".into(), 8).await.unwrap();
    db.add_bootstrap("/dns4/b.example/tcp/1/p2p/y".into(), 9).await.unwrap();
    db.remove_bootstrap("/dns4/b.example/tcp/1/p2p/y".into()).await.unwrap();
    db.remove_bootstrap("/dns4/never.example/tcp/1/p2p/z".into()).await.unwrap();
    db.close().await.unwrap();

    let db = Db::open(&path, quiet()).unwrap();
    assert_eq!(db.anchors().await.unwrap(), anchors[..ANCHORS_MAX]);
    let mut kept = vec![(good, 900), (bad, -2_500)];
    kept.sort_by_key(|(peer, _)| peer.to_bytes());
    assert_eq!(db.conduct().await.unwrap(), kept);
    assert_eq!(db.bootstrap_list().await.unwrap(), [("/dns4/a.example/tcp/1/p2p/x".to_owned(), 7)]);
    db.try_save_anchors(anchors[..1].to_vec()).unwrap();
    settle(&db, 1).await;
    assert_eq!(db.anchors().await.unwrap(), anchors[..1], "fewer replace more");
}

#[tokio::test]
async fn the_list_is_bounded() {
    let (_dir, _, db) = temp_db();
    for n in 0..BOOTSTRAP_MAX {
        db.add_bootstrap(format!("/dns4/{n}.example/tcp/1/p2p/x"), n).await.unwrap();
    }
    let full = db.add_bootstrap("/dns4/more.example/tcp/1/p2p/x".into(), 1).await;
    assert!(matches!(full, Err(WriteError::ListFull)), "{full:?}");
    db.health().unwrap();
}

#[tokio::test]
async fn a_database_of_schema_1_gets_the_tables_and_keeps_its_peers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quelea.redb");
    let old = row(peer(), 5, &["/ip4/192.0.2.9/tcp/1"]);
    let database = redb::Builder::new().create(&path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(PEERS).unwrap().insert(old.peer.to_bytes().as_slice(), old.encode().as_slice()).unwrap();
    txn.open_table(ANNOUNCEMENTS).unwrap();
    txn.open_table(META).unwrap().insert(SCHEMA_VERSION, 1).unwrap();
    txn.commit().unwrap();
    drop(database);

    let db = Db::open(&path, quiet()).unwrap();
    assert_eq!(db.peers().await.unwrap(), [old]);
    assert_eq!(db.anchors().await.unwrap(), []);
    db.add_bootstrap("/dns4/a.example/tcp/1/p2p/x".into(), 1).await.unwrap();
    db.close().await.unwrap();
}
