//! One session over a chain of peers, from the side that asked for it.
//!
//! The coordinator opens the session at every stage over control streams, sends rows to the first, and takes results
//! from the last. Whatever goes wrong ends in an error that names the peer and its layers, within the step's deadline:
//! a stage's own fault, a lost stream, a hop that does not acknowledge, or silence, which is probed before the deadline
//! so that the silent peer can be named.

mod opening;
mod wait;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::future::try_join_all;
use libp2p::PeerId;
use quelea_shard::{
    frame::{BlockKey, Cancel, Close, Frame, Keep, Prefix, SessionId, StreamKind, Totals},
    link::{Batch, DataSender},
    protocol,
    reassembly::Expect,
};
use quelea_wire::{ErrorCode, ModelId, Profile};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    chain::Hop,
    links::{Control, EVENTS, FromStage},
    plane::{Plane, RESULTS},
    types::{HopReport, InferError, RouteHop},
};

/// Chunks of a prompt that may be on their way through the chain at once: enough to keep four stages busy.
const CHUNKS: u32 = 4;
const WINDOW: usize = CHUNKS as usize;

/// How long all stages may take to accept a session: a connection and a stream to the next peer, each.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);

/// Opening gets at least this, however short the caller's steps are: it is several round trips.
const OPEN_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// How long stages may take to say what they did, at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a session is opened with.
pub(crate) struct SessionSpec {
    pub(crate) model: ModelId,
    pub(crate) profile: Profile,
    pub(crate) width: u32,
    pub(crate) max_rows: u32,
    pub(crate) step_timeout: Duration,
    /// How the prompt begins, for stages to look up.
    pub(crate) prefix: Prefix,
}

/// One stage, as the coordinator sees it. It is listened to for as long as this lives.
struct Stage {
    hop: Hop,
    control: Control,
    session: SessionId,
    totals: Option<Totals>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.control.unsubscribe(&self.session);
    }
}

/// The place where a session's results arrive. They are awaited for as long as this lives, also while the session is
/// being opened and its caller goes away.
struct Results {
    plane: Arc<Plane>,
    from: PeerId,
    session: SessionId,
    batches: mpsc::Receiver<Result<Batch, ErrorCode>>,
}

impl Results {
    fn await_from(plane: &Arc<Plane>, from: PeerId, session: SessionId, epoch: u32, expect: Expect) -> Self {
        let (sender, batches) = mpsc::channel(RESULTS);
        plane.await_results(from, session, epoch, expect, sender);
        Self { plane: plane.clone(), from, session, batches }
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.plane.forget_results(self.from, self.session);
    }
}

/// Rows that are to come back from the last stage.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    pos: u32,
    rows: u16,
}

/// A session over a chain. Dropping it cancels the session at every stage.
pub(crate) struct ChainSession {
    id: SessionId,
    epoch: u32,
    spec: SessionSpec,
    stages: Vec<Stage>,
    decode: DataSender,
    bulk: DataSender,
    results: Results,
    events: mpsc::Receiver<(PeerId, FromStage)>,
    /// Whether all stages keep blocks by their names.
    shares: bool,
    /// Rows that all stages have from before.
    kept_rows: u32,
    next_seq: u32,
    /// The rows that are to come back, in order. What numbers their batches have is the last hop's affair.
    expected: VecDeque<Expected>,
    /// Rows given to the first stage.
    rows_sent: u64,
    /// The position after the last row that was given to it.
    next_pos: u32,
    last: Vec<f32>,
    closed: bool,
}

impl ChainSession {
    /// Opens a session at every stage of `hops`.
    pub(crate) async fn open(plane: Arc<Plane>, hops: Vec<Hop>, mut spec: SessionSpec) -> Result<Self, InferError> {
        let local = plane.handle.local();
        let id = SessionId(rand::random());
        let epoch = 1;
        let (first, last) = match (hops.first(), hops.last()) {
            (Some(first), Some(last)) => (first.clone(), last.peer),
            _ => return Err(InferError::new(ErrorCode::NoRoute, "the chain is empty")),
        };
        let deadline = Instant::now() + OPEN_TIMEOUT.min(spec.step_timeout.max(OPEN_TIMEOUT_MIN));
        let (to_session, events) = mpsc::channel(EVENTS);
        // All at once, so that one that is slow to reach is not paid for by the next.
        let reach = hops.into_iter().map(|hop| {
            let (plane, to_session) = (&plane, to_session.clone());
            async move {
                let control = timeout_at(deadline, plane.links.control(plane, hop.peer, &hop.addrs))
                    .await
                    .map_err(|_| unreachable_hop(&hop, "it does not answer"))?
                    .map_err(|e| unreachable_hop(&hop, &e.to_string()))?;
                control.subscribe(id, to_session);
                Ok::<_, InferError>(Stage { hop, control, session: id, totals: None })
            }
        });
        let stages = try_join_all(reach).await?;
        let features = stages.iter().map(|stage| stage.control.sender.features());
        let shares = opening::all_have(protocol::PREFIX, features);
        if !shares {
            spec.prefix = Prefix::default();
        }
        let expect = Expect { width: spec.width, max_rows: spec.max_rows };
        let results = Results::await_from(&plane, last, id, epoch, expect);
        let links = async {
            let decode = plane.links.data(&plane, first.peer, StreamKind::Decode, &first.addrs).await?;
            let bulk = plane.links.data(&plane, first.peer, StreamKind::Bulk, &first.addrs).await?;
            Ok::<_, super::links::LinkError>((decode, bulk))
        };
        let links = timeout_at(deadline, links).await;
        let (decode, bulk) = links
            .map_err(|_| unreachable_hop(&first, "it does not answer"))?
            .map_err(|e| unreachable_hop(&first, &e.to_string()))?;
        let mut session = Self {
            id,
            epoch,
            spec,
            stages,
            decode,
            bulk,
            results,
            events,
            shares,
            kept_rows: 0,
            next_seq: 0,
            expected: VecDeque::new(),
            rows_sent: 0,
            next_pos: 0,
            last: Vec::new(),
            closed: false,
        };
        session.send_opens(local)?;
        session.kept_rows = session.accepted(deadline).await?;
        Ok(session)
    }

    /// The route, for people.
    pub(crate) fn route(&self) -> Vec<RouteHop> {
        self.stages
            .iter()
            .map(|stage| RouteHop {
                peer: stage.hop.peer.to_string(),
                layers: stage.hop.span.to_string(),
                rtt_ms: stage.hop.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            })
            .collect()
    }

    /// Rows of the prompt that all stages have from before: what is sent begins there.
    pub(crate) fn kept_rows(&self) -> u32 {
        self.kept_rows
    }

    pub(crate) fn profile(&self) -> Profile {
        self.spec.profile
    }

    /// Sends a chunk of the prompt; waits only while the window is full.
    pub(crate) async fn push_chunk(&mut self, rows: Vec<f32>, pos: u32) -> Result<(), InferError> {
        while self.expected.len() >= WINDOW {
            self.result().await?;
        }
        let deadline = Instant::now() + self.spec.step_timeout.saturating_mul(self.chunks_under_way() + 1);
        self.send(StreamKind::Bulk, rows, pos, true, deadline)
    }

    /// Waits for all chunks; the last row of the prompt.
    pub(crate) async fn end_of_prefill(&mut self) -> Result<Vec<f32>, InferError> {
        while !self.expected.is_empty() {
            self.result().await?;
        }
        Ok(std::mem::take(&mut self.last))
    }

    /// Runs rows through the chain; as many come back.
    pub(crate) async fn decode(&mut self, rows: Vec<f32>, pos: u32) -> Result<Vec<f32>, InferError> {
        self.send(StreamKind::Decode, rows, pos, false, Instant::now() + self.spec.step_timeout)?;
        self.result().await?;
        Ok(std::mem::take(&mut self.last))
    }

    fn send(
        &mut self,
        kind: StreamKind,
        data: Vec<f32>,
        pos: u32,
        last_row_only: bool,
        deadline: Instant,
    ) -> Result<(), InferError> {
        let width = usize::try_from(self.spec.width).unwrap_or(usize::MAX).max(1);
        let rows = u16::try_from(data.len() / width).unwrap_or(u16::MAX);
        let batch = Batch {
            session: self.id,
            epoch: self.epoch,
            seq: self.next_seq,
            pos,
            rows,
            last_row_only,
            rewind: pos < self.next_pos,
            deadline,
            data,
        };
        let link = if kind == StreamKind::Decode { &self.decode } else { &self.bulk };
        link.send(batch).map_err(|error| {
            let why = link.end().map_or_else(|| error.to_string(), |end| end.to_string());
            self.first_hop_lost(ErrorCode::HopLost, &why)
        })?;
        self.next_pos = pos.saturating_add(u32::from(rows));
        let (pos, back) = if last_row_only { (self.next_pos.saturating_sub(1), 1) } else { (pos, rows) };
        self.expected.push_back(Expected { pos, rows: back });
        self.rows_sent = self.rows_sent.saturating_add(u64::from(rows));
        self.next_seq += 1;
        Ok(())
    }

    fn chunks_under_way(&self) -> u32 {
        u32::try_from(self.expected.len()).unwrap_or(CHUNKS)
    }

    /// Names the blocks that the session has filled since it was opened, for those to come: `keys` of all its rows.
    pub(crate) fn keep(&self, keys: &[BlockKey]) {
        let named = self.spec.prefix.keys.len();
        let (Some(new), Ok(first), true) = (keys.get(named..), u8::try_from(named), self.shares) else { return };
        if new.is_empty() {
            return;
        }
        for stage in &self.stages {
            let keep = Keep { session: self.id, epoch: self.epoch, first, keys: new.to_vec() };
            // A stage that does not hear of it keeps less; the session is over either way.
            let _ = stage.control.sender.send(keep);
        }
    }

    /// Closes the session in order; who did what.
    pub(crate) async fn finish(&mut self) -> Vec<HopReport> {
        self.closed = true;
        for stage in &self.stages {
            let _ = stage.control.sender.send(Close { session: self.id, epoch: self.epoch });
        }
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut waiting: Vec<PeerId> = self.stages.iter().map(|stage| stage.hop.peer).collect();
        while !waiting.is_empty() {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some((peer, event))) => {
                    let said_all = match &event {
                        FromStage::Frame(frame) => matches!(**frame, Frame::Closed(_) | Frame::Fault(_)),
                        FromStage::Lost(_) => true,
                    };
                    if said_all {
                        waiting.retain(|p| *p != peer);
                    }
                    // The answer is complete; a stage that is lost now only misses in the report.
                    drop(self.event(peer, event));
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.stages.iter().map(report).collect()
    }
}

impl Drop for ChainSession {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        for stage in &self.stages {
            let cancel = Cancel { session: self.id, epoch: self.epoch, code: ErrorCode::Cancelled };
            let _ = stage.control.sender.send(cancel);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds and rows of one session, for people")]
fn report(stage: &Stage) -> HopReport {
    let totals = stage.totals.unwrap_or_default();
    let per_row = |us: u64| us as f64 / 1e3 / totals.rows_out.max(1) as f64;
    HopReport {
        peer: stage.hop.peer.to_string(),
        layers: stage.hop.span.to_string(),
        rows: totals.rows_out,
        compute_ms_per_row: per_row(totals.compute_us),
        queue_ms_per_row: per_row(totals.queue_us),
        hop_ms: (totals.hop_us > 0).then_some(totals.hop_us as f64 / 1e3),
    }
}

fn unreachable_hop(hop: &Hop, why: &str) -> InferError {
    InferError::new(ErrorCode::DialFailed, format!("peer {} (layers {}) cannot be reached: {why}", hop.peer, hop.span))
}

fn lost_hop(hop: &Hop, why: &str) -> InferError {
    InferError::new(ErrorCode::HopLost, format!("peer {} (layers {}) is lost: {why}", hop.peer, hop.span))
}
