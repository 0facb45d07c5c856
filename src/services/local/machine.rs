//! When the process behind `llm_local` is started, stopped and started again, as rules: no clock, no process.
//!
//! ```text
//!           a call                 healthy               idle
//!   Off ────────────→ Starting ────────────→ Ready ────────────→ Stopping ───→ Off
//!    ↑                   │ late, ended         │ ended, hung        (drains)
//!    └───── nobody ── Resting ←────────────────┘
//!           wants it     └──→ Starting, when the rest is over and it had been of use, or somebody wants it
//! ```

use std::time::{Duration, Instant};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// From its start until it is ready: the weights are read meanwhile.
    pub(super) start: Duration,
    /// Without a call, until it is unloaded.
    pub(super) idle: Duration,
    /// For what is under way, when it is told to stop.
    pub(super) drain: Duration,
    /// Before it is started again after it failed: so long at first, and twice as long each time.
    pub(super) rest: Duration,
    pub(super) rest_most: Duration,
    /// After so long without a failure the first rest is short again.
    pub(super) steady: Duration,
    /// Looks at its health that may fail in a row.
    pub(super) missed: u8,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// So many calls want it now.
    Calls(u32),
    /// It is ready, and works.
    Healthy,
    /// It did not say how it is, or that it has hung.
    Missed,
    /// It ended, or could not be started.
    Ended,
    /// The node stops.
    Shutdown,
    /// Nothing but time.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Start,
    /// It finishes what is under way, and ends.
    Ask,
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Off,
    Starting {
        until: Instant,
    },
    Ready {
        since: Instant,
        /// Since when nobody has called.
        idle: Option<Instant>,
        missed: u8,
    },
    Stopping {
        until: Instant,
        /// Whether this is what ended it: a process that had hung has failed.
        told: bool,
        /// Whether it had been ready.
        useful: bool,
    },
    Resting {
        until: Instant,
        /// It had been of use: it is started again also when nobody waits.
        useful: bool,
    },
}

/// How it is, for calls and for gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Off,
    Starting,
    Ready,
    Stopping,
    /// It has failed, and is started again at this time.
    Resting(Instant),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Machine {
    rules: Rules,
    phase: Phase,
    calls: u32,
    /// In a row.
    failures: u32,
    restarts: u64,
    closing: bool,
}

impl Machine {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, phase: Phase::Off, calls: 0, failures: 0, restarts: 0, closing: false }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Off => State::Off,
            Phase::Starting { .. } => State::Starting,
            Phase::Ready { .. } => State::Ready,
            Phase::Stopping { .. } => State::Stopping,
            Phase::Resting { until, .. } => State::Resting(until),
        }
    }

    /// Starts after a failure.
    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Whether the node stops, and it has ended.
    pub(super) fn closed(&self) -> bool {
        self.closing && self.phase == Phase::Off
    }

    /// When the next [`Event::Tick`] is due.
    pub(super) fn wake(&self) -> Option<Instant> {
        match self.phase {
            Phase::Off => None,
            Phase::Ready { idle, .. } => idle.map(|since| since + self.rules.idle),
            Phase::Starting { until } | Phase::Stopping { until, .. } | Phase::Resting { until, .. } => Some(until),
        }
    }

    pub(super) fn on(&mut self, event: Event, now: Instant) -> Option<Act> {
        match event {
            Event::Calls(calls) => {
                self.calls = calls;
                if let Phase::Ready { idle, .. } = &mut self.phase {
                    *idle = (calls == 0).then(|| idle.unwrap_or(now));
                }
            }
            Event::Healthy => match &mut self.phase {
                Phase::Starting { .. } => {
                    let idle = (self.calls == 0).then_some(now);
                    self.phase = Phase::Ready { since: now, idle, missed: 0 };
                }
                Phase::Ready { missed, .. } => *missed = 0,
                _ => {}
            },
            Event::Missed => {
                if let Phase::Ready { missed, .. } = &mut self.phase {
                    *missed = missed.saturating_add(1);
                    if *missed >= self.rules.missed {
                        return Some(self.kill(now, true));
                    }
                }
            }
            Event::Ended => self.ended(now),
            Event::Shutdown => {
                self.closing = true;
                match self.phase {
                    Phase::Starting { .. } | Phase::Ready { .. } => return Some(self.ask(now)),
                    Phase::Resting { .. } => self.phase = Phase::Off,
                    Phase::Off | Phase::Stopping { .. } => {}
                }
            }
            Event::Tick => {}
        }
        self.due(now)
    }

    fn due(&mut self, now: Instant) -> Option<Act> {
        match self.phase {
            Phase::Off if self.calls > 0 && !self.closing => Some(self.start(now)),
            Phase::Resting { until, useful } if now >= until => {
                if useful || self.calls > 0 {
                    self.restarts = self.restarts.saturating_add(1);
                    return Some(self.start(now));
                }
                self.phase = Phase::Off;
                None
            }
            Phase::Starting { until } if now >= until => Some(self.kill(now, false)),
            Phase::Ready { idle: Some(since), .. } if now >= since + self.rules.idle => Some(self.ask(now)),
            Phase::Stopping { until, told, useful } if now >= until => {
                self.phase = Phase::Stopping { until: now + self.rules.drain, told, useful };
                Some(Act::Kill)
            }
            _ => None,
        }
    }

    fn start(&mut self, now: Instant) -> Act {
        self.phase = Phase::Starting { until: now + self.rules.start };
        Act::Start
    }

    fn ask(&mut self, now: Instant) -> Act {
        self.phase = Phase::Stopping { until: now + self.rules.drain, told: true, useful: false };
        Act::Ask
    }

    fn kill(&mut self, now: Instant, useful: bool) -> Act {
        self.phase = Phase::Stopping { until: now + self.rules.drain, told: false, useful };
        Act::Kill
    }

    fn ended(&mut self, now: Instant) {
        let useful = match self.phase {
            Phase::Off | Phase::Resting { .. } => return,
            Phase::Stopping { told: true, .. } => {
                self.phase = Phase::Off;
                return;
            }
            Phase::Starting { .. } => false,
            Phase::Stopping { useful, .. } => useful,
            Phase::Ready { since, .. } => {
                if now.saturating_duration_since(since) >= self.rules.steady {
                    self.failures = 0;
                }
                true
            }
        };
        if self.closing {
            self.phase = Phase::Off;
            return;
        }
        let longer = 2u32.checked_pow(self.failures).unwrap_or(u32::MAX);
        let rest = self.rules.rest.saturating_mul(longer).min(self.rules.rest_most);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Resting { until: now + rest, useful };
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
