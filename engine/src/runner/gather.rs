//! Which sessions a tick waits for: the rules are [`Pace`](super::pace::Pace)'s, the sessions these.

use std::time::{Duration, Instant};

use super::{
    Phase,
    session::{Pending, Rows, Session},
    sessions::Sessions,
};

impl<C: Rows> Sessions<C> {
    /// For how long to wait for sessions that will soon be back with another token, judging by their last: for those that
    /// come back at once, and for those that come together with one that is here. Never so long that a job that is here
    /// could be too late for it.
    pub(super) fn others_come(&mut self, now: Instant) -> Option<Duration> {
        let soon = self.soon(now).filter(|soon| !soon.is_zero());
        match soon {
            Some(_) => _ = self.waiting.get_or_insert(now),
            None => self.waited(now),
        }
        soon
    }

    /// It is not waited any more.
    pub(super) fn waited(&mut self, now: Instant) {
        if let Some(since) = self.waiting.take() {
            self.pace.waited(now.saturating_duration_since(since));
        }
    }

    fn soon(&self, now: Instant) -> Option<Duration> {
        let here: Vec<(&Session<C>, &Pending)> =
            self.open.values().filter_map(|session| Some((session, session.front()?))).collect();
        let left = here.iter().map(|(_, pending)| pending.job.deadline.saturating_duration_since(now)).min()?;
        let idle = || self.open.values().filter(|session| session.is_idle());
        // Nobody of another coordinator is kept waiting long, and no stage of a chain by one that waits for it.
        let patient = |absent: &Session<C>| {
            here.iter().all(|(session, _)| session.leads && session.scope.group == absent.scope.group)
        };
        let back_in = |session: &Session<C>| {
            let leads = session.leads && patient(session);
            self.pace.wait(leads, session.answered?, session.returns_after?, now)
        };
        let decodes = here.iter().filter(|(_, pending)| pending.job.phase == Phase::Decode);
        let came = decodes.filter_map(|(session, _)| session.came[0].zip(session.came[1]));
        let others = idle().filter_map(|session| session.came[0]);
        let soon = idle().filter_map(back_in).max().max(self.pace.companions(came, others, now))?;
        Some(soon.min(left.saturating_sub(self.pace.last())))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Input, Job, PrefixKeys, RunnerConfig, SessionId, Want,
            pace::Spent,
            prefix::Scope,
            sessions::{Done, Opening},
            sim::Book,
        },
        *,
    };

    const MS: Duration = Duration::from_millis(1);
    const CONFIG: RunnerConfig = RunnerConfig { kv_pages: 64, max_sessions: 8, queue: 64, grace: MS };

    struct Stage {
        sessions: Sessions<Book>,
        start: Instant,
        /// Of 100 ms that a batch takes, those on a core.
        on_core: u32,
    }

    impl Stage {
        /// With a session for each of these: its group, and whether it leads.
        fn new(on_core: u32, each: &[(u64, bool)]) -> (Self, Vec<SessionId>) {
            let (mut sessions, start) = (Sessions::new(CONFIG), Instant::now());
            let open = |(group, leads): &(u64, bool)| {
                let scope = Scope { group: *group, first: 0, layers: 1 };
                let (prefix, cache) = (PrefixKeys::default(), Book::default());
                let new = Opening { scope, leads: *leads, pages: 1, prefix, cache, on_event: None };
                sessions.open(new, start, &mut Vec::new()).unwrap().0
            };
            let ids = each.iter().map(open).collect();
            (Self { sessions, start, on_core }, ids)
        }

        fn at(&self, ms: u32) -> Instant {
            self.start + ms * MS
        }

        fn come(&mut self, id: SessionId, phase: Phase, ms: u32, deadline: u32) {
            let (input, want, reply) = (Input::Rows(vec![0.0]), Want::Rows, Box::new(|_| {}));
            let job = Job { session: id, pos: 0, input, want, phase, deadline: self.at(deadline), reply };
            self.sessions.submit(job, 1, self.at(ms)).unwrap();
        }

        /// All that is here is computed, until `ms`.
        fn compute(&mut self, ms: u32) {
            let picked = self.sessions.pick();
            let taken = picked.into_iter().filter_map(|id| self.sessions.take(id, &mut Vec::new()));
            let done = taken.map(|taken| Done { session: taken.pending.job.session, cache: taken.cache, ok: true });
            let done: Vec<_> = done.collect();
            let spent = Spent { wall: 100 * MS, on_core: Some(self.on_core * MS) };
            self.sessions.bring_back(done, 1, spent, self.at(ms), &mut Vec::new());
        }

        fn waits(&mut self, ms: u32) -> Option<Duration> {
            self.sessions.others_come(self.at(ms))
        }

        /// Two halves that take turns: each is away while the other is computed. How long is waited
        /// when the first half is there again in the end.
        fn turns(&mut self, ids: &[SessionId]) -> Option<Duration> {
            for turn in 0..100 {
                let from = turn * 200;
                self.come(ids[0], Phase::Decode, from, u32::MAX / 2);
                self.compute(from + 100);
                self.come(ids[1], Phase::Decode, from + 100, u32::MAX / 2);
                self.compute(from + 200);
            }
            self.come(ids[0], Phase::Decode, 20_000, u32::MAX / 2);
            self.waits(20_000)
        }
    }

    #[test]
    fn halves_meet_where_cores_are_short() {
        let (mut stage, ids) = Stage::new(50, &[(1, true), (1, true)]);
        // The other one was answered just now, and is away for as long as a batch takes: twice that.
        assert_eq!(stage.turns(&ids), Some(200 * MS));
        for (on_core, each) in [
            (100, [(1, true), (1, true)]),
            (50, [(1, false), (1, false)]),
            (50, [(1, true), (2, true)]),
            (50, [(1, false), (1, true)]),
        ] {
            let (mut stage, ids) = Stage::new(on_core, &each);
            assert_eq!(stage.turns(&ids), None, "{on_core} {each:?}");
        }
    }

    #[test]
    fn who_came_together_is_waited_for_and_nobody_is_late_for_it() {
        let (mut stage, ids) = Stage::new(100, &[(1, false), (2, false), (1, false)]);
        for (at, deadline) in [(0, 9_999), (1_000, 9_999)] {
            for (n, id) in ids.iter().take(2).enumerate() {
                stage.come(*id, Phase::Decode, at + n as u32, deadline);
            }
            stage.compute(at + 100);
        }
        stage.come(ids[1], Phase::Decode, 2_000, 9_999);
        assert_eq!(stage.waits(2_010), Some(15 * MS));
        assert_eq!(stage.waits(2_025), None, "it does not come");
        stage.compute(2_100);
        stage.come(ids[1], Phase::Decode, 3_000, 9_999);
        assert_eq!(stage.waits(3_000), None, "nor did it the last time");
        stage.compute(3_100);
        // Both again; then one with little time left.
        stage.come(ids[0], Phase::Decode, 4_000, 9_999);
        stage.come(ids[1], Phase::Decode, 4_000, 9_999);
        stage.compute(4_100);
        stage.come(ids[1], Phase::Decode, 5_000, 5_110);
        assert_eq!(stage.waits(5_000), Some(10 * MS), "a batch takes 100 ms");
        assert_eq!(stage.waits(5_011), None);
        // A prompt says nothing of who comes with tokens.
        stage.compute(5_100);
        stage.come(ids[0], Phase::Prefill, 5_200, 9_999);
        assert_eq!(stage.waits(5_200), None);
    }

    #[test]
    fn time_without_work_is_no_waiting() {
        let (mut stage, ids) = Stage::new(50, &[(1, true), (1, true)]);
        assert!(stage.turns(&ids).is_some());
        // The one that is here goes away, and the wait ends as it began.
        stage.sessions.close(ids[0]);
        stage.sessions.waited(stage.at(20_000));
        assert_eq!(stage.sessions.waiting, None);
        assert!(stage.sessions.pace.wait(true, stage.at(0), 390 * MS, stage.at(0)).is_some(), "as much as before");
    }
}
