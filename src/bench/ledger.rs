//! What the ledger costs: a creditor's book that takes notes from many debtors.
//!
//! *In memory*: one thread hands packets with signed notes to the book, which checks each signature, applies the note and
//! signs its acknowledgement. Beside it what checking one signature takes alone, and making one. All three in the thread's own
//! processor time, so that it is what one core does whatever else runs. *Durable*: the same through
//! the node's database, each note a batch of its own, so many of them under way that commits are shared; a note counts when
//! it is answered. Beside it how often this disk can write a page and sync it. *Start*: a database with many accounts is
//! opened, read, and made a book of; its file has just been written, so that the system has it in memory.

mod work;

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use quelea_ledger::{
    book::{Book, Rules},
    message::{Ack, SignedMessage},
};
use quelea_wire::envelope::Signer;
use serde::Serialize;

use self::work::{NOW, Work, nonce_secret};
use super::hop::failed;
use crate::{
    node::StartError,
    storage::{Db, LedgerBatch},
};

/// Pages that are synced one after the other to learn how fast the disk is.
const SYNCS: u32 = 400;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// On the disk that is measured; what is made in it is removed again.
    pub(crate) dir: PathBuf,
    pub(crate) notes: u32,
    /// Debtors that these notes are from.
    pub(crate) debtors: u32,
    /// Batches that may wait for their commit.
    pub(crate) in_flight: usize,
    /// Accounts in the database that is opened.
    pub(crate) accounts: u32,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LedgerReport {
    pub(crate) profile: &'static str,
    pub(crate) memory: Memory,
    pub(crate) disk: Disk,
    pub(crate) durable: Durable,
    pub(crate) start: Start,
}

/// One thread, no disk; per second of its processor time.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Memory {
    pub(crate) notes: u32,
    pub(crate) debtors: u32,
    /// Checked, applied and acknowledged.
    pub(crate) notes_per_second: f64,
    /// Checked alone.
    pub(crate) opened_per_second: f64,
    /// Acknowledgements signed alone.
    pub(crate) signed_per_second: f64,
}

/// What the disk can do.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Disk {
    pub(crate) syncs_per_second: f64,
    pub(crate) sync_median_ms: f64,
}

/// The same through the database.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Durable {
    pub(crate) notes: u32,
    pub(crate) debtors: u32,
    pub(crate) in_flight: usize,
    pub(crate) notes_per_second: f64,
    pub(crate) commits: usize,
    pub(crate) commit_median_ms: f64,
    /// Notes a second over the disk's syncs a second.
    pub(crate) notes_per_sync: f64,
}

/// A start with many accounts.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Start {
    pub(crate) accounts: usize,
    pub(crate) holds: usize,
    pub(crate) file_bytes: u64,
    /// Until the file is open.
    pub(crate) open_seconds: f64,
    /// Until all rows are read and checked.
    pub(crate) load_seconds: f64,
    /// Until the book is made of them.
    pub(crate) restore_seconds: f64,
}

/// Measures all of it. `say` is told what comes next.
pub(crate) async fn measure(plan: &Plan, say: impl Fn(&str)) -> Result<LedgerReport, StartError> {
    std::fs::create_dir_all(&plan.dir).map_err(failed)?;
    let dir = tempfile::Builder::new().prefix("bench-ledger-").tempdir_in(&plan.dir).map_err(failed)?;
    say("notes in memory");
    let memory = memory(plan)?;
    say("the disk's syncs");
    let disk = disk(&dir.path().join("page")).map_err(failed)?;
    say("durable notes");
    let durable = durable(plan, &dir.path().join("durable.redb"), &disk).await?;
    say("accounts for a start");
    let start = start(plan, &dir.path().join("start.redb")).await?;
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    Ok(LedgerReport { profile, memory, disk, durable, start })
}

fn memory(plan: &Plan) -> Result<Memory, StartError> {
    let mut work = Work::new(plan.debtors, plan.notes)?;
    let started = processor_time();
    for (peer, packet) in &work.packets {
        let outcome = work.creditor.receive(NOW, *peer, packet).map_err(failed)?;
        if outcome.writes.is_empty() {
            return Err(failed("a note changed nothing"));
        }
    }
    let notes_per_second = rate(plan.notes, processor_time().saturating_sub(started));

    let mut signers = HashMap::new();
    for (peer, _) in &work.packets {
        signers.insert(*peer, Signer::of(*peer).map_err(failed)?);
    }
    let mut last = None;
    let started = processor_time();
    for ((peer, _), envelope) in work.packets.iter().zip(&work.envelopes) {
        let signer = signers.get(peer).ok_or_else(|| failed("a debtor without a key"))?;
        last = Some(SignedMessage::open_by(envelope, &work.network, signer).map_err(failed)?);
    }
    let opened_per_second = rate(plan.notes, processor_time().saturating_sub(started));

    let note = last.ok_or_else(|| failed("no notes"))?.id();
    let started = processor_time();
    for seq in 0..plan.notes {
        let ack = Ack { note, seq: seq.into(), preimage: None };
        SignedMessage::sign(&work.keypair, &work.network, ack).map_err(failed)?;
    }
    let signed_per_second = rate(plan.notes, processor_time().saturating_sub(started));
    let (notes, debtors) = (plan.notes, plan.debtors);
    Ok(Memory { notes, debtors, notes_per_second, opened_per_second, signed_per_second })
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanos) =
        (u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default());
    Duration::new(seconds, nanos)
}

fn disk(page: &Path) -> std::io::Result<Disk> {
    let mut file = File::create(page)?;
    file.write_all(&[1; 4096])?;
    file.sync_all()?;
    let mut times = Vec::new();
    let started = Instant::now();
    for n in 0..SYNCS {
        let began = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[n.to_le_bytes()[0]; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    Ok(Disk { syncs_per_second: rate(SYNCS, started.elapsed()), sync_median_ms: median_ms(times) })
}

async fn durable(plan: &Plan, path: &Path, disk: &Disk) -> Result<Durable, StartError> {
    let mut work = Work::new(plan.debtors, plan.notes)?;
    let commits = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&commits);
    let observer = Box::new(move |took| seen.lock().unwrap_or_else(PoisonError::into_inner).push(took));
    let db = Db::open(path, observer).map_err(failed)?;
    let mut waiting = VecDeque::new();
    let started = Instant::now();
    for (peer, packet) in &work.packets {
        if waiting.len() >= plan.in_flight {
            answered(waiting.pop_front()).await?;
        }
        let writes = work.creditor.receive(NOW, *peer, packet).map_err(failed)?.writes;
        waiting.push_back(db.ledger_submit(LedgerBatch { writes, ..LedgerBatch::default() }).await.map_err(failed)?);
    }
    while !waiting.is_empty() {
        answered(waiting.pop_front()).await?;
    }
    let notes_per_second = rate(plan.notes, started.elapsed());
    db.close().await.map_err(failed)?;
    let times = std::mem::take(&mut *commits.lock().unwrap_or_else(PoisonError::into_inner));
    let (notes, debtors, in_flight) = (plan.notes, plan.debtors, plan.in_flight);
    let notes_per_sync = notes_per_second / disk.syncs_per_second;
    let (commits, commit_median_ms) = (times.len(), median_ms(times));
    Ok(Durable { notes, debtors, in_flight, notes_per_second, commits, commit_median_ms, notes_per_sync })
}

type Waiting = tokio::sync::oneshot::Receiver<Result<(), crate::storage::WriteError>>;

async fn answered(waiting: Option<Waiting>) -> Result<(), StartError> {
    match waiting {
        Some(answer) => answer.await.map_err(failed)?.map_err(failed),
        None => Ok(()),
    }
}

async fn start(plan: &Plan, path: &Path) -> Result<Start, StartError> {
    let quiet = || Box::new(|_: Duration| {});
    let db = Db::open(path, quiet()).map_err(failed)?;
    work::fill(&db, plan.accounts).await?;
    db.close().await.map_err(failed)?;

    let file_bytes = std::fs::metadata(path).map_err(failed)?.len();
    let started = Instant::now();
    let db = Db::open(path, quiet()).map_err(failed)?;
    let open = started.elapsed();
    let loaded = db.ledger_load().await.map_err(failed)?;
    let load = started.elapsed();
    let mut book = Book::new(work::creditor_key(), work::network(), Rules::default(), nonce_secret());
    for (key, value) in &loaded.rows {
        book.restore(key, value).map_err(failed)?;
    }
    let restore = started.elapsed();
    let accounts = book.accounts().count();
    if (accounts, loaded.trust.len()) != (plan.accounts as usize, plan.accounts as usize) {
        return Err(failed("an account was lost"));
    }
    db.close().await.map_err(failed)?;
    Ok(Start {
        accounts,
        holds: book.unfinished().count(),
        file_bytes,
        open_seconds: open.as_secs_f64(),
        load_seconds: (load - open).as_secs_f64(),
        restore_seconds: (restore - load).as_secs_f64(),
    })
}

fn rate(count: u32, took: Duration) -> f64 {
    f64::from(count) / took.as_secs_f64()
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
