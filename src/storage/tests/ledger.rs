//! The ledger's rows.

mod books;
mod crashes;

use std::collections::BTreeMap;

use quelea_ledger::{
    Hash, HoldId, Unit,
    book::{Book, KEPT_STEPS, Key, Lane, Rules, Side, Write as Change},
    overdue::Debt,
    trust::{Losses, Row},
};

use self::books::{History, NETWORK_SECRET, network};
use super::*;
use crate::storage::ledger::{DEBTS, EVIDENCE, EVIDENCE_MAX, HOLDS, PAIRS, STEPS, TRUST};

const UNIT: Unit = Unit::CREDIT;

/// A batch that is durable when this returns.
async fn kept(db: &Db, batch: LedgerBatch) -> Result<(), WriteError> {
    db.ledger_submit(batch).await?.await.expect("the database is open")
}

fn writes(writes: Vec<Change>) -> LedgerBatch {
    LedgerBatch { writes, ..LedgerBatch::default() }
}

/// The rows that a book is restored from.
fn restorable(rows: &BTreeMap<Key, Vec<u8>>) -> Vec<(Key, Vec<u8>)> {
    let of_book = |key: &Key| matches!(key, Key::Pair(..) | Key::Hold(..));
    rows.iter().filter(|(key, _)| of_book(key)).map(|(key, value)| (*key, value.clone())).collect()
}

/// What is stored, by key.
async fn loaded(db: &Db) -> Vec<(Key, Vec<u8>)> {
    let mut rows = db.ledger_load().await.unwrap().rows;
    rows.sort();
    rows
}

#[tokio::test]
async fn a_book_comes_back_as_it_was_after_every_step() {
    let history = History::play(1, 60);
    for node in 0..2 {
        let disk = Disk::default();
        let mut rows = BTreeMap::new();
        for step in history.steps.iter().filter(|step| step.node == node) {
            let db = db_on(&disk, quiet()).unwrap();
            kept(&db, writes(step.writes.clone())).await.unwrap();
            db.close().await.unwrap();
            books::apply(&mut rows, &step.writes);

            let db = db_on(&disk, quiet()).unwrap();
            assert_eq!(loaded(&db).await, restorable(&rows));
            let (keys, values): (Vec<Key>, Vec<Vec<u8>>) = rows.clone().into_iter().unzip();
            let values: Vec<_> = values.into_iter().map(Some).collect();
            assert_eq!(db.ledger_read(keys).await.unwrap(), values);
            let mut book = Book::new(history.keypairs[node].clone(), network(), Rules::default(), NETWORK_SECRET);
            for (key, value) in db.ledger_load().await.unwrap().rows {
                book.restore(&key, &value).unwrap();
            }
            books::assert_same(&book, &step.book, history.peers[1 - node]);
            db.close().await.unwrap();
        }
        assert!(rows.len() > 20, "{} rows", rows.len());
    }
}

#[tokio::test]
async fn trust_debts_and_losses_survive_a_restart() {
    let (_dir, path, db) = temp_db();
    let (one, other) = (peer(), peer());
    let row = Row { commerce: -7, repaid: 9, convicted: true, ..Row::default() };
    let mut losses = Losses::default();
    losses.add(1 << 40, 5);
    let trust = vec![(one, Row::default()), (other, row)];
    let mut debt = Debt::default();
    debt.dues.promised(7, 1 << 41);
    let debts = [(one, Debt::default()), (other, debt.clone())].into();
    let losses_too = Some(losses.clone());
    kept(&db, LedgerBatch { trust, losses: losses_too, debts, ..LedgerBatch::default() }).await.unwrap();
    kept(&db, LedgerBatch { trust: vec![(one, row)], ..LedgerBatch::default() }).await.unwrap();
    kept(&db, LedgerBatch::default()).await.unwrap();
    db.close().await.unwrap();

    let db = Db::open(&path, quiet()).unwrap();
    let LedgerRows { rows, mut trust, mut debts, losses: stored } = db.ledger_load().await.unwrap();
    trust.sort_by_key(|(peer, _)| *peer);
    let mut expected = vec![(one, row), (other, row)];
    expected.sort_by_key(|(peer, _)| *peer);
    assert_eq!((rows, trust, stored), (Vec::new(), expected, losses));
    debts.sort_by_key(|(peer, _)| *peer);
    let mut expected = vec![(one, Debt::default()), (other, debt)];
    expected.sort_by_key(|(peer, _)| *peer);
    assert_eq!(debts, expected);
}

#[tokio::test]
async fn of_each_lane_the_newest_steps_stay() {
    let (_dir, _path, db) = temp_db();
    let (one, other) = (peer(), peer());
    let envelope = |seq: u64| seq.to_be_bytes().to_vec();
    let put = |lane, side, peer, unit, seq| Change::Put(Key::Step(lane, side, peer, unit, seq), envelope(seq));
    let kept_steps = KEPT_STEPS as u64;
    // What is beside it: every other lane, side, peer and unit, with numbers around.
    let mut beside = Vec::new();
    for (lane, side, peer, unit) in [
        (Lane::Redeem, Side::Theirs, one, UNIT),
        (Lane::Ack, Side::Theirs, one, UNIT),
        (Lane::Note, Side::Mine, one, UNIT),
        (Lane::Note, Side::Theirs, other, UNIT),
        (Lane::Note, Side::Theirs, one, Unit(0)),
        (Lane::Note, Side::Theirs, one, Unit(2)),
    ] {
        beside.extend((0..kept_steps + 5).map(|seq| put(lane, side, peer, unit, seq)));
    }
    let beside_keys: Vec<Key> =
        beside.iter().filter_map(|change| if let Change::Put(key, _) = change { Some(*key) } else { None }).collect();
    kept(&db, writes(beside)).await.unwrap();

    let of_one = |seq| put(Lane::Note, Side::Theirs, one, UNIT, seq);
    let prune = || Change::Prune(Lane::Note, Side::Theirs, one, UNIT);
    // Numbers are times: they jump, and the largest there are must be met too.
    let numbers: Vec<u64> = (0..kept_steps + 10).map(|n| n * 1_000_003).chain([u64::MAX - 1, u64::MAX]).collect();
    for pair in numbers.chunks(3) {
        let mut batch: Vec<Change> = pair.iter().map(|seq| of_one(*seq)).collect();
        batch.push(prune());
        kept(&db, writes(batch)).await.unwrap();
    }
    let newest: Vec<u64> = numbers.iter().rev().take(KEPT_STEPS).copied().collect();
    let key = |seq: &u64| Key::Step(Lane::Note, Side::Theirs, one, UNIT, *seq);
    let stored = db.ledger_read(numbers.iter().map(key).collect()).await.unwrap();
    for (seq, value) in numbers.iter().zip(stored) {
        assert_eq!(value, newest.contains(seq).then(|| envelope(*seq)), "{seq}");
    }
    let untouched = db.ledger_read(beside_keys).await.unwrap();
    assert!(untouched.iter().all(Option::is_some), "only the lane that was named is pruned");

    let shown = db.ledger_steps(one, UNIT, 3).await.unwrap();
    let expected = [u64::MAX, u64::MAX - 1, numbers[numbers.len() - 3]].map(|seq| (key(&seq), envelope(seq)));
    assert_eq!(shown, expected);
    let all = db.ledger_steps(one, UNIT, usize::MAX).await.unwrap();
    assert_eq!(all.len(), KEPT_STEPS + 3 * (KEPT_STEPS + 5), "all lanes and sides of the one account");
    let seq = |key: &Key| if let Key::Step(.., seq) = key { *seq } else { unreachable!("only steps are shown") };
    assert!(all.windows(2).all(|two| seq(&two[0].0) >= seq(&two[1].0)), "newest first");
    assert_eq!(db.ledger_steps(peer(), UNIT, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_committed_in_the_order_they_came() {
    let disk = Disk::default();
    let commits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&commits);
    let db = db_on(&disk, Box::new(move |_| _ = counter.fetch_add(1, Ordering::SeqCst))).unwrap();
    let one = peer();
    let key = Key::Step(Lane::Note, Side::Mine, one, UNIT, 1);
    let gate = Arc::clone(&disk.gate);
    let mut waiting = Vec::new();
    {
        let closed = gate.lock().unwrap();
        for n in 1..=40_u8 {
            let batch = LedgerBatch {
                writes: vec![Change::Put(key, vec![n])],
                trust: vec![(one, Row { days: n.into(), ..Row::default() })],
                ..LedgerBatch::default()
            };
            // There is room in the queue, so that this does not wait while the gate is held.
            let submitted = futures::FutureExt::now_or_never(db.ledger_submit(batch));
            waiting.push(submitted.expect("there is room").unwrap());
        }
        assert!(waiting.iter().all(oneshot::Receiver::is_empty), "no answer before its commit");
        drop(closed);
    }
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    let commits = commits.load(Ordering::SeqCst);
    assert!((1..=2).contains(&commits), "{commits} commits for 40 batches");
    assert_eq!(db.ledger_read(vec![key]).await.unwrap(), [Some(vec![40])]);
    assert_eq!(db.ledger_load().await.unwrap().trust[0].1.days, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_has_a_commit_of_its_own() {
    let disk = Disk::default();
    let commits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&commits);
    let db = db_on(&disk, Box::new(move |_| _ = counter.fetch_add(1, Ordering::SeqCst))).unwrap();
    let one = peer();
    let mut waiting = Vec::new();
    for lane in [Lane::Note, Lane::Redeem, Lane::Ack] {
        let put = |seq| Change::Put(Key::Step(lane, Side::Mine, one, UNIT, seq), vec![1]);
        waiting.push(db.ledger_submit(writes((0..5_000).map(put).collect())).await.unwrap());
    }
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(commits.load(Ordering::SeqCst), 3);
    assert_eq!(db.ledger_steps(one, UNIT, usize::MAX).await.unwrap().len(), 15_000);
}

#[tokio::test]
async fn what_could_not_be_read_again_is_not_written() {
    let (_dir, _path, db) = temp_db();
    let history = History::play(2, 20);
    let rows = &history.rows[0];
    let (pair, counters) = rows.iter().find(|(key, _)| matches!(key, Key::Pair(..))).unwrap();
    let (one, rsa) = (peer(), PeerId::from_bytes(&[&[0x12, 0x20][..], &[7; 32]].concat()).unwrap());
    let good = || Change::Put(*pair, counters.clone());
    for bad in [
        Change::Put(*pair, counters[1..].to_vec()),
        Change::Put(*pair, [counters.as_slice(), &[0]].concat()),
        Change::Put(Key::Pair(one, UNIT), counters.clone()),
        Change::Put(Key::Hold(Side::Mine, one, HoldId([1; 16])), counters.clone()),
        Change::Put(Key::Step(Lane::Note, Side::Mine, rsa, UNIT, 1), vec![1]),
        Change::Put(Key::Step(Lane::Note, Side::Mine, one, UNIT, 1), vec![]),
        Change::Put(Key::Voucher(Side::Theirs, one, HoldId([1; 16])), vec![0; 2000]),
        Change::Put(Key::Evidence(Hash([1; 32])), vec![0, 0, 0, 0]),
    ] {
        let refused = kept(&db, writes(vec![good(), bad.clone()])).await;
        assert!(matches!(refused, Err(WriteError::LedgerRow(_))), "{bad:?}: {refused:?}");
    }
    let strangers = LedgerBatch { writes: vec![good()], trust: vec![(rsa, Row::default())], ..LedgerBatch::default() };
    assert!(matches!(kept(&db, strangers).await, Err(WriteError::LedgerRow(_))));
    let debts = [(rsa, Debt::default())].into();
    let strangers = LedgerBatch { writes: vec![good()], debts, ..LedgerBatch::default() };
    assert!(matches!(kept(&db, strangers).await, Err(WriteError::LedgerRow(_))));
    db.health().unwrap();
    assert_eq!(loaded(&db).await, [], "nothing of a refused batch is there");
    kept(&db, writes(vec![good()])).await.unwrap();
    assert_eq!(loaded(&db).await, [(*pair, counters.clone())]);
}

#[tokio::test]
async fn evidence_is_bounded() {
    let (_dir, _path, db) = temp_db();
    let proof = |n: u64| {
        // Two envelopes of no bytes but a number: only the form counts here.
        let value = [&8_u16.to_le_bytes()[..], &n.to_le_bytes(), &0_u16.to_le_bytes()].concat();
        (Key::Evidence(Hash(*blake3::hash(&value).as_bytes())), value)
    };
    let put = |n: u64| {
        let (key, value) = proof(n);
        Change::Put(key, value)
    };
    kept(&db, writes((0..EVIDENCE_MAX - 1).map(put).collect())).await.unwrap();
    let last = EVIDENCE_MAX - 1;
    kept(&db, writes(vec![put(0), put(last), put(last + 1), put(last)])).await.unwrap();
    let read = db.ledger_read([0, last, last + 1].map(|n| proof(n).0).to_vec()).await.unwrap();
    assert_eq!(read, [Some(proof(0).1), Some(proof(last).1), None]);
    kept(&db, writes(vec![Change::Delete(proof(5).0), put(last + 1)])).await.unwrap();
    assert_eq!(db.ledger_read(vec![proof(last + 1).0]).await.unwrap(), [Some(proof(last + 1).1)]);
}

#[tokio::test]
async fn a_damaged_row_poisons() {
    let history = History::play(3, 20);
    let rows = restorable(&history.rows[0]);
    let (pair, counters) = rows.iter().find(|(key, _)| matches!(key, Key::Pair(..))).unwrap();
    let one = peer().to_bytes();
    type Definition = redb::TableDefinition<'static, &'static [u8], &'static [u8]>;
    let (long, unsided) = ([one.as_slice(), &[0; 5]].concat(), [&[2], one.as_slice(), &[0; 16]].concat());
    let damaged: [(Definition, &[u8], &[u8]); 6] = [
        (PAIRS, &long, counters),
        (PAIRS, b"", counters),
        (HOLDS, &unsided, counters),
        (TRUST, &one, b"short"),
        (TRUST, &one[1..], &Row::default().encode()),
        (crate::storage::ledger::LOSSES, b"weeks", &[0]),
    ];
    for (table, name, value) in damaged {
        let (_dir, path, db) = temp_db();
        kept(&db, writes(vec![Change::Put(*pair, counters.clone())])).await.unwrap();
        db.close().await.unwrap();
        write_raw(&path, table, name, value);
        let db = Db::open(&path, quiet()).unwrap();
        let error = db.ledger_load().await.unwrap_err();
        assert!(matches!(error, ReadError::Fault(Fault::Corrupted { .. })), "{table}: {error}");
        let refused = kept(&db, writes(vec![Change::Put(*pair, counters.clone())])).await;
        assert!(matches!(refused, Err(WriteError::Fault(Fault::Corrupted { .. }))), "{refused:?}");
    }

    // The same for what is read by name.
    let step = Key::Step(Lane::Note, Side::Mine, history.peers[0], UNIT, 7);
    let name = [&[0, 0], history.peers[0].to_bytes().as_slice(), &1_u32.to_be_bytes(), &7_u64.to_be_bytes()].concat();
    let proof = Hash([1; 32]);
    for (table, name, key) in [(STEPS, name, step), (EVIDENCE, proof.0.to_vec(), Key::Evidence(proof))] {
        let (_dir, path, db) = temp_db();
        db.close().await.unwrap();
        write_raw(&path, table, &name, b"");
        let db = Db::open(&path, quiet()).unwrap();
        let error = db.ledger_read(vec![key]).await.unwrap_err();
        assert!(matches!(error, ReadError::Fault(Fault::Corrupted { .. })), "{key:?}: {error}");
        assert!(db.health().is_err());
    }
}

fn write_raw(path: &Path, table: redb::TableDefinition<'_, &[u8], &[u8]>, name: &[u8], value: &[u8]) {
    let database = redb::Builder::new().open(path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(table).unwrap().insert(name, value).unwrap();
    txn.commit().unwrap();
}

#[tokio::test]
async fn a_database_of_schema_4_gets_the_tables() {
    let (_dir, path, db) = temp_db();
    settle(&db, 1).await;
    db.close().await.unwrap();
    {
        let database = redb::Builder::new().open(&path).unwrap();
        let txn = database.begin_write().unwrap();
        for table in [PAIRS, HOLDS, STEPS, TRUST, EVIDENCE, DEBTS] {
            txn.delete_table(table).unwrap();
        }
        txn.open_table(tables::META).unwrap().insert(tables::SCHEMA_VERSION, 4).unwrap();
        txn.commit().unwrap();
    }
    let db = Db::open(&path, quiet()).unwrap();
    assert_eq!(loaded(&db).await, []);
    assert_eq!(db.own_announcement().await.unwrap().unwrap().0, 1);
}
