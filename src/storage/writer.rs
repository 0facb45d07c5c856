//! The one thread that writes.

use std::{path::PathBuf, time::Instant};

use libp2p::PeerId;
use redb::{Database, Durability};
use tokio::sync::{mpsc, oneshot};

use super::{
    AgentWrite, Anchor, BackupError, CommitObserver, DhtWrite, LedgerBatch, PeerRow, Shared, WriteError, agents, bans,
    copy, dht, ledger, neighbours, services, tables,
};

/// Writes that share one commit at most. It bounds what one failed commit takes with it.
const BATCH_MAX: usize = 256;

/// Rows that share one commit, when the next write waits for the one after: a ledger's batch is one write of hundreds of
/// rows, and is never split. With it a commit's memory stays at some 5 MiB and one batch.
const ROWS_MAX: usize = 4096;

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<(), WriteError>>;

/// What waits in the queue.
pub(super) enum Job {
    Write(Write, Option<Reply>),
    /// Write what came before, and copy the file: between two commits nobody writes to it.
    Backup(PathBuf, oneshot::Sender<Result<u64, BackupError>>),
    /// Write what came before, close the file, answer, end.
    Close(Reply),
}

/// One write.
pub(super) enum Write {
    Peer(PeerRow),
    Conduct { peer: PeerId, conduct: i32 },
    Anchors(Vec<Anchor>),
    AddBootstrap { addr: String, now_ms: u64 },
    RemoveBootstrap { addr: String },
    OwnAnnouncement { seq: u64, raw: Vec<u8> },
    Ban(bans::Change),
    Dht(DhtWrite),
    Services(services::Change),
    Agent(AgentWrite),
    Ledger(Box<LedgerBatch>),
}

impl Write {
    /// Rows that it may change.
    fn rows(&self) -> usize {
        match self {
            Self::Ledger(batch) => batch.rows(),
            _ => 1,
        }
    }
}

/// Runs until [`Job::Close`], or until every [`super::Db`] is gone.
pub(super) fn run(shared: &Shared, mut jobs: mpsc::Receiver<Job>, on_commit: CommitObserver) {
    while let Some(first) = jobs.blocking_recv() {
        let (mut batch, mut rows) = (Vec::new(), 0_usize);
        let mut closing = None;
        let mut backup = None;
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Write(write, reply) => {
                    rows = rows.saturating_add(write.rows());
                    batch.push((write, reply));
                }
                Job::Backup(to, reply) => {
                    backup = Some((to, reply));
                    break;
                }
                Job::Close(reply) => {
                    closing = Some(reply);
                    break;
                }
            }
            // All that came while the last commit was flushed shares the next one.
            next = if batch.len() < BATCH_MAX && rows < ROWS_MAX { jobs.try_recv().ok() } else { None };
        }
        commit_batch(shared, batch, &on_commit);
        if let Some((to, reply)) = backup {
            let copied = match shared.fault.get() {
                Some(fault) => Err(BackupError::Unavailable(fault.to_string())),
                None => copy(&shared.path, &to),
            };
            let _ = reply.send(copied); // whoever asked may have gone
        }
        if let Some(reply) = closing {
            // No new jobs; those that raced the close find the queue gone.
            drop(jobs);
            let _ = reply.send(close(shared)); // nobody has to wait for the end
            return;
        }
    }
}

/// Commits a batch and answers each of its writes.
fn commit_batch(shared: &Shared, batch: Vec<(Write, Option<Reply>)>, on_commit: &CommitObserver) {
    if batch.is_empty() {
        return;
    }
    let (writes, replies): (Vec<Write>, Vec<Option<Reply>>) = batch.into_iter().unzip();
    let committed = match shared.fault.get() {
        Some(fault) => Err(fault.clone()),
        None => {
            let guard = shared.database.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let Some(database) = guard.as_ref() else { return };
            let started = Instant::now();
            let committed = shared.guarded(|| commit(database, writes));
            if committed.as_ref().is_ok_and(|c| c.changed) {
                on_commit(started.elapsed());
            }
            committed
        }
    };
    match committed {
        Ok(committed) => {
            for (reply, outcome) in replies.into_iter().zip(committed.outcomes) {
                answer(reply, outcome);
            }
        }
        Err(fault) => replies.into_iter().for_each(|reply| answer(reply, Err(fault.clone().into()))),
    }
}

fn answer(reply: Option<Reply>, outcome: Result<(), WriteError>) {
    if let Some(reply) = reply {
        let _ = reply.send(outcome); // whoever asked may have gone
    }
}

/// What a transaction did.
struct Committed {
    /// There was something to write.
    changed: bool,
    /// One for each write.
    outcomes: Vec<Result<(), WriteError>>,
}

/// One transaction for all. A write may be refused on its own; an error is everybody's.
fn commit(database: &Database, writes: Vec<Write>) -> Result<Committed, redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    // On every commit, because it helps only if the last one before a crash had it.
    txn.set_quick_repair(true);
    let mut changed = false;
    let mut outcomes = Vec::with_capacity(writes.len());
    {
        let mut peers = txn.open_table(tables::PEERS)?;
        let mut announcements = txn.open_table(tables::ANNOUNCEMENTS)?;
        let mut bans = txn.open_table(bans::BANS)?;
        let mut conduct_table = txn.open_table(neighbours::CONDUCT)?;
        let mut anchors_table = txn.open_table(neighbours::ANCHORS)?;
        let mut bootstrap = txn.open_table(neighbours::BOOTSTRAP)?;
        let mut ledger_tables = None;
        for write in writes {
            outcomes.push(match write {
                Write::Ban(change) => {
                    bans::apply(&mut bans, change)?;
                    changed = true;
                    Ok(())
                }
                Write::Peer(row) => {
                    changed |= tables::record_peer(&mut peers, row)?;
                    Ok(())
                }
                Write::Dht(write) => {
                    changed |= dht::apply(&txn, write)?;
                    Ok(())
                }
                Write::Services(change) => {
                    services::apply(&txn, change)?;
                    changed = true;
                    Ok(())
                }
                Write::Agent(write) => {
                    let applied = agents::apply(&txn, write)?;
                    changed |= applied.is_ok();
                    applied.map_err(WriteError::Agent)
                }
                Write::Ledger(batch) => {
                    let tables = match &mut ledger_tables {
                        Some(tables) => tables,
                        None => ledger_tables.insert(ledger::Tables::open(&txn)?),
                    };
                    changed |= tables.apply(&batch)?;
                    Ok(())
                }
                Write::Conduct { peer, conduct } => {
                    changed |= neighbours::put_conduct(&mut conduct_table, &peer, conduct)?;
                    Ok(())
                }
                Write::Anchors(anchors) => {
                    changed |= neighbours::put_anchors(&mut anchors_table, &anchors)?;
                    Ok(())
                }
                Write::AddBootstrap { addr, now_ms } => {
                    let added = neighbours::add_bootstrap(&mut bootstrap, &addr, now_ms)?;
                    changed |= added == Some(true);
                    added.map(|_| ()).ok_or(WriteError::ListFull)
                }
                Write::RemoveBootstrap { addr } => {
                    changed |= bootstrap.remove(addr.as_str())?.is_some();
                    Ok(())
                }
                Write::OwnAnnouncement { seq, raw } => {
                    match tables::put_own_announcement(&mut announcements, seq, &raw)? {
                        Some(stored) => Err(WriteError::StaleSequence { stored, given: seq }),
                        None => {
                            changed = true;
                            Ok(())
                        }
                    }
                }
            });
        }
        tables::forget_peers(&mut peers)?;
        if let Some(tables) = ledger_tables {
            tables.finish()?;
        }
    }
    if changed {
        txn.commit()?;
    } else {
        txn.abort()?;
    }
    Ok(Committed { changed, outcomes })
}

fn close(shared: &Shared) -> Result<(), WriteError> {
    // Waits for reads that are under way.
    let database = shared.database.write().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(database) = database {
        // If it fails, that is the fault, unless there was one before.
        let _ = shared.guarded(|| Ok(database.close()?));
    }
    shared.fault.get().map_or(Ok(()), |fault| Err(fault.clone().into()))
}
