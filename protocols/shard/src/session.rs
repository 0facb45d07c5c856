//! What a stage knows of one session: a pure state machine without clock or I/O.
//!
//! The owner feeds it frames, results and the time, sends the reply it gives, and does what it says.

mod event;

use std::{collections::VecDeque, time::Duration};

use libp2p::PeerId;
use quelea_wire::ErrorCode;
use tokio::time::Instant;

pub use self::event::{Act, Arrived, Event, Ignored, Step};
use crate::{
    frame::{
        Accept, Closed, Fault, Form, Frame, MAX_BATCH_ROWS, Open, Phase, Refuse, Reroute, Rerouted, Resume, Stalled,
        State, Totals,
    },
    reassembly::Expect,
};

/// Batches of one session that may be at the stage at once. A prompt of 4,096 rows fits in full chunks.
pub const MAX_IN_FLIGHT: usize = 32;

/// How long a session without a next peer is kept: finding another, reaching it and a second attempt at both.
pub const STALL: Duration = Duration::from_secs(30);

/// How often a session may be given other neighbours. What it has kept is sent once for each, so this bounds what a
/// coordinator can have a stage send for rows that were computed once.
pub const MAX_REROUTES: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InFlight {
    epoch: u32,
    seq: u32,
    rows: u16,
    deadline: Instant,
}

/// One session at one stage.
///
/// | phase | event | next phase | reply | act |
/// |---|---|---|---|---|
/// | – | [`Session::new`] with Open | Opening | – | Admit (by the caller) |
/// | Opening | Admitted | Live | Accept | – |
/// | Opening | NotAdmitted | Closed | Refuse | Release |
/// | Live | Rows that follow | Live | – | Compute |
/// | Live | Rows that do not follow, or more than [`MAX_IN_FLIGHT`] | Closed | Fault | Release |
/// | Live, Draining | Computed | same | – | – |
/// | Draining | Computed, nothing left in flight | Closed | Closed | Release |
/// | Live | Trim within what it has, nothing in flight | Live | State | Trim |
/// | Live | Trim otherwise | Closed | Fault | Release |
/// | Live, Draining | Keep | same | – | Keep |
/// | Opening, Live, Draining | Probe | same | State | – |
/// | Opening, Live | Close, nothing in flight | Closed | Closed | Release |
/// | Live | Close, something in flight | Draining | – | – |
/// | Opening, Live, Draining | Cancel | Closed | Closed with its code | Release |
/// | Opening, Live, Draining | Failed | Closed | Fault | Release |
/// | Opening, Live, Draining | Open of a higher epoch | Opening | – | Admit |
/// | Live, and it survives | NextLost | Live | Stalled, once | – |
/// | Live, Draining otherwise | NextLost | Closed | Fault | Release |
/// | Live, and it survives | Reroute of a higher epoch | Live | – | Reroute |
/// | Live | Reroute beyond [`MAX_REROUTES`] | Closed | Fault | Release |
/// | Live, rerouted | Linked, or Computed, with nothing left in flight and the next peer reached | Live | Rerouted | – |
/// | Live, not being rerouted | Resume of what it kept | Live | – | Resume |
/// | Live | Resume of what it has forgotten | Closed | Fault | Release |
/// | Live, stalled for [`STALL`] | Tick | Closed | Fault | Release |
/// | Opening, Live, Draining | Gone | Closed | – | Release |
/// | Live, Draining | Tick after a batch's deadline | Closed | Fault | Release |
/// | Live | Tick after the idle time, nothing in flight | Closed | Fault | Release |
/// | any | of another epoch, from another predecessor, anything else | same | – | Ignore |
///
/// A session survives when both ends know [`FAILOVER`](crate::protocol::FAILOVER). Batches that were in flight when it is
/// rerouted are computed: their rows are rows of the sequence in any epoch.
///
/// Rows follow when their position is where the rows before ended (those kept from before, at first; or a trim cut), or before that when they say that they rewind; and their number is above all before
/// in the epoch. Closed is final.
#[derive(Debug, Clone)]
pub struct Session {
    open: Open,
    phase: Phase,
    pos: u32,
    next_seq: u32,
    in_flight: VecDeque<InFlight>,
    active: Instant,
    totals: Totals,
    ignored: u64,
    survives: bool,
    /// Since when the next peer is lost, and to what.
    stalled: Option<(Instant, ErrorCode)>,
    /// While it is given other neighbours: whether the next one is reached.
    reroute: Option<bool>,
    reroutes: u32,
    log_from: u32,
}

impl Session {
    /// A session as its coordinator asks for it; the owner decides next whether it is admitted.
    #[must_use]
    pub fn new(open: Open, now: Instant) -> Self {
        Self {
            open,
            phase: Phase::Opening,
            pos: 0,
            next_seq: 0,
            in_flight: VecDeque::new(),
            active: now,
            totals: Totals::default(),
            ignored: 0,
            survives: false,
            stalled: None,
            reroute: None,
            reroutes: 0,
            log_from: 0,
        }
    }

    /// The same, to be kept when the next peer is lost.
    #[must_use]
    pub fn surviving(self) -> Self {
        Self { survives: true, ..self }
    }

    /// Whether it is kept when the next peer is lost.
    #[must_use]
    pub fn survives(&self) -> bool {
        self.survives
    }

    /// Whether the batch is one that was taken and is not yet computed.
    #[must_use]
    pub fn awaits(&self, epoch: u32, seq: u32) -> bool {
        self.in_flight.iter().any(|b| (b.epoch, b.seq) == (epoch, seq))
    }

    /// What the coordinator asked for, in the epoch that is current.
    #[must_use]
    pub fn open(&self) -> &Open {
        &self.open
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The position that the next row must have.
    #[must_use]
    pub fn pos(&self) -> u32 {
        self.pos
    }

    /// What was done so far, in all epochs.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Events that were dropped.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// When something last happened to it: it was opened, accepted or trimmed, or rows came or were computed.
    #[must_use]
    pub fn active(&self) -> Instant {
        self.active
    }

    /// Batches that were taken and are not yet computed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The shape of rows that the session takes from `from` in `epoch`; `None` when it takes none. For
    /// [`Sessions::expect`](crate::link::Sessions::expect).
    #[must_use]
    pub fn expect(&self, from: &PeerId, epoch: u32) -> Option<Expect> {
        let takes = self.phase == Phase::Live && self.open.prev == *from && self.open.epoch == epoch;
        let (form, width) =
            if self.open.ends.takes_tokens { (Form::Tokens, 1) } else { (self.open.rows(), self.open.width) };
        takes.then_some(Expect { form, width, max_rows: self.open.max_rows })
    }

    /// When to feed [`Event::Tick`] next, if nothing happens before; `None` while nothing is timed.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Live | Phase::Draining => {
                let due = self.in_flight.iter().map(|b| b.deadline).min();
                let due = due.or_else(|| self.active.checked_add(self.open.idle()));
                let stalled = self.stalled.and_then(|(since, _)| since.checked_add(STALL));
                due.into_iter().chain(stalled).min()
            }
            // Admission is the owner's, and not timed here.
            Phase::Opening | Phase::Closed => None,
        }
    }

    /// Every transition is made here; the table is in the type's documentation.
    pub fn on(&mut self, now: Instant, event: Event) -> Step {
        let before = self.phase;
        let step = self.react(now, event);
        if let Act::Ignore(why) = step.act {
            self.ignored = self.ignored.saturating_add(1);
            tracing::trace!(session = %self.open.session, ?why, "dropped an event");
        } else if before != self.phase {
            tracing::debug!(session = %self.open.session, epoch = self.open.epoch, ?before, after = ?self.phase);
        }
        step
    }

    fn react(&mut self, now: Instant, event: Event) -> Step {
        if self.phase == Phase::Closed {
            return ignore(Ignored::Closed);
        }
        if let Some(why) = self.other_epoch(&event) {
            return ignore(why);
        }
        match (self.phase, event) {
            (_, Event::Open(open)) => self.reopen(*open, now),
            (_, Event::Probe(_)) => reply(self.state()),
            (_, Event::Cancel(cancel)) => self.close(Some(cancel.code)),
            (_, Event::Failed { code, about, detail }) => self.fault(code, about, detail),
            (Phase::Live, Event::NextLost { code, .. }) if self.survives => self.stall(now, code),
            (_, Event::NextLost { code, detail, .. }) => self.fault(code, Some(self.open.next), detail),
            (_, Event::Forgot { log_from }) => {
                self.log_from = self.log_from.max(log_from).min(self.pos);
                nothing()
            }
            (Phase::Live, Event::Reroute(f)) if self.survives => self.reroute(now, *f),
            (Phase::Live, Event::Linked { .. }) if self.reroute == Some(false) => {
                self.reroute = Some(true);
                self.rerouted()
            }
            (Phase::Live, Event::Resume(f)) if self.survives && self.reroute.is_none() => self.resume(now, &f),
            (_, Event::Gone) => self.release(None),
            (Phase::Opening, Event::Admitted { kv_pages_free, kept_rows }) => {
                self.accept(now, kv_pages_free, kept_rows)
            }
            (Phase::Opening, Event::NotAdmitted { code, detail, retry_after_ms }) => {
                let Open { session, epoch, .. } = self.open;
                self.release(Some(Refuse { session, epoch, code, detail, retry_after_ms }.into()))
            }
            (Phase::Live, Event::Rows { from, batch }) => self.rows(now, from, batch),
            (Phase::Live, Event::Trim(trim)) => self.trim(now, trim.keep_rows),
            (Phase::Live | Phase::Draining, Event::Computed { epoch, seq, compute_us, queue_us, hop_us }) => {
                self.computed(now, (epoch, seq), [compute_us, queue_us, hop_us])
            }
            (Phase::Opening | Phase::Live, Event::Close(_)) if self.in_flight.is_empty() => self.close(None),
            (Phase::Live, Event::Close(_)) => {
                self.phase = Phase::Draining;
                nothing()
            }
            (Phase::Live | Phase::Draining, Event::Keep { .. }) => Step { reply: None, act: Act::Keep },
            (Phase::Live | Phase::Draining, Event::Tick) => self.tick(now),
            (Phase::Opening, Event::Tick) => nothing(),
            _ => ignore(Ignored::WrongPhase),
        }
    }

    /// Why an event that belongs to an epoch is not of this one. Open may raise it.
    fn other_epoch(&self, event: &Event) -> Option<Ignored> {
        let (epoch, raises) = match event {
            Event::Open(open) => (open.epoch, true),
            Event::Reroute(f) => (f.epoch, true),
            Event::Rows { batch, .. } => (batch.epoch, false),
            Event::Keep { epoch } | Event::NextLost { epoch, .. } | Event::Linked { epoch } => (*epoch, false),
            Event::Resume(f) => (f.epoch, false),
            Event::Trim(f) => (f.epoch, false),
            Event::Probe(f) => (f.epoch, false),
            Event::Cancel(f) => (f.epoch, false),
            Event::Close(f) => (f.epoch, false),
            // A batch of an epoch before is known by its number, or not at all.
            Event::Computed { .. } => return None,
            Event::Admitted { .. }
            | Event::NotAdmitted { .. }
            | Event::Failed { .. }
            | Event::Forgot { .. }
            | Event::Gone
            | Event::Tick => return None,
        };
        match epoch.cmp(&self.open.epoch) {
            std::cmp::Ordering::Less => Some(Ignored::StaleEpoch),
            // The same Open again.
            std::cmp::Ordering::Equal => raises.then_some(Ignored::StaleEpoch),
            std::cmp::Ordering::Greater => (!raises).then_some(Ignored::UnopenedEpoch),
        }
    }

    fn reopen(&mut self, open: Open, now: Instant) -> Step {
        self.open = open;
        self.phase = Phase::Opening;
        self.pos = 0;
        self.next_seq = 0;
        self.in_flight.clear();
        self.active = now;
        (self.stalled, self.reroute) = (None, None);
        self.log_from = 0;
        Step { reply: None, act: Act::Admit }
    }

    /// The next peer is lost; what was being made of it counts for nothing.
    fn stall(&mut self, now: Instant, code: ErrorCode) -> Step {
        if self.stalled.is_some() {
            return nothing();
        }
        self.stalled = Some((now, code));
        self.reroute = None;
        let Open { session, epoch, next: about, .. } = self.open;
        reply(Stalled { session, epoch, code, about })
    }

    fn reroute(&mut self, now: Instant, f: Reroute) -> Step {
        self.reroutes = self.reroutes.saturating_add(1);
        if self.reroutes > MAX_REROUTES {
            return self.fault(ErrorCode::Overloaded, None, format!("{MAX_REROUTES} times given other neighbours"));
        }
        let Reroute { epoch, prev, next, next_addrs, .. } = f;
        (self.open.epoch, self.open.prev, self.open.next, self.open.next_addrs) = (epoch, prev, next, next_addrs);
        self.next_seq = 0;
        self.stalled = None;
        self.reroute = Some(false);
        self.active = now;
        Step { reply: None, act: Act::Reroute }
    }

    /// Says so when it is between its new neighbours and nothing of before is in flight.
    fn rerouted(&mut self) -> Step {
        if self.reroute != Some(true) || !self.in_flight.is_empty() {
            return nothing();
        }
        self.reroute = None;
        let Open { session, epoch, .. } = self.open;
        reply(Rerouted { session, epoch, pos: self.pos, log_from: self.log_from })
    }

    fn resume(&mut self, now: Instant, f: &Resume) -> Step {
        if f.from < self.log_from || f.from > self.open.max_rows {
            return self.fault(ErrorCode::BadPosition, None, format!("rows from {} are not kept", f.from));
        }
        self.active = now;
        let Resume { from, until, roots_from, .. } = *f;
        Step { reply: None, act: Act::Resume { from, until, roots_from } }
    }

    fn accept(&mut self, now: Instant, kv_pages_free: u32, kept_rows: u32) -> Step {
        self.phase = Phase::Live;
        let kept_rows = kept_rows.min(self.open.max_rows);
        self.pos = kept_rows;
        self.log_from = kept_rows;
        self.active = now;
        let Open { session, epoch, .. } = self.open;
        reply(Accept { session, epoch, kv_pages_free, kept_rows })
    }

    fn rows(&mut self, now: Instant, from: PeerId, batch: Arrived) -> Step {
        if from != self.open.prev {
            return ignore(Ignored::WrongPredecessor);
        }
        let Arrived { seq, pos, rows, rewind, .. } = batch;
        let end = pos.checked_add(u32::from(rows)).filter(|end| *end <= self.open.max_rows);
        let Some(end) = end else {
            return self.fault(ErrorCode::ContextFull, None, format!("{rows} rows at {pos}"));
        };
        if !(1..=MAX_BATCH_ROWS).contains(&rows) {
            return self.fault(ErrorCode::BadShape, None, format!("{rows} rows in a batch"));
        }
        let follows = pos == self.pos || (rewind && pos < self.pos);
        if !follows || seq < self.next_seq {
            let detail = format!("batch {seq} at {pos} where {} at {} is next", self.next_seq, self.pos);
            return self.fault(ErrorCode::BadPosition, None, detail);
        }
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return self.fault(ErrorCode::Overloaded, None, format!("{MAX_IN_FLIGHT} batches are in flight"));
        }
        let own = now.checked_add(self.open.step_deadline()).unwrap_or(now);
        let epoch = batch.epoch;
        self.in_flight.push_back(InFlight { epoch, seq, rows, deadline: batch.deadline.min(own) });
        self.pos = end;
        // Rows that go back behind all that is kept are where it begins anew.
        self.log_from = self.log_from.min(pos);
        // After u32::MAX there is no next number; 2^32 batches are more than any context has rows.
        self.next_seq = seq.saturating_add(1);
        self.active = now;
        self.totals.rows_in = self.totals.rows_in.saturating_add(u64::from(rows));
        Step { reply: None, act: Act::Compute }
    }

    fn computed(&mut self, now: Instant, batch: (u32, u32), [compute_us, queue_us, hop_us]: [u64; 3]) -> Step {
        let Some(at) = self.in_flight.iter().position(|b| (b.epoch, b.seq) == batch) else {
            return ignore(Ignored::WrongPhase);
        };
        let rows = self.in_flight.remove(at).map_or(0, |b| b.rows);
        let t = &mut self.totals;
        t.rows_out = t.rows_out.saturating_add(u64::from(rows));
        t.compute_us = t.compute_us.saturating_add(compute_us);
        t.queue_us = t.queue_us.saturating_add(queue_us);
        t.hop_us = hop_us;
        self.active = now;
        if self.phase == Phase::Draining && self.in_flight.is_empty() { self.close(None) } else { self.rerouted() }
    }

    fn trim(&mut self, now: Instant, keep_rows: u32) -> Step {
        if keep_rows > self.pos || !self.in_flight.is_empty() {
            let detail =
                format!("trim to {keep_rows} of {} rows with {} batches in flight", self.pos, self.in_flight.len());
            return self.fault(ErrorCode::BadPosition, None, detail);
        }
        self.pos = keep_rows;
        self.log_from = self.log_from.min(keep_rows);
        self.active = now;
        Step { reply: Some(self.state().into()), act: Act::Trim { keep_rows } }
    }

    fn tick(&mut self, now: Instant) -> Step {
        if let Some((since, code)) = self.stalled
            && since.checked_add(STALL).is_some_and(|at| at <= now)
        {
            self.fault(code, Some(self.open.next), "no other took the next peer's place".into())
        } else if let Some(late) = self.in_flight.iter().find(|b| b.deadline <= now) {
            let detail = format!("batch {} was not computed in time", late.seq);
            self.fault(ErrorCode::DeadlineExceeded, None, detail)
        } else if self.in_flight.is_empty() && self.active.checked_add(self.open.idle()).is_some_and(|at| at <= now) {
            self.fault(ErrorCode::IdleTimeout, None, String::new())
        } else {
            nothing()
        }
    }

    fn close(&mut self, code: Option<ErrorCode>) -> Step {
        let Open { session, epoch, .. } = self.open;
        let totals = self.totals;
        self.release(Some(Closed { session, epoch, code, totals }.into()))
    }

    fn fault(&mut self, code: ErrorCode, about: Option<PeerId>, detail: String) -> Step {
        let Open { session, epoch, .. } = self.open;
        self.release(Some(Fault { session, epoch, code, about, detail }.into()))
    }

    fn release(&mut self, reply: Option<Frame>) -> Step {
        self.phase = Phase::Closed;
        self.in_flight.clear();
        Step { reply, act: Act::Release }
    }

    fn state(&self) -> State {
        let Open { session, epoch, .. } = self.open;
        State { session, epoch, phase: self.phase, pos: self.pos, totals: self.totals }
    }
}

fn nothing() -> Step {
    Step { reply: None, act: Act::Nothing }
}

fn reply(frame: impl Into<Frame>) -> Step {
    Step { reply: Some(frame.into()), act: Act::Nothing }
}

fn ignore(why: Ignored) -> Step {
    Step { reply: None, act: Act::Ignore(why) }
}
