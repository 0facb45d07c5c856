//! Rows that memory has no room for, encrypted on disk until their session ends.
//!
//! Each session has a file without a name, under a key that is nowhere but in this process: when the session or the process
//! ends, however it ends, nothing is left that anybody could read. A block of rows is a ChaCha20-Poly1305 box of its own at a
//! multiple of its size; its nonce is the number of the write, so that a block that takes another's place is not encrypted
//! alike.
//!
//! Nobody who computes waits for the disk: one thread writes, from a queue that is bounded. What has no place in it, what
//! would leave the disk too full, and what cannot be written, is lost, which costs computing it again should somebody need it.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use chacha20poly1305::{
    ChaCha20Poly1305, Key, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

/// Blocks that wait to be written: 16 MiB of a model of 2,048 values.
const QUEUE: usize = 64;

/// Bytes of a disk that others are left with.
const LEAVE_FREE: u64 = 1 << 30;

/// Bytes between two looks at how full the disk is.
const LOOK_EVERY: u64 = 64 << 20;

/// What the encryption adds to a block.
const TAG: u64 = 16;

/// A folder of a disk that all logs of a node share.
#[derive(Debug, Clone)]
pub(crate) struct Disk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    total: u64,
    taken: AtomicU64,
    jobs: SyncSender<Job>,
}

/// A block on its way to the disk.
#[derive(Debug)]
struct Job {
    file: Arc<SpillFile>,
    place: Arc<Place>,
}

/// The blocks of one session.
#[derive(Debug)]
struct SpillFile {
    /// Made by who writes first.
    file: OnceLock<File>,
    key: Zeroizing<[u8; 32]>,
    /// A block was lost since somebody looked.
    lost: AtomicBool,
    /// Bytes of the disk that are counted as this file's.
    extent: AtomicU64,
    disk: Disk,
}

/// One block, wherever it is now.
#[derive(Debug)]
struct Place {
    number: u64,
    offset: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Not written yet.
    Waits(Arc<Vec<f32>>),
    Written,
    Lost,
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// At most `total` bytes in `dir`, which is made when there is something to keep. The thread that writes ends with the
    /// last log.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(dir: PathBuf, total: u64) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("quelea-spill".into()).spawn(move || write_all(&queue))?;
        Ok(Self(Arc::new(Shared { dir, total, taken: AtomicU64::new(0), jobs })))
    }

    /// Bytes that logs take of it now.
    pub(in crate::inference) fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::Relaxed)
    }
}

/// What a log has on disk: blocks of `values` values each.
#[derive(Debug)]
pub(super) struct Spill {
    file: Arc<SpillFile>,
    values: usize,
    writes: u64,
}

/// A block that is not in the log's memory any more.
#[derive(Debug, Clone)]
pub(super) struct Away {
    file: Arc<SpillFile>,
    place: Arc<Place>,
    values: usize,
}

impl Spill {
    /// Nothing yet, for blocks of `values` values.
    pub(super) fn new(disk: &Disk, values: usize) -> Self {
        let file = SpillFile {
            file: OnceLock::new(),
            key: Zeroizing::new(rand::random()),
            lost: AtomicBool::new(false),
            extent: AtomicU64::new(0),
            disk: disk.clone(),
        };
        Self { file: Arc::new(file), values, writes: 0 }
    }

    /// Has a whole block written at `slot`, in place of what is there. `None` when there is no room for it.
    pub(super) fn put(&mut self, slot: u64, block: Vec<f32>) -> Option<Away> {
        let sealed = (self.values as u64).checked_mul(size_of::<f32>() as u64)?.checked_add(TAG)?;
        let offset = slot.checked_mul(sealed)?;
        if block.len() != self.values || !self.file.grow(offset.checked_add(sealed)?) {
            return None;
        }
        let state = Mutex::new(State::Waits(Arc::new(block)));
        let place = Arc::new(Place { number: self.writes, offset, state });
        self.writes = self.writes.checked_add(1)?;
        let job = Job { file: self.file.clone(), place: place.clone() };
        self.file.disk.0.jobs.try_send(job).ok()?;
        Some(Away { file: self.file.clone(), place, values: self.values })
    }

    /// Whether a block was lost since this was asked last.
    pub(super) fn has_lost(&self) -> bool {
        self.file.lost.swap(false, Ordering::Relaxed)
    }
}

impl Away {
    /// Its values, if they are still in memory.
    pub(super) fn in_memory(&self) -> Option<Arc<Vec<f32>>> {
        match &*self.place.state() {
            State::Waits(block) => Some(block.clone()),
            State::Written | State::Lost => None,
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(*self.place.state(), State::Lost)
    }

    /// Whether it is this very block, not another of the same place.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.place, &other.place)
    }

    /// What is on disk of it.
    #[cfg(test)]
    pub(super) fn sealed(&self) -> Vec<u8> {
        let mut sealed = vec![0; self.values * size_of::<f32>() + TAG as usize];
        self.file.file.get().unwrap().read_exact_at(&mut sealed, self.place.offset).unwrap();
        sealed
    }

    /// Changes a bit of it on disk.
    #[cfg(test)]
    pub(super) fn spoil(&self) {
        let first = self.sealed()[0] ^ 1;
        self.file.file.get().unwrap().write_all_at(&[first], self.place.offset).unwrap();
    }

    /// Its values. A block that cannot be read is lost. Blocking.
    pub(super) fn fetch(&self) -> Option<Vec<f32>> {
        if let Some(block) = self.in_memory() {
            return Some(block.to_vec());
        }
        let read = self.read();
        if let Err(error) = &read {
            tracing::warn!(%error, "rows that were kept on disk cannot be read");
            self.file.lose(&self.place);
        }
        read.ok()
    }

    fn read(&self) -> io::Result<Vec<f32>> {
        let file = self.file.file.get().ok_or(io::ErrorKind::NotFound)?;
        let mut sealed = vec![0; self.values * size_of::<f32>() + TAG as usize];
        file.read_exact_at(&mut sealed, self.place.offset)?;
        let payload = Payload { msg: &sealed, aad: &self.place.offset.to_le_bytes() };
        let plain = self.file.cipher().decrypt(&nonce(self.place.number), payload);
        let plain = Zeroizing::new(plain.map_err(|_| io::Error::other("they were changed"))?);
        let values = plain.chunks_exact(size_of::<f32>()).filter_map(|bytes| bytes.first_chunk());
        Ok(values.map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

impl SpillFile {
    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(&Key::from(*self.key))
    }

    /// Counts the file's bytes up to `end`; `false` when that is more than the disk has for logs.
    fn grow(&self, end: u64) -> bool {
        let more = end.saturating_sub(self.extent.load(Ordering::Relaxed));
        let shared = &self.disk.0;
        let fits = |taken: u64| taken.checked_add(more).filter(|taken| *taken <= shared.total);
        // One log has one owner: nobody else makes this file longer meanwhile.
        let grown = shared.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.extent.fetch_add(more, Ordering::Relaxed);
        }
        grown
    }

    fn lose(&self, place: &Place) {
        *place.state() = State::Lost;
        self.lost.store(true, Ordering::Relaxed);
    }

    fn opened(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let dir = &self.disk.0.dir;
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = tempfile::tempfile_in(dir)?;
        Ok(self.file.get_or_init(|| file))
    }

    fn write(&self, place: &Place, block: &[f32]) -> io::Result<()> {
        let plain: Zeroizing<Vec<u8>> = Zeroizing::new(block.iter().flat_map(|value| value.to_le_bytes()).collect());
        let payload = Payload { msg: plain.as_slice(), aad: &place.offset.to_le_bytes() };
        let sealed =
            self.cipher().encrypt(&nonce(place.number), payload).map_err(|e| io::Error::other(e.to_string()))?;
        self.opened()?.write_all_at(&sealed, place.offset)
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        self.disk.0.taken.fetch_sub(*self.extent.get_mut(), Ordering::Relaxed);
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce.into()
}

/// Writes what is in the queue, until nobody can put anything in it any more.
fn write_all(queue: &Receiver<Job>) {
    // `None` until the first look.
    let mut unlooked: Option<u64> = None;
    let mut full = false;
    for Job { file, place } in queue {
        // Whoever would read it is gone: so is its place.
        let Some(block) = still_wanted(&place) else { continue };
        let bytes = block.len() as u64 * size_of::<f32>() as u64;
        if unlooked.is_none_or(|written| written >= LOOK_EVERY) || full {
            full = is_full(&file.disk.0.dir);
            unlooked = Some(0);
        }
        unlooked = unlooked.map(|written| written.saturating_add(bytes));
        if full {
            file.lose(&place);
            continue;
        }
        match file.write(&place, &block) {
            Ok(()) => *place.state() = State::Written,
            Err(error) => {
                tracing::warn!(%error, dir = %file.disk.0.dir.display(), "rows cannot be kept on disk");
                file.lose(&place);
            }
        }
    }
}

fn still_wanted(place: &Arc<Place>) -> Option<Arc<Vec<f32>>> {
    if Arc::strong_count(place) == 1 {
        return None;
    }
    match &*place.state() {
        State::Waits(block) => Some(block.clone()),
        State::Written | State::Lost => None,
    }
}

fn is_full(dir: &Path) -> bool {
    // The folder may not be there yet: its parent is on the same disk.
    let stat = rustix::fs::statvfs(dir).or_else(|_| rustix::fs::statvfs(dir.parent().unwrap_or(dir)));
    stat.is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < LEAVE_FREE)
}
