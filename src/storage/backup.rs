//! Copies of the database: taken while the node runs or rests, and put back while it rests.
//!
//! A copy is opened before it counts as one, so what a backup gives is a file that this version reads; so is what a restore
//! takes. The identity and the tokens are files of their own and not in it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{OpenError, open};

/// Why no copy was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Backups are never written over.
    #[error("{path} is there already: name a new file", path = .0.display())]
    Exists(PathBuf),
    /// There is no database to copy.
    #[error("there is no file {path}", path = .0.display())]
    Missing(PathBuf),
    /// What was copied cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk or the file system.
    #[error("cannot copy {from} to {to}: {source}", from = .from.display(), to = .to.display())]
    Io {
        /// What was copied.
        from: PathBuf,
        /// Where to.
        to: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The storage failed before, or is closed.
    #[error("{0}")]
    Unavailable(String),
}

/// Copies the database at `from`, which nobody may be writing to, to the new file `to`. Returns its bytes.
///
/// # Errors
/// When `to` is there, or anything on the way fails; nothing is left at `to` then.
pub fn copy(from: &Path, to: &Path) -> Result<u64, BackupError> {
    if to.exists() {
        return Err(BackupError::Exists(to.to_path_buf()));
    }
    let part = copied(from, to)?;
    let io = |source| BackupError::Io { from: from.to_path_buf(), to: to.to_path_buf(), source };
    // Unlike a rename, a link takes nothing's place.
    let placed = fs::hard_link(part.path(), to).and_then(|()| sync_folder(to));
    placed.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(to.to_path_buf()),
        _ => io(source),
    })?;
    part.as_file().metadata().map(|meta| meta.len()).map_err(io)
}

/// Puts the backup `from` in the place of the database at `to`, whose daemon must not be running. What was there before is
/// kept beside it under the name returned, if there was anything.
///
/// # Errors
/// When the backup is no database of this version or an earlier one, or the files cannot be moved. The old database is
/// then still in its place.
pub fn restore(from: &Path, to: &Path) -> Result<Option<PathBuf>, BackupError> {
    let part = copied(from, to)?;
    let io = |source| BackupError::Io { from: from.to_path_buf(), to: to.to_path_buf(), source };
    let mut old = None;
    if to.exists() {
        let kept = (1_u32..)
            .map(|n| PathBuf::from(format!("{}.before-restore-{n}", to.display())))
            .find(|path| !path.exists())
            .ok_or_else(|| io(io::ErrorKind::AlreadyExists.into()))?;
        fs::hard_link(to, &kept).map_err(io)?;
        old = Some(kept);
    }
    part.persist(to).map_err(|error| io(error.error))?;
    sync_folder(to).map_err(io)?;
    Ok(old)
}

/// A copy of `from` beside `to` that is whole, flushed and has been opened; private, and gone when dropped.
fn copied(from: &Path, to: &Path) -> Result<tempfile::NamedTempFile, BackupError> {
    let io = |source| BackupError::Io { from: from.to_path_buf(), to: to.to_path_buf(), source };
    let mut source = File::open(from).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BackupError::Missing(from.to_path_buf()),
        _ => io(source),
    })?;
    let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = tempfile::Builder::new().prefix(".quelea-copy-").tempfile_in(folder).map_err(io)?;
    if io::copy(&mut source, &mut part).map_err(io)? == 0 {
        // An empty file would be made a new database of.
        return Err(OpenError::NotADatabase(from.to_path_buf()).into());
    }
    // Errors name the file that was given, not the copy.
    let database = open::open_file(part.path()).map_err(|error| error.of(from))?;
    database.close().map_err(|error| OpenError::from_redb(from, &error.into()))?;
    part.as_file().sync_all().map_err(io)?;
    Ok(part)
}

fn sync_folder(of: &Path) -> io::Result<()> {
    let folder = of.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
