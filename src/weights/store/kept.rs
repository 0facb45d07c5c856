//! One model on disk, whole or in part.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use quelea_engine::{Gguf, Manifest, Outline, outline};
use quelea_weights::{Bitmap, MAX_CHUNKS};
use quelea_wire::ModelId;

use super::{broken, full_or, replace, take_lock};
use crate::inference::InferError;

const WHOLE: &str = "model.gguf";
const PART: &str = "model.gguf.part";
const HAVE: &str = "have";

/// Chunks between two writings of `have`: what a kill costs, at most.
const FLUSH_EVERY: u32 = 16;

/// A model on disk. Its methods block.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) id: ModelId,
    pub(crate) outline: Arc<Outline>,
    pub(crate) manifest: Arc<Manifest>,
    dir: PathBuf,
    state: Mutex<State>,
    /// Held while `have` is written, so that an older word never comes after a newer one.
    saving: Mutex<()>,
    /// Held by whoever pulls: others of this process wait for their turn.
    pub(crate) pulling: tokio::sync::Mutex<()>,
    /// Chunks that came from elsewhere since the process started.
    pub(crate) fetched: AtomicU64,
}

#[derive(Debug)]
struct State {
    have: Bitmap,
    /// Those of them that have been hashed since the process started.
    checked: Bitmap,
    tokenizer: Option<Arc<Vec<u8>>>,
    /// The file that chunks are written to, while some are missing.
    part: Option<(Arc<File>, Arc<outline::File>)>,
    /// The whole file, once it was opened.
    gguf: Option<Gguf>,
    /// Chunks written since `have` was.
    unsaved: u32,
    whole: bool,
    lock: Option<File>,
}

/// What adding chunks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// All are there now.
    Stored,
    /// The bytes are not those chunks. Nothing was kept.
    Corrupt,
}

impl Kept {
    pub(super) fn open(id: ModelId, dir: PathBuf, outline: Outline) -> Result<Self, InferError> {
        let manifest = outline.manifest().map_err(|error| broken(&dir, &error))?;
        if manifest.id() != id.0 || outline.chunks() > MAX_CHUNKS {
            return Err(broken(&dir, &"its outline is another model's"));
        }
        let none = Bitmap::new(outline.chunks());
        let whole = dir.join(WHOLE).is_file();
        let have = if whole {
            Bitmap::full(outline.chunks())
        } else {
            let bits = fs::read(dir.join(HAVE)).unwrap_or_default();
            Bitmap::from_bits(outline.chunks(), bits).unwrap_or_else(|| none.clone())
        };
        let tokenizer = fs::read(dir.join("tokenizer")).ok().filter(|blob| is_tokenizer(&outline, blob));
        let state = State {
            have,
            checked: none.clone(),
            tokenizer: None,
            part: None,
            gguf: None,
            unsaved: 0,
            whole,
            lock: None,
        };
        let kept = Self {
            id,
            outline: Arc::new(outline),
            manifest: Arc::new(manifest),
            dir,
            state: Mutex::new(state),
            saving: Mutex::default(),
            pulling: tokio::sync::Mutex::default(),
            fetched: AtomicU64::new(0),
        };
        match tokenizer {
            Some(blob) => kept.use_tokenizer(blob, false)?,
            None if whole => {
                // The file has it, too.
                let blob = outline::tokenizer_blob(&kept.gguf()?);
                if !is_tokenizer(&kept.outline, &blob) {
                    return Err(broken(&kept.dir, &"its file is another model's; remove it and pull it again"));
                }
                kept.use_tokenizer(blob, false)?;
            }
            // Without it there is no file, whatever `have` says.
            None => kept.state().have = none,
        }
        Ok(kept)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file with the tensors, whole or not.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(if self.state().whole { WHOLE } else { PART })
    }

    /// Which chunks are there.
    pub(crate) fn have(&self) -> Bitmap {
        self.state().have.clone()
    }

    /// Whether the file is whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.state().whole
    }

    /// Whether it has not been removed.
    pub(crate) fn is_there(&self) -> bool {
        self.dir.join("outline").is_file()
    }

    /// Whether this process adds chunks to it.
    pub(crate) fn is_locked(&self) -> bool {
        self.state().lock.is_some()
    }

    /// Whether another process has completed it since this one opened it.
    pub(crate) fn is_stale(&self) -> bool {
        let state = self.state();
        !state.whole && state.lock.is_none() && self.dir.join(WHOLE).is_file()
    }

    /// The tokenizer, once it is there.
    pub(crate) fn tokenizer(&self) -> Option<Arc<Vec<u8>>> {
        self.state().tokenizer.clone()
    }

    /// Takes the model for writing, until the guard is dropped.
    ///
    /// # Errors
    /// When another process has it.
    pub(crate) fn lock(self: &Arc<Self>) -> Result<WriteLock, InferError> {
        let lock = take_lock(&self.dir)?;
        let mut state = self.state();
        if !state.whole
            && state.part.is_none()
            && let Some(blob) = state.tokenizer.clone()
        {
            self.open_part(&mut state, &blob, true)?;
        }
        state.lock = Some(lock);
        Ok(WriteLock(self.clone()))
    }

    /// Keeps the tokenizer, checked, and makes the file that the tensors go into.
    pub(crate) fn put_tokenizer(&self, blob: Vec<u8>) -> Result<Put, InferError> {
        if !is_tokenizer(&self.outline, &blob) || self.outline.file(&blob).is_err() {
            return Ok(Put::Corrupt);
        }
        replace(&self.dir.join("tokenizer"), &blob).map_err(|error| full_or(&self.dir, &error))?;
        self.use_tokenizer(blob, true)?;
        self.save()?;
        Ok(Put::Stored)
    }

    fn use_tokenizer(&self, blob: Vec<u8>, make: bool) -> Result<(), InferError> {
        let mut state = self.state();
        if !state.whole {
            self.open_part(&mut state, &blob, make)?;
        }
        self.note_tokenizer(&mut state);
        state.tokenizer = Some(Arc::new(blob));
        Ok(())
    }

    fn note_tokenizer(&self, state: &mut State) {
        for chunk in self.outline.tokenizer_chunks() {
            state.have.set(chunk, true);
            state.checked.set(chunk, true);
        }
    }

    /// Opens the file that chunks go into. It is made by whoever holds the lock only (`make`): others just look.
    fn open_part(&self, state: &mut State, tokenizer: &[u8], make: bool) -> Result<(), InferError> {
        let path = self.dir.join(PART);
        let layout = self.outline.file(tokenizer).map_err(|error| broken(&self.dir, &error))?;
        if fs::metadata(&path).map_or(true, |meta| meta.len() != layout.size) {
            // Whatever `have` says, there is nothing behind it.
            state.have = Bitmap::new(self.outline.chunks());
            self.note_tokenizer(state);
            if !make {
                return Ok(());
            }
            make_sparse(&path, &layout).map_err(|error| full_or(&path, &error))?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| broken(&path, &error))?;
        state.part = Some((Arc::new(file), Arc::new(layout)));
        Ok(())
    }

    /// Checks and keeps chunks that come one after the other. The tokenizer must be there.
    pub(crate) fn put(&self, first: u32, count: u16, bytes: &[u8]) -> Result<Put, InferError> {
        let Some(chunks) = split(&self.outline, first, count, bytes) else { return Ok(Put::Corrupt) };
        let Some((file, layout)) = self.state().part.clone() else {
            return Err(broken(&self.dir, &"no file is open for chunks"));
        };
        for (chunk, bytes) in &chunks {
            if let Some(at) = self.outline.offset(&layout, *chunk) {
                file.write_all_at(bytes, at).map_err(|error| full_or(&self.dir, &error))?;
            }
        }
        let save = {
            let mut state = self.state();
            for (chunk, _) in &chunks {
                state.have.set(*chunk, true);
                state.checked.set(*chunk, true);
            }
            state.unsaved = state.unsaved.saturating_add(u32::from(count));
            state.unsaved >= FLUSH_EVERY || state.have.is_full()
        };
        self.fetched.fetch_add(u64::from(count), Ordering::Relaxed);
        if save {
            self.save()?;
        }
        Ok(Put::Stored)
    }

    /// Writes down what is there; gives the file its name when it is whole.
    pub(crate) fn save(&self) -> Result<(), InferError> {
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let (have, file) = {
            let mut state = self.state();
            state.unsaved = 0;
            (state.have.clone(), state.part.clone())
        };
        let Some((file, _)) = file else { return Ok(()) };
        let io = |error: io::Error| full_or(&self.dir, &error);
        // First the chunks, then the word that they are there.
        file.sync_data().map_err(io)?;
        replace(&self.dir.join(HAVE), have.bits()).map_err(io)?;
        if have.is_full() {
            file.sync_all().map_err(io)?;
            let mut state = self.state();
            fs::rename(self.dir.join(PART), self.dir.join(WHOLE)).map_err(io)?;
            (state.whole, state.part) = (true, None);
            let _ = fs::remove_file(self.dir.join(HAVE));
        }
        Ok(())
    }

    /// Removes what was there before a whole file took its place.
    pub(super) fn discard_part(&self) {
        for left in [PART, HAVE] {
            let _ = fs::remove_file(self.dir.join(left));
        }
        self.state().part = None;
    }

    /// A chunk that is here. Its bytes are hashed: a chunk that the disk has damaged is forgotten instead of given.
    pub(crate) fn read(&self, chunk: u32) -> Option<Vec<u8>> {
        let (tokenizer, part, gguf) = {
            let state = self.state();
            if !state.have.has(chunk) {
                return None;
            }
            (state.tokenizer.clone()?, state.part.clone(), state.gguf.clone())
        };
        let read = || {
            if self.outline.tokenizer_chunks().contains(&chunk) {
                return self.outline.read_tokenizer(&tokenizer, chunk).map(<[u8]>::to_vec);
            }
            if let Some((file, layout)) = part {
                let mut bytes = vec![0; usize::try_from(self.outline.chunk_len(chunk)).ok()?];
                file.read_exact_at(&mut bytes, self.outline.offset(&layout, chunk)?).ok()?;
                return Some(bytes);
            }
            self.outline.read(&gguf.or_else(|| self.gguf().ok())?, &tokenizer, chunk)
        };
        let bytes = read().filter(|bytes| self.outline.check(chunk, bytes));
        let mut state = self.state();
        state.checked.set(chunk, bytes.is_some());
        if bytes.is_none() {
            tracing::warn!(model = %self.id.short(), chunk, "a chunk on disk is damaged; pulling the model fetches it again");
            state.have.set(chunk, false);
        }
        bytes
    }

    /// Hashes the chunks of a part that are said to be here, unless this process has done so before, and forgets those that
    /// are damaged; how many these were. The model must be locked.
    pub(crate) fn verify(&self, chunks: &[Range<u32>]) -> Result<u32, InferError> {
        let mut damaged = 0_u32;
        for chunk in chunks.iter().cloned().flatten() {
            let unknown = {
                let state = self.state();
                state.have.has(chunk) && !state.checked.has(chunk)
            };
            if unknown && self.read(chunk).is_none() {
                damaged = damaged.saturating_add(1);
            }
        }
        let mut state = self.state();
        if state.whole && !state.have.is_full() {
            // It is a file with holes again. Another program's file may have another layout, into which chunks cannot go.
            let (Some(blob), whole) = (state.tokenizer.clone(), self.dir.join(WHOLE)) else { return Ok(damaged) };
            (state.whole, state.gguf) = (false, None);
            let same = self.outline.file(&blob).is_ok_and(|layout| has_layout(&whole, &layout));
            if same {
                let have = state.have.clone();
                fs::rename(&whole, self.dir.join(PART)).map_err(|error| broken(&whole, &error))?;
                self.open_part(&mut state, &blob, true)?;
                state.have = have;
            } else {
                fs::remove_file(&whole).map_err(|error| broken(&whole, &error))?;
                self.open_part(&mut state, &blob, true)?;
            }
        }
        Ok(damaged)
    }

    /// The file, mapped; where chunks are missing there are holes.
    pub(crate) fn gguf(&self) -> Result<Gguf, InferError> {
        if let Some(gguf) = self.state().gguf.clone() {
            return Ok(gguf);
        }
        let path = self.path();
        let gguf = Gguf::open(&path).map_err(|error| broken(&path, &error))?;
        let mut state = self.state();
        if state.whole {
            state.gguf = Some(gguf.clone());
        }
        Ok(gguf)
    }

    /// Bytes of the chunks that are here, and of all.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let have = self.have();
        let here = (0..self.outline.chunks()).filter(|chunk| have.has(*chunk));
        (here.map(|chunk| self.outline.chunk_len(chunk)).sum(), self.outline.bytes())
    }

    /// Whether all of these chunks are here, and known to be undamaged.
    pub(crate) fn holds(&self, chunks: &[Range<u32>]) -> bool {
        let state = self.state();
        chunks.iter().cloned().flatten().all(|chunk| state.have.has(chunk) && state.checked.has(chunk))
    }

    /// The layers that are here whole.
    pub(crate) fn layers(&self) -> Vec<bool> {
        let have = self.have();
        let whole = |i: usize| {
            let need = outline::Need { layers: i..i + 1, ..outline::Need::default() };
            self.outline.needed(&need).into_iter().flatten().all(|chunk| have.has(chunk))
        };
        (0..self.manifest.n_layers).map(whole).collect()
    }
}

/// The right to add chunks to a model.
pub(crate) struct WriteLock(Arc<Kept>);

impl Drop for WriteLock {
    fn drop(&mut self) {
        if let Err(error) = self.0.save() {
            tracing::warn!(%error, "chunks of a model may have to be fetched again");
        }
        drop(self.0.state().lock.take());
    }
}

/// Takes chunks apart that come one after the other; nothing unless each is what it should be.
pub(crate) fn split<'a>(outline: &Outline, first: u32, count: u16, bytes: &'a [u8]) -> Option<Vec<(u32, &'a [u8])>> {
    let mut rest = bytes;
    let mut chunks = Vec::with_capacity(usize::from(count));
    for chunk in first..first.saturating_add(u32::from(count)) {
        let (now, after) = rest.split_at_checked(usize::try_from(outline.chunk_len(chunk)).ok()?)?;
        if !outline.check(chunk, now) {
            return None;
        }
        chunks.push((chunk, now));
        rest = after;
    }
    rest.is_empty().then_some(chunks)
}

fn is_tokenizer(outline: &Outline, blob: &[u8]) -> bool {
    blob.len() as u64 == outline.tokenizer().bytes() && blake3::hash(blob).as_bytes() == outline.tokenizer().hash()
}

/// Whether a file begins as the one that chunks are written to, and is as long.
fn has_layout(path: &Path, layout: &outline::File) -> bool {
    let mut head = vec![0; layout.header.len()];
    let read = File::open(path).and_then(|file| {
        file.read_exact_at(&mut head, 0)?;
        Ok(file.metadata()?.len() == layout.size)
    });
    read.unwrap_or(false) && head == layout.header
}

fn make_sparse(path: &Path, layout: &outline::File) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    file.write_all_at(&layout.header, 0)?;
    file.set_len(layout.size)?;
    file.sync_all()
}
