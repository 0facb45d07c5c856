//! Pulling a model from peers: who has it, several of them at once, each chunk checked as it arrives.

mod chunks;
mod find;
mod picker;

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_engine::{Outline, outline};
use quelea_weights::{Answer, MAX_BYTES, Question, Request};
use quelea_wire::{ErrorCode, ModelId};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use self::{chunks::Fetching, picker::MAX_PEERS};
use super::{Parts, shelf::Shelf, store::Kept};
use crate::{
    inference::InferError,
    swarm::{Handle, WeightsError},
};

/// For how long a pull goes on without anything coming before it is given up; what has come is kept.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// The same where somebody waits for an answer of the model, not for the model.
pub(crate) const STALL_OF_REQUEST: Duration = Duration::from_secs(20);

/// Peers asked for an outline at once: each may send [`outline::MAX_BYTES`] before it shows that it lies.
const OUTLINES_AT_ONCE: usize = 4;

/// Failures after which a peer is not asked for this outline again.
const OUTLINE_FAULTS: u8 = 3;

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = PullProgress)]
pub(crate) struct Progress {
    /// Bytes that are here of those wanted.
    pub(crate) bytes: u64,
    /// Bytes wanted.
    pub(crate) total: u64,
    /// Chunks that came during this pull.
    pub(crate) fetched: u64,
    /// Chunks that were here before.
    pub(crate) kept: u64,
    /// Chunks that were refused because their bytes were others.
    pub(crate) refused: u64,
    /// Peers that are asked.
    pub(crate) peers: usize,
}

/// What a pull works with.
#[derive(Clone)]
pub(crate) struct Puller {
    pub(crate) handle: Handle,
    pub(crate) shelf: Arc<Shelf>,
}

/// Why a peer gave nothing.
enum Refusal {
    /// This node asks too much at once: not the peer's fault.
    Later,
    /// It has nothing, or did not answer.
    None,
    /// It gave something else.
    Wrong,
}

impl Puller {
    /// Has these parts of a model on disk; returns once they are, with how far it came.
    ///
    /// # Errors
    /// When nobody gives what is missing for as long as `stall`, or the disk does not take it. What has come is kept.
    pub(crate) async fn pull(
        &self,
        id: ModelId,
        parts: Parts,
        stall: Duration,
        progress: &watch::Sender<Progress>,
    ) -> Result<Arc<Kept>, InferError> {
        let kept = self.outlined(id, stall).await?;
        let wanted = kept.outline.needed(&parts.of(&kept.manifest)?);
        // Two pulls of one model take turns; the second finds most of it there.
        let _turn = kept.pulling.lock().await;
        if !kept.holds(&wanted) {
            let (on_disk, ranges) = (kept.clone(), wanted.clone());
            let (lock, damaged) = blocking(move || {
                let lock = on_disk.lock()?;
                let damaged = on_disk.verify(&ranges)?;
                Ok::<_, InferError>((lock, damaged))
            })
            .await??;
            if damaged > 0 {
                tracing::warn!(model = %id.short(), damaged, "chunks on disk are damaged; they are fetched again");
            }
            let fetched = self.missing(&kept, &wanted, stall, progress).await;
            // Also after a failure: what has come is kept.
            let on_disk = kept.clone();
            let saved = blocking(move || {
                let saved = on_disk.save();
                drop(lock);
                saved
            });
            let saved = saved.await?;
            fetched?;
            saved?;
        }
        let total = wanted.iter().cloned().flatten().map(|chunk| kept.outline.chunk_len(chunk)).sum();
        progress.send_modify(|now| {
            if now.total == 0 {
                now.kept = wanted.iter().map(|range| range.len() as u64).sum();
            }
            (now.bytes, now.total) = (total, total);
        });
        Ok(kept.clone())
    }

    async fn missing(
        &self,
        kept: &Arc<Kept>,
        wanted: &[std::ops::Range<u32>],
        stall: Duration,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), InferError> {
        let have = kept.have();
        let missing = wanted.iter().cloned().flatten().filter(|chunk| !have.has(*chunk));
        let bytes: u64 = missing.map(|chunk| kept.outline.chunk_len(chunk)).sum();
        let shelf = self.shelf.clone();
        let room = blocking(move || shelf.store().and_then(|store| store.room_for(bytes))).await??;
        Fetching::new(self, kept.clone(), wanted, room, progress).run(stall).await
    }

    /// The model with whatever is here of it; its outline at least.
    pub(crate) async fn outlined(&self, id: ModelId, stall: Duration) -> Result<Arc<Kept>, InferError> {
        let shelf = self.shelf.clone();
        if let Some(kept) = blocking(move || shelf.kept(id)).await?? {
            return Ok(kept);
        }
        // Before anybody is asked: a node that keeps nothing cannot pull.
        self.shelf.store()?;
        let outline = self.outline(id, stall).await?;
        let shelf = self.shelf.clone();
        blocking(move || shelf.begin(id, outline)).await?
    }

    /// The model's outline, from whoever gives one that has the model's id.
    async fn outline(&self, id: ModelId, stall: Duration) -> Result<Outline, InferError> {
        let (found, mut peers) = mpsc::channel(MAX_PEERS);
        let mut finding = pin!(find::run(self.handle.clone(), id, found));
        let mut late = pin!(tokio::time::sleep(stall));
        let mut asking = FuturesUnordered::new();
        let mut under_way = HashSet::new();
        let mut faults: HashMap<PeerId, u8> = HashMap::new();
        // Who pulls a model may wait for somebody to come who has it. Who waits for an answer does not.
        let mut nowhere = pin!(find::nowhere(self.handle.clone(), id));
        let (waits, mut is_nowhere) = (stall > STALL_OF_REQUEST, false);
        loop {
            if is_nowhere && asking.is_empty() && peers.is_empty() {
                tracing::info!(model = %id.short(), "nobody provides the model");
                let message = format!("no peer provides model {}", id.short());
                return Err(
                    InferError::new(ErrorCode::NoRoute, message).hint("join peers that have it with --bootstrap")
                );
            }
            tokio::select! {
                () = &mut nowhere, if !waits && !is_nowhere => is_nowhere = true,
                Some(peer) = peers.recv(), if asking.len() < OUTLINES_AT_ONCE => {
                    let known = faults.get(&peer).copied().unwrap_or(0);
                    if known < OUTLINE_FAULTS && under_way.insert(peer) {
                        asking.push(self.outline_from(peer, id).map(move |got| (peer, got)));
                    }
                }
                Some((peer, got)) = asking.next() => {
                    under_way.remove(&peer);
                    let fault = match got {
                        Ok(outline) => return Ok(outline),
                        Err(Refusal::Later) => 0,
                        Err(Refusal::None) => 1,
                        Err(Refusal::Wrong) => {
                            tracing::warn!(%peer, model = %id.short(), "what a peer gave is not the model's outline");
                            self.handle.deed(peer, Deed::Violation);
                            OUTLINE_FAULTS
                        }
                    };
                    let known = faults.entry(peer).or_default();
                    *known = known.saturating_add(fault);
                }
                () = &mut finding => {}
                () = &mut late => return Err(nobody(id, "its outline", stall)),
            }
        }
    }

    async fn outline_from(&self, peer: PeerId, id: ModelId) -> Result<Outline, Refusal> {
        let mut all: Vec<u8> = Vec::new();
        loop {
            let offset = u32::try_from(all.len()).map_err(|_| Refusal::Wrong)?;
            match self.ask(peer, Request { model: id, question: Question::Outline { offset } }).await? {
                Answer::Outline { total, bytes } => {
                    // Full parts only, so that nobody makes many answers of it.
                    let due = total.saturating_sub(offset).min(MAX_BYTES);
                    if u32::try_from(bytes.len()) != Ok(due) || total as usize > outline::MAX_BYTES {
                        return Err(Refusal::Wrong);
                    }
                    all.extend(bytes);
                    if all.len() == total as usize {
                        break;
                    }
                }
                Answer::Busy { retry } => tokio::time::sleep(retry).await,
                _ => return Err(Refusal::None),
            }
        }
        let check = move || {
            let outline = Outline::decode(&all).ok()?;
            (outline.manifest().ok()?.id() == id.0).then_some(outline)
        };
        blocking(check).await.ok().flatten().ok_or(Refusal::Wrong)
    }

    async fn ask(&self, peer: PeerId, request: Request) -> Result<Answer, Refusal> {
        match self.handle.ask_weights(peer, request).await {
            Ok(answer) => Ok(answer),
            Err(WeightsError::Busy) => Err(Refusal::Later),
            Err(error) => {
                tracing::debug!(%peer, %error, "no weights");
                // The next question finds a connection, if the peer can be reached at all.
                let _ = self.handle.connect(peer, Vec::new()).await;
                Err(Refusal::None)
            }
        }
    }
}

fn nobody(id: ModelId, what: &str, stall: Duration) -> InferError {
    let message = format!("no peer gave {what} of model {} within {} s", id.short(), stall.as_secs());
    InferError::new(ErrorCode::NoRoute, message).hint(
        "join peers that have it with --bootstrap; what has been fetched is kept, and pulling again goes on from there",
    )
}

/// Disk and hashing, off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, InferError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))
}
