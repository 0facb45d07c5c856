//! One session over a chain of peers, from the side that asked for it.
//!
//! The coordinator opens the session at every stage over control streams, sends rows to the first, and takes results
//! from the last. Whatever goes wrong ends in an error that names the peer and its layers, within the step's deadline:
//! a stage's own fault, a lost stream, a hop that does not acknowledge, or silence, which is probed before the deadline
//! so that the silent peer can be named. Where all stages can, [`recover`] then puts others in the place of who is lost,
//! and the session goes on.

mod opening;
pub(crate) mod paying;
mod recover;
mod replay;
pub(crate) mod trail;
mod trust;
mod wait;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, RwLock},
    time::Duration,
};

use futures::future::try_join_all;
use libp2p::PeerId;
use quelea_announce::SignedAnnouncement;
use quelea_behaviours::conduct::Deed;
use quelea_engine::{Runner, round_to_bf16};
use quelea_ledger::receipt::About;
use quelea_shard::{
    frame::{BlockKey, Cancel, Close, Ends, Form, Frame, Keep, Prefix, SessionId, StreamKind, Totals},
    link::{Batch, DataSender},
    protocol,
    reassembly::Expect,
};
use quelea_wire::{ErrorCode, ModelId, Profile, SpanRange, WorkedRows, time::unix_ms};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use self::{
    paying::Paying,
    trust::{Trust, UNCHECKED},
    wait::Trouble,
};
use super::{
    auditor::{Drawn, Draws},
    generate::engine,
    links::{Control, EVENTS, FromStage, Listener},
    plane::{Plane, RESULTS},
    planner::{Hop, Query},
    types::{CommittedRows, Cost, HopReport, InferError, PREFILL_WINDOW, Recovery, RouteHop, Saw},
};
use crate::telemetry::{
    stats,
    traces::{Span, Within},
    way,
};

/// Chunks of a prompt that may be on their way through the chain at once.
const CHUNKS: u32 = PREFILL_WINDOW as u32;

/// How long all stages may take to accept a session: a connection and a stream to the next peer, each.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);

/// Opening gets at least this, however short the caller's steps are: it is several round trips.
const OPEN_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// How long stages may take to say what they did, at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The epoch in which all stages begin with nothing.
const FIRST_EPOCH: u32 = 1;

/// What a session is opened with.
#[derive(Clone)]
pub(crate) struct SessionSpec {
    pub(crate) model: ModelId,
    pub(crate) profile: Profile,
    pub(crate) width: u32,
    pub(crate) max_rows: u32,
    pub(crate) step_timeout: Duration,
    /// Chunks of the prompt that may be on their way at once, at most [`CHUNKS`].
    pub(crate) window: u8,
    /// How the prompt begins, for stages to look up.
    pub(crate) prefix: Prefix,
    /// Layers of the model.
    pub(crate) layers: u16,
    /// Has the embedding; nothing where the first stage embeds, or rows are [fed](ChainSession::feed).
    pub(crate) embed: Option<Runner>,
    /// Whether the first layers' rows are fed.
    pub(crate) fed: bool,
    /// Whether all rows come back, also those of the prompt.
    pub(crate) all_rows: bool,
    /// What the first and the last stage compute besides their layers.
    pub(crate) ends: Ends,
    /// Token ids that the session begins with.
    pub(crate) prompt: Vec<u32>,
    /// What this node announces itself.
    pub(crate) own: Arc<RwLock<Option<SignedAnnouncement>>>,
    /// What the chain was planned for.
    pub(crate) query: Query,
    /// The most rows that a stage may have to compute.
    pub(crate) most_rows: WorkedRows,
    /// Whether a receipt is wanted.
    pub(crate) receipt: bool,
    /// Whether others take the place of who is lost.
    pub(crate) replaces: bool,
    /// Draws the answers that are computed again.
    pub(crate) draws: Draws,
    /// Where the request's trace goes on.
    pub(crate) trace: Within,
}

impl SessionSpec {
    /// What comes back from the last stage.
    fn back(&self) -> Expect {
        let rows = (Form::of_rows(self.profile), self.width);
        let (form, width) = self.ends.logits_width().map_or(rows, |width| (Form::Logits, width));
        Expect { form, width, max_rows: self.max_rows }
    }
}

/// One stage, as the coordinator sees it. It is listened to for as long as this lives.
struct Stage {
    hop: Hop,
    control: Control,
    session: SessionId,
    totals: Option<Totals>,
    /// Whether it has accepted the session, in any epoch.
    joined: bool,
    /// Its part in the trace.
    span: Span,
}

impl Stage {
    /// Says in the trace how it is reached.
    fn goes(&mut self, ways: &Ways) {
        if let Some(way) = ways.get(&self.hop.peer) {
            self.span.set_way(*way);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.control.unsubscribe(&self.session);
        if let Some(totals) = &self.totals {
            let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            self.span.set("quelea.rows", whole(totals.rows_out));
            self.span.set("quelea.compute_us", whole(totals.compute_us));
            self.span.set("quelea.queue_us", whole(totals.queue_us));
        }
    }
}

/// How connected peers are reached.
type Ways = HashMap<PeerId, (stats::Path, stats::Transport)>;

/// How each connected peer is reached, for a trace; nothing is asked where there is none.
async fn ways_to(plane: &Plane, trace: &Within) -> Ways {
    if !trace.is_traced() {
        return Ways::new();
    }
    let snapshot = plane.handle.snapshot().await;
    // The first connection is the one that streams go over.
    let ways = snapshot.iter().flat_map(|s| &s.peers).filter_map(|peer| Some((peer.peer, way(peer.addrs.first()?))));
    ways.collect()
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

    /// From now on they come from `from`, in `epoch`.
    fn move_to(&mut self, from: PeerId, epoch: u32, expect: Expect) {
        self.plane.forget_results(self.from, self.session);
        let (sender, batches) = mpsc::channel(RESULTS);
        (self.from, self.batches) = (from, batches);
        self.plane.await_results(from, self.session, epoch, expect, sender);
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.plane.forget_results(self.from, self.session);
    }
}

/// Rows that are to come back from the last stage.
#[derive(Debug)]
struct Expected {
    pos: u32,
    rows: u16,
    /// How many were given for them, and how.
    given: u16,
    kind: StreamKind,
    /// Those that have.
    data: Vec<f32>,
}

/// How rows are given to the first stage.
#[derive(Clone, Copy)]
struct How {
    kind: StreamKind,
    last_row_only: bool,
    rewind: bool,
    deadline: Instant,
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
    /// Where those come from.
    listener: Listener,
    /// What stages sign for; nothing where some of them do not.
    trust: Option<Arc<Trust>>,
    /// Whether all stages keep blocks by their names.
    shares: bool,
    /// Whether all stages go back when rows say so.
    rewinds: bool,
    /// Rows that all stages have from before.
    kept_rows: u32,
    next_seq: u32,
    /// The rows that are to come back, in order. What numbers their batches have is the last hop's affair.
    expected: VecDeque<Expected>,
    /// Token ids of all rows so far, and of the prompt's that are to come.
    ids: Vec<u32>,
    /// Where the rows end that were given to the first stage.
    sent: u32,
    /// Whether the last of them took others back, which stages that have not got them still hold.
    rewound: bool,
    last: Vec<f32>,
    /// Rows for the first stage from position 0 on, where they are fed.
    fed: Vec<f32>,
    /// Bytes of rows that were sent and received.
    bytes: (u64, u64),
    /// Who was given rows, of which layers.
    saw: Vec<(PeerId, SpanRange)>,
    /// Whether all stages keep the session when a neighbour is lost.
    survives: bool,
    /// What all stages know; who comes in must know it, too.
    features: u64,
    /// Peers that were lost in this session.
    dead: HashSet<PeerId>,
    /// Peers that the one before could not reach although we could.
    accused: HashSet<PeerId>,
    recoveries: Vec<Recovery>,
    closed: bool,
    /// What stages get.
    paying: Paying,
    cost: Option<Cost>,
    receipt: Option<Vec<u8>>,
    drawn: Option<Drawn>,
}

impl ChainSession {
    /// Opens a session at every stage of `hops`.
    pub(crate) async fn open(plane: Arc<Plane>, hops: Vec<Hop>, mut spec: SessionSpec) -> Result<Self, InferError> {
        let local = plane.handle.local();
        let id = SessionId(rand::random());
        let epoch = FIRST_EPOCH;
        let (first, last) = match (hops.first(), hops.last()) {
            (Some(first), Some(last)) => (first.clone(), last.peer),
            _ => return Err(InferError::new(ErrorCode::NoRoute, "the chain is empty")),
        };
        let deadline = Instant::now() + OPEN_TIMEOUT.min(spec.step_timeout.max(OPEN_TIMEOUT_MIN));
        let (to_session, events) = mpsc::channel(EVENTS);
        let (commitments, unchecked) = mpsc::channel(UNCHECKED);
        let listener = Listener { events: to_session, commitments };
        // All at once, so that one that is slow to reach is not paid for by the next.
        let reach = hops.into_iter().map(|hop| {
            let (plane, listener) = (&plane, listener.clone());
            let span = spec.trace.stage(&hop.peer, &hop.span.to_string());
            async move {
                let control = timeout_at(deadline, plane.links.control(plane, hop.peer, &hop.addrs))
                    .await
                    .map_err(|_| unreachable_hop(&hop, "it does not answer"))?
                    .map_err(|e| unreachable_hop(&hop, &e.to_string()))?;
                control.subscribe(id, listener);
                Ok::<_, InferError>(Stage { hop, control, session: id, totals: None, joined: false, span })
            }
        });
        let mut stages = try_join_all(reach).await?;
        let ways = ways_to(&plane, &spec.trace).await;
        for stage in &mut stages {
            stage.goes(&ways);
        }
        let features = stages.iter().map(|stage| stage.control.sender.features());
        let common = features.clone().fold(!protocol::TRACE, |common, features| common & features);
        let survives = opening::all_have(protocol::FAILOVER, features.clone());
        let rewinds = opening::all_have(protocol::REWIND, features.clone());
        let shares = opening::all_have(protocol::PREFIX, features);
        if !shares {
            spec.prefix = Prefix::default();
        }
        let paying = Paying::begin(plane.clone(), id, &spec, &stages, deadline).await?;
        paying.epoch(epoch);
        let results = Results::await_from(&plane, last, id, epoch, spec.back());
        let links = async {
            let decode = plane.links.data(&plane, first.peer, StreamKind::Decode, &first.addrs).await?;
            let bulk = plane.links.data(&plane, first.peer, StreamKind::Bulk, &first.addrs).await?;
            Ok::<_, super::links::LinkError>((decode, bulk))
        };
        let links = timeout_at(deadline, links).await;
        let (decode, bulk) = links
            .map_err(|_| unreachable_hop(&first, "it does not answer"))?
            .map_err(|e| unreachable_hop(&first, &e.to_string()))?;
        let ids = std::mem::take(&mut spec.prompt);
        let mut session = Self {
            id,
            epoch,
            spec,
            stages,
            decode,
            bulk,
            results,
            events,
            listener,
            trust: None,
            shares,
            rewinds,
            kept_rows: 0,
            next_seq: 0,
            expected: VecDeque::new(),
            ids,
            sent: 0,
            rewound: false,
            last: Vec::new(),
            fed: Vec::new(),
            bytes: (0, 0),
            saw: Vec::new(),
            survives,
            features: common,
            dead: HashSet::new(),
            accused: HashSet::new(),
            recoveries: Vec::new(),
            closed: false,
            paying,
            cost: None,
            receipt: None,
            drawn: None,
        };
        session.send_opens(local)?;
        session.kept_rows = session.accepted(deadline).await?;
        session.sent = session.kept_rows;
        session.stages.iter_mut().for_each(|stage| stage.joined = true);
        session.saw = session.stages.iter().map(|stage| (stage.hop.peer, stage.hop.span)).collect();
        if survives {
            let (plane, wake) = (session.results.plane.clone(), session.listener.events.clone());
            let trust = Trust::begin(plane, session.terms(), unchecked, wake);
            trust.arrange(epoch, &session.arrangement());
            session.trust = Some(trust);
        }
        Ok(session)
    }

    /// The route, for people.
    pub(crate) fn route(&self) -> Vec<RouteHop> {
        let mut route: Vec<RouteHop> = self.stages.iter().map(|stage| route_hop(&stage.hop)).collect();
        if let Some(first) = route.first_mut() {
            first.sees_tokens = self.spec.ends.takes_tokens;
        }
        if let Some(last) = route.last_mut() {
            last.gives_logits = self.spec.ends.gives_logits > 0;
        }
        route
    }

    /// Which peers were given rows, and of which layers: also those that were lost, and those that took over.
    pub(crate) fn saw(&self) -> Vec<Saw> {
        let tokens = |span: &SpanRange| self.spec.ends.takes_tokens && span.start() == self.spec.query.span.start();
        let of = |(peer, span): &(PeerId, SpanRange)| Saw {
            peer: peer.to_string(),
            layers: span.to_string(),
            tokens: tokens(span),
        };
        self.saw.iter().map(of).collect()
    }

    /// The layers of the model that this chain leaves out, at either end.
    pub(crate) fn around(&self) -> Vec<String> {
        let span = self.spec.query.span;
        let ends = [SpanRange::new(0, span.start()), SpanRange::new(span.end(), self.spec.layers)];
        ends.into_iter().flatten().map(|span| span.to_string()).collect()
    }

    /// Bytes of rows that left for the first stage, and that came back.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.bytes
    }

    /// Keeps rows that the first layers gave, the first of them at `pos`, for the first stage, and for whoever takes its place.
    pub(crate) fn feed(&mut self, pos: u32, rows: &[f32]) {
        let width = usize::try_from(self.spec.width).unwrap_or(usize::MAX);
        self.fed.truncate(usize::try_from(pos).unwrap_or(usize::MAX).saturating_mul(width));
        self.fed.extend_from_slice(rows);
    }

    /// Rows of the prompt that have come back since they were last asked for, where all of them do.
    pub(crate) fn results(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.last)
    }

    /// Stages that were lost, and who took over.
    pub(crate) fn recoveries(&self) -> Vec<Recovery> {
        self.recoveries.clone()
    }

    /// Rows of the prompt that all stages have from before: what is sent begins there.
    pub(crate) fn kept_rows(&self) -> u32 {
        self.kept_rows
    }

    pub(crate) fn profile(&self) -> Profile {
        self.spec.profile
    }

    /// Sends a chunk of the prompt; waits only while the window is full.
    pub(crate) async fn push_chunk(&mut self, ids: &[u32], pos: u32) -> Result<(), InferError> {
        let window = usize::from(self.spec.window.clamp(1, PREFILL_WINDOW));
        while self.expected.len() >= window {
            self.result().await?;
        }
        let deadline = Instant::now() + self.spec.step_timeout.saturating_mul(self.chunks_under_way() + 1);
        self.send(StreamKind::Bulk, ids, pos, !self.spec.all_rows, deadline).await
    }

    /// Waits for all chunks; the last row of the prompt, or its logits, or all rows that have not been asked for.
    pub(crate) async fn end_of_prefill(&mut self) -> Result<Vec<f32>, InferError> {
        while !self.expected.is_empty() {
            self.result().await?;
        }
        Ok(std::mem::take(&mut self.last))
    }

    /// Whether rows may begin before the end of those before.
    pub(crate) fn rewinds(&self) -> bool {
        self.rewinds
    }

    /// Runs tokens through the chain; as many rows come back. They may begin before the end of those before, if the chain
    /// [rewinds](Self::rewinds).
    pub(crate) async fn decode(&mut self, ids: &[u32], pos: u32) -> Result<Vec<f32>, InferError> {
        self.send(StreamKind::Decode, ids, pos, false, Instant::now() + self.spec.step_timeout).await?;
        self.result().await?;
        Ok(std::mem::take(&mut self.last))
    }

    /// Gives rows to the first stage. They are known from then on, so that they can be given to another, too.
    async fn send(
        &mut self,
        kind: StreamKind,
        ids: &[u32],
        pos: u32,
        last_row_only: bool,
        deadline: Instant,
    ) -> Result<(), InferError> {
        let at = usize::try_from(pos).unwrap_or(usize::MAX);
        if self.ids.get(at..at.saturating_add(ids.len())) != Some(ids) {
            self.ids.truncate(at);
            self.ids.extend_from_slice(ids);
        }
        self.rewound = pos < self.sent;
        let rows = u16::try_from(ids.len()).unwrap_or(u16::MAX);
        self.sent = pos.saturating_add(u32::from(rows));
        let (back_from, back) = if last_row_only { (self.sent.saturating_sub(1), 1) } else { (pos, rows) };
        self.expected.push_back(Expected { pos: back_from, rows: back, given: rows, kind, data: Vec::new() });
        self.paying.sent(kind, rows);
        let how = How { kind, last_row_only, rewind: self.rewound, deadline };
        match self.give(pos, self.sent, how) {
            Ok(()) => Ok(()),
            Err(trouble) => self.recover(trouble).await,
        }
    }

    /// What this chain does for a coordinator without the model's ends.
    pub(crate) fn ends(&self) -> Ends {
        self.spec.ends
    }

    /// Embeds rows `from..until`, unless the first stage does, and queues them for the first stage, as one batch.
    fn give(&mut self, from: u32, until: u32, how: How) -> Result<(), Trouble> {
        let at = |pos: u32| usize::try_from(pos).unwrap_or(usize::MAX);
        let ids = self.ids.get(at(from)..at(until)).unwrap_or_default();
        let form_of_rows = Form::of_rows(self.spec.profile);
        let (form, data) = match &self.spec.embed {
            Some(embed) => {
                let mut rows = embed.stage().embed(ids).map_err(|e| engine(&e))?;
                if form_of_rows == Form::Rows16 {
                    round_to_bf16(&mut rows);
                }
                (form_of_rows, rows)
            }
            None if self.spec.fed => {
                let width = usize::try_from(self.spec.width).unwrap_or(usize::MAX);
                let rows = at(from).saturating_mul(width)..at(until).saturating_mul(width);
                (form_of_rows, self.fed.get(rows).unwrap_or_default().to_vec())
            }
            None => (Form::Tokens, Batch::of_tokens(ids)),
        };
        let rows = u16::try_from(ids.len()).unwrap_or(u16::MAX);
        let (session, epoch, seq) = (self.id, self.epoch, self.next_seq);
        let How { kind, last_row_only, rewind, deadline } = how;
        if let Some(trust) = &self.trust {
            trust.sent(from, rewind, rows, &data);
        }
        let link = if kind == StreamKind::Decode { &self.decode } else { &self.bulk };
        let batch = Batch { session, epoch, seq, pos: from, rows, last_row_only, rewind, deadline, form, data };
        let bytes = batch.wire_bytes();
        link.send(batch).map_err(|error| {
            let why = link.end().map_or_else(|| error.to_string(), |end| end.to_string());
            self.first_hop_lost(ErrorCode::HopLost, &why)
        })?;
        self.bytes.0 += u64::from(bytes.unwrap_or(0));
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
    ///
    /// # Errors
    /// When what the stages have signed for does not fit together.
    pub(crate) async fn finish(&mut self) -> Result<Vec<HopReport>, InferError> {
        self.closed = true;
        for stage in &self.stages {
            let _ = stage.control.sender.send(Close { session: self.id, epoch: self.epoch });
        }
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut waiting: Vec<PeerId> = self.stages.iter().map(|stage| stage.hop.peer).collect();
        let mut gone = Vec::new();
        while !waiting.is_empty() {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some((peer, event))) => {
                    let said_all = match &event {
                        FromStage::Frame(frame) => matches!(**frame, Frame::Closed(_) | Frame::Fault(_)),
                        FromStage::Lost(_) => true,
                        FromStage::Judged => continue,
                    };
                    let closed = matches!(&event, FromStage::Frame(frame) if matches!(**frame, Frame::Closed(_)));
                    // What it computed has come back: the whole chain's rows, or the answer would not be complete. It is
                    // counted once, however often it says so.
                    if closed && self.sent > self.kept_rows && waiting.contains(&peer) {
                        self.results.plane.handle.deed(peer, Deed::Served);
                    }
                    if said_all {
                        waiting.retain(|p| *p != peer);
                    }
                    if said_all && !closed {
                        gone.push(peer);
                    }
                    // The answer is complete; a stage that is lost now only misses in the report.
                    drop(self.event(peer, event));
                }
                Ok(None) | Err(_) => break,
            }
        }
        if let Some(trust) = &self.trust {
            trust.settled(self.sent, deadline).await;
            trust.trouble()?;
        }
        gone.extend(waiting);
        // All that the stages say is signed, and nothing is paid: nobody could know before now whether it would be drawn.
        let signed = |peer: &PeerId| self.trust.as_ref().is_some_and(|trust| trust.report(peer).is_some());
        let tried: Vec<PeerId> = self.stages.iter().map(|stage| stage.hop.peer).filter(signed).collect();
        self.drawn = self.spec.draws.draw(&tried);
        if let (Some(drawn), Some(trust)) = (&mut self.drawn, &self.trust) {
            drawn.envelopes = tried.iter().filter_map(|peer| Some((*peer, trust.envelope(peer)?))).collect();
        }
        if self.drawn.is_some() && self.spec.draws.by_others() {
            let trail = self.trail();
            if let Some(drawn) = &mut self.drawn {
                drawn.trail = Some(Box::new(trail));
            }
        }
        self.settle(gone, &tried).await?;
        let committed = |stage: &Stage| self.trust.as_ref().and_then(|trust| trust.report(&stage.hop.peer));
        Ok(self.stages.iter().map(|stage| report(stage, committed(stage))).collect())
    }
}

impl ChainSession {
    /// Pays the stages for what they have done, as they say themselves where that can be. Those that are `gone` say nothing.
    /// Of an answer that is drawn, the notes of those that are `tried` wait.
    async fn settle(&mut self, mut gone: Vec<PeerId>, tried: &[PeerId]) -> Result<(), InferError> {
        if !self.paying.costs() && !self.spec.receipt {
            return Ok(());
        }
        let deadline = Instant::now() + self.spec.step_timeout;
        while !self.paying.all_said(&gone) {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some((peer, FromStage::Lost(_)))) => gone.push(peer),
                Ok(Some((peer, event))) => drop(self.event(peer, event)),
                Ok(None) | Err(_) => break,
            }
        }
        let (cost, held) = self.paying.settle(if self.drawn.is_some() { tried } else { &[] }).await;
        if let Some(drawn) = &mut self.drawn {
            drawn.held = held;
        }
        self.cost = (!cost.stages.is_empty()).then_some(cost);
        if self.spec.receipt {
            let prompt_rows = u32::try_from(self.spec.query.prompt_rows).unwrap_or(u32::MAX);
            let about = About {
                session: self.id.0,
                model: self.spec.model,
                profile: self.spec.profile,
                layers: self.spec.layers,
                span: self.spec.query.span,
                prompt_rows,
                answer_rows: self.sent.saturating_sub(prompt_rows),
                at: unix_ms(),
            };
            let commitment = |peer: &PeerId| self.trust.as_ref().and_then(|trust| trust.envelope(peer));
            self.receipt = Some(self.paying.sealed(about, commitment)?);
        }
        Ok(())
    }

    /// Whether any stage asks a price.
    pub(crate) fn is_paid(&self) -> bool {
        self.paying.costs()
    }

    /// What the stages got, after [`Self::finish`]; nothing where none asks a price.
    pub(crate) fn cost(&self) -> Option<Cost> {
        self.cost.clone()
    }

    /// That the answer was drawn to be computed again, with the notes that wait for that.
    pub(crate) fn take_drawn(&mut self) -> Option<Drawn> {
        self.drawn.take()
    }

    /// The receipt, where one was asked for.
    pub(crate) fn receipt(&self) -> Option<Vec<u8>> {
        self.receipt.clone()
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
fn report(stage: &Stage, committed: Option<CommittedRows>) -> HopReport {
    let totals = stage.totals.unwrap_or_default();
    let per_row = |us: u64| us as f64 / 1e3 / totals.rows_out.max(1) as f64;
    HopReport {
        peer: stage.hop.peer.to_string(),
        layers: stage.hop.span.to_string(),
        rows: totals.rows_out,
        compute_ms_per_row: per_row(totals.compute_us),
        queue_ms_per_row: per_row(totals.queue_us),
        hop_ms: (totals.hop_us > 0).then_some(totals.hop_us as f64 / 1e3),
        committed,
    }
}

fn route_hop(hop: &Hop) -> RouteHop {
    RouteHop {
        peer: hop.peer.to_string(),
        layers: hop.span.to_string(),
        rtt_ms: hop.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        sees_tokens: false,
        gives_logits: false,
    }
}

fn unreachable_hop(hop: &Hop, why: &str) -> InferError {
    InferError::new(ErrorCode::DialFailed, format!("peer {} (layers {}) cannot be reached: {why}", hop.peer, hop.span))
        .about(hop.peer)
}

fn lost_hop(hop: &Hop, why: &str) -> InferError {
    InferError::new(ErrorCode::HopLost, format!("peer {} (layers {}) is lost: {why}", hop.peer, hop.span))
        .about(hop.peer)
}
