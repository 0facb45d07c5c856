//! What this node can give of which model, and the thread that does it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use libp2p::PeerId;
use quelea_engine::{Gguf, Outline, outline};
use quelea_weights::{Answer, Bitmap, MAX_BYTES, MAX_WAITING, Question, ReplyId, Request};
use quelea_wire::{ErrorCode, ModelId};

use super::{
    Parts,
    store::{Kept, Store},
};
use crate::{
    inference::{InferError, models::ModelFile},
    swarm::Handle,
};

/// Bytes per second that peers get together, unless the operator says otherwise.
pub(crate) const UPLOAD: u64 = 64 << 20;

/// Of these, one part in so many while sessions are computed here: weights can wait, tokens cannot.
const WHILE_BUSY: u64 = 8;

/// How far ahead of the rate bytes may be given.
const AHEAD: Duration = Duration::from_secs(1);

/// Models of which the encoded outline is kept at hand.
const OUTLINES: usize = 4;

/// A model that this node serves from a file.
struct Given {
    outline: Arc<Outline>,
    gguf: Gguf,
    tokenizer: Vec<u8>,
}

/// Everything of which this node has weights.
pub(crate) struct Shelf {
    store: Option<Store>,
    kept: Mutex<HashMap<ModelId, Arc<Kept>>>,
    given: Mutex<HashMap<ModelId, Arc<Given>>>,
    /// Chunks that peers got.
    pub(crate) chunks_given: AtomicU64,
}

impl Shelf {
    /// What is in `store`; a node that keeps nothing has none.
    pub(crate) fn new(store: Option<Store>) -> Self {
        Self { store, kept: Mutex::default(), given: Mutex::default(), chunks_given: AtomicU64::new(0) }
    }

    /// The store.
    pub(crate) fn store(&self) -> Result<&Store, InferError> {
        self.store.as_ref().ok_or_else(|| {
            InferError::new(ErrorCode::StorageFailed, "this node keeps nothing on disk").hint("give it a --data-dir")
        })
    }

    /// Gives of a file that this node serves, too.
    pub(crate) fn add(&self, file: &ModelFile) {
        let tokenizer = outline::tokenizer_blob(&file.gguf);
        let given = Given { outline: file.outline.clone(), gguf: file.gguf.clone(), tokenizer };
        self.given.lock().unwrap_or_else(PoisonError::into_inner).insert(file.id, Arc::new(given));
    }

    /// A model of the store. Blocking.
    pub(crate) fn kept(&self, id: ModelId) -> Result<Option<Arc<Kept>>, InferError> {
        let Some(store) = &self.store else { return Ok(None) };
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = all.get(&id).filter(|kept| kept.is_locked() || (kept.is_there() && !kept.is_stale())) {
            return Ok(Some(kept.clone()));
        }
        all.remove(&id);
        let Some(kept) = store.open(id)?.map(Arc::new) else { return Ok(None) };
        all.insert(id, kept.clone());
        Ok(Some(kept))
    }

    /// Whether a model that has been opened is whole.
    pub(crate) fn is_whole(&self, id: ModelId) -> bool {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&id).is_some_and(|kept| kept.is_whole())
    }

    /// Whether all of these parts of a model that has been opened are on the disk.
    pub(crate) fn has(&self, id: ModelId, parts: Parts) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        kept.is_some_and(|kept| {
            let Ok(need) = parts.of(&kept.manifest) else { return false };
            let have = kept.have();
            kept.outline.needed(&need).into_iter().flatten().all(|chunk| have.has(chunk))
        })
    }

    /// Begins a model in the store, or goes on with it. Blocking.
    pub(crate) fn begin(&self, id: ModelId, outline: Outline) -> Result<Arc<Kept>, InferError> {
        if let Some(kept) = self.kept(id)? {
            return Ok(kept);
        }
        let kept = Arc::new(self.store()?.create(id, outline)?);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(id, kept.clone());
        Ok(kept)
    }

    /// Lets go of a model that is removed.
    pub(crate) fn forget(&self, id: ModelId) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// The ids of all models of which something is here.
    pub(crate) fn ids(&self) -> Vec<ModelId> {
        let mut ids = self.store.as_ref().map(Store::ids).unwrap_or_default();
        ids.extend(self.given.lock().unwrap_or_else(PoisonError::into_inner).keys());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// A model as requests and stages use it, whatever parts of it are here. Blocking.
    pub(crate) fn model(&self, id: ModelId) -> Result<Option<ModelFile>, InferError> {
        let Some(kept) = self.kept(id)? else { return Ok(None) };
        if kept.tokenizer().is_none() {
            return Ok(None);
        }
        let (outline, manifest) = (kept.outline.clone(), kept.manifest.clone());
        Ok(Some(ModelFile { name: id.to_string(), gguf: kept.gguf()?, manifest, id, outline }))
    }
}

/// Answers questions about weights, one after the other, on a thread of its own.
pub(crate) struct Librarian {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) handle: Handle,
    /// Bytes per second.
    pub(crate) upload: u64,
    /// Whether sessions are computed here at present.
    pub(crate) busy: Box<dyn Fn() -> bool + Send>,
    /// When what was given so far has been paid for by the rate.
    paid_at: Instant,
    /// The last outlines that were asked for, encoded; the newest last.
    outlines: Vec<(ModelId, Weak<Outline>, Arc<Vec<u8>>)>,
}

/// Where questions wait for the librarian.
pub(crate) type Desk = SyncSender<(PeerId, Request, ReplyId)>;

/// The desk and its other side, before there is a librarian.
pub(crate) fn desk() -> (Desk, Receiver<(PeerId, Request, ReplyId)>) {
    sync_channel(MAX_WAITING)
}

impl Librarian {
    pub(crate) fn new(shelf: Arc<Shelf>, handle: Handle, upload: u64, busy: Box<dyn Fn() -> bool + Send>) -> Self {
        Self { shelf, handle, upload: upload.max(1), busy, paid_at: Instant::now(), outlines: Vec::new() }
    }

    /// Starts the thread; it ends with the loop that holds the desk.
    pub(crate) fn start(mut self, questions: Receiver<(PeerId, Request, ReplyId)>) -> std::io::Result<()> {
        let work = move || {
            // Of this thread alone, on Linux. Where it is not allowed, it is a thread like others.
            let _ = rustix::process::nice(10);
            while let Ok((peer, request, id)) = questions.recv() {
                let answer = self.answer(&request);
                tracing::trace!(%peer, ?request, "weights");
                self.handle.answer_weights(id, answer);
            }
        };
        std::thread::Builder::new().name("librarian".into()).spawn(work).map(drop)
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let now = Instant::now();
        if let Some(retry) = self.paid_at.checked_duration_since(now).filter(|ahead| *ahead > AHEAD) {
            return Answer::Busy { retry: retry.saturating_sub(AHEAD / 2) };
        }
        let answer = self.look_up(request).unwrap_or_else(|error| {
            tracing::warn!(model = %request.model.short(), %error, "weights cannot be read");
            Answer::Unknown
        });
        let bytes = match &answer {
            Answer::Outline { bytes, .. } | Answer::Chunks(bytes) => bytes.len() as u64,
            _ => 0,
        };
        let rate = if (self.busy)() { self.upload.div_ceil(WHILE_BUSY) } else { self.upload };
        let nanos = bytes.saturating_mul(1_000_000_000) / rate;
        self.paid_at = self.paid_at.max(now) + Duration::from_nanos(nanos);
        answer
    }

    fn look_up(&mut self, request: &Request) -> Result<Answer, InferError> {
        let given = self.shelf.given.lock().unwrap_or_else(PoisonError::into_inner).get(&request.model).cloned();
        let kept = if given.is_some() { None } else { self.shelf.kept(request.model)? };
        let outline = match (&given, &kept) {
            (Some(given), _) => given.outline.clone(),
            (None, Some(kept)) => kept.outline.clone(),
            (None, None) => return Ok(Answer::Unknown),
        };
        Ok(match request.question {
            Question::Outline { offset } => {
                let bytes = self.encoded(request.model, &outline);
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let most = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
                let rest = bytes.get(start..).unwrap_or_default();
                match (u32::try_from(bytes.len()), rest.get(..most.min(rest.len()))) {
                    (Ok(total), Some(part)) if !part.is_empty() => Answer::Outline { total, bytes: part.to_vec() },
                    _ => Answer::Missing,
                }
            }
            Question::Have => Answer::Have(kept.map_or_else(|| Bitmap::full(outline.chunks()), |kept| kept.have())),
            Question::Chunks { first, count } => {
                let chunks = first..first.saturating_add(u32::from(count));
                if chunks.clone().map(|chunk| outline.chunk_len(chunk)).sum::<u64>() > u64::from(MAX_BYTES) {
                    return Ok(Answer::Missing);
                }
                // A file that has changed under this node is not given: its receiver would take this node for a liar.
                let read = |chunk| match (&given, &kept) {
                    (Some(given), _) => {
                        outline.read(&given.gguf, &given.tokenizer, chunk).filter(|bytes| outline.check(chunk, bytes))
                    }
                    (None, Some(kept)) => kept.read(chunk),
                    (None, None) => None,
                };
                match chunks.map(read).collect::<Option<Vec<_>>>() {
                    Some(parts) => {
                        self.shelf.chunks_given.fetch_add(u64::from(count), Ordering::Relaxed);
                        Answer::Chunks(parts.concat())
                    }
                    None => Answer::Missing,
                }
            }
        })
    }

    fn encoded(&mut self, id: ModelId, outline: &Arc<Outline>) -> Arc<Vec<u8>> {
        let same = |of: &Weak<Outline>| of.upgrade().is_some_and(|known| Arc::ptr_eq(&known, outline));
        if let Some((.., bytes)) = self.outlines.iter().find(|(known, of, _)| *known == id && same(of)) {
            return bytes.clone();
        }
        self.outlines.retain(|(known, ..)| *known != id);
        if self.outlines.len() >= OUTLINES {
            self.outlines.remove(0);
        }
        let bytes = Arc::new(outline.encode());
        self.outlines.push((id, Arc::downgrade(outline), bytes.clone()));
        bytes
    }
}
