//! Disks that fail, and machines that lose their power, at every operation of a history.
//!
//! `QUELEA_SEEDS=50 cargo test --lib storage::tests::ledger::crashes` plays fifty histories and not one.

use std::collections::{BTreeMap, BTreeSet};

use quelea_ledger::{
    book::{Key, Write as Change},
    trust::Row,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::{books, *};

/// Batches that are on disk before anything goes wrong.
const BEFORE: usize = 4;
/// Batches during which it does.
const DURING: usize = 6;
/// A sector: what a disk writes whole or not at all.
const SECTOR: usize = 512;

fn seeds() -> u64 {
    std::env::var("QUELEA_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

/// What goes wrong at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The machine stops: from then on nothing reaches the disk.
    Power,
    /// The operation fails, and all after it.
    Dead,
    /// Only this operation fails, half done; the disk is well again at once.
    Once,
    /// The operation is done, and reported as failed.
    Lie,
}

/// What became of the changes that were not synced when the power went.
#[derive(Clone, Copy, Debug)]
enum Left {
    Nothing,
    Everything,
    /// Each sector for itself.
    Some,
}

/// A change that is not synced yet.
#[derive(Clone, Debug)]
enum Unsynced {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

#[derive(Debug, Default)]
struct Platter {
    /// What is read.
    cached: Vec<u8>,
    /// What is there after a loss of power, and then some of `unsynced`.
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Operations until the fault.
    left: usize,
    fault: Option<Fault>,
    struck: bool,
    /// Syncs are reported and not done, as by a disk that keeps them in a cache of its own.
    forgetful: bool,
}

impl Platter {
    fn apply(bytes: &mut Vec<u8>, change: &Unsynced) {
        match change {
            Unsynced::Length(length) => bytes.resize(*length, 0),
            Unsynced::Bytes(at, data) => {
                // The length may have been lost, and what is written after it not.
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }

    /// What happens to an operation: whether it is done (half done), and whether it is reported so.
    fn strike(&mut self) -> (Done, bool) {
        let Some(fault) = self.fault else { return (Done::Whole, true) };
        if !self.struck && self.left > 0 {
            self.left -= 1;
            return (Done::Whole, true);
        }
        let first = !std::mem::replace(&mut self.struck, true);
        match fault {
            Fault::Power | Fault::Dead => (Done::Not, false),
            Fault::Once if first => (Done::Half, false),
            Fault::Lie if first => (Done::Whole, false),
            Fault::Once | Fault::Lie => (Done::Whole, true),
        }
    }

    fn change(&mut self, mut change: Unsynced) -> std::io::Result<()> {
        let (done, reported) = self.strike();
        if let (Done::Half, Unsynced::Bytes(_, data)) = (done, &mut change) {
            data.truncate(data.len() / 2);
        }
        if done != Done::Not {
            Self::apply(&mut self.cached, &change);
            self.unsynced.push(change);
        }
        answer(reported)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        let (done, reported) = self.strike();
        if done == Done::Whole && !self.forgetful {
            self.synced.clone_from(&self.cached);
            self.unsynced.clear();
        }
        answer(reported)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    Not,
    Half,
    Whole,
}

fn answer(fine: bool) -> std::io::Result<()> {
    if fine { Ok(()) } else { Err(std::io::Error::from_raw_os_error(IO_ERROR)) }
}

#[derive(Clone, Debug, Default)]
struct Machine(Arc<Mutex<Platter>>);

impl Machine {
    fn with(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Platter { cached: bytes.clone(), synced: bytes, ..Platter::default() })))
    }

    fn db(&self) -> Db {
        let backend = open::open_backend(Path::new("/the/disk/quelea.redb"), self.clone(), true).unwrap();
        Db::start(Path::new("/the/disk/quelea.redb"), backend, quiet()).unwrap()
    }

    fn break_after(&self, operations: usize, fault: Fault) {
        let mut platter = self.0.lock().unwrap();
        (platter.left, platter.fault) = (operations, Some(fault));
    }

    /// Whether the fault has come.
    fn struck(&self) -> bool {
        self.0.lock().unwrap().struck
    }

    /// What the next start finds.
    fn bytes_after(&self, left: Left, rng: &mut SmallRng) -> Vec<u8> {
        let platter = self.0.lock().unwrap();
        let mut bytes = platter.synced.clone();
        for change in &platter.unsynced {
            match (left, change) {
                (Left::Nothing, _) => {}
                (Left::Everything, change) => Platter::apply(&mut bytes, change),
                (Left::Some, Unsynced::Bytes(at, data)) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate().filter(|_| rng.random()) {
                        Platter::apply(&mut bytes, &Unsynced::Bytes(at + n * SECTOR, sector.to_vec()));
                    }
                }
                // A file system writes lengths in their order; see `Platter::apply` for one that is late.
                (Left::Some, change) => Platter::apply(&mut bytes, change),
            }
        }
        bytes
    }
}

impl StorageBackend for Machine {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let platter = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let there = platter.cached.get(at..at + out.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(there);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.0.lock().unwrap().change(Unsynced::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.0.lock().unwrap().sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.0.lock().unwrap().change(Unsynced::Bytes(usize::try_from(offset).unwrap(), data.to_vec()))
    }

    fn try_lock_range(&self, _: std::ops::Bound<u64>, _: std::ops::Bound<u64>) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported)
    }
}

/// The batches of one node, and what is on disk after each.
struct Story {
    batches: Vec<Vec<Change>>,
    after: Vec<BTreeMap<Key, Vec<u8>>>,
    /// Every key that was ever written.
    keys: Vec<Key>,
    /// The file after the first [`BEFORE`] batches.
    file: Vec<u8>,
}

impl Story {
    async fn tell(seed: u64) -> Self {
        let history = History::play(seed, 30);
        let all = history.steps.into_iter().filter(|step| step.node == 0);
        let batches: Vec<Vec<Change>> = all.map(|step| step.writes).take(BEFORE + DURING).collect();
        assert_eq!(batches.len(), BEFORE + DURING);
        let (mut rows, mut keys) = (BTreeMap::new(), BTreeSet::new());
        let mut after = vec![rows.clone()];
        for batch in &batches {
            books::apply(&mut rows, batch);
            keys.extend(rows.keys().copied());
            after.push(rows.clone());
        }
        let machine = Machine::default();
        let db = machine.db();
        let mut story = Self { batches, after, keys: keys.into_iter().collect(), file: Vec::new() };
        for n in 1..=BEFORE {
            kept(&db, story.batch(n)).await.unwrap();
        }
        db.close().await.unwrap();
        story.file = std::mem::take(&mut machine.0.lock().unwrap().cached);
        story
    }

    /// The n-th batch, from 1. Its number stands in a row of trust, so that what is found tells where it ends.
    fn batch(&self, n: usize) -> LedgerBatch {
        let days = u32::try_from(n).unwrap();
        LedgerBatch {
            writes: self.batches[n - 1].clone(),
            trust: vec![(witness(), Row { days, ..Row::default() })],
            ..LedgerBatch::default()
        }
    }

    /// Plays the batches on a machine, several at a time. The answers, in the order of the batches.
    async fn play(&self, db: &Db, rng: &mut SmallRng) -> Vec<Result<(), WriteError>> {
        let (mut answers, mut next) = (Vec::new(), BEFORE + 1);
        while next <= BEFORE + DURING {
            let together = rng.random_range(1..=3).min(BEFORE + DURING + 1 - next);
            let mut waiting = Vec::new();
            for n in next..next + together {
                waiting.push(db.ledger_submit(self.batch(n)).await);
            }
            for answer in waiting {
                answers.push(match answer {
                    Ok(answer) => answer.await.expect("the database is open"),
                    Err(refused) => Err(refused),
                });
            }
            next += together;
        }
        answers
    }

    /// Which batch is the last that a file has. It has all before it whole, and nothing of any later one.
    async fn last_of(&self, file: Vec<u8>) -> usize {
        let db = Machine::with(file).db();
        let last = usize::try_from(db.ledger_load().await.unwrap().trust[0].1.days).unwrap();
        let expected: Vec<_> = self.keys.iter().map(|key| self.after[last].get(key).cloned()).collect();
        assert_eq!(db.ledger_read(self.keys.clone()).await.unwrap(), expected, "whole up to batch {last}");
        assert_eq!(loaded(&db).await, restorable(&self.after[last]));
        // What comes next is taken.
        kept(&db, self.batch(last.min(self.batches.len() - 1) + 1)).await.unwrap();
        db.close().await.unwrap();
        last
    }
}

fn witness() -> PeerId {
    Keypair::ed25519_from_bytes([8; 32]).unwrap().public().to_peer_id()
}

/// Plays a story with a fault at each operation in turn, and looks at what the next start finds.
async fn at_every_operation(story: &Story, seed: u64, fault: Fault, lefts: &[Left]) {
    for operations in 0.. {
        let mut rng = SmallRng::seed_from_u64(seed);
        let machine = Machine::with(story.file.clone());
        let db = machine.db();
        machine.break_after(operations, fault);
        let answers = story.play(&db, &mut rng).await;
        let durable = answers.iter().take_while(|answer| answer.is_ok()).count();
        assert!(answers[durable..].iter().all(|answer| matches!(answer, Err(WriteError::Fault(_)))), "{answers:?}");
        let struck = machine.struck();
        if durable < answers.len() {
            assert!(struck);
            let refused = db.ledger_submit(LedgerBatch::default()).await;
            assert!(matches!(refused, Err(WriteError::Fault(_))), "nothing more is taken: {refused:?}");
            assert!(db.health().is_err());
        }
        let files: Vec<Vec<u8>> = lefts.iter().map(|left| machine.bytes_after(*left, &mut rng)).collect();
        for (left, file) in lefts.iter().zip(files) {
            let last = story.last_of(file).await;
            let reported = BEFORE + durable;
            assert!(last >= reported, "{fault:?} after {operations}, {left:?} left: {last} of {reported} durable");
        }
        // After a mere fault the process goes on until it is closed. That must not undo anything either.
        let _ = db.close().await; // says what is wrong, or nothing
        let reported = BEFORE + durable;
        let rest = machine.bytes_after(Left::Everything, &mut rng);
        assert!(story.last_of(rest).await >= reported, "{fault:?} after {operations}, closed");
        if durable == answers.len() {
            assert!(operations > 20, "only {operations} operations could fail");
            return;
        }
    }
}

#[tokio::test]
async fn what_was_durable_survives_a_loss_of_power_at_every_operation() {
    for seed in 0..seeds() {
        let story = Story::tell(seed).await;
        let lefts = [Left::Nothing, Left::Everything, Left::Some, Left::Some];
        at_every_operation(&story, seed, Fault::Power, &lefts).await;
    }
}

#[tokio::test]
async fn what_was_durable_survives_a_failure_of_the_disk_at_every_operation() {
    for seed in 0..seeds() {
        let story = Story::tell(seed).await;
        for fault in [Fault::Dead, Fault::Once, Fault::Lie] {
            at_every_operation(&story, seed, fault, &[Left::Everything]).await;
        }
    }
}

/// What the tests above are worth: on a disk that does not sync they would fail.
#[tokio::test]
async fn on_a_disk_that_does_not_sync_nothing_is_durable() {
    let story = Story::tell(0).await;
    let machine = Machine::with(story.file.clone());
    machine.0.lock().unwrap().forgetful = true;
    let db = machine.db();
    let mut rng = SmallRng::seed_from_u64(0);
    let answers = story.play(&db, &mut rng).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let file = machine.bytes_after(Left::Nothing, &mut rng);
    assert_eq!(story.last_of(file).await, BEFORE);
    db.close().await.unwrap();
}
