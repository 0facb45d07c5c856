//! Opening the file: what can be wrong with it, and what to do about each.

use std::{
    any::Any,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{Builder, Database, DatabaseError, StorageBackend, StorageError, backends::FileBackend};

use super::{is_full, migrations};

/// Memory for cached pages, in bytes. Ten thousand peers take about 5 MiB; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 32 << 20;

/// Files up to this size, in bytes, are checked page by page at each start: it takes well under a second, and turns silent
/// damage into a clear error. Larger ones are checked after a crash only.
const CHECK_UP_TO_BYTES: u64 = 64 << 20;

/// Why the database cannot be opened. Each says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("the database {path} is open in another process: stop that one, or give this node a directory of its own with --data-dir", path = .0.display())]
    InUse(PathBuf),
    /// It is not a redb file at all.
    #[error("{path} is not a Quelea database: name another file with --db, or move this one away", path = .0.display())]
    NotADatabase(PathBuf),
    /// It was written by a later version.
    #[error(
        "the database {path} has schema {found}, written by a newer version of Quelea (this one knows {known}): run that \
         version, or start with another directory (--data-dir); nothing was changed",
        path = .path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// The newest schema this version knows.
        known: u64,
    },
    /// The content is not what was written to it.
    #[error(
        "the database {path} is damaged ({detail}): restore it from a backup, or move it away and start again (the identity is \
         kept elsewhere; peers are found again)",
        path = .path.display()
    )]
    Corrupted {
        /// The database.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// No space, or no quota, left for the file.
    #[error("the disk is full: {path} cannot be written; free some space and start again", path = .0.display())]
    DiskFull(PathBuf),
    /// The system does not let this user at it.
    #[error("cannot open the database {path}: permission denied; run as the user who owns it, or name another with --db or --data-dir", path = .0.display())]
    Denied(PathBuf),
    /// Any other answer of the system.
    #[error("cannot open the database {path}: {detail}", path = .path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
}

/// Opens or makes the file at `path` and migrates it.
pub(super) fn open_file(path: &Path) -> Result<Database, OpenError> {
    let io = |e: io::Error| OpenError::from_io(path, &e);
    // Opened by ourselves, so that it is private from its first moment.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false) // the database is in it
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(OpenError::NotADatabase(path.to_path_buf()));
    }
    let backend = FileBackend::new(file).map_err(|e| OpenError::from_database(path, e))?;
    open_backend(path, backend, meta.len() <= CHECK_UP_TO_BYTES)
}

/// The same on any storage; tests use one that fails on demand.
pub(super) fn open_backend(path: &Path, backend: impl StorageBackend, check: bool) -> Result<Database, OpenError> {
    // redb asserts on some damaged files.
    catch_unwind(AssertUnwindSafe(|| {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(check)
            .create_with_backend(backend)
            .map_err(|e| OpenError::from_database(path, e))?;
        migrations::run(path, &database)?;
        Ok(database)
    }))
    .unwrap_or_else(|panic| Err(OpenError::Corrupted { path: path.to_path_buf(), detail: panic_text(&*panic) }))
}

impl OpenError {
    /// The same about another file: one that this one was a copy of.
    pub(super) fn of(mut self, file: &Path) -> Self {
        match &mut self {
            Self::InUse(path) | Self::NotADatabase(path) | Self::DiskFull(path) | Self::Denied(path) => path,
            Self::Newer { path, .. } | Self::Corrupted { path, .. } | Self::Io { path, .. } => path,
        }
        .clone_from(&file.to_path_buf());
        self
    }

    fn from_database(path: &Path, error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Self::InUse(path.to_path_buf()),
            // redb says so both of a file that never was a database and of one whose first bytes are gone
            DatabaseError::Storage(StorageError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                Self::NotADatabase(path.to_path_buf())
            }
            other => Self::from_redb(path, &other.into()),
        }
    }

    pub(super) fn from_redb(path: &Path, error: &redb::Error) -> Self {
        match error {
            redb::Error::Io(e) => Self::from_io(path, e),
            redb::Error::Backend(_) | redb::Error::Unsupported => {
                Self::Io { path: path.to_path_buf(), detail: error.to_string() }
            }
            other => Self::Corrupted { path: path.to_path_buf(), detail: other.to_string() },
        }
    }

    fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_path_buf();
        match error.kind() {
            _ if is_full(error) => Self::DiskFull(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied(path),
            io::ErrorKind::IsADirectory => Self::NotADatabase(path),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                Self::Corrupted { path, detail: error.to_string() }
            }
            _ => Self::Io { path, detail: error.to_string() },
        }
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the database code gave up".into())
}
