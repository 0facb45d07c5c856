//! Workers that wait with a module that will be run again, already compiled: what they are given is what it is to do.
//!
//! The compiled code is kept by nobody but the process that made it, and that process runs it once, like any other. So what a
//! module did to the process that compiled it, or might do to the one that runs it, is never met by another module.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::spawn::Worker;

/// Processes that wait at once. Each has some 15 MiB; the one that has waited longest gives way.
const WAITING: usize = 4;

/// How long one waits. An agent that is run every few minutes finds it there.
const KEPT: Duration = Duration::from_secs(300);

/// What a waiting worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Has {
    /// Nothing yet: for whatever comes.
    Nothing,
    /// This module, compiled to use so much memory at most.
    Module { hash: blake3::Hash, memory: usize },
}

/// A worker that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) has: Has,
    pub(super) worker: Worker,
    since: Instant,
}

/// All workers that wait. A process is killed when its place here is dropped.
#[derive(Debug, Default)]
pub(super) struct Bench(Mutex<VecDeque<Waiting>>);

impl Bench {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that has this, if there is one.
    pub(super) fn take(&self, has: Has) -> Option<Waiting> {
        let mut all = self.lock();
        let at = all.iter().position(|waiting| waiting.has == has)?;
        all.remove(at)
    }

    pub(super) fn has(&self, has: Has) -> bool {
        self.lock().iter().any(|waiting| waiting.has == has)
    }

    /// Has a worker wait; how long, for who comes to look.
    pub(super) fn put(&self, has: Has, worker: Worker) -> Duration {
        let mut all = self.lock();
        while all.len() >= WAITING {
            all.pop_front();
        }
        all.push_back(Waiting { has, worker, since: Instant::now() });
        KEPT
    }

    /// Ends those that have waited long enough.
    pub(super) fn sweep(&self) {
        self.lock().retain(|waiting| waiting.since.elapsed() < KEPT);
    }
}
