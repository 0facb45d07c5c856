//! What the handles and the thread share: sessions, their queues, and the pages they hold.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, Range},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{AdmissionError, Job, Load, Phase, RunnerConfig, SessionId, SubmitError, pages_for};
use crate::{Cache, MAX_ROWS, Stage};

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
}

enum Item {
    Run(Pending),
    Trim(usize),
}

/// A job with its place in the order of arrival.
pub(super) struct Pending {
    pub(super) job: Job,
    pub(super) since: Instant,
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
    /// Work that is ready: at least one job.
    Tick,
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
        let needed_pages = pages_for(max_rows);
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
        let cache = Some(self.stage.new_cache_over(layers, max_rows as usize));
        let session =
            Session { group, prefilled: 0, pages: needed_pages, queue: VecDeque::new(), cache, closing: false };
        state.sessions.insert(id, session);
        Ok(id)
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), SubmitError> {
        let (values, hidden) = (job.rows.len(), self.stage.hidden());
        if values == 0 || !values.is_multiple_of(hidden) || values > MAX_ROWS.saturating_mul(hidden) {
            return Err(SubmitError::Rows { values, hidden });
        }
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
        session.queue.push_back(Item::Run(Pending { job, since: Instant::now(), number }));
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
            if state.queued > 0 {
                return Next::Tick;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How many sessions have a decode as their next job.
    pub(super) fn decodes(&self) -> usize {
        let mut state = self.lock();
        state.sessions.values_mut().filter_map(Session::front).filter(|p| p.job.phase == Phase::Decode).count()
    }

    /// Takes the next job of this phase, and lends its session's cache. The groups have turns; in a group it is the
    /// oldest decode, or a prefill of the session that had none for longest.
    pub(super) fn take(&self, phase: Phase) -> Option<Taken> {
        let mut state = self.lock();
        let mut next: BTreeMap<u64, (u64, u64, SessionId)> = BTreeMap::new();
        for (id, session) in &mut state.sessions {
            let (group, waits_since) = (session.group, if phase == Phase::Prefill { session.prefilled } else { 0 });
            let Some(pending) = session.front().filter(|pending| pending.job.phase == phase) else { continue };
            let this = (waits_since, pending.number, *id);
            next.entry(group).and_modify(|known| *known = this.min(*known)).or_insert(this);
        }
        let last = if phase == Phase::Prefill { state.last_prefill } else { state.last_decode };
        let after = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let (group, (.., id)) = next.range(after).next().or_else(|| next.first_key_value())?;
        if phase == Phase::Prefill {
            state.last_prefill = Some(*group);
            state.prefills = state.prefills.wrapping_add(1);
        } else {
            state.last_decode = Some(*group);
        }
        let prefills = state.prefills;
        let session = state.sessions.get_mut(id)?;
        if phase == Phase::Prefill {
            session.prefilled = prefills;
        }
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

    /// Brings a lent cache back and counts its job as answered.
    pub(super) fn give_back(&self, id: SessionId, cache: Cache) {
        let mut state = self.lock();
        state.queued = state.queued.saturating_sub(1);
        let Some(session) = state.sessions.get_mut(&id) else { return };
        if session.closing {
            let pages = session.pages;
            state.sessions.remove(&id);
            state.pages_taken = state.pages_taken.saturating_sub(pages);
        } else {
            session.cache = Some(cache);
            session.apply_trims();
        }
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
