//! Sessions that this node runs as a stage: it takes rows from one neighbour, computes its layers, and hands them on.
//!
//! The rules are [`quelea_shard::session::Session`]'s; this file owns the sessions, does what the machine says, and
//! holds what it needs for that: a cache in the stage's runner, the links to the next peer, the coordinator's ear.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::PeerId;
use quelea_engine::runner::{Job, Output, Phase as JobPhase};
use quelea_shard::{
    frame::{Frame, Open, Refuse, SessionId, StreamKind},
    link::{Batch, ControlLink, ControlSender, DataSender, LinkEnd, Role},
    protocol::Negotiated,
    reassembly::Expect,
    session::{Act, Arrived, Event, Session, Step},
};
use quelea_wire::ErrorCode;
use tokio::{task::AbortHandle, time::Instant};

use super::{
    plane::{Plane, engine_code},
    serve::Served,
};

/// Sessions of one coordinator. A user has a few requests at once; an API node some dozens.
pub(super) const MAX_PER_COORDINATOR: usize = 32;

/// Sessions in all. Each holds a few hundred bytes besides its KV pages, which admission bounds.
pub(super) const MAX_SESSIONS: usize = 512;

/// The longest that a coordinator may leave a session idle, whatever it asks for: its pages are wanted.
const MAX_IDLE: Duration = Duration::from_secs(120);

/// How long a session may stay open before its first row. Rows follow an Accept within a round trip; a session that is
/// opened and left holds pages that others want.
const UNUSED: Duration = Duration::from_secs(5);

/// How long a stage may take to reach the next peer when a session opens.
const REACH_NEXT: Duration = Duration::from_secs(5);

/// What a session holds while it is open.
struct Held {
    served: Arc<Served>,
    cache: quelea_engine::runner::SessionId,
    decode: DataSender,
    bulk: DataSender,
    /// Waits for the end of the links; of no use once the session is over.
    watch: Option<AbortHandle>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.served.runner.close(self.cache);
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

struct Entry {
    machine: Session,
    coordinator: PeerId,
    control: ControlSender,
    /// Which control stream opened it, so that the stream's end takes exactly its sessions along.
    stream: u64,
    held: Option<Held>,
    since: Instant,
}

impl Entry {
    /// What time alone does to the session now.
    fn due(&self, now: Instant) -> Option<Event> {
        if self.machine.wake_at().is_some_and(|at| at <= now) {
            return Some(Event::Tick);
        }
        let unused = self.machine.totals().rows_in == 0 && now.duration_since(self.since) >= UNUSED + REACH_NEXT;
        let detail = String::from("no rows came");
        unused.then_some(Event::Failed { code: ErrorCode::IdleTimeout, about: None, detail })
    }
}

/// By coordinator and name; rows are looked up by predecessor and name, which `routes` maps.
#[derive(Default)]
struct Tables {
    entries: HashMap<(PeerId, SessionId), Entry>,
    routes: HashMap<(PeerId, SessionId), PeerId>,
    next_stream: u64,
}

/// All sessions that this node runs as a stage.
#[derive(Default)]
pub(super) struct StageTable {
    tables: Mutex<Tables>,
}

impl StageTable {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shape of rows that a session takes, for the data streams.
    pub(super) fn expect(&self, from: &PeerId, session: &SessionId, epoch: u32) -> Option<Expect> {
        let tables = self.lock();
        let coordinator = tables.routes.get(&(*from, *session))?;
        tables.entries.get(&(*coordinator, *session))?.machine.expect(from, epoch)
    }

    /// Sessions that are open.
    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// A batch from a predecessor.
    pub(super) fn rows(&self, plane: &Arc<Plane>, from: PeerId, kind: StreamKind, batch: Batch) {
        let mut tables = self.lock();
        let Some(&coordinator) = tables.routes.get(&(from, batch.session)) else { return };
        let key = (coordinator, batch.session);
        let Some(entry) = tables.entries.get_mut(&key) else { return };
        let event = Event::Rows { from, batch: Arrived::of(&batch) };
        let step = entry.machine.on(Instant::now(), event);
        if step.act == Act::Compute {
            compute(plane, key, entry, kind, batch);
        }
        tables.done(key, step);
    }

    /// A predecessor sent rows that cannot be used.
    pub(super) fn bad_rows(&self, from: PeerId, session: SessionId, epoch: u32, code: ErrorCode) {
        let coordinator = self.lock().routes.get(&(from, session)).copied();
        if let Some(coordinator) = coordinator {
            let detail = format!("rows from {from} are not usable");
            self.fail((coordinator, session), epoch, code, Some(from), detail);
        }
    }

    /// Ends a session that cannot go on, and says why to its coordinator.
    fn fail(&self, key: (PeerId, SessionId), epoch: u32, code: ErrorCode, about: Option<PeerId>, detail: String) {
        let mut tables = self.lock();
        let Some(entry) = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == epoch) else { return };
        let step = entry.machine.on(Instant::now(), Event::Failed { code, about, detail });
        tables.done(key, step);
    }

    /// Deadlines, idle sessions, and sessions that were opened and never used.
    pub(super) fn tick(&self, plane: &Plane) {
        let now = Instant::now();
        let mut tables = self.lock();
        let due: Vec<_> = tables.entries.iter().filter_map(|(key, entry)| Some((*key, entry.due(now)?))).collect();
        for (key, event) in due {
            if let Some(entry) = tables.entries.get_mut(&key) {
                let step = entry.machine.on(now, event);
                tables.done(key, step);
            }
        }
        plane.telemetry.stats.shard_sessions.set(u64::try_from(tables.entries.len()).unwrap_or(u64::MAX));
    }

    /// A name for a control stream, unique in this process.
    fn next_stream(&self) -> u64 {
        let mut tables = self.lock();
        tables.next_stream += 1;
        tables.next_stream
    }

    /// A coordinator is gone, and with it whoever wanted the sessions that this stream opened.
    fn control_ended(&self, coordinator: PeerId, stream: u64) {
        let mut tables = self.lock();
        let orphans: Vec<_> = tables
            .entries
            .iter()
            .filter(|(_, e)| e.coordinator == coordinator && e.stream == stream)
            .map(|(key, _)| *key)
            .collect();
        for key in orphans {
            if let Some(entry) = tables.entries.get_mut(&key) {
                let step = entry.machine.on(Instant::now(), Event::Gone);
                tables.done(key, step);
            }
        }
    }

    /// A batch was computed.
    fn computed(
        &self,
        key: (PeerId, SessionId),
        kind: StreamKind,
        meta: BatchMeta,
        result: Result<Output, quelea_engine::runner::JobError>,
    ) {
        let mut tables = self.lock();
        let Some(entry) = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == meta.epoch) else { return };
        let event = match result {
            Ok(output) => hand_on(entry, kind, &meta, output),
            Err(error) => Event::Failed { code: engine_code(&error), about: None, detail: error.to_string() },
        };
        let step = entry.machine.on(Instant::now(), event);
        tables.done(key, step);
    }
}

impl Tables {
    /// Sends the machine's reply and lets go of what a closed session held.
    fn done(&mut self, key: (PeerId, SessionId), step: Step) {
        if let (Some(entry), Some(frame)) = (self.entries.get(&key), step.reply) {
            // A coordinator that leaves 256 frames unread has gone; its stream's end closes its sessions.
            let _ = entry.control.send(frame);
        }
        if step.act == Act::Release
            && let Some(entry) = self.entries.remove(&key)
        {
            self.routes.remove(&(entry.machine.open().prev, key.1));
        }
    }
}

/// What is needed of a batch after its rows went to the engine.
struct BatchMeta {
    epoch: u32,
    seq: u32,
    pos: u32,
    rows: u16,
    last_row_only: bool,
    deadline: Instant,
}

fn compute(plane: &Arc<Plane>, key: (PeerId, SessionId), entry: &Entry, kind: StreamKind, batch: Batch) {
    let Some(held) = &entry.held else { return };
    let Batch { epoch, seq, pos, rows, last_row_only, deadline, data, .. } = batch;
    let meta = BatchMeta { epoch, seq, pos, rows, last_row_only, deadline };
    let phase = if kind == StreamKind::Decode { JobPhase::Decode } else { JobPhase::Prefill };
    let reply_to = plane.clone();
    let reply = Box::new(move |result| {
        if let Ok(output) = &result {
            reply_to.telemetry.stage_computed(phase, output);
        }
        reply_to.stages.computed(key, kind, meta, result);
    });
    let job = Job { session: held.cache, pos, rows: data, phase, deadline: deadline.into_std(), reply };
    if let Err(error) = held.served.runner.submit(job) {
        plane.telemetry.metrics.channel_full("stage");
        // Not on this thread: the table is locked here.
        let plane = plane.clone();
        tokio::spawn(async move {
            plane.stages.fail(key, epoch, ErrorCode::Overloaded, None, error.to_string());
        });
    }
}

/// Puts a computed batch into the next link's queue; what the machine is told about it.
fn hand_on(entry: &Entry, kind: StreamKind, meta: &BatchMeta, output: Output) -> Event {
    let gone = |detail: String, code| Event::Failed { code, about: Some(entry.machine.open().next), detail };
    let Some(held) = &entry.held else {
        return gone("the session is being closed".into(), ErrorCode::Internal);
    };
    let open = entry.machine.open();
    let link = if kind == StreamKind::Decode { &held.decode } else { &held.bulk };
    let width = usize::try_from(open.width).unwrap_or(usize::MAX);
    // Not told by who comes next: the coordinator may hold layers in the middle of its own chain.
    let is_last_stage = open.span.end() == held.served.file.layers();
    let (pos, rows, data) = if meta.last_row_only && is_last_stage {
        let keep = output.rows.len().saturating_sub(width);
        let pos = meta.pos.saturating_add(u32::from(meta.rows)).saturating_sub(1);
        (pos, 1, output.rows.get(keep..).unwrap_or_default().to_vec())
    } else {
        (meta.pos, meta.rows, output.rows)
    };
    let BatchMeta { epoch, seq, last_row_only, deadline, .. } = *meta;
    let batch = Batch { session: open.session, epoch, seq, pos, rows, last_row_only, deadline, data };
    match link.send(batch) {
        Ok(()) => Event::Computed {
            epoch,
            seq,
            compute_us: micros(output.compute),
            queue_us: micros(output.queued),
            hop_us: link.rtt().map_or(0, |rtt| micros(rtt.mean / 2)),
        },
        Err(error) => {
            let why = link.end().map_or_else(|| error.to_string(), |end| end.to_string());
            gone(why, ErrorCode::NextSilent)
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Serves a coordinator's control stream to its end.
pub(super) async fn serve_control<S>(plane: &Arc<Plane>, coordinator: PeerId, stream: Negotiated<S>) -> LinkEnd
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, mut receiver) = ControlLink::spawn(stream, Role::Stage);
    let id = plane.stages.next_stream();
    while let Some(frame) = receiver.recv().await {
        match frame {
            Frame::Open(open) => opened(plane, coordinator, id, &sender, open),
            Frame::Trim(f) => told(plane, (coordinator, f.session), Event::Trim(f)),
            Frame::Probe(f) => told(plane, (coordinator, f.session), Event::Probe(f)),
            Frame::Cancel(f) => told(plane, (coordinator, f.session), Event::Cancel(f)),
            Frame::Close(f) => told(plane, (coordinator, f.session), Event::Close(f)),
            _ => {}
        }
    }
    plane.stages.control_ended(coordinator, id);
    receiver.ended().await
}

/// An event that the coordinator caused.
fn told(plane: &Arc<Plane>, key: (PeerId, SessionId), event: Event) {
    let mut tables = plane.stages.lock();
    let Some(entry) = tables.entries.get_mut(&key) else { return };
    let step = entry.machine.on(Instant::now(), event);
    if let (Act::Trim { keep_rows }, Some(held)) = (step.act, &entry.held) {
        held.served.runner.trim(held.cache, keep_rows);
    }
    tables.done(key, step);
}

/// A coordinator opens a session. The name is taken at once; the rest needs the network and happens in a task.
fn opened(plane: &Arc<Plane>, coordinator: PeerId, stream: u64, control: &ControlSender, mut open: Open) {
    open.idle_ms = open.idle_ms.min(u32::try_from(MAX_IDLE.as_millis()).unwrap_or(u32::MAX));
    let key = (coordinator, open.session);
    let refuse = |code: ErrorCode, detail: String| {
        let _ = control.send(Refuse { session: open.session, epoch: open.epoch, code, detail });
    };
    let mut tables = plane.stages.lock();
    if tables.entries.contains_key(&key) || tables.routes.contains_key(&(open.prev, open.session)) {
        return refuse(ErrorCode::DuplicateSession, String::new());
    }
    let of_this = tables.entries.values().filter(|e| e.coordinator == coordinator).count();
    if of_this >= MAX_PER_COORDINATOR || tables.entries.len() >= MAX_SESSIONS {
        return refuse(ErrorCode::TooManySessions, format!("{of_this} of yours are open"));
    }
    let served = match fits(plane, &open) {
        Ok(served) => served,
        Err((code, detail)) => return refuse(code, detail),
    };
    tables.routes.insert((open.prev, open.session), coordinator);
    let machine = Session::new(open.clone(), Instant::now());
    tables.entries.insert(
        key,
        Entry { machine, coordinator, control: control.clone(), stream, held: None, since: Instant::now() },
    );
    drop(tables);
    tokio::spawn(admit(plane.clone(), key, open, served));
}

/// Whether this node serves what the coordinator wants.
fn fits(plane: &Plane, open: &Open) -> Result<Arc<Served>, (ErrorCode, String)> {
    if plane.is_draining() {
        return Err((ErrorCode::ShuttingDown, String::new()));
    }
    let served = plane.served();
    let of_model: Vec<_> = served.iter().filter(|s| s.file.id == open.model).collect();
    let Some(first) = of_model.first() else {
        return Err((ErrorCode::ModelUnknown, format!("{} is not served here", open.model.short())));
    };
    if first.width != open.width {
        return Err((ErrorCode::BadShape, format!("rows of this model have {} values", first.width)));
    }
    if first.profile != open.profile {
        return Err((ErrorCode::ProfileMismatch, format!("the profile here is {}", first.profile)));
    }
    let held: Vec<String> = of_model.iter().map(|s| s.span.to_string()).collect();
    of_model
        .into_iter()
        .find(|s| s.span.covers(&open.span))
        .cloned()
        .ok_or_else(|| (ErrorCode::LayersNotHeld, format!("held here: {}", held.join(", "))))
}

/// Reserves the cache, reaches the next peer, and answers.
async fn admit(plane: Arc<Plane>, key: (PeerId, SessionId), open: Open, served: Arc<Served>) {
    let event = match reserve(&plane, &open, &served).await {
        Ok(mut held) => {
            let kv_pages_free = served.runner.load().kv_pages_free;
            held.watch = Some(watch_next(&plane, key, &open, &held));
            let mut tables = plane.stages.lock();
            match tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == open.epoch) {
                Some(entry) => entry.held = Some(held),
                // Cancelled meanwhile; `held` gives its pages back.
                None => return,
            }
            Event::Admitted { kv_pages_free }
        }
        Err((code, detail)) => Event::NotAdmitted { code, detail },
    };
    told(&plane, key, event);
}

async fn reserve(plane: &Arc<Plane>, open: &Open, served: &Arc<Served>) -> Result<Held, (ErrorCode, String)> {
    let next = open.next;
    let reach = async {
        let decode = plane.links.data(plane, next, StreamKind::Decode, &open.next_addrs).await?;
        let bulk = plane.links.data(plane, next, StreamKind::Bulk, &open.next_addrs).await?;
        Ok::<_, super::links::LinkError>((decode, bulk))
    };
    let (decode, bulk) = match tokio::time::timeout(REACH_NEXT, reach).await {
        Ok(Ok(links)) => links,
        Ok(Err(error)) => return Err((ErrorCode::NextUnreachable, format!("{next}: {error}"))),
        Err(_) => return Err((ErrorCode::NextUnreachable, format!("{next} does not answer"))),
    };
    let layers = served.local_layers(&open.span);
    let cache = served.runner.open_layers(layers, open.max_rows).map_err(|e| (ErrorCode::NoKvPages, e.to_string()))?;
    Ok(Held { served: served.clone(), cache, decode, bulk, watch: None })
}

/// Ends the session when one of its links to the next peer ends.
fn watch_next(plane: &Arc<Plane>, key: (PeerId, SessionId), open: &Open, held: &Held) -> AbortHandle {
    let (decode, bulk) = (held.decode.ended(), held.bulk.ended());
    let plane = Arc::downgrade(plane);
    let (epoch, next) = (open.epoch, open.next);
    let watch = tokio::spawn(async move {
        let end = tokio::select! { end = decode => end, end = bulk => end };
        if let Some(plane) = plane.upgrade() {
            let code = match end {
                LinkEnd::Silent => ErrorCode::NextSilent,
                _ => ErrorCode::HopLost,
            };
            plane.stages.fail(key, epoch, code, Some(next), end.to_string());
        }
    });
    watch.abort_handle()
}
