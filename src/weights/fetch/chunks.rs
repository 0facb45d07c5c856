//! The chunks that are missing, from everybody who has some.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_engine::outline;
use quelea_weights::{Answer, Bitmap, Question, Request};
use quelea_wire::ErrorCode;
use tokio::sync::{mpsc, watch};

use super::{
    Progress, Puller, Refusal, blocking, find, nobody,
    picker::{MAX_PEERS, Outcome, Picker, Run},
};
use crate::{
    inference::InferError,
    weights::store::{Kept, Put, Room, split},
};

/// Questions under way at once, all peers together: 16 MiB at most.
const AT_ONCE: usize = 16;

/// How often a waiting pull looks whether somebody may be asked again.
const TICK: Duration = Duration::from_millis(100);

/// For how many times as long as nothing at all may come, peers may say that they are busy.
const PATIENCE_WITH_BUSY: u32 = 10;

/// Wait after this node had too many questions of its own under way.
const OWN_WAIT: Duration = Duration::from_millis(500);

/// An answer to a question for chunks.
struct Ended {
    peer: PeerId,
    run: Run,
    outcome: Outcome,
    /// Chunks of the tokenizer, checked. All others are on the disk.
    bytes: Vec<u8>,
}

/// A pull under way.
pub(super) struct Fetching<'a> {
    puller: &'a Puller,
    kept: Arc<Kept>,
    picker: Picker,
    room: Room,
    progress: &'a watch::Sender<Progress>,
    now: Progress,
    /// What is fetched once the tokenizer is there, which stands in the file's header.
    rest: BTreeSet<u32>,
    /// The tokenizer's bytes, until all are there.
    tokenizer: Option<Vec<u8>>,
    last_byte: Instant,
    /// When somebody last said that there will be more.
    last_word: Instant,
}

impl<'a> Fetching<'a> {
    /// Of what is `wanted`, only what is missing is fetched.
    pub(super) fn new(
        puller: &'a Puller,
        kept: Arc<Kept>,
        wanted: &[Range<u32>],
        room: Room,
        progress: &'a watch::Sender<Progress>,
    ) -> Self {
        let have = kept.have();
        let mut now = Progress::default();
        let mut missing = BTreeSet::new();
        for chunk in wanted.iter().cloned().flatten() {
            let len = kept.outline.chunk_len(chunk);
            now.total = now.total.saturating_add(len);
            if have.has(chunk) {
                now.bytes = now.bytes.saturating_add(len);
                now.kept = now.kept.saturating_add(1);
            } else {
                missing.insert(chunk);
            }
        }
        let header = kept.outline.tokenizer_chunks();
        let (first, rest, tokenizer) = if kept.tokenizer().is_some() {
            (missing, BTreeSet::new(), None)
        } else {
            let rest = missing.split_off(&header.end);
            let bytes = usize::try_from(kept.outline.tokenizer().bytes()).unwrap_or(0);
            (missing, rest, Some(vec![0; bytes]))
        };
        progress.send_replace(now);
        let (picker, started) = (Picker::new(first), Instant::now());
        Self { puller, kept, picker, room, progress, now, rest, tokenizer, last_byte: started, last_word: started }
    }

    /// Fetches until nothing is missing.
    ///
    /// # Errors
    /// When nothing comes for as long as `stall`, or the disk does not take what comes.
    pub(super) async fn run(mut self, stall: Duration) -> Result<(), InferError> {
        let id = self.kept.id;
        let (found, mut peers) = mpsc::channel(MAX_PEERS);
        let mut finding = pin!(find::run(self.puller.handle.clone(), id, found));
        let mut asked: FuturesUnordered<BoxFuture<'static, Result<Ended, InferError>>> = FuturesUnordered::new();
        let mut telling: FuturesUnordered<BoxFuture<'static, (PeerId, Option<Bitmap>)>> = FuturesUnordered::new();
        let mut asked_what: HashSet<PeerId> = HashSet::new();
        let mut tick = tokio::time::interval(TICK);
        loop {
            if self.picker.is_done() && !self.goes_on().await? {
                return Ok(());
            }
            while asked.len() < AT_ONCE
                && let Some((peer, run)) = self.picker.next(&self.kept.outline, Instant::now())
            {
                asked.push(fetch(self.puller.clone(), peer, run, self.kept.clone(), self.tokenizer.is_some()).boxed());
            }
            tokio::select! {
                Some(ended) = asked.next() => self.ended(ended?),
                Some(peer) = peers.recv(), if telling.len() < MAX_PEERS => {
                    if self.picker.wants(&peer) && asked_what.insert(peer) {
                        telling.push(told(self.puller.clone(), peer, id).boxed());
                    }
                }
                Some((peer, have)) = telling.next() => {
                    asked_what.remove(&peer);
                    if let Some(have) = have.filter(|have| have.chunks() == self.kept.outline.chunks()) {
                        self.picker.learn(peer, have, Instant::now());
                    }
                }
                () = &mut finding => {}
                _ = tick.tick() => self.check(stall)?,
            }
        }
    }

    /// All that was asked for is there: whether there is more.
    async fn goes_on(&mut self) -> Result<bool, InferError> {
        let Some(blob) = self.tokenizer.take() else { return Ok(false) };
        let kept = self.kept.clone();
        if blocking(move || kept.put_tokenizer(blob)).await?? == Put::Corrupt {
            let message = format!("the tokenizer of model {} cannot stand in a file", self.kept.id.short());
            return Err(InferError::new(ErrorCode::ModelFile, message));
        }
        self.picker.add(std::mem::take(&mut self.rest));
        Ok(!self.picker.is_done())
    }

    fn ended(&mut self, ended: Ended) {
        let Ended { peer, run, outcome, bytes } = ended;
        let at = Instant::now();
        match outcome {
            Outcome::Stored => {
                (self.last_byte, self.last_word) = (at, at);
                let start = usize::try_from(u64::from(run.first).saturating_mul(outline::CHUNK)).unwrap_or(usize::MAX);
                let place = self.tokenizer.as_mut().and_then(|all| all.get_mut(start..start.checked_add(bytes.len())?));
                if let Some(place) = place {
                    place.copy_from_slice(&bytes);
                }
            }
            Outcome::Busy(_) => self.last_word = at,
            Outcome::Corrupt => {
                self.now.refused = self.now.refused.saturating_add(u64::from(run.count));
                let model = self.kept.id.short();
                tracing::warn!(%peer, %model, first = run.first, "a peer gave corrupt chunks; it is not asked again");
                self.puller.handle.deed(peer, Deed::Violation);
            }
            Outcome::Missing | Outcome::Failed => {}
        }
        let len: u64 = run.chunks().map(|chunk| self.kept.outline.chunk_len(chunk)).sum();
        let new = self.picker.ended(peer, run, outcome, at);
        if new > 0 {
            self.room.take(len);
            self.now.fetched = self.now.fetched.saturating_add(u64::from(new));
            self.now.bytes = self.now.bytes.saturating_add(len).min(self.now.total);
        }
        self.now.peers = self.picker.sources();
        self.progress.send_replace(self.now);
    }

    fn check(&self, stall: Duration) -> Result<(), InferError> {
        if self.last_word.elapsed() < stall && self.last_byte.elapsed() < stall.saturating_mul(PATIENCE_WITH_BUSY) {
            return Ok(());
        }
        let what = if self.picker.has_hope() { "the missing chunks in time" } else { "the missing chunks" };
        Err(nobody(self.kept.id, what, stall))
    }
}

/// One question for chunks, and what became of it.
///
/// # Errors
/// The disk's: no other peer would help.
async fn fetch(puller: Puller, peer: PeerId, run: Run, kept: Arc<Kept>, in_memory: bool) -> Result<Ended, InferError> {
    let Run { first, count } = run;
    let request = Request { model: kept.id, question: Question::Chunks { first, count } };
    let mut ended = Ended { peer, run, outcome: Outcome::Failed, bytes: Vec::new() };
    ended.outcome = match puller.ask(peer, request).await {
        Ok(Answer::Chunks(bytes)) => {
            let put = blocking(move || {
                if in_memory {
                    let right = split(&kept.outline, first, count, &bytes).is_some();
                    return Ok((if right { Put::Stored } else { Put::Corrupt }, bytes));
                }
                kept.put(first, count, &bytes).map(|put| (put, Vec::new()))
            });
            let put: Result<(Put, Vec<u8>), InferError> = put.await?;
            let (put, bytes) = put?;
            ended.bytes = bytes;
            if put == Put::Stored { Outcome::Stored } else { Outcome::Corrupt }
        }
        Ok(Answer::Busy { retry }) => Outcome::Busy(retry),
        Ok(Answer::Missing | Answer::Unknown) => Outcome::Missing,
        Ok(_) => Outcome::Corrupt,
        Err(Refusal::Later) => Outcome::Busy(OWN_WAIT),
        Err(_) => Outcome::Failed,
    };
    Ok(ended)
}

async fn told(puller: Puller, peer: PeerId, model: quelea_wire::ModelId) -> (PeerId, Option<Bitmap>) {
    match puller.ask(peer, Request { model, question: Question::Have }).await {
        Ok(Answer::Have(have)) => (peer, Some(have)),
        _ => (peer, None),
    }
}
