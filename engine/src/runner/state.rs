//! What the handles and the thread share: the sessions behind a lock, and a bell.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    AdmissionError, Input, Job, Load, Opened, PrefixKey, PrefixKeys, RunnerConfig, SessionEvent, SessionId,
    SessionSpec, SubmitError, Want,
    pace::Spent,
    pages_for,
    prefix::Scope,
    sessions::{Done, Evicted, Opening, Sessions, Taken},
};
use crate::{Cache, MAX_ROWS, Stage};

pub(super) struct Shared {
    pub(super) stage: Stage,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    sessions: Sessions<Cache>,
    stopping: bool,
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
        let state = State { sessions: Sessions::new(config), stopping: false };
        Self { stage, state: Mutex::new(state), wake: Condvar::new() }
    }

    /// No code panics while it holds the lock, so a poisoned state is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something that may cost sessions their place, and tells them.
    fn with<T>(&self, act: impl FnOnce(&mut State, &mut Evicted) -> T) -> T {
        let mut evicted = Vec::new();
        let result = act(&mut self.lock(), &mut evicted);
        if !evicted.is_empty() {
            self.wake.notify_one();
        }
        evicted.into_iter().for_each(|tell| tell(SessionEvent::Evicted));
        result
    }

    pub(super) fn open(&self, spec: SessionSpec) -> Result<Opened, AdmissionError> {
        let SessionSpec { group, layers, max_rows, bf16, prefix, on_event } = spec;
        let context = self.stage.hparams().context_length;
        if max_rows as usize > context {
            return Err(AdmissionError::Context { max_rows, context });
        }
        let first = layers.start;
        let cache = self.stage.new_cache_over(layers, max_rows as usize);
        let cache = if bf16 { cache.rounding() } else { cache };
        let scope = Scope { group, first, layers: cache.layers() };
        let pages = if scope.layers == 0 { 0 } else { pages_for(max_rows) };
        // Rows that others computed are as good as one's own only where the numbers depend on nothing else.
        let prefix = if self.stage.is_exact() { prefix } else { PrefixKeys::default() };
        // Where it goes on, elsewhere.
        let start = self.stage.span().layers.start.saturating_add(first);
        let leads = start == 0 && scope.layers > 0 && scope.layers < self.stage.hparams().n_layers;
        let new = Opening { scope, leads, pages, prefix, cache, on_event };
        self.with(|state, evicted| {
            if state.stopping {
                return Err(AdmissionError::Stopped);
            }
            state.sessions.forget_old(Instant::now());
            let (session, rows) = state.sessions.open(new, Instant::now(), evicted)?;
            Ok(Opened { session, reused_rows: u32::try_from(rows).unwrap_or(u32::MAX) })
        })
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
        if job.want != Want::Rows && !span.head {
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
        state.sessions.submit(job, rows, Instant::now())?;
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn trim(&self, id: SessionId, keep_rows: u32) {
        self.with(|state, evicted| state.sessions.trim(id, keep_rows as usize, evicted));
    }

    pub(super) fn keep(&self, id: SessionId, first: usize, keys: Vec<PrefixKey>) {
        if self.stage.is_exact() {
            self.lock().sessions.keep(id, first, &PrefixKeys::from_keys(keys, 0));
        }
    }

    pub(super) fn close(&self, id: SessionId) {
        self.lock().sessions.close(id);
        self.wake.notify_one();
    }

    pub(super) fn load(&self) -> Load {
        let mut state = self.lock();
        // Asked for now and then even where no session comes.
        state.sessions.forget_old(Instant::now());
        let (sessions, pages) = (&state.sessions, state.sessions.pages());
        Load {
            queued: sessions.queued(),
            kv_pages_free: pages.free(),
            kv_pages_cached: pages.cached(),
            kv_pages_total: pages.total(),
            sessions: sessions.len(),
            totals: sessions.totals(),
        }
    }

    /// Ends the thread after the batch it is computing.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
    }

    /// Waits until there is something to do.
    pub(super) fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return Next::Stop(state.sessions.end());
            }
            let orphans = state.sessions.orphans();
            if !orphans.is_empty() {
                return Next::Orphans(orphans);
            }
            if state.sessions.queued() == 0 {
                state.sessions.waited(Instant::now());
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            match if self.stage.is_exact() { state.sessions.others_come(Instant::now()) } else { None } {
                Some(soon) => state = self.wake.wait_timeout(state, soon).unwrap_or_else(PoisonError::into_inner).0,
                None => return Next::Tick(state.sessions.pick()),
            }
        }
    }

    /// Takes the next job of a session, and lends the session's cache. `None` when it was closed meanwhile, or had to be.
    pub(super) fn take(&self, id: SessionId) -> Option<Taken<Cache>> {
        self.with(|state, evicted| state.sessions.take(id, evicted))
    }

    /// Brings a batch's caches back and counts its jobs as answered: `rows` rows that took `spent`.
    pub(super) fn bring_back(&self, caches: Vec<Done<Cache>>, rows: usize, spent: Spent) {
        self.with(|state, evicted| state.sessions.bring_back(caches, rows, spent, Instant::now(), evicted));
    }
}
