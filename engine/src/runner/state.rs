//! What the handles and the thread share: sessions, their queues, and the pages they hold.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    AdmissionError, Input, Job, Load, Phase, RunnerConfig, SessionId, SubmitError, Totals, Want, pages_for,
    turns::{Ready, in_turns},
};
use crate::{Cache, MAX_BATCH_ROWS, MAX_ROWS, Stage};

/// Rows of decode jobs in a tick: the rest of a batch is kept for a chunk of a prompt.
const MAX_DECODE_ROWS: usize = MAX_BATCH_ROWS - MAX_ROWS;

/// The thread waits at most this part of the last batch's time for sessions that are about to come back with their next
/// token, so that they share a batch instead of taking turns.
const GATHER_SHARE: u32 = 4;

pub(super) struct Shared {
    pub(super) stage: Stage,
    config: RunnerConfig,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<SessionId, Session>,
    next_session: u64,
    next_job: u64,
    /// Jobs accepted and not answered.
    queued: usize,
    pages_taken: u32,
    /// Jobs of closed sessions, to be answered by the thread.
    orphans: Vec<Job>,
    /// The groups whose decode and whose prefill ran last.
    last_decode: Option<u64>,
    last_prefill: Option<u64>,
    /// Prefills taken so far.
    prefills: u64,
    totals: Totals,
    /// How long the last batch took.
    last_batch: Duration,
    stopping: bool,
}

struct Session {
    group: u64,
    /// When its last prefill was taken, in prefills.
    prefilled: u64,
    pages: u32,
    queue: VecDeque<Item>,
    /// Absent while the thread computes with it.
    cache: Option<Cache>,
    closing: bool,
    /// When its last job was answered, and how long it took to come back with a decode after the one before.
    answered: Option<Instant>,
    returns_after: Option<Duration>,
}

enum Item {
    Run(Pending),
    Trim(usize),
}

/// A job with its place in the order of arrival.
pub(super) struct Pending {
    pub(super) job: Job,
    pub(super) since: Instant,
    pub(super) rows: usize,
    number: u64,
}

/// A job taken out of its queue, with the session's cache.
pub(super) struct Taken {
    pub(super) pending: Pending,
    pub(super) cache: Cache,
}

/// What the thread finds to do.
pub(super) enum Next {
    /// Answer these: their sessions were closed.
    Orphans(Vec<Job>),
    /// The next jobs of these sessions are to be computed now, in this order.
    Tick(Vec<SessionId>),
    /// The last handle is gone; answer these and end.
    Stop(Vec<Job>),
}

impl Shared {
    pub(super) fn new(stage: Stage, config: RunnerConfig) -> Self {
        Self { stage, config, state: Mutex::default(), wake: Condvar::new() }
    }

    /// No code panics while it holds the lock, so a poisoned state is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, group: u64, layers: Range<usize>, max_rows: u32) -> Result<SessionId, AdmissionError> {
        let context = self.stage.hparams().context_length;
        if max_rows as usize > context {
            return Err(AdmissionError::Context { max_rows, context });
        }
        let cache = self.stage.new_cache_over(layers, max_rows as usize);
        let needed_pages = if cache.layers() == 0 { 0 } else { pages_for(max_rows) };
        let mut state = self.lock();
        if state.stopping {
            return Err(AdmissionError::Stopped);
        }
        if state.sessions.len() >= self.config.max_sessions {
            return Err(AdmissionError::Sessions { max: self.config.max_sessions });
        }
        let free_pages = self.config.kv_pages.saturating_sub(state.pages_taken);
        if needed_pages > free_pages {
            return Err(AdmissionError::Pages { needed_pages, free_pages });
        }
        state.pages_taken = state.pages_taken.saturating_add(needed_pages);
        let id = SessionId(state.next_session);
        state.next_session = state.next_session.wrapping_add(1);
        let session = Session {
            group,
            prefilled: 0,
            pages: needed_pages,
            queue: VecDeque::new(),
            cache: Some(cache),
            closing: false,
            answered: None,
            returns_after: None,
        };
        state.sessions.insert(id, session);
        Ok(id)
    }

    /// The number of a job's rows, when the stage can compute it at all.
    fn rows_of(&self, job: &Job) -> Result<usize, SubmitError> {
        let (values, width) = match &job.input {
            Input::Rows(rows) => (rows.len(), self.stage.hidden()),
            Input::Tokens(ids) => (ids.len(), 1),
        };
        let rows = values.checked_div(width).unwrap_or(0);
        if !(1..=MAX_ROWS).contains(&rows) || !values.is_multiple_of(width) {
            return Err(SubmitError::Rows { values, width });
        }
        let span = self.stage.span();
        if matches!(job.input, Input::Tokens(_)) && !span.embedding {
            return Err(SubmitError::NotLoaded { part: "embedding" });
        }
        if job.want == Want::Logits && !span.head {
            return Err(SubmitError::NotLoaded { part: "head" });
        }
        Ok(rows)
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), SubmitError> {
        let rows = self.rows_of(&job)?;
        let mut state = self.lock();
        if state.stopping {
            return Err(SubmitError::Stopped);
        }
        if state.queued >= self.config.queue {
            return Err(SubmitError::QueueFull { bound: self.config.queue });
        }
        let number = state.next_job;
        let id = job.session;
        let unknown = SubmitError::UnknownSession { session: id };
        let session = state.sessions.get_mut(&id).filter(|session| !session.closing).ok_or(unknown)?;
        let since = Instant::now();
        if job.phase == Phase::Decode && session.queue.is_empty() {
            session.returns_after = session.answered.take().map(|at| since.saturating_duration_since(at));
        }
        session.queue.push_back(Item::Run(Pending { job, since, rows, number }));
        state.next_job = number.wrapping_add(1);
        state.queued = state.queued.saturating_add(1);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn trim(&self, id: SessionId, keep_rows: u32) {
        let keep = keep_rows as usize;
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(&id) else { return };
        match (session.queue.back_mut(), &mut session.cache) {
            (Some(Item::Trim(waiting)), _) => *waiting = keep.min(*waiting),
            (None, Some(cache)) => cache.truncate(keep),
            _ => session.queue.push_back(Item::Trim(keep)),
        }
    }

    pub(super) fn close(&self, id: SessionId) {
        let mut state = self.lock();
        let Some(mut session) = state.sessions.remove(&id) else { return };
        let jobs = session.queue.drain(..).filter_map(Item::job);
        state.orphans.extend(jobs);
        if session.cache.is_some() {
            state.pages_taken = state.pages_taken.saturating_sub(session.pages);
        } else {
            // The thread computes with its cache: the pages are in use until it brings that back.
            session.closing = true;
            state.sessions.insert(id, session);
        }
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn load(&self) -> Load {
        let state = self.lock();
        Load {
            queued: state.queued,
            kv_pages_free: self.config.kv_pages.saturating_sub(state.pages_taken),
            kv_pages_total: self.config.kv_pages,
            sessions: state.sessions.len(),
            totals: state.totals,
        }
    }

    /// Ends the thread after the job it is computing.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
    }

    /// Waits until there is something to do.
    pub(super) fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            if state.stopping {
                let sessions = std::mem::take(&mut state.sessions);
                let mut jobs = std::mem::take(&mut state.orphans);
                jobs.extend(sessions.into_values().flat_map(|session| session.queue).filter_map(Item::job));
                state.queued = 0;
                return Next::Stop(jobs);
            }
            if !state.orphans.is_empty() {
                let jobs = std::mem::take(&mut state.orphans);
                state.queued = state.queued.saturating_sub(jobs.len());
                return Next::Orphans(jobs);
            }
            if state.queued == 0 {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            match if self.stage.is_exact() { state.others_come(Instant::now()) } else { None } {
                Some(soon) => state = self.wake.wait_timeout(state, soon).unwrap_or_else(PoisonError::into_inner).0,
                None => return Next::Tick(state.pick()),
            }
        }
    }

    /// Takes the next job of a session, and lends the session's cache. `None` when it was closed meanwhile.
    pub(super) fn take(&self, id: SessionId) -> Option<Taken> {
        let mut state = self.lock();
        let session = state.sessions.get_mut(&id)?;
        session.front()?;
        let cache = session.cache.take()?;
        match session.queue.pop_front() {
            Some(Item::Run(pending)) => Some(Taken { pending, cache }),
            other => {
                // `front` has just seen a job there.
                session.cache = Some(cache);
                session.queue.extend(other);
                None
            }
        }
    }

    /// Brings lent caches back and counts their jobs as answered: a batch of `rows` rows that took `compute`.
    pub(super) fn give_back(
        &self,
        caches: impl IntoIterator<Item = (SessionId, Cache)>,
        rows: usize,
        compute: Duration,
    ) {
        let mut state = self.lock();
        let state = &mut *state;
        let now = Instant::now();
        state.last_batch = compute;
        state.totals.batches = state.totals.batches.saturating_add(1);
        state.totals.rows = state.totals.rows.saturating_add(rows as u64);
        for (id, cache) in caches {
            state.queued = state.queued.saturating_sub(1);
            state.totals.jobs = state.totals.jobs.saturating_add(1);
            let Some(session) = state.sessions.get_mut(&id) else { continue };
            if session.closing {
                let pages = session.pages;
                state.sessions.remove(&id);
                state.pages_taken = state.pages_taken.saturating_sub(pages);
            } else {
                session.cache = Some(cache);
                session.answered = Some(now);
                session.apply_trims();
            }
        }
    }
}

impl State {
    /// The sessions whose next jobs make the next batch: decodes of many, and one prefill.
    fn pick(&mut self) -> Vec<SessionId> {
        let decodes = in_turns(self.ready(Phase::Decode), self.last_decode, MAX_DECODE_ROWS, MAX_DECODE_ROWS);
        let prefill = in_turns(self.ready(Phase::Prefill), self.last_prefill, 1, MAX_ROWS);
        if let Some(last) = decodes.last() {
            self.last_decode = Some(last.group);
        }
        if let Some(only) = prefill.last() {
            self.last_prefill = Some(only.group);
            self.prefills = self.prefills.wrapping_add(1);
            if let Some(session) = self.sessions.get_mut(&only.key) {
                session.prefilled = self.prefills;
            }
        }
        decodes.iter().chain(&prefill).map(|job| job.key).collect()
    }

    /// The next jobs of all sessions, as far as they are of this phase: the oldest decode of a group goes first, or the
    /// prefill of the session that had none for longest.
    fn ready(&mut self, phase: Phase) -> Vec<Ready<SessionId>> {
        let next = |(id, session): (&SessionId, &mut Session)| {
            let (group, prefilled) = (session.group, session.prefilled);
            let pending = session.front().filter(|pending| pending.job.phase == phase)?;
            let waits_since = if phase == Phase::Prefill { prefilled } else { 0 };
            Some(Ready { key: *id, group, rank: (waits_since, pending.number), rows: pending.rows })
        };
        self.sessions.iter_mut().filter_map(next).collect()
    }

    /// For how long to wait for sessions that will soon be back with another token, judging by their last.
    fn others_come(&self, now: Instant) -> Option<Duration> {
        let patience = self.last_batch.checked_div(GATHER_SHARE)?;
        let back_in = |session: &Session| {
            let (at, after) = (session.answered?, session.returns_after?);
            let idle = session.queue.is_empty() && session.cache.is_some();
            let until = at.checked_add(after.saturating_mul(2).min(patience))?;
            (idle && after <= patience).then(|| until.saturating_duration_since(now))
        };
        self.sessions.values().filter_map(back_in).max().filter(|soon| !soon.is_zero())
    }
}

impl Session {
    /// Applies the trims that stand first.
    fn apply_trims(&mut self) {
        while let (Some(Item::Trim(keep)), Some(cache)) = (self.queue.front(), &mut self.cache) {
            cache.truncate(*keep);
            self.queue.pop_front();
        }
    }

    /// The next job.
    fn front(&mut self) -> Option<&Pending> {
        self.apply_trims();
        match self.queue.front() {
            Some(Item::Run(pending)) => Some(pending),
            _ => None,
        }
    }
}

impl Item {
    fn job(self) -> Option<Job> {
        match self {
            Self::Run(pending) => Some(pending.job),
            Self::Trim(_) => None,
        }
    }
}
