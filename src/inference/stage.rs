//! Sessions that this node runs as a stage: it takes rows from one neighbour, computes its layers, and hands them on.
//!
//! The rules are [`quelea_shard::session::Session`]'s; this file owns the sessions, does what the machine says, and
//! holds what it needs for that: a cache in the stage's runner, the links to the next peer, the coordinator's ear.
//! [`admission`] decides who is taken, [`mod@compute`] moves batches through the engine, [`mod@log`] keeps what was handed
//! on, on disk ([`spill`]) where memory is short, and [`failover`] hands it on again.

mod admission;
mod compute;
mod failover;
mod log;
#[cfg(test)]
pub(crate) mod mischief;
mod paid;
mod signing;
mod spill;
mod turnover;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::PeerId;
use quelea_engine::runner::Output;
use quelea_shard::{
    commitment::{self, Roots},
    frame::{Closed, Frame, Keep, Open, SessionId, StreamKind},
    link::{Batch, ControlLink, ControlSender, DataSender, LinkEnd, Role},
    protocol::{self, Negotiated},
    reassembly::Expect,
    session::{Act, Arrived, Event, Session, Step},
};
use quelea_wire::{
    ErrorCode,
    rate::{Cell, PeerBuckets, Quota},
};
use tokio::{sync::mpsc, task::AbortHandle, time::Instant};

pub(super) use self::signing::Signer;
use self::{
    admission::{REACH_NEXT, opened},
    compute::{BatchMeta, compute, hand_on},
    failover::Out,
    log::Log,
    paid::{Account, Spent, Waiting},
    turnover::Turnover,
};
pub(crate) use self::{log::LogBudget, spill::Disk};
use super::{
    fair::{self, Claim},
    plane::{Plane, engine_code},
    prefix,
    serve::Served,
};
use crate::{ledger::Ledger, telemetry::traces::Span};

/// Sessions of one coordinator. A user has a few requests at once; an API node some dozens.
pub(super) const MAX_PER_COORDINATOR: usize = 32;

/// Sessions in all. Each holds a few hundred bytes besides its KV pages, which admission bounds.
pub(super) const MAX_SESSIONS: usize = 512;

/// How long a session may stay open before its first row. Rows follow an Accept within a round trip; a session that is
/// opened and left holds pages that others want.
const UNUSED: Duration = Duration::from_secs(5);

/// Batches of one coordinator that may be at a stage at once: four chunks of a prompt for each of its sessions.
const MAX_IN_FLIGHT: usize = 4 * MAX_PER_COORDINATOR;

/// When so many quarters of a stage's queue are taken, a coordinator that has more in it than others makes room for them:
/// before it is full, so that there is a place for the newcomer at once.
const CROWDED_QUARTERS: usize = 3;

/// Sessions that a coordinator may open in [`OPEN_PERIOD`]: twice as many as it may have, at once, then 16 a second.
const OPENS: u32 = 64;

/// Sessions that all may open in that time: four times as many as there are places. An address range has no more than its
/// connections' coordinators have.
const OPENS_OF_ALL: u32 = 2048;
const OPEN_PERIOD: Duration = Duration::from_secs(4);

/// Control frames that a coordinator may send in [`PACE`] before it is made to wait, by not being read: opening, trimming
/// and closing all its sessions several times over.
const FRAMES_PER_PACE: usize = 512;
const PACE: Duration = Duration::from_millis(125);

/// What a session holds while it is open.
struct Held {
    served: Arc<Served>,
    cache: quelea_engine::runner::SessionId,
    decode: DataSender,
    bulk: DataSender,
    /// The number of the batch that is handed on next.
    next_seq: u32,
    /// What was handed on, or will be.
    log: Log,
    out: Out,
    /// What it commits to.
    roots: Roots,
    /// Waits for the end of the links; of no use once the session is over.
    watch: Option<AbortHandle>,
}

impl Held {
    /// Whether the session gives rows back to its coordinator. Not told by who comes next: the coordinator may hold layers in
    /// the middle of its own chain.
    fn is_last_stage(&self, open: &Open) -> bool {
        open.span.end() == self.served.file.layers()
    }
}

/// Values of each of so many rows.
fn width_of(values: &[f32], rows: u16) -> usize {
    values.len() / usize::from(rows).max(1)
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
    /// What it costs.
    account: Account,
    /// Its trace here.
    span: Span,
}

impl Entry {
    /// What others see who want its place.
    fn claim(&self, key: (PeerId, SessionId), now: Instant) -> Claim<(PeerId, SessionId)> {
        Claim {
            key,
            owner: self.coordinator,
            used: self.machine.totals().rows_in > 0,
            busy: self.machine.in_flight() > 0,
            quiet: now.duration_since(self.machine.active()),
        }
    }

    /// Says of the span what the session came to.
    fn traced_to_its_end(&mut self, in_order: bool) {
        let totals = self.machine.totals();
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.span.set("quelea.rows", whole(totals.rows_out));
        self.span.set("quelea.compute_us", whole(totals.compute_us));
        self.span.set("quelea.queue_us", whole(totals.queue_us));
        self.span.set("quelea.closed_in_order", in_order);
    }

    /// What time alone does to the session now.
    fn due(&self, now: Instant) -> Option<Event> {
        if self.machine.wake_at().is_some_and(|at| at <= now) {
            return Some(Event::Tick);
        }
        if let Some(detail) = self.account.overdue(now) {
            return Some(Event::Failed { code: ErrorCode::NotCovered, about: None, detail });
        }
        let unused = self.machine.totals().rows_in == 0 && now.duration_since(self.since) >= UNUSED + REACH_NEXT;
        let detail = String::from("no rows came");
        unused.then_some(Event::Failed { code: ErrorCode::IdleTimeout, about: None, detail })
    }
}

/// By coordinator and name; rows are looked up by predecessor and name, which `routes` maps.
struct Tables {
    entries: HashMap<(PeerId, SessionId), Entry>,
    routes: HashMap<(PeerId, SessionId), PeerId>,
    /// Sessions of each coordinator that has any.
    held: HashMap<PeerId, usize>,
    opens: PeerBuckets,
    all_opens: Cell,
    next_stream: u64,
    signer: Signer,
    ledger: Ledger,
    spent: Spent,
    turnover: Turnover,
}

impl Tables {
    fn new(signer: Signer, ledger: Ledger) -> Self {
        Self {
            entries: HashMap::new(),
            routes: HashMap::new(),
            held: HashMap::new(),
            opens: PeerBuckets::new(OPENS, OPEN_PERIOD),
            all_opens: Cell::new(Quota::new(OPENS_OF_ALL, OPEN_PERIOD)),
            next_stream: 0,
            signer,
            ledger,
            spent: Spent::default(),
            turnover: Turnover::default(),
        }
    }

    /// When one of the sessions that are open may be over, in milliseconds.
    fn retry_after_ms(&self) -> u32 {
        u32::try_from(self.turnover.free_in(self.entries.len()).as_millis()).unwrap_or(u32::MAX)
    }
}

/// All sessions that this node runs as a stage.
pub(super) struct StageTable {
    tables: Mutex<Tables>,
    groups: RandomState,
    /// Room for what sessions have handed on.
    logs: LogBudget,
}

impl StageTable {
    /// No sessions; what they commit to goes to `signer`, what they cost to `ledger`, and what they hand on is kept in `logs`.
    pub(super) fn new(signer: Signer, ledger: Ledger, logs: LogBudget) -> Self {
        Self { tables: Mutex::new(Tables::new(signer, ledger)), groups: RandomState::new(), logs }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the stages of this node do wrong.
    #[cfg(test)]
    pub(super) fn mood(&self) -> mischief::Mood {
        self.lock().signer.mood.clone()
    }

    /// The shape of rows that a session takes, for the data streams.
    pub(super) fn expect(&self, from: &PeerId, session: &SessionId, epoch: u32) -> Option<Expect> {
        let tables = self.lock();
        let coordinator = tables.routes.get(&(*from, *session))?;
        tables.entries.get(&(*coordinator, *session))?.machine.expect(from, epoch)
    }

    /// The coordinator's group in the stage's runner. A keyed hash: nobody can choose to share another's turns.
    fn group(&self, coordinator: &PeerId) -> u64 {
        self.groups.hash_one(coordinator)
    }

    /// Bytes of what sessions have handed on.
    pub(super) fn log_bytes(&self) -> usize {
        self.logs.taken()
    }

    /// Bytes of it on disk.
    pub(super) fn log_bytes_on_disk(&self) -> u64 {
        self.logs.on_disk()
    }

    /// Sessions that are open.
    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// A batch from a predecessor.
    pub(super) fn rows(&self, plane: &Arc<Plane>, from: PeerId, kind: StreamKind, batch: Batch) {
        // Before the lock, which all sessions share.
        let input = commitment::digests(&batch.data, width_of(&batch.data, batch.rows));
        let mut tables = self.lock();
        let Some(&coordinator) = tables.routes.get(&(from, batch.session)) else { return };
        let key = (coordinator, batch.session);
        let crowded = tables.in_flight(&coordinator) >= MAX_IN_FLIGHT;
        if !crowded {
            tables.thin_out(&key);
        }
        let Some(entry) = tables.entries.get_mut(&key) else { return };
        if crowded {
            let detail = format!("{MAX_IN_FLIGHT} batches of yours are being computed");
            let step =
                entry.machine.on(Instant::now(), Event::Failed { code: ErrorCode::Overloaded, about: None, detail });
            return tables.done(key, step);
        }
        let event = Event::Rows { from, batch: Arrived::of(&batch) };
        let step = entry.machine.on(Instant::now(), event);
        if step.act == Act::Compute
            && let Some(Waiting { kind, batch, input }) =
                entry.account.take(Instant::now(), Waiting { kind, batch, input })
        {
            compute(plane, key, entry, kind, batch, input);
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

    /// Takes a session of somebody else away that `newcomer` needs the place of more; says whether there was one. Only
    /// sessions that `wanted` says yes to help.
    fn make_room(&self, newcomer: PeerId, wanted: impl Fn(&Held) -> bool) -> bool {
        self.lock().make_room(newcomer, |entry| entry.held.as_ref().is_some_and(&wanted))
    }

    /// Ends a session that cannot go on, and says why to its coordinator.
    fn fail(&self, key: (PeerId, SessionId), epoch: u32, code: ErrorCode, about: Option<PeerId>, detail: String) {
        let mut tables = self.lock();
        let Some(entry) = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == epoch) else { return };
        let step = entry.machine.on(Instant::now(), Event::Failed { code, about, detail });
        tables.done(key, step);
    }

    /// Nothing can be handed on in a session any more.
    fn next_lost(&self, key: (PeerId, SessionId), epoch: u32, code: ErrorCode, detail: String) {
        let mut tables = self.lock();
        let Some(entry) = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == epoch) else { return };
        if let Some(held) = &mut entry.held {
            held.out.hold();
        }
        let step = entry.machine.on(Instant::now(), Event::NextLost { epoch, code, detail });
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
        plane.telemetry.stats.log_bytes.set(u64::try_from(self.log_bytes()).unwrap_or(u64::MAX));
        plane.telemetry.stats.log_bytes_on_disk.set(self.log_bytes_on_disk());
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
        plane: &Arc<Plane>,
        runtime: &tokio::runtime::Handle,
        key: (PeerId, SessionId),
        kind: StreamKind,
        meta: &BatchMeta,
        result: Result<Output, quelea_engine::runner::JobError>,
    ) {
        let given = result.as_ref().map_or(&[][..], |output| &output.rows);
        let given = commitment::digests(given, width_of(given, meta.rows));
        #[cfg(test)]
        let (given, result) = {
            let (mut given, mut result) = (given, result);
            result.iter_mut().for_each(|output| self.mood().spoil(meta.pos, &mut given, output));
            (given, result)
        };
        let mut tables = self.lock();
        let signer = tables.signer.clone();
        // Of an epoch before, too: its rows are rows of the session, unless that was opened anew.
        let awaited = tables.entries.get_mut(&key).filter(|e| e.machine.awaits(meta.epoch, meta.seq));
        let Some(entry) = awaited else { return };
        let events = match result {
            Ok(output) => hand_on(entry, kind, meta, output),
            Err(error) => {
                [Some(Event::Failed { code: engine_code(&error), about: None, detail: error.to_string() }), None]
            }
        };
        if let Some(held) = &mut entry.held {
            let forgot = Event::Forgot { log_from: held.log.from() };
            if entry.machine.survives() {
                // Has no answer.
                let _ = entry.machine.on(Instant::now(), forgot);
            }
            // Logits are not rows: whoever gives them signs for nothing.
            if entry.machine.survives() && entry.machine.open().ends.gives_logits == 0 {
                let open = entry.machine.open();
                let is_last_stage = held.is_last_stage(open);
                let points = held.roots.computed(meta.pos, [&meta.input, &given], meta.last_row_only, is_last_stage);
                signer.commit(&entry.control, open, points);
            }
            if held.out.goes_on(held.log.end()) {
                failover::replay(plane, runtime, key, entry.machine.open().epoch);
            }
        }
        for event in events.into_iter().flatten() {
            let Some(entry) = tables.entries.get_mut(&key) else { return };
            let step = entry.machine.on(Instant::now(), event);
            tables.done(key, step);
        }
    }
}

impl Tables {
    /// Batches of a coordinator that are being computed.
    fn in_flight(&self, coordinator: &PeerId) -> usize {
        let own = self.entries.values().filter(|e| e.coordinator == *coordinator);
        own.map(|e| e.machine.in_flight()).sum()
    }

    /// When the queue of the stage that `key` runs on is crowded: ends the busiest session of the coordinator that has
    /// most in it, unless that is the one that comes with more.
    fn thin_out(&mut self, key: &(PeerId, SessionId)) {
        let Some(held) = self.entries.get(key).and_then(|e| e.held.as_ref()) else { return };
        if held.served.runner.load().queued < held.served.queue * CROWDED_QUARTERS / 4 {
            return;
        }
        let here = |e: &&Entry| e.held.as_ref().is_some_and(|h| Arc::ptr_eq(&h.served, &held.served));
        let loads = self.entries.values().filter(here).map(|e| (e.coordinator, e.machine.in_flight()));
        let Some(heaviest) = fair::heaviest(loads, &key.0) else { return };
        let its = self.entries.iter().filter(|(_, e)| e.coordinator == heaviest && here(e));
        let busiest = its.max_by_key(|(_, e)| e.machine.in_flight()).map(|(key, _)| *key);
        if let Some(busiest) = busiest {
            self.end(busiest, ErrorCode::Overloaded, "others wait for their turn");
        }
    }

    /// See [`StageTable::make_room`].
    fn make_room(&mut self, newcomer: PeerId, wanted: impl Fn(&Entry) -> bool) -> bool {
        // Asked for every Open while it is full, so the quick answer first.
        let mine = self.held.get(&newcomer).copied().unwrap_or_default();
        if self.held.values().all(|theirs| *theirs <= mine) {
            return false;
        }
        let now = Instant::now();
        let claims: Vec<_> =
            self.entries.iter().filter(|(_, e)| wanted(e)).map(|(key, e)| e.claim(*key, now)).collect();
        let gives_way = fair::gives_way(&claims, &newcomer);
        if let Some(key) = gives_way {
            self.end(key, ErrorCode::Evicted, "others wait for a place");
        }
        gives_way.is_some()
    }

    fn end(&mut self, key: (PeerId, SessionId), code: ErrorCode, detail: &str) {
        if let Some(entry) = self.entries.get_mut(&key) {
            let failed = Event::Failed { code, about: None, detail: detail.into() };
            let step = entry.machine.on(Instant::now(), failed);
            self.done(key, step);
        }
    }

    /// Sends the machine's reply and lets go of what a closed session held.
    fn done(&mut self, key: (PeerId, SessionId), step: Step) {
        let in_order = matches!(&step.reply, Some(Frame::Closed(Closed { code: None, .. })));
        if let (Some(entry), Some(frame)) = (self.entries.get(&key), step.reply) {
            // A coordinator that leaves 256 frames unread has gone; its stream's end closes its sessions.
            let _ = entry.control.send(frame);
        }
        if step.act == Act::Release
            && let Some(mut entry) = self.entries.remove(&key)
        {
            if entry.held.is_some() {
                self.turnover.ended(entry.since.elapsed());
            }
            entry.traced_to_its_end(in_order);
            let open = entry.machine.open();
            let mut closing = None;
            if let (true, true, Some(held)) = (in_order, entry.machine.survives(), &mut entry.held) {
                closing = held.roots.closing().filter(|_| open.ends.gives_logits == 0);
                self.signer.commit(&entry.control, open, closing);
            }
            if in_order && entry.control.features() & protocol::PAY != 0 {
                let part = entry.account.part(key.0, open, closing);
                self.signer.receipt(&entry.control, part);
            }
            entry.account.over(&self.ledger, key.0, &mut self.spent);
            self.routes.remove(&(entry.machine.open().prev, key.1));
            if let Some(held) = self.held.get_mut(&key.0) {
                *held -= 1;
                if *held == 0 {
                    self.held.remove(&key.0);
                }
            }
        }
    }
}

/// Serves a coordinator's control stream to its end.
pub(super) async fn serve_control<S>(plane: &Arc<Plane>, coordinator: PeerId, stream: Negotiated<S>) -> LinkEnd
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, mut receiver) = ControlLink::spawn(stream, Role::Stage);
    let (to_ledger, vouchers) = mpsc::channel(paid::VOUCHERS);
    tokio::spawn(paid::keep_vouchers(plane.clone(), coordinator, vouchers));
    let id = plane.stages.next_stream();
    let (mut paced, mut frames) = (Instant::now(), 0);
    while let Some(frame) = receiver.recv().await {
        frames += 1;
        if paced.elapsed() >= PACE {
            (paced, frames) = (Instant::now(), 0);
        } else if frames >= FRAMES_PER_PACE {
            tokio::time::sleep_until(paced + PACE).await;
        }
        match frame {
            Frame::Open(open) => opened(plane, coordinator, id, &sender, open),
            Frame::Trim(f) => told(plane, (coordinator, f.session), Event::Trim(f)),
            Frame::Keep(f) => named(plane, coordinator, &f),
            Frame::Probe(f) => told(plane, (coordinator, f.session), Event::Probe(f)),
            Frame::Cancel(f) => told(plane, (coordinator, f.session), Event::Cancel(f)),
            Frame::Close(f) => told(plane, (coordinator, f.session), Event::Close(f)),
            Frame::Reroute(f) => failover::rerouted(plane, coordinator, f),
            Frame::Resume(f) => failover::resumed(plane, coordinator, f),
            // Its end is this stream's: it is there as long as this sends.
            Frame::Voucher(f) => drop(to_ledger.send(f).await),
            _ => {}
        }
    }
    plane.stages.control_ended(coordinator, id);
    receiver.ended().await
}

/// The coordinator names more blocks of a session.
fn named(plane: &Arc<Plane>, coordinator: PeerId, keep: &Keep) {
    let key = (coordinator, keep.session);
    let mut tables = plane.stages.lock();
    let Some(entry) = tables.entries.get_mut(&key) else { return };
    let step = entry.machine.on(Instant::now(), Event::Keep { epoch: keep.epoch });
    if let (Act::Keep, Some(held)) = (step.act, &entry.held) {
        held.served.runner.keep(held.cache, usize::from(keep.first), prefix::keys_from_wire(&keep.keys));
    }
    tables.done(key, step);
}

/// An event that the coordinator caused.
fn told(plane: &Arc<Plane>, key: (PeerId, SessionId), event: Event) {
    let mut tables = plane.stages.lock();
    let Some(entry) = tables.entries.get_mut(&key) else { return };
    let step = entry.machine.on(Instant::now(), event);
    if let (Act::Trim { keep_rows }, Some(held)) = (step.act, &mut entry.held) {
        held.served.runner.trim(held.cache, keep_rows);
        held.log.cut(keep_rows);
        held.roots.cut(keep_rows);
        held.out.cut(keep_rows);
    }
    tables.done(key, step);
}
