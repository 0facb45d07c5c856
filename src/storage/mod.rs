//! What the node keeps: one redb file, one owner.
//!
//! [`Db`] is the only door. Writes go through a bounded queue to one thread, which takes everything that waits and commits
//! it in one transaction (group commit); an answer is sent after the commit that holds its write. Reads run on tokio's
//! blocking threads. Nothing here blocks a thread that polls futures.
//!
//! After any storage error the database is *poisoned*: what was being written may or may not be on disk, so every later
//! write is refused and [`Db::health`] says why, until the node is restarted. A node that cannot remember what it signed
//! signs nothing.
//!
//! | queue  | bound             | when full                                                                             |
//! |--------|-------------------|---------------------------------------------------------------------------------------|
//! | writes | 1,024 ([`QUEUE`]) | [`Db::try_record_peer`] drops the row and says so; the `async` writes wait for a place |
//!
//! What the ledger writes is in [`ledger`]: batches of rows that are durable together or not at all.
//!
//! Tables carry a version in their name ([`tables`]); the way from one schema to the next is in [`migrations`].

mod agents;
mod backup;
mod bans;
mod dht;
mod ledger;
mod migrations;
mod neighbours;
mod open;
mod services;
mod tables;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, RwLock},
    time::Duration,
};

use libp2p::PeerId;
use quelea_behaviours::bans::{Ban, Subject};
use redb::{Database, ReadTransaction, ReadableDatabase as _};
use tokio::sync::{mpsc, oneshot};

pub(crate) use agents::{AgentLine, AgentRefusal, AgentRow, AgentWrite, KV_KEY, KV_VALUE};
/// The schema that this version writes.
pub(crate) const SCHEMA: u64 = migrations::CURRENT;

pub use backup::{BackupError, copy, restore};
pub(crate) use dht::{DhtSaved, DhtWrite};
pub(crate) use ledger::{LedgerBatch, LedgerRows};
pub use neighbours::{ANCHORS_MAX, Anchor, BOOTSTRAP_MAX};
pub use open::OpenError;
pub use quelea_behaviours::peers::Source;
pub(crate) use services::ResultRow;
pub use tables::PeerRow;
use writer::{Job, Write};

/// Writes that may wait. A commit takes milliseconds and takes all that waits, so a queue this long means the disk stands
/// still; rows are below 3 KiB, which bounds the queue at 3 MiB. A batch of the ledger is one write of hundreds of rows: its
/// one owner has a few of them under way at a time.
pub const QUEUE: usize = 1024;

/// The longest announcement that is stored, in bytes. The protocol allows 1 KiB plus its signature.
pub const ANNOUNCEMENT_MAX: usize = 4096;

/// Called after each commit with the time it took.
pub type CommitObserver = Box<dyn Fn(Duration) + Send>;

/// The database. Clones share it.
#[derive(Clone, Debug)]
pub struct Db {
    queue: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

/// What the writer thread and the readers share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// `None` once closed. Readers hold the lock for reading while they read.
    database: RwLock<Option<Database>>,
    /// The first storage error. Once set, it stays.
    fault: OnceLock<Fault>,
}

/// A storage error. It stays until the node is restarted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// No space, or no quota, left for the file.
    #[error("the disk is full: {path} cannot be written; free some space and restart the node", path = .path.display())]
    DiskFull {
        /// The database.
        path: PathBuf,
    },
    /// The file's content is not what was written to it.
    #[error("the database {path} is damaged ({detail}); restore it from a backup, or move it away and restart the node", path = .path.display())]
    Corrupted {
        /// The database.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Any other error of the disk.
    #[error("the database {path} cannot be used ({detail}); check the disk and restart the node", path = .path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
}

/// Why a read gave nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The storage failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// [`Db::close`] was called, or the runtime is shutting down.
    #[error("the database is closed")]
    Closed,
}

/// Why a write was not kept.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The storage failed, with this write or an earlier one. Whether this write is on disk is unknown.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// [`Db::close`] was called.
    #[error("the database is closed")]
    Closed,
    /// The sequence number is not above the stored one. Two different announcements with one number would contradict each
    /// other.
    #[error("an announcement with sequence number {stored} is stored already; {given} is not above it")]
    StaleSequence {
        /// What is stored.
        stored: u64,
        /// What was to be stored.
        given: u64,
    },
    /// The list of peers to start from is full.
    #[error("the list of peers to start from has {BOOTSTRAP_MAX} entries already; remove one first")]
    ListFull,
    /// More than [`ANNOUNCEMENT_MAX`] bytes.
    #[error("an announcement of {0} bytes is too long to store (at most {ANNOUNCEMENT_MAX})")]
    TooLong(usize),
    /// A change of an agent that was not made.
    #[error(transparent)]
    Agent(#[from] AgentRefusal),
    /// A row of the ledger that could not be read again. Nothing of its batch was written.
    #[error("a row of the ledger cannot be stored: {0}")]
    LedgerRow(quelea_ledger::DecodeError),
}

/// Why a row was not taken for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotRecorded {
    /// [`QUEUE`] writes wait already. Count it and go on: the peer will be seen again.
    #[error("the database's queue is full")]
    QueueFull,
    /// The database is poisoned or closed.
    #[error("the database takes no writes")]
    Unavailable,
}

impl Db {
    /// Opens the database at `path` (mode 0600 if it is made), repairs it after a crash, and brings it to this version's
    /// schema. **Blocks**: call it before the runtime runs, or on a blocking thread. `on_commit` is called on the writer's
    /// thread.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing has been changed when the schema is newer than this version knows.
    pub fn open(path: &Path, on_commit: CommitObserver) -> Result<Self, OpenError> {
        let database = open::open_file(path)?;
        Self::start(path, database, on_commit)
    }

    fn start(path: &Path, database: Database, on_commit: CommitObserver) -> Result<Self, OpenError> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            path: path.to_path_buf(),
            database: RwLock::new(Some(database)),
            fault: OnceLock::new(),
        });
        let for_writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("quelea-db".into())
            .spawn(move || writer::run(&for_writer, jobs, on_commit))
            .map_err(|source| OpenError::Io { path: path.to_path_buf(), detail: source.to_string() })?;
        Ok(Self { queue, shared })
    }

    /// The peers seen, the one seen last first. At most 10,000.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub async fn peers(&self) -> Result<Vec<PeerRow>, ReadError> {
        self.read(tables::read_peers).await
    }

    /// Records that a peer was seen: known addresses are kept behind the new ones (eight in all), `first_seen_ms` and
    /// `source` stay what they were at first. Never blocks; there is no answer, because nothing hangs on it. When more than
    /// 10,000 peers are known, those seen longest ago are forgotten.
    ///
    /// # Errors
    /// When the row was not even queued.
    pub fn try_record_peer(&self, row: PeerRow) -> Result<(), NotRecorded> {
        self.try_write(Write::Peer(row))
    }

    /// The bans of earlier runs, those that are over too.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub async fn bans(&self) -> Result<Vec<Ban>, ReadError> {
        self.read(bans::read).await
    }

    /// Keeps a ban, in the place of an earlier one of the same subject. Never blocks; there is no answer.
    ///
    /// # Errors
    /// When it was not even queued.
    pub fn try_put_ban(&self, ban: Ban) -> Result<(), NotRecorded> {
        self.try_write(Write::Ban(bans::Change::Put(Box::new(ban))))
    }

    /// Forgets a ban. Never blocks; there is no answer.
    ///
    /// # Errors
    /// When it was not even queued.
    pub fn try_remove_ban(&self, subject: Subject) -> Result<(), NotRecorded> {
        self.try_write(Write::Ban(bans::Change::Remove(subject)))
    }

    /// Notes how a peer has behaved, 0 to 10,000. Never blocks, like [`Db::try_record_peer`].
    ///
    /// # Errors
    /// When it was not even queued.
    pub fn try_record_conduct(&self, peer: PeerId, conduct: i32) -> Result<(), NotRecorded> {
        self.try_write(Write::Conduct { peer, conduct })
    }

    /// Replaces the peers that are tried first at the next start, best first; [`ANCHORS_MAX`] are kept. Never blocks, like
    /// [`Db::try_record_peer`].
    ///
    /// # Errors
    /// When they were not even queued.
    pub fn try_save_anchors(&self, anchors: Vec<Anchor>) -> Result<(), NotRecorded> {
        self.try_write(Write::Anchors(anchors))
    }

    /// The peers that were the best outbound ones when the node stopped last, best first.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub async fn anchors(&self) -> Result<Vec<Anchor>, ReadError> {
        self.read(neighbours::read_anchors).await
    }

    /// How peers have behaved; those without a row are at 0.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub async fn conduct(&self) -> Result<Vec<(PeerId, i32)>, ReadError> {
        self.read(neighbours::read_conduct).await
    }

    /// The operator's list of peers to start from: full multiaddrs, and when each was added in Unix milliseconds.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub async fn bootstrap_list(&self) -> Result<Vec<(String, u64)>, ReadError> {
        self.read(neighbours::read_bootstrap).await
    }

    /// Lists a peer to start from; one that is listed already stays as it is.
    ///
    /// # Errors
    /// When [`BOOTSTRAP_MAX`] are listed, the storage fails or failed before, or it is closed.
    pub async fn add_bootstrap(&self, addr: String, now_ms: u64) -> Result<(), WriteError> {
        self.write(Write::AddBootstrap { addr, now_ms }).await
    }

    /// Takes a peer off that list, if it is there.
    ///
    /// # Errors
    /// When the storage fails or failed before, or it is closed.
    pub async fn remove_bootstrap(&self, addr: String) -> Result<(), WriteError> {
        self.write(Write::RemoveBootstrap { addr }).await
    }

    /// Stores our own announcement, its sequence number and its exact signed bytes. When this returns `Ok` it is on disk
    /// and may be sent.
    ///
    /// # Errors
    /// When `seq` is not above the stored one, `raw` is too long, the storage fails or failed before, or it is closed.
    pub async fn put_own_announcement(&self, seq: u64, raw: Vec<u8>) -> Result<(), WriteError> {
        if raw.len() > ANNOUNCEMENT_MAX {
            return Err(WriteError::TooLong(raw.len()));
        }
        self.write(Write::OwnAnnouncement { seq, raw }).await
    }

    /// Keeps what a call came to. When this returns `Ok` it is on disk. What has expired at `now_ms` is let go of, and the
    /// oldest where there are too many.
    ///
    /// # Errors
    /// When the storage fails or failed before, or it is closed.
    pub(crate) async fn put_service_result(&self, row: ResultRow, now_ms: u64) -> Result<(), WriteError> {
        self.write(Write::Services(services::Change::Result { row: Box::new(row), now_ms })).await
    }

    /// What calls came to and has not expired at `now_ms`.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub(crate) async fn service_results(&self, now_ms: u64) -> Result<Vec<ResultRow>, ReadError> {
        self.read(move |txn| services::read_results(txn, now_ms)).await
    }

    /// Keeps whether a service is offered, and what it costs, in micro-credits.
    ///
    /// # Errors
    /// When the storage fails or failed before, or it is closed.
    pub(crate) async fn put_service(&self, name: String, enabled: bool, price: u64) -> Result<(), WriteError> {
        self.write(Write::Services(services::Change::Service { name, enabled, price })).await
    }

    /// What was kept of services: name, whether it is offered, micro-credits.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub(crate) async fn services(&self) -> Result<Vec<(String, bool, u64)>, ReadError> {
        self.read(services::read_services).await
    }

    /// Our own announcement as it was last stored: sequence number and exact signed bytes.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub async fn own_announcement(&self) -> Result<Option<(u64, Vec<u8>)>, ReadError> {
        self.read(tables::read_own_announcement).await
    }

    /// Copies the database as it is after all that was queued before to the new file `to`. Returns its bytes.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub async fn backup(&self, to: PathBuf) -> Result<u64, BackupError> {
        let gone = || BackupError::Unavailable("the database is closed".into());
        self.health().map_err(|fault| BackupError::Unavailable(fault.to_string()))?;
        let (reply, answer) = oneshot::channel();
        self.queue.send(Job::Backup(to, reply)).await.map_err(|_closed| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// `Err` once the storage has failed, with the first error.
    pub fn health(&self) -> Result<(), Fault> {
        self.shared.fault.get().map_or(Ok(()), |fault| Err(fault.clone()))
    }

    /// Writes what is queued, closes the file and lets go of it. Other clones then find it closed.
    ///
    /// # Errors
    /// When something queued, or the closing itself, could not be written.
    pub async fn close(self) -> Result<(), WriteError> {
        let (reply, answer) = oneshot::channel();
        if self.queue.send(Job::Close(reply)).await.is_err() {
            return self.health().map_err(WriteError::Fault);
        }
        answer.await.unwrap_or(Err(WriteError::Closed))
    }

    fn try_write(&self, write: Write) -> Result<(), NotRecorded> {
        if self.shared.fault.get().is_some() {
            return Err(NotRecorded::Unavailable);
        }
        self.queue.try_send(Job::Write(write, None)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => NotRecorded::QueueFull,
            mpsc::error::TrySendError::Closed(_) => NotRecorded::Unavailable,
        })
    }

    async fn write(&self, write: Write) -> Result<(), WriteError> {
        self.health()?;
        let (reply, answer) = oneshot::channel();
        self.queue.send(Job::Write(write, Some(reply))).await.map_err(|_closed| WriteError::Closed)?;
        answer.await.unwrap_or(Err(WriteError::Closed))
    }

    async fn read<T, F>(&self, f: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            let guard = shared.database.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let database = guard.as_ref().ok_or(ReadError::Closed)?;
            shared.guarded(|| f(&database.begin_read()?)).map_err(ReadError::Fault)
        })
        .await
        .unwrap_or(Err(ReadError::Closed))
    }
}

impl Shared {
    /// Runs something on the database. An error, or a panic (redb asserts on some damaged files), poisons it.
    fn guarded<T>(&self, f: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Fault> {
        let fault = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Fault::from_redb(&self.path, &error),
            Err(panic) => Fault::Corrupted { path: self.path.clone(), detail: open::panic_text(&*panic) },
        };
        if self.fault.set(fault.clone()).is_ok() {
            tracing::error!(%fault, "storage failed; nothing more is written until the node is restarted");
        }
        // The first one: what comes after is mostly its consequence.
        Err(self.fault.get().cloned().unwrap_or(fault))
    }
}

impl Fault {
    fn from_redb(path: &Path, error: &redb::Error) -> Self {
        use std::io::ErrorKind;
        let path = path.to_path_buf();
        match error {
            redb::Error::Io(io) if is_full(io) => Self::DiskFull { path },
            redb::Error::Io(io) if matches!(io.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                Self::Corrupted { path, detail: io.to_string() }
            }
            redb::Error::Corrupted(detail) => Self::Corrupted { path, detail: detail.clone() },
            redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableIsNotMultimap(_) => Self::Corrupted { path, detail: error.to_string() },
            other => Self::Io { path, detail: other.to_string() },
        }
    }
}

/// Out of space, of quota, or past the largest file allowed.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

#[cfg(test)]
pub(crate) mod tests;
