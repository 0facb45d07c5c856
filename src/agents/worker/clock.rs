//! The time that a module has to compute: a thread waits for its end and interrupts the module then. It stands still while an
//! answer is waited for that the module cannot hurry.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What the thread waits for.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing runs.
    Idle,
    /// Until then.
    Until(Instant),
    /// It stands still, with so much left.
    Paused(Duration),
    /// The time was over.
    Over,
}

/// A clock. Clones share it.
#[derive(Clone)]
pub(super) struct Clock {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Clock {
    /// Starts the thread, which calls `ring` when the time is over.
    pub(super) fn start(ring: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(State::Idle), Condvar::new()));
        let clock = Self { shared: shared.clone() };
        let (up, is_up) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("clock".into()).stack_size(128 << 10).spawn(move || {
            let _ = up.send(());
            let (state, changed) = &*shared;
            let mut now = state.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                now = match *now {
                    State::Until(end) => match end.checked_duration_since(Instant::now()) {
                        Some(left) if !left.is_zero() => {
                            changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0
                        }
                        _ => {
                            *now = State::Over;
                            ring();
                            now
                        }
                    },
                    _ => changed.wait(now).unwrap_or_else(PoisonError::into_inner),
                };
            }
        })?;
        // A thread that begins makes system calls that the filter does not allow: it has to be there before.
        is_up.recv().map_err(std::io::Error::other)?;
        Ok(clock)
    }

    fn change(&self, f: impl FnOnce(State) -> State) {
        let (state, changed) = &*self.shared;
        let mut now = state.lock().unwrap_or_else(PoisonError::into_inner);
        *now = f(*now);
        changed.notify_one();
    }

    /// Gives this much time from now on.
    pub(super) fn set(&self, time: Duration) {
        self.change(|_| Instant::now().checked_add(time).map_or(State::Idle, State::Until));
    }

    pub(super) fn pause(&self) {
        self.change(|state| match state {
            State::Until(end) => State::Paused(end.saturating_duration_since(Instant::now())),
            other => other,
        });
    }

    pub(super) fn go_on(&self) {
        self.change(|state| match state {
            State::Paused(left) => Instant::now().checked_add(left).map_or(State::Idle, State::Until),
            other => other,
        });
    }
}
