//! How long batches take, and how long to wait for sessions that will soon be back with another token.
//!
//! Sessions that share a batch have the weights read once. Those that come back together, one after another over a link,
//! stay together; those that do not take turns, each with a pass over the weights of its own. Where every stage of a chain
//! has cores of its own this is no loss: while one stage computes some sessions the next computes the others. Where stages
//! share cores it is: what one computes, the other waits for. A thread that is kept from its core for a good part of its
//! batches therefore waits for all sessions now and then, and they go through the chain together from then on. Only a stage
//! that has the first layer does: two that wait for each other's sessions would gain nothing.

use std::time::{Duration, Instant};

/// The part of the last batch's time that is waited at most.
const SHORT: u32 = 4;

/// The same, where cores are short: as many times the last batch's time.
const LONG: u32 = 4;

/// All waits together take at most this part of the batches' time: a session may mean to be waited for.
const WAITS_SHARE: u32 = 2;

/// Waits that were not needed are kept for later, as many times the last batch's time.
const WAITS_KEPT: u32 = 8;

/// Cores are short where so much of the time of batches passes without this thread.
const CROWDED: f64 = 0.2;

/// What a batch counts for against those before.
const SMOOTHING: f64 = 0.125;

/// What a batch took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) wall: Duration,
    /// Time of this thread on a core, where the system tells.
    pub(super) on_core: Option<Duration>,
}

/// Measures a batch on the thread that computes it.
pub(super) struct Stopwatch {
    pub(super) start: Instant,
    on_core: Option<Duration>,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), on_core: on_core() }
    }

    pub(super) fn stop(&self) -> Spent {
        let on_core = on_core().zip(self.on_core).map(|(now, before)| now.saturating_sub(before));
        Spent { wall: self.start.elapsed(), on_core }
    }
}

/// How long this thread has been on a core.
#[cfg(unix)]
fn on_core() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// How long this thread has been on a core: not known here.
#[cfg(not(unix))]
fn on_core() -> Option<Duration> {
    None
}

#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Duration,
    /// The part of the batches' time that passes without this thread, lately.
    kept_out: f64,
    /// How long may be waited.
    allowed: Duration,
}

impl Pace {
    /// A batch took so long.
    pub(super) fn batch(&mut self, spent: Spent) {
        self.last = spent.wall;
        let earned = spent.wall.checked_div(WAITS_SHARE).unwrap_or_default();
        self.allowed = self.allowed.saturating_add(earned).min(spent.wall.saturating_mul(WAITS_KEPT));
        if let Some(on_core) = spent.on_core.filter(|_| !spent.wall.is_zero()) {
            let kept_out = 1.0 - on_core.as_secs_f64() / spent.wall.as_secs_f64();
            self.kept_out += (kept_out.clamp(0.0, 1.0) - self.kept_out) * SMOOTHING;
        }
    }

    /// It was waited for so long.
    pub(super) fn waited(&mut self, time: Duration) {
        self.allowed = self.allowed.saturating_sub(time);
    }

    /// How long to wait from now on for a session that was answered at `answered` and took `after` to come back the last
    /// time; `leads` where it and all that are here begin with the first layer and are of one group.
    pub(super) fn wait(&self, leads: bool, answered: Instant, after: Duration, now: Instant) -> Option<Duration> {
        let long = leads && self.kept_out > CROWDED;
        let short = self.last.checked_div(SHORT)?;
        let patience = if long { self.last.saturating_mul(LONG).min(self.allowed).max(short) } else { short };
        let until = answered.checked_add(after.saturating_mul(2).min(patience))?;
        (after <= patience).then(|| until.saturating_duration_since(now))
    }

    /// How long to wait from now on for those of `others` that came with one that is `here` the last time. Of these it is
    /// given when they came now and the time before, of the others when they came last.
    pub(super) fn companions(
        &self,
        here: impl IntoIterator<Item = (Instant, Instant)>,
        others: impl IntoIterator<Item = Instant>,
        now: Instant,
    ) -> Option<Duration> {
        let patience = self.last.checked_div(SHORT)?;
        let (came, mut before): (Vec<Instant>, Vec<Instant>) = here.into_iter().unzip();
        let waited = now.saturating_duration_since(*came.iter().min()?);
        before.sort_unstable();
        // The first of those that are not too early for it.
        let together = |other: Instant| {
            let at = before.partition_point(|before| other.saturating_duration_since(*before) > patience);
            before.get(at).is_some_and(|before| before.saturating_duration_since(other) <= patience)
        };
        others.into_iter().any(together).then(|| patience.saturating_sub(waited))
    }

    /// How long the last batch took.
    pub(super) fn last(&self) -> Duration {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn spent(wall: u32, on_core: Option<u32>) -> Spent {
        Spent { wall: wall * MS, on_core: on_core.map(|ms| ms * MS) }
    }

    #[test]
    fn only_who_comes_back_at_once_is_waited_for() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.wait(true, now, MS, now), None, "no batch yet");
        pace.batch(spent(100, Some(100)));
        for leads in [false, true] {
            assert_eq!(pace.wait(leads, now, 5 * MS, now), Some(10 * MS));
            assert_eq!(pace.wait(leads, now, 20 * MS, now + 10 * MS), Some(15 * MS));
            assert_eq!(pace.wait(leads, now, 5 * MS, now + 11 * MS), Some(Duration::ZERO), "it does not come");
            assert_eq!(pace.wait(leads, now, 26 * MS, now), None);
        }
    }

    #[test]
    fn where_cores_are_short_the_first_stage_waits_for_all() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        (0..24).for_each(|_| pace.batch(spent(100, Some(50))));
        assert_eq!(pace.wait(true, now, 150 * MS, now), Some(300 * MS));
        assert_eq!(pace.wait(true, now, 300 * MS, now), Some(400 * MS));
        assert_eq!(pace.wait(true, now, 401 * MS, now), None, "however short, not for who is far away");
        assert_eq!(pace.wait(false, now, 150 * MS, now), None, "nobody waits for who waits");
        // Who takes its time every time slows the others by half at most.
        let mut waited = Duration::ZERO;
        for _ in 0..80 {
            pace.batch(spent(100, Some(50)));
            if pace.wait(true, now, 390 * MS, now).is_some() {
                pace.waited(390 * MS);
                waited += 390 * MS;
            }
        }
        assert!((3000 * MS..5000 * MS).contains(&waited), "{waited:?} beside 80 batches of 100 ms");
        // Once they go together there is a core for it, and nothing to wait for.
        (0..24).for_each(|_| pace.batch(spent(100, Some(100))));
        assert_eq!(pace.wait(true, now, 150 * MS, now), None);
    }

    #[test]
    fn who_came_together_before_is_waited_for_when_one_is_there() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms: u32| start + ms * MS;
        assert_eq!(pace.companions([(at(30), at(0))], [at(1)], at(30)), None, "no batch yet");
        pace.batch(spent(20, Some(20)));
        assert_eq!(pace.companions([(at(30), at(0))], [at(1)], at(30)), Some(5 * MS));
        assert_eq!(pace.companions([(at(30), at(2)), (at(31), at(0))], [at(7)], at(31)), Some(4 * MS));
        assert_eq!(pace.companions([(at(30), at(9))], [at(4)], at(30)), Some(5 * MS));
        for other in [at(5), at(0)] {
            assert_eq!(pace.companions([(at(40), at(0)), (at(30), at(0))], [other], at(36)), Some(Duration::ZERO));
        }
        assert_eq!(pace.companions([(at(30), at(10))], [at(4), at(16)], at(30)), None, "each in its own time");
        assert_eq!(pace.companions([], [at(4)], at(30)), None);
        assert_eq!(pace.companions([(at(30), at(10))], [], at(30)), None);
    }

    #[test]
    fn what_the_system_does_not_tell_changes_nothing() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        (0..20).for_each(|_| pace.batch(spent(100, None)));
        assert_eq!(pace.wait(true, now, 150 * MS, now), None);
        pace.batch(spent(0, Some(5)));
        assert_eq!(pace.kept_out, 0.0);
    }

    #[test]
    fn a_thread_that_waits_is_on_no_core() {
        let watch = Stopwatch::start();
        while watch.start.elapsed() < 20 * MS {
            std::thread::park_timeout(20 * MS);
        }
        let waited = watch.stop();
        assert!(waited.wall >= 20 * MS);
        assert!(waited.on_core.is_none_or(|on_core| on_core < waited.wall / 2), "{waited:?}");
    }
}
