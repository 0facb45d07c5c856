//! The door and the rows.

mod faults;
mod ledger;
mod neighbours;
pub(crate) mod older;
mod services;

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{
        Mutex,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
};

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use redb::{BackendError, StorageBackend, backends::InMemoryBackend};

use super::*;

/// `ENOSPC`.
const NO_SPACE: i32 = 28;
/// `EIO`.
const IO_ERROR: i32 = 5;

fn quiet() -> CommitObserver {
    Box::new(|_took| {})
}

fn temp_db() -> (tempfile::TempDir, PathBuf, Db) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quelea.redb");
    let db = Db::open(&path, quiet()).unwrap();
    (dir, path, db)
}

fn peer() -> PeerId {
    Keypair::generate_ed25519().public().to_peer_id()
}

fn row(peer: PeerId, seen_ms: u64, addrs: &[&str]) -> PeerRow {
    PeerRow {
        peer,
        addrs: addrs.iter().map(|a| a.parse().unwrap()).collect(),
        first_seen_ms: seen_ms,
        last_seen_ms: seen_ms,
        source: Source::Dht,
    }
}

/// Waits until everything queued before is on disk: the queue is first in, first out.
async fn settle(db: &Db, seq: u64) {
    db.put_own_announcement(seq, b"settle".to_vec()).await.unwrap();
}

/// Memory that fails writes with a chosen error, and lets commits wait at a gate.
#[derive(Clone, Debug, Default)]
struct Disk {
    memory: Arc<InMemoryBackend>,
    /// The error number of writes and flushes; 0 for none.
    errno: Arc<AtomicI32>,
    /// Operations that still succeed before `errno` counts.
    budget: Arc<AtomicUsize>,
    /// Held by a test to keep flushes waiting.
    gate: Arc<Mutex<()>>,
}

impl Disk {
    fn fail_after(&self, operations: usize, errno: i32) {
        self.budget.store(operations, Ordering::SeqCst);
        self.errno.store(errno, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), std::io::Error> {
        match self.errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ if self.budget.try_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() => Ok(()),
            errno => Err(std::io::Error::from_raw_os_error(errno)),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.check()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        drop(self.gate.lock().unwrap());
        self.check()?;
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.check()?;
        self.memory.write(offset, data)
    }

    fn try_lock_range(&self, _: std::ops::Bound<u64>, _: std::ops::Bound<u64>) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported)
    }
}

fn db_on(disk: &Disk, on_commit: CommitObserver) -> Result<Db, OpenError> {
    let path = Path::new("/the/disk/quelea.redb");
    Db::start(path, open::open_backend(path, disk.clone(), true)?, on_commit)
}

#[tokio::test]
async fn what_is_stored_is_there_after_a_restart() {
    let (_dir, path, db) = temp_db();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(db.own_announcement().await.unwrap(), None);
    let (old, new) = (peer(), peer());
    db.try_record_peer(row(old, 1_000, &["/ip4/192.0.2.1/tcp/8468"])).unwrap();
    db.try_record_peer(row(new, 2_000, &["/ip4/192.0.2.2/udp/8468/quic-v1"])).unwrap();
    db.put_own_announcement(7, vec![1, 2, 3]).await.unwrap();
    db.close().await.unwrap();

    let db = Db::open(&path, quiet()).unwrap();
    assert_eq!(db.own_announcement().await.unwrap(), Some((7, vec![1, 2, 3])));
    let peers = db.peers().await.unwrap();
    assert_eq!(peers.iter().map(|p| p.peer).collect::<Vec<_>>(), [new, old], "seen last comes first");
    assert_eq!(peers[1], row(old, 1_000, &["/ip4/192.0.2.1/tcp/8468"]));
    db.close().await.unwrap();
}

#[tokio::test]
async fn an_acknowledged_write_survives_without_a_close() {
    let (_dir, path, db) = temp_db();
    db.put_own_announcement(9, b"signed".to_vec()).await.unwrap();
    // What a crash leaves: the file as it is now.
    let copy = path.with_extension("copy");
    std::fs::copy(&path, &copy).unwrap();
    let reopened = Db::open(&copy, quiet()).unwrap();
    assert_eq!(reopened.own_announcement().await.unwrap(), Some((9, b"signed".to_vec())));
}

#[tokio::test]
async fn a_sequence_number_only_goes_up() {
    let (_dir, _path, db) = temp_db();
    db.put_own_announcement(5, b"five".to_vec()).await.unwrap();
    for seq in [5, 4, 0] {
        let error = db.put_own_announcement(seq, b"other".to_vec()).await.unwrap_err();
        assert!(matches!(error, WriteError::StaleSequence { stored: 5, given } if given == seq), "{error}");
    }
    let long = db.put_own_announcement(6, vec![0; ANNOUNCEMENT_MAX + 1]).await.unwrap_err();
    assert!(matches!(long, WriteError::TooLong(_)));
    assert_eq!(db.own_announcement().await.unwrap(), Some((5, b"five".to_vec())));
    db.health().unwrap();
    db.put_own_announcement(6, vec![0; ANNOUNCEMENT_MAX]).await.unwrap();
}

#[tokio::test]
async fn sightings_merge() {
    let (_dir, _path, db) = temp_db();
    let peer = peer();
    let many: Vec<String> = (0..20).map(|n| format!("/ip4/192.0.2.{n}/tcp/1")).collect();
    db.try_record_peer(PeerRow { source: Source::Bootstrap, ..row(peer, 5_000, &["/ip4/203.0.113.1/tcp/1"]) }).unwrap();
    db.try_record_peer(row(peer, 9_000, &["/ip4/203.0.113.2/tcp/2", "/ip4/203.0.113.1/tcp/1"])).unwrap();
    settle(&db, 1).await;
    let expected = PeerRow {
        source: Source::Bootstrap,
        first_seen_ms: 5_000,
        ..row(peer, 9_000, &["/ip4/203.0.113.2/tcp/2", "/ip4/203.0.113.1/tcp/1"])
    };
    assert_eq!(db.peers().await.unwrap(), [expected]);

    let too_long: Multiaddr = format!("/dns4/{}/tcp/1", "x".repeat(300)).parse().unwrap();
    let mut crowded = row(peer, 4_000, &many.iter().map(String::as_str).collect::<Vec<_>>());
    crowded.addrs.insert(0, too_long);
    db.try_record_peer(crowded).unwrap();
    settle(&db, 2).await;
    let kept = db.peers().await.unwrap().remove(0);
    assert_eq!(kept.addrs.len(), 8);
    assert_eq!(kept.addrs[0].to_string(), "/ip4/192.0.2.0/tcp/1");
    assert_eq!((kept.first_seen_ms, kept.last_seen_ms), (4_000, 9_000));
}

#[tokio::test]
async fn nothing_new_costs_no_commit() {
    let disk = Disk::default();
    let db = db_on(&disk, quiet()).unwrap();
    let peer = peer();
    db.try_record_peer(row(peer, 1_000_000, &["/ip4/192.0.2.1/tcp/1"])).unwrap();
    settle(&db, 1).await;
    // From here on any write would fail.
    disk.fail_after(0, IO_ERROR);
    db.try_record_peer(row(peer, 1_030_000, &["/ip4/192.0.2.1/tcp/1"])).unwrap();
    let stale = db.put_own_announcement(1, b"again".to_vec()).await.unwrap_err();
    assert!(matches!(stale, WriteError::StaleSequence { .. }), "{stale}");
    db.health().unwrap();
    disk.fail_after(0, 0);
    db.try_record_peer(row(peer, 1_060_000, &["/ip4/192.0.2.1/tcp/1"])).unwrap();
    settle(&db, 2).await;
    assert_eq!(db.peers().await.unwrap()[0].last_seen_ms, 1_060_000, "a minute later it is worth one");
}

#[test]
fn the_peers_seen_longest_ago_are_forgotten() {
    let disk = Disk::default();
    let path = Path::new("/the/disk/quelea.redb");
    let database = open::open_backend(path, disk, true).unwrap();
    let total = usize::try_from(tables::PEERS_MAX).unwrap() + 1;
    let mut txn = database.begin_write().unwrap();
    {
        let mut table = txn.open_table(tables::PEERS).unwrap();
        for n in 0..total {
            // any 32 bytes make an identity-hashed id
            let mut id = vec![0x00, 0x20];
            id.extend_from_slice(blake3::hash(&n.to_le_bytes()).as_bytes());
            let peer = PeerId::from_bytes(&id).unwrap();
            assert!(tables::record_peer(&mut table, row(peer, n as u64, &[])).unwrap());
        }
        tables::forget_peers(&mut table).unwrap();
    }
    txn.set_durability(redb::Durability::Immediate).unwrap();
    txn.commit().unwrap();
    let rows = tables::read_peers(&database.begin_read().unwrap()).unwrap();
    assert_eq!(rows.len(), tables::PEERS_KEPT);
    assert_eq!(rows[0].last_seen_ms, total as u64 - 1);
    assert_eq!(rows[rows.len() - 1].last_seen_ms, (total - tables::PEERS_KEPT) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_shares_a_commit_and_is_answered_after_it() {
    let disk = Disk::default();
    let commits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&commits);
    let db = db_on(&disk, Box::new(move |_| _ = counter.fetch_add(1, Ordering::SeqCst))).unwrap();

    let gate = Arc::clone(&disk.gate);
    let closed = gate.lock().unwrap();
    let waiting: Vec<_> = (1..=50u64)
        .map(|seq| {
            let (reply, answer) = oneshot::channel();
            db.queue.try_send(Job::Write(Write::OwnAnnouncement { seq, raw: vec![] }, Some(reply))).unwrap();
            answer
        })
        .collect();
    assert_eq!(commits.load(Ordering::SeqCst), 0);
    assert!(waiting.iter().all(|answer| answer.is_empty()), "no answer before its commit");
    drop(closed);
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    // The first took what had come when it began; the rest shared one.
    let commits = commits.load(Ordering::SeqCst);
    assert!((1..=2).contains(&commits), "{commits} commits for 50 writes");
    assert_eq!(db.own_announcement().await.unwrap().unwrap().0, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_so_at_once() {
    let disk = Disk::default();
    let db = db_on(&disk, quiet()).unwrap();
    let gate = Arc::clone(&disk.gate);
    let closed = gate.lock().unwrap();
    let peer = peer();
    let mut taken = 0;
    let refused = loop {
        match db.try_record_peer(row(peer, taken * 100_000, &[])) {
            Ok(()) => taken += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(refused, NotRecorded::QueueFull);
    // What the writer holds is not in the queue any more.
    assert!((QUEUE as u64..=QUEUE as u64 + 256).contains(&taken), "{taken}");
    drop(closed);
    db.clone().close().await.unwrap();
    assert_eq!(db.try_record_peer(row(peer, 0, &[])), Err(NotRecorded::Unavailable));
    assert!(matches!(db.put_own_announcement(1, vec![]).await, Err(WriteError::Closed)));
    assert!(matches!(db.peers().await, Err(ReadError::Closed)));
    db.close().await.unwrap();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Rows come back as they were written, and any bytes at all give a row or an error.
    #[test]
    fn rows_survive_encoding(first: u64, last: u64, source in 0u8..=9, ports in proptest::collection::vec(1u16.., 0..8), noise: Vec<u8>) {
        let row = PeerRow {
            peer: peer(),
            addrs: ports.iter().map(|p| format!("/ip4/192.0.2.1/tcp/{p}").parse().unwrap()).collect(),
            first_seen_ms: first,
            last_seen_ms: last,
            source: tables::source_from_u8(source),
        };
        proptest::prop_assert_eq!(PeerRow::decode(&row.peer.to_bytes(), &row.encode()).unwrap(), row.clone());
        let _ = PeerRow::decode(&row.peer.to_bytes(), &noise);
        let _ = PeerRow::decode(&noise, &row.encode());
    }
}

#[tokio::test]
async fn the_dht_comes_back_as_it_was_left() {
    let (_dir, path, db) = temp_db();
    let (source, routed) = (peer(), peer());
    let addrs: Vec<Multiaddr> = vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap(), "/dns4/a/tcp/2".parse().unwrap()];
    for write in [
        DhtWrite::Own { key: vec![9], row: Some((1, vec![])) },
        DhtWrite::ClearValues,
        DhtWrite::Own { key: vec![1], row: Some((u64::MAX, vec![7; 1024])) },
        DhtWrite::Own { key: vec![2], row: Some((5, vec![])) },
        DhtWrite::Own { key: vec![2], row: None },
        DhtWrite::Held { key: vec![3], row: Some((source, 6, vec![8])) },
        DhtWrite::Held { key: vec![4], row: None },
        DhtWrite::Provided { key: vec![5], since: Some(1) },
        DhtWrite::Routing { peer: source, addrs: Some(addrs.clone()) },
        DhtWrite::Routing { peer: source, addrs: None },
        DhtWrite::Routing { peer: routed, addrs: Some(addrs.clone()) },
    ] {
        db.try_dht(write).unwrap();
    }
    db.close().await.unwrap();
    let saved = Db::open(&path, quiet()).unwrap().dht().await.unwrap();
    let expected = DhtSaved {
        own: vec![(vec![1], u64::MAX, vec![7; 1024])],
        held: vec![(vec![3], source, 6, vec![8])],
        provided: vec![vec![5]],
        routing: vec![(routed, addrs)],
    };
    assert_eq!(saved, expected);
}
