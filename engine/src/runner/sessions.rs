//! The sessions of a runner, their queues and their pages: everything that needs no stage, no lock and no clock.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use super::{
    AdmissionError, Job, OnEvent, Phase, RunnerConfig, SessionId, SubmitError, Totals,
    pace::{Pace, Spent},
    pages::Pages,
    prefix::{PrefixKey, PrefixKeys, Scope},
    session::{Item, Pending, Rows, Session},
    turns::{Ready, in_turns},
};
use crate::{MAX_BATCH_ROWS, MAX_ROWS};

/// Rows of decode jobs in a tick: the rest of a batch is kept for a chunk of a prompt.
pub(super) const MAX_DECODE_ROWS: usize = MAX_BATCH_ROWS - MAX_ROWS;

pub(super) struct Sessions<C: Rows> {
    config: RunnerConfig,
    pub(super) open: BTreeMap<SessionId, Session<C>>,
    pages: Pages<C::Block>,
    next_session: u64,
    next_job: u64,
    /// Jobs accepted and not answered.
    queued: usize,
    /// Jobs of closed sessions, to be answered by the thread.
    orphans: Vec<Job>,
    /// The groups whose decode and whose prefill ran last.
    last_decode: Option<u64>,
    last_prefill: Option<u64>,
    /// Prefills taken so far.
    prefills: u64,
    totals: Totals,
    pub(super) pace: Pace,
    /// Since when it is waited for sessions that will soon be back.
    pub(super) waiting: Option<Instant>,
}

/// A job taken out of its queue, with the session's cache.
pub(super) struct Taken<C> {
    pub(super) pending: Pending,
    pub(super) cache: C,
}

/// A job that was computed, or could not be.
pub(super) struct Done<C> {
    pub(super) session: SessionId,
    pub(super) cache: C,
    pub(super) ok: bool,
}

/// What a session is opened with.
pub(super) struct Opening<C> {
    pub(super) scope: Scope,
    /// Whether it begins with the model's first layer, and goes on elsewhere.
    pub(super) leads: bool,
    pub(super) pages: u32,
    pub(super) prefix: PrefixKeys,
    pub(super) cache: C,
    pub(super) on_event: Option<OnEvent>,
}

/// Who is to be told that a session is gone.
pub(super) type Evicted = Vec<OnEvent>;

impl<C: Rows> Sessions<C> {
    pub(super) fn new(config: RunnerConfig) -> Self {
        Self {
            config,
            open: BTreeMap::new(),
            pages: Pages::new(config.kv_pages),
            next_session: 0,
            next_job: 0,
            queued: 0,
            orphans: Vec::new(),
            last_decode: None,
            last_prefill: None,
            prefills: 0,
            totals: Totals::default(),
            pace: Pace::default(),
            waiting: None,
        }
    }

    /// Opens a session: its name, and the rows that it has already. Idle sessions may have to give way, whatever comes
    /// of it.
    pub(super) fn open(
        &mut self,
        new: Opening<C>,
        now: Instant,
        evicted: &mut Evicted,
    ) -> Result<(SessionId, usize), AdmissionError> {
        let Opening { scope, leads, pages, prefix, mut cache, on_event } = new;
        // A session that shares pages may have to go, see `cut`: it must hear of that.
        // And a page that it may not fill is not for others.
        let named = if on_event.is_some() { pages as usize } else { 0 };
        let keys: Vec<PrefixKey> = prefix.scoped(scope).take(named).collect();
        let reuse_blocks = prefix.reuse_blocks();
        let known = keys.iter().take(reuse_blocks).take_while(|key| self.pages.pin(key)).count();
        let append = |key: &&PrefixKey| self.pages.get(key).is_some_and(|block| cache.append(block));
        let shared = keys.iter().take(known).take_while(append).count();
        self.pages.unpin(keys.get(shared..known).unwrap_or_default());
        let own = pages.saturating_sub(u32::try_from(shared).unwrap_or(u32::MAX));

        if let Err(error) = self.admit(scope.group, own, now, evicted) {
            self.pages.unpin(keys.get(..shared).unwrap_or_default());
            return Err(error);
        }
        let rows = cache.len();
        let looked_up = keys.len().min(reuse_blocks) as u64;
        self.totals.prefix_lookups = self.totals.prefix_lookups.saturating_add(looked_up);
        self.totals.prefix_hits = self.totals.prefix_hits.saturating_add(shared as u64);
        let id = SessionId(self.next_session);
        self.next_session = self.next_session.wrapping_add(1);
        self.totals.reused_rows = self.totals.reused_rows.saturating_add(rows as u64);
        let session = Session {
            scope,
            leads,
            prefilled: self.prefills,
            own,
            keys,
            shared,
            queue: VecDeque::new(),
            cache: Some(cache),
            closing: false,
            computed: false,
            active: now,
            answered: None,
            returns_after: None,
            came: [None; 2],
            on_event,
        };
        self.open.insert(id, session);
        Ok((id, rows))
    }

    /// Takes a place and pages for a session of `group`.
    fn admit(
        &mut self,
        group: u64,
        needed_pages: u32,
        now: Instant,
        evicted: &mut Evicted,
    ) -> Result<(), AdmissionError> {
        if self.open.len() >= self.config.max_sessions {
            self.make_room(group, 0, 1, now, evicted);
        }
        if self.open.len() >= self.config.max_sessions {
            return Err(AdmissionError::Sessions { max: self.config.max_sessions });
        }
        let missing = needed_pages.saturating_sub(self.pages.free());
        if missing > 0 {
            self.make_room(group, missing, 0, now, evicted);
        }
        let free_pages = self.pages.free();
        if self.pages.take(needed_pages) { Ok(()) } else { Err(AdmissionError::Pages { needed_pages, free_pages }) }
    }

    /// Ends idle sessions that hear of it, those first that have been idle longest, until `pages` more are free and
    /// `places` as well; none when that cannot be reached. Sessions of other groups give way only when their group
    /// holds more pages than the newcomer's.
    fn make_room(&mut self, newcomer: u64, pages: u32, places: usize, now: Instant, evicted: &mut Evicted) {
        let mut held = BTreeMap::<u64, u32>::new();
        for session in self.open.values() {
            let all = session.own.saturating_add(u32::try_from(session.shared).unwrap_or(u32::MAX));
            let group = held.entry(session.scope.group).or_default();
            *group = group.saturating_add(all);
        }
        let pages_of = |group: u64| held.get(&group).copied().unwrap_or(0);
        let mine = pages_of(newcomer).saturating_add(pages);
        let mut idle: Vec<(Instant, SessionId, u32)> = self
            .open
            .iter()
            .filter(|(_, session)| {
                let quiet = now.saturating_duration_since(session.active) >= self.config.grace;
                let gives_way = session.scope.group == newcomer || pages_of(session.scope.group) > mine;
                session.is_idle() && session.on_event.is_some() && quiet && gives_way
            })
            .map(|(id, session)| (session.active, *id, session.own))
            .collect();
        idle.sort_unstable();
        let (mut freed, mut n) = (0_u32, 0_usize);
        for (.., own) in &idle {
            if freed >= pages && n >= places {
                break;
            }
            freed = freed.saturating_add(*own);
            n = n.saturating_add(1);
        }
        if freed >= pages && n >= places {
            for (_, id, _) in idle.into_iter().take(n) {
                self.evict(id, evicted);
            }
        }
    }

    fn evict(&mut self, id: SessionId, evicted: &mut Evicted) {
        let Some(mut session) = self.open.remove(&id) else { return };
        self.totals.evicted = self.totals.evicted.saturating_add(1);
        evicted.extend(session.on_event.take());
        self.orphans.extend(session.queue.drain(..).filter_map(Item::job));
        self.release(&session);
    }

    /// Gives a session's pages back.
    fn release(&mut self, session: &Session<C>) {
        self.pages.give_back(session.own);
        self.pages.unpin(session.keys.get(..session.shared).unwrap_or_default());
    }

    pub(super) fn submit(&mut self, job: Job, rows: usize, now: Instant) -> Result<(), SubmitError> {
        if self.queued >= self.config.queue {
            return Err(SubmitError::QueueFull { bound: self.config.queue });
        }
        let unknown = SubmitError::UnknownSession { session: job.session };
        let session = self.open.get_mut(&job.session).filter(|session| !session.closing).ok_or(unknown)?;
        session.active = now;
        if job.phase == Phase::Decode && session.queue.is_empty() {
            session.returns_after = session.answered.take().map(|at| now.saturating_duration_since(at));
            session.came = [Some(now), session.came[0]];
        }
        session.queue.push_back(Item::Run(Pending { job, since: now, rows, number: self.next_job }));
        self.next_job = self.next_job.wrapping_add(1);
        self.queued = self.queued.saturating_add(1);
        Ok(())
    }

    pub(super) fn trim(&mut self, id: SessionId, keep: usize, evicted: &mut Evicted) {
        let Some(session) = self.open.get_mut(&id) else { return };
        match session.queue.back_mut() {
            Some(Item::Trim(waiting)) => *waiting = keep.min(*waiting),
            None if session.cache.is_some() => {
                if !session.cut(&mut self.pages, keep) {
                    self.evict(id, evicted);
                }
            }
            _ => session.queue.push_back(Item::Trim(keep)),
        }
    }

    /// See [`super::Runner::keep`].
    pub(super) fn keep(&mut self, id: SessionId, first: usize, keys: &PrefixKeys) {
        if let Some(session) = self.open.get_mut(&id) {
            session.name(first, keys);
            session.publish(&mut self.pages);
        }
    }

    pub(super) fn close(&mut self, id: SessionId) {
        let Some(mut session) = self.open.remove(&id) else { return };
        self.orphans.extend(session.queue.drain(..).filter_map(Item::job));
        if session.cache.is_some() {
            self.release(&session);
        } else {
            // The thread computes with its cache: the pages are in use until it brings that back.
            session.closing = true;
            self.open.insert(id, session);
        }
    }

    /// Jobs of sessions that were closed; they count as answered.
    pub(super) fn orphans(&mut self) -> Vec<Job> {
        let jobs = std::mem::take(&mut self.orphans);
        self.queued = self.queued.saturating_sub(jobs.len());
        jobs
    }

    /// Ends all sessions; their jobs.
    pub(super) fn end(&mut self) -> Vec<Job> {
        let sessions = std::mem::take(&mut self.open);
        let mut jobs = self.orphans();
        jobs.extend(sessions.into_values().flat_map(|session| session.queue).filter_map(Item::job));
        self.queued = 0;
        jobs
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Forgets pages that were kept for nobody.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.pages.forget_old(now);
    }

    pub(super) fn pages(&self) -> &Pages<C::Block> {
        &self.pages
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// The sessions whose next jobs make the next batch: decodes of many, and one prefill.
    pub(super) fn pick(&mut self) -> Vec<SessionId> {
        let decodes = in_turns(self.ready(Phase::Decode), self.last_decode, MAX_DECODE_ROWS, MAX_DECODE_ROWS);
        let prefill = in_turns(self.ready(Phase::Prefill), self.last_prefill, 1, MAX_ROWS);
        if let Some(last) = decodes.last() {
            self.last_decode = Some(last.group);
        }
        if let Some(only) = prefill.last() {
            self.last_prefill = Some(only.group);
            self.prefills = self.prefills.wrapping_add(1);
            if let Some(session) = self.open.get_mut(&only.key) {
                session.prefilled = self.prefills;
            }
        }
        decodes.iter().chain(&prefill).map(|job| job.key).collect()
    }

    /// The next jobs of all sessions, as far as they are of this phase: the oldest decode of a group goes first, or the
    /// prefill of the session that had none for longest.
    fn ready(&self, phase: Phase) -> Vec<Ready<SessionId>> {
        let next = |(id, session): (&SessionId, &Session<C>)| {
            let pending = session.front().filter(|pending| pending.job.phase == phase)?;
            let waits_since = if phase == Phase::Prefill { session.prefilled } else { 0 };
            let rank = (waits_since, pending.number);
            Some(Ready { key: *id, group: session.scope.group, rank, rows: pending.rows })
        };
        self.open.iter().filter_map(next).collect()
    }

    /// Takes the next job of a session, and lends the session's cache. A job for a position before the session's end
    /// takes the rows from there on back first. `None` when the session was closed meanwhile, or has no page of its own
    /// for what follows and is closed for it.
    pub(super) fn take(&mut self, id: SessionId, evicted: &mut Evicted) -> Option<Taken<C>> {
        let session = self.open.get_mut(&id)?;
        let pos = session.front()?.job.pos as usize;
        let goes_back = session.scope.layers > 0 && session.cache.as_ref().is_some_and(|cache| pos < cache.len());
        if goes_back && !session.cut(&mut self.pages, pos) {
            self.evict(id, evicted);
            return None;
        }
        let session = self.open.get_mut(&id)?;
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

    /// Brings a batch's caches back and counts its jobs as answered: `rows` rows that took `spent`.
    pub(super) fn bring_back(
        &mut self,
        caches: impl IntoIterator<Item = Done<C>>,
        rows: usize,
        spent: Spent,
        now: Instant,
        evicted: &mut Evicted,
    ) {
        self.pace.batch(spent);
        self.totals.batches = self.totals.batches.saturating_add(1);
        self.totals.rows = self.totals.rows.saturating_add(rows as u64);
        for Done { session: id, cache, ok } in caches {
            self.queued = self.queued.saturating_sub(1);
            self.totals.jobs = self.totals.jobs.saturating_add(1);
            let Some(session) = self.open.get_mut(&id) else { continue };
            session.cache = Some(cache);
            if session.closing {
                if let Some(session) = self.open.remove(&id) {
                    self.release(&session);
                }
                continue;
            }
            (session.active, session.answered, session.computed) = (now, Some(now), true);
            if ok {
                session.publish(&mut self.pages);
            } else {
                session.distrust(session.shared);
            }
            while let Some(Item::Trim(keep)) = session.queue.front() {
                let keep = *keep;
                session.queue.pop_front();
                if !session.cut(&mut self.pages, keep) {
                    self.evict(id, evicted);
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
impl<C: Rows> Sessions<C> {
    /// That the books are right; the pages that each session holds.
    pub(super) fn check(&self) -> BTreeMap<SessionId, u32> {
        let mut users = BTreeMap::new();
        for key in self.open.values().flat_map(|session| &session.keys[..session.shared]) {
            *users.entry(*key).or_default() += 1;
        }
        self.pages.check(self.open.values().map(|session| session.own).sum(), &users);
        let jobs = |session: &Session<C>| session.queue.iter().filter(|item| matches!(item, Item::Run(_))).count();
        let waiting: usize = self.open.values().map(jobs).sum();
        assert_eq!(self.queued, waiting + self.orphans.len(), "jobs that wait");
        self.open.iter().map(|(id, session)| (*id, session.own + session.shared as u32)).collect()
    }

    /// The sessions that have a job to do.
    pub(super) fn waiting(&self) -> Vec<SessionId> {
        self.open.iter().filter(|(_, session)| session.front().is_some()).map(|(id, _)| *id).collect()
    }
}
