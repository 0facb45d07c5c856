//! Everything of this node that runs on shard streams, whichever side opened them.
//!
//! Activations never pass through the swarm's loop. Each inbound stream is served by a task of its own: control streams
//! drive [`StageTable`], decode and bulk streams deliver batches either to a stage (this node computes) or to a result
//! queue (this node asked).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, identity::Keypair};
use quelea_behaviours::conduct::Deed;
use quelea_engine::runner::Load;
use quelea_shard::{
    ShardStream,
    frame::{SessionId, StreamKind},
    link::{self, Batch, Budget, Dropped, Incoming, LinkEnd, Sessions, SinkClosed},
    protocol,
    reassembly::Expect,
};
use quelea_wire::{ErrorCode, NetworkId, Price};
use tokio::sync::{Notify, broadcast::error::RecvError, mpsc};

use super::{
    experience::Experience,
    links::Links,
    rebalance::Coming,
    serve::Served,
    stage::{LogBudget, Signer, StageTable},
};
use crate::{
    ledger::Ledger,
    swarm::{Handle, SwarmNotice},
    telemetry::Telemetry,
};

/// Inbound streams that wait for a task: as many as the behaviour lets in, so that no stranger's burst costs a stream of
/// somebody else.
pub(crate) const INBOUND_QUEUE: usize = 1024;

/// Results that one session may have unread: as many as it has chunks in flight, and one.
pub(super) const RESULTS: usize = 16;

/// How often links and sessions are looked over.
const SWEEP: Duration = Duration::from_millis(250);

/// Bytes of batches that have not arrived whole, of all streams together. One stream may hold half: a batch of the
/// largest size.
const UNFINISHED_BYTES: usize = 32 << 20;

/// Streams of one kind that a peer may have: the one it uses, and those of connections whose end we have not noticed.
const STREAMS_PER_KIND: usize = 3;

/// Streams that are open, by peer and kind; bounded by the behaviour's limits.
#[derive(Default)]
struct StreamCounts(Mutex<HashMap<(PeerId, StreamKind), usize>>);

/// One of a peer's streams; counted until it is dropped.
struct StreamPlace<'a> {
    counts: &'a StreamCounts,
    key: (PeerId, StreamKind),
}

impl StreamCounts {
    fn take(&self, peer: PeerId, kind: StreamKind) -> Option<StreamPlace<'_>> {
        let key = (peer, kind);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        *count += 1;
        if *count > STREAMS_PER_KIND {
            *count -= 1;
            return None;
        }
        Some(StreamPlace { counts: self, key })
    }
}

impl Drop for StreamPlace<'_> {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Where the results of one session go: rows, or why they are not usable.
pub(super) type Results = mpsc::Sender<Result<Batch, ErrorCode>>;

/// Rows this node waits for as a coordinator.
struct Awaited {
    epoch: u32,
    expect: Expect,
    results: Results,
}

/// This node's part in all sessions, as stage and as coordinator.
pub(crate) struct Plane {
    pub(crate) handle: Handle,
    pub(crate) network: NetworkId,
    pub(crate) telemetry: Telemetry,
    ledger: Ledger,
    pub(super) links: Links,
    pub(super) stages: StageTable,
    /// What was learnt of peers.
    pub(crate) experience: Experience,
    /// What the layers that are served here cost others.
    pub(crate) price: Price,
    /// Micro-credits that a session may leave uncovered, where that was said.
    pub(crate) exposure: Option<u64>,
    /// What this node signs with.
    pub(super) keypair: Keypair,
    /// What this node does not do as a coordinator.
    #[cfg(test)]
    pub(crate) stint: std::sync::atomic::AtomicU8,
    /// Audits as if the models' layers were not here.
    #[cfg(test)]
    pub(crate) lacks_layers: AtomicBool,
    served: RwLock<Vec<Arc<Served>>>,
    coming: Mutex<Option<Coming>>,
    /// Told when what is served, or will be, has changed.
    pub(super) changed: Notify,
    awaited: Mutex<HashMap<(PeerId, SessionId), Awaited>>,
    draining: AtomicBool,
    /// Memory of batches that have not arrived whole.
    unfinished: Budget,
    /// Streams that peers have greeted on.
    streams: StreamCounts,
    requests: AtomicUsize,
}

/// How stages of this node work for others.
pub(crate) struct Terms {
    pub(crate) price: Price,
    /// Micro-credits that a session may leave uncovered, where that was said.
    pub(crate) exposure: Option<u64>,
    /// Where rows are kept that may have to be handed on again.
    pub(crate) logs: LogBudget,
}

/// A request that is being answered.
pub(super) struct ActiveRequest<'a>(&'a AtomicUsize);

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Plane {
    /// Stages sign as `keypair`, and work on these `terms`.
    pub(crate) fn new(
        ledger: Ledger,
        handle: Handle,
        network: NetworkId,
        telemetry: Telemetry,
        keypair: Keypair,
        terms: Terms,
    ) -> Arc<Self> {
        let signer = Signer::spawn(keypair.clone(), network, telemetry.metrics.clone());
        Arc::new(Self {
            handle,
            network,
            telemetry,
            links: Links::default(),
            stages: StageTable::new(signer, ledger.clone(), terms.logs),
            experience: Experience::beside_ledger(ledger.reputes()),
            ledger,
            price: terms.price,
            exposure: terms.exposure,
            keypair,
            #[cfg(test)]
            stint: Default::default(),
            #[cfg(test)]
            lacks_layers: AtomicBool::new(false),
            served: RwLock::default(),
            coming: Mutex::default(),
            changed: Notify::new(),
            awaited: Mutex::default(),
            draining: AtomicBool::new(false),
            unfinished: Budget::new(UNFINISHED_BYTES),
            streams: StreamCounts::default(),
            requests: AtomicUsize::new(0),
        })
    }

    /// Who owes whom.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// This node has seen for itself that a peer signs for what the model does not compute: it gets no work, no note and no
    /// credit any more.
    pub(crate) async fn convict(&self, peer: PeerId, why: &'static str) {
        self.experience.failed(peer, why);
        self.handle.deed(peer, Deed::Fraud);
        self.ledger().convict(peer).await;
    }

    /// Others contradict what a peer has signed for. That is not certain: it gets no work for a while, and that is all.
    pub(crate) fn suspect(&self, peer: PeerId, why: &'static str) {
        tracing::warn!(%peer, why, "a peer is suspect, and gets no work for a while");
        self.telemetry.metrics.audit("suspected");
        self.experience.suspect(peer, why);
    }

    /// Has the stages of this node do wrong.
    #[cfg(test)]
    pub(crate) fn misbehave(&self, mischief: super::stage::mischief::Mischief) {
        self.stages.mood().set(mischief);
    }

    /// Serves inbound streams until the swarm is gone.
    pub(crate) async fn run(self: Arc<Self>, mut inbound: mpsc::Receiver<(PeerId, ShardStream)>) {
        let mut sweep = tokio::time::interval(SWEEP);
        let (mut notices, mut watched) = (self.handle.watch(), true);
        loop {
            tokio::select! {
                notice = notices.recv(), if watched => match notice {
                    // A connection to the process that it was may stand for ten seconds more, with our links on it.
                    Ok(SwarmNotice::Another { peer }) => self.links.renew(&peer),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.links.clear(),
                    Err(RecvError::Closed) => watched = false,
                },
                stream = inbound.recv() => match stream {
                    // The behaviour bounds how many of these live at once.
                    Some((peer, stream)) => drop(tokio::spawn(Self::serve_stream(self.clone(), peer, stream))),
                    None => {
                        // Links to ourselves hold this plane; without this they would outlive the node together.
                        self.links.clear();
                        return;
                    }
                },
                _ = sweep.tick() => {
                    self.links.sweep();
                    self.stages.tick(&self);
                    self.telemetry.stats.shard_links.set(self.links.len() as u64);
                    self.telemetry.stats.shard_results.set(self.awaited_len() as u64);
                    self.mirror();
                }
            }
        }
    }

    /// Mirrors how busy the served layers are, and what they have done, into the gauges.
    fn mirror(&self) {
        let all = self.served();
        for served in &all {
            let of_model = all.iter().filter(|other| other.file.id == served.file.id);
            let loads: Vec<(Load, u64)> = of_model.map(|s| (s.runner.load(), s.page_bytes())).collect();
            let sum = |read: fn(&Load) -> u64| loads.iter().map(|(load, _)| read(load)).sum();
            let bytes = |pages: fn(&Load) -> u32| {
                loads.iter().map(|(load, page)| u64::from(pages(load)).saturating_mul(*page)).sum()
            };
            let model = self.telemetry.stats.model(&served.file.id.short());
            model.kv_pages_free.set(sum(|load| u64::from(load.kv_pages_free)));
            model.kv_pages_capacity.set(sum(|load| u64::from(load.kv_pages_total)));
            model.kv_used_bytes.set(bytes(|load| load.kv_pages_total.saturating_sub(load.kv_pages_free)));
            model.kv_capacity_bytes.set(bytes(|load| load.kv_pages_total));
            model.prefix_cache_bytes.set(bytes(|load| load.kv_pages_cached));
            model.queue_depth.set(sum(|load| u64::try_from(load.queued).unwrap_or(u64::MAX)));
            model.running.set(sum(|load| u64::try_from(load.sessions).unwrap_or(u64::MAX)));
            model.totals.batches.set(sum(|load| load.totals.batches));
            model.totals.rows.set(sum(|load| load.totals.rows));
            model.totals.prefix_lookups.set(sum(|load| load.totals.prefix_lookups));
            model.totals.prefix_hits.set(sum(|load| load.totals.prefix_hits));
            model.totals.evicted_sessions.set(sum(|load| load.totals.evicted));
        }
    }

    /// Adds layers that this node serves.
    pub(crate) fn add_served(&self, served: Arc<Served>) {
        self.served.write().unwrap_or_else(PoisonError::into_inner).push(served);
        self.changed.notify_one();
    }

    /// Takes layers back. What still runs in them ends by itself.
    pub(super) fn remove_served(&self, old: &Arc<Served>) {
        self.served.write().unwrap_or_else(PoisonError::into_inner).retain(|served| !Arc::ptr_eq(served, old));
        self.changed.notify_one();
    }

    /// Says which layers will be served.
    pub(super) fn set_coming(&self, coming: Option<Coming>) {
        *self.coming.lock().unwrap_or_else(PoisonError::into_inner) = coming;
        self.changed.notify_one();
    }

    /// Which layers will be served, if others than now.
    pub(super) fn coming(&self) -> Option<Coming> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on no session is taken.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether sessions are open here, or a request of this node's user is being answered.
    pub(crate) fn busy(&self) -> bool {
        self.stages.len() > 0 || self.requests.load(Ordering::Relaxed) > 0
    }

    /// Counts a request of this node's user until the guard is dropped.
    pub(super) fn begin_request(&self) -> ActiveRequest<'_> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(&self.requests)
    }

    /// What this node serves.
    pub(crate) fn served(&self) -> Vec<Arc<Served>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves one stream that a peer (or this node itself) has opened, to its end.
    pub(super) async fn serve_stream<S>(self: Arc<Self>, peer: PeerId, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut place = None;
        let greeted = protocol::accept_if(stream, |kind| {
            place = Some(self.streams.take(peer, kind).ok_or(ErrorCode::Overloaded)?);
            Ok(())
        });
        let negotiated = match greeted.await {
            Ok(negotiated) => negotiated,
            Err(error) => {
                tracing::debug!(%peer, %error, "shard stream not accepted");
                return;
            }
        };
        self.telemetry.stats.shard_streams.inc();
        let kind = negotiated.kind;
        let end = match kind {
            StreamKind::Control => super::stage::serve_control(&self, peer, negotiated).await,
            StreamKind::Decode | StreamKind::Bulk => {
                link::receive(negotiated, peer, self.as_ref(), |incoming| self.deliver(peer, kind, incoming)).await
            }
        };
        self.telemetry.stats.shard_streams.dec();
        if let LinkEnd::Violation(_) = end {
            self.handle.deed(peer, Deed::Violation);
        }
        tracing::debug!(%peer, ?kind, %end, "shard stream ended");
    }

    /// Where a batch goes. Never waits: it runs on the stream's task.
    fn deliver(self: &Arc<Self>, peer: PeerId, kind: StreamKind, incoming: Incoming) -> Result<(), SinkClosed> {
        match incoming {
            Incoming::Batch(batch) => {
                if let Some(results) = self.awaited_by(&peer, &batch.session, batch.epoch) {
                    // A full queue means that the coordinator has given the session up; its deadline ends it.
                    let full = results.try_send(Ok(batch)).is_err();
                    self.telemetry.metrics.channel_full_if(full, "results");
                } else {
                    self.stages.rows(self, peer, kind, batch);
                }
            }
            Incoming::Bad { session, epoch, code } => {
                if let Some(results) = self.awaited_by(&peer, &session, epoch) {
                    let _ = results.try_send(Err(code));
                } else {
                    self.stages.bad_rows(peer, session, epoch, code);
                }
            }
        }
        Ok(())
    }

    fn awaited_by(&self, from: &PeerId, session: &SessionId, epoch: u32) -> Option<Results> {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.get(&(*from, *session)).filter(|a| a.epoch == epoch).map(|a| a.results.clone())
    }

    /// From now on rows of `session` from `last` are results.
    pub(super) fn await_results(&self, last: PeerId, session: SessionId, epoch: u32, expect: Expect, results: Results) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.insert((last, session), Awaited { epoch, expect, results });
    }

    /// Sessions whose results are awaited.
    fn awaited_len(&self) -> usize {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The session is over.
    pub(super) fn forget_results(&self, last: PeerId, session: SessionId) {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&(last, session));
    }
}

impl Sessions for Plane {
    fn expect(&self, from: &PeerId, session: &SessionId, epoch: u32) -> Option<Expect> {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(awaited) = awaited.get(&(*from, *session)) {
            return (awaited.epoch == epoch).then_some(awaited.expect);
        }
        drop(awaited);
        self.stages.expect(from, session, epoch)
    }

    fn dropped(&self, from: &PeerId, why: Dropped) {
        tracing::trace!(peer = %from, ?why, "rows dropped");
    }

    fn budget(&self) -> Option<&Budget> {
        Some(&self.unfinished)
    }
}

/// Why a stage refuses or ends a session, in the registry's terms.
pub(super) fn engine_code(error: &quelea_engine::runner::JobError) -> ErrorCode {
    use quelea_engine::runner::JobError;
    match error {
        JobError::DeadlinePassed => ErrorCode::DeadlineExceeded,
        JobError::Position { .. } => ErrorCode::BadPosition,
        _ => ErrorCode::EngineFailed,
    }
}
