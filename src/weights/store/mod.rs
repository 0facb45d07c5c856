//! Models on disk: `models/<id>` in the data directory.
//!
//! | file | what |
//! |---|---|
//! | `outline` | [`Outline`], checked against the id whenever it is read |
//! | `tokenizer` | the tokenizer's bytes, written whole |
//! | `model.gguf.part` | the model's GGUF file while chunks are missing: a sparse file of its full length |
//! | `have` | which chunks are there, one bit each; written after the chunks themselves have reached the disk |
//! | `model.gguf` | the file, once it is whole: it is given its name by renaming |
//! | `lock` | held by the process that adds chunks |
//!
//! A process that is killed loses the chunks since `have` was last written, and nothing else.

mod kept;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use quelea_engine::{Gguf, Outline, outline};
use quelea_wire::{ErrorCode, ModelId};

pub(crate) use self::kept::{Kept, Put, split};
use crate::inference::InferError;

/// Bytes of disk that are left free besides what a model needs.
const LEAVE_FREE: u64 = 256 << 20;

/// The folder of all models.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Bytes that all models together may take.
    quota: Option<u64>,
    /// Bytes that are on their way.
    promised: Arc<AtomicU64>,
}

/// Room on the disk for what is on its way; what is left of it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    promised: Arc<AtomicU64>,
    left: AtomicU64,
}

impl Room {
    /// So many bytes have come and are on the disk now.
    pub(crate) fn take(&self, bytes: u64) {
        let left =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        self.promised.fetch_sub(left.unwrap_or(0).min(bytes), Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.promised.fetch_sub(*self.left.get_mut(), Ordering::Relaxed);
    }
}

impl Store {
    pub(crate) fn new(dir: PathBuf, quota: Option<u64>) -> Self {
        Self { dir, quota, promised: Arc::default() }
    }

    fn of(&self, id: &ModelId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Where a file lies that is not a model of the store yet.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.dir.join("downloads")
    }

    /// The ids of all models, in order.
    pub(crate) fn ids(&self) -> Vec<ModelId> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut ids: Vec<ModelId> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        ids.sort_unstable();
        ids
    }

    /// Opens a model; nothing when it is not here.
    pub(crate) fn open(&self, id: ModelId) -> Result<Option<Kept>, InferError> {
        let dir = self.of(&id);
        let bytes = match fs::read(dir.join("outline")) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(broken(&dir, &error)),
        };
        let outline = Outline::decode(&bytes).map_err(|error| broken(&dir, &error))?;
        Kept::open(id, dir, outline).map(Some)
    }

    /// Begins a model whose outline is known.
    pub(crate) fn create(&self, id: ModelId, outline: Outline) -> Result<Kept, InferError> {
        let dir = self.of(&id);
        fs::create_dir_all(&dir).map_err(|error| broken(&dir, &error))?;
        replace(&dir.join("outline"), &outline.encode()).map_err(|error| full_or(&dir, &error))?;
        Kept::open(id, dir, outline)
    }

    /// Puts a whole GGUF file into the store by renaming it, so that it must lie on the same disk.
    pub(crate) fn adopt(&self, id: ModelId, outline: Outline, gguf: &Path) -> Result<Kept, InferError> {
        let dir = self.of(&id);
        let kept = Arc::new(self.create(id, outline)?);
        let lock = kept.lock()?;
        let blob = outline::tokenizer_blob(&Gguf::open(gguf).map_err(|e| broken(gguf, &e))?);
        replace(&dir.join("tokenizer"), &blob).map_err(|error| full_or(&dir, &error))?;
        File::open(gguf).and_then(|file| file.sync_all()).map_err(|error| full_or(gguf, &error))?;
        fs::rename(gguf, dir.join("model.gguf")).map_err(|error| broken(gguf, &error))?;
        // What had been pulled of it before is not needed any more.
        kept.discard_part();
        drop(lock);
        self.open(id)?.ok_or_else(|| InferError::new(ErrorCode::Internal, "a model vanished while it was stored"))
    }

    /// Takes a model away; whether there was one. Who has it open keeps what is open.
    pub(crate) fn remove(&self, id: ModelId) -> Result<bool, InferError> {
        let dir = self.of(&id);
        if !dir.is_dir() {
            return Ok(false);
        }
        let lock = take_lock(&dir)?;
        // First what makes it a model: a removal that is cut off leaves nothing that looks like one.
        let removed = fs::remove_file(dir.join("outline")).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        let removed = removed.and_then(|()| fs::remove_dir_all(&dir)).map_err(|error| broken(&dir, &error));
        drop(lock);
        removed.map(|()| true)
    }

    /// The most that this may be, where somebody has said so.
    pub(crate) fn quota(&self) -> Option<u64> {
        self.quota
    }

    /// Bytes that the models take on disk.
    pub(crate) fn used(&self) -> u64 {
        fn size(dir: &Path) -> u64 {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.fold(0, |sum, entry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => sum.saturating_add(size(&entry.path())),
                // 512-byte blocks, by POSIX: holes take none.
                Ok(meta) => sum.saturating_add(meta.blocks().saturating_mul(512)),
                Err(_) => sum,
            })
        }
        size(&self.dir)
    }

    /// Makes room for so many bytes, or refuses what would not fit: past the quota, or on the disk.
    pub(crate) fn room_for(&self, bytes: u64) -> Result<Room, InferError> {
        // What others were promised counts as used: two pulls at once do not pass the quota together.
        let others = self.promised.fetch_add(bytes, Ordering::Relaxed);
        let room = Room { promised: self.promised.clone(), left: AtomicU64::new(bytes) };
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if let Some(quota) = self.quota {
            let used = self.used().saturating_add(others);
            if used.saturating_add(bytes) > quota {
                let message = format!(
                    "{} MiB more would pass the quota of {} MiB for models, of which {} MiB are used",
                    mib(bytes),
                    mib(quota),
                    mib(used)
                );
                return Err(InferError::new(ErrorCode::StorageFull, message)
                    .hint("remove a model with 'quelea model rm ID', or raise --models-quota"));
            }
        }
        fs::create_dir_all(&self.dir).map_err(|error| broken(&self.dir, &error))?;
        let free = rustix::fs::statvfs(&self.dir).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        if free < bytes.saturating_add(others).saturating_add(LEAVE_FREE) {
            let message = format!(
                "{} MiB more do not fit: the disk of {} has {} MiB free, of which {} MiB are left alone",
                mib(bytes),
                self.dir.display(),
                mib(free),
                mib(LEAVE_FREE)
            );
            return Err(InferError::new(ErrorCode::StorageFull, message).hint("free some, or use another --data-dir"));
        }
        Ok(room)
    }
}

fn take_lock(dir: &Path) -> Result<File, InferError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"));
    let file = file.map_err(|error| broken(dir, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => {
            Err(InferError::new(ErrorCode::Overloaded, format!("somebody is writing to {} at present", dir.display()))
                .hint("wait for the pull that is under way, or stop it"))
        }
    }
}

/// Writes a small file so that it is there whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

pub(super) fn full_or(path: &Path, error: &io::Error) -> InferError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return InferError::new(ErrorCode::StorageFull, format!("the disk of {} is full: {error}", path.display()))
            .hint("free some of it and pull again; what has been fetched is kept");
    }
    broken(path, error)
}

fn broken(path: &Path, error: &dyn std::fmt::Display) -> InferError {
    InferError::new(ErrorCode::StorageFailed, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
