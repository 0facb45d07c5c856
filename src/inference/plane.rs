//! Everything of this node that runs on shard streams, whichever side opened them.
//!
//! Activations never pass through the swarm's loop. Each inbound stream is served by a task of its own: control streams
//! drive [`StageTable`], decode and bulk streams deliver batches either to a stage (this node computes) or to a result
//! queue (this node asked).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::PeerId;
use quelea_shard::{
    ShardStream,
    frame::{SessionId, StreamKind},
    link::{self, Batch, Dropped, Incoming, Sessions, SinkClosed},
    protocol,
    reassembly::Expect,
};
use quelea_wire::{ErrorCode, NetworkId};
use tokio::sync::mpsc;

use super::{links::Links, serve::Served, stage::StageTable};
use crate::{swarm::Handle, telemetry::Telemetry};

/// Inbound streams that wait for a task. The loop hands over in microseconds.
pub(crate) const INBOUND_QUEUE: usize = 64;

/// Results that one session may have unread: as many as it has chunks in flight, and one.
pub(super) const RESULTS: usize = 16;

/// How often links and sessions are looked over.
const SWEEP: Duration = Duration::from_millis(250);

/// Rows this node waits for as a coordinator.
struct Awaited {
    epoch: u32,
    expect: Expect,
    results: mpsc::Sender<Batch>,
}

/// This node's part in all sessions, as stage and as coordinator.
pub(crate) struct Plane {
    pub(crate) handle: Handle,
    pub(crate) network: NetworkId,
    pub(crate) telemetry: Telemetry,
    pub(super) links: Links,
    pub(super) stages: StageTable,
    served: RwLock<Vec<Arc<Served>>>,
    awaited: Mutex<HashMap<(PeerId, SessionId), Awaited>>,
    draining: AtomicBool,
}

impl Plane {
    pub(crate) fn new(handle: Handle, network: NetworkId, telemetry: Telemetry) -> Arc<Self> {
        Arc::new(Self {
            handle,
            network,
            telemetry,
            links: Links::default(),
            stages: StageTable::default(),
            served: RwLock::default(),
            awaited: Mutex::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Serves inbound streams until the swarm is gone.
    pub(crate) async fn run(self: Arc<Self>, mut inbound: mpsc::Receiver<(PeerId, ShardStream)>) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                stream = inbound.recv() => match stream {
                    // The behaviour bounds how many of these live at once.
                    Some((peer, stream)) => drop(tokio::spawn(Self::serve_stream(self.clone(), peer, stream))),
                    None => return,
                },
                _ = sweep.tick() => {
                    self.links.sweep();
                    self.stages.tick(&self);
                }
            }
        }
    }

    /// Adds layers that this node serves.
    pub(crate) fn add_served(&self, served: Arc<Served>) {
        self.served.write().unwrap_or_else(PoisonError::into_inner).push(served);
    }

    /// From now on no session is taken.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether sessions are open, as stage or as coordinator.
    pub(crate) fn busy(&self) -> bool {
        self.stages.len() > 0 || !self.awaited.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
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
        let negotiated = match protocol::accept(stream).await {
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
        tracing::debug!(%peer, ?kind, %end, "shard stream ended");
    }

    /// Where a batch goes. Never waits: it runs on the stream's task.
    fn deliver(self: &Arc<Self>, peer: PeerId, kind: StreamKind, incoming: Incoming) -> Result<(), SinkClosed> {
        match incoming {
            Incoming::Batch(batch) => {
                if let Some(results) = self.awaited_by(&peer, &batch.session, batch.epoch) {
                    // A full queue means that the coordinator has given the session up; its deadline ends it.
                    let _ = results.try_send(batch);
                } else {
                    self.stages.rows(self, peer, kind, batch);
                }
            }
            Incoming::Bad { session, epoch, code } => self.stages.bad_rows(peer, session, epoch, code),
        }
        Ok(())
    }

    fn awaited_by(&self, from: &PeerId, session: &SessionId, epoch: u32) -> Option<mpsc::Sender<Batch>> {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.get(&(*from, *session)).filter(|a| a.epoch == epoch).map(|a| a.results.clone())
    }

    /// From now on rows of `session` from `last` are results.
    pub(super) fn await_results(
        &self,
        last: PeerId,
        session: SessionId,
        epoch: u32,
        expect: Expect,
        results: mpsc::Sender<Batch>,
    ) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.insert((last, session), Awaited { epoch, expect, results });
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
