//! Workers that wait with a module that will be run again, already compiled: what they are given is what it is to do.
//!
//! The compiled code is kept by nobody but the process that made it, and that process runs it once, like any other. So what a
//! module did to the process that compiled it, or might do to the one that runs it, is never met by another module.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::{
    frames::{self, COMPILED, GO, JOB},
    limits::{COMPILE_TIME, GRACE, INPUT_MAX, Limits},
    sandbox::{Course, Host, Job, Run, Sandbox, SandboxError, header},
    spawn::Worker,
    worker::{Go, Order},
};

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

impl Sandbox {
    /// Runs a module that is the operator's own and will be run again: a worker that has it compiled takes it, where one
    /// waits, and one waits for the next time.
    ///
    /// # Errors
    /// As [`Sandbox::compute`].
    pub(crate) async fn run_again(&self, job: &Job, host: &dyn Host) -> Result<Run, SandboxError> {
        let run = match self.run_waiting(job, host).await? {
            Some(run) => run,
            None => self.run(job, host).await?,
        };
        self.keep_ready(job.module.clone(), job.limits);
        Ok(run)
    }

    /// Has a worker that waits run the module; nothing where none has it, or the one that had is gone.
    async fn run_waiting(&self, job: &Job, host: &dyn Host) -> Result<Option<Run>, SandboxError> {
        let limits = job.limits.within();
        let has = Has::Module { hash: blake3::hash(&job.module), memory: limits.memory };
        if job.input.len() > INPUT_MAX || !self.shared.bench.has(has) {
            return Ok(None);
        }
        let _waiting = self.shared.waiting.try_acquire().map_err(|_| SandboxError::Busy)?;
        let _running = self.shared.running.acquire().await.map_err(|_| SandboxError::Busy)?;
        let Some(Waiting { mut worker, .. }) = self.shared.bench.take(has) else { return Ok(None) };
        let started = Instant::now();
        let go = header(&Go { entry: job.entry.clone(), limits })?;
        let until = started + limits.deadline() + GRACE;
        let sent = timeout_at(until, frames::send(&mut worker.stdin, GO, &[&go, &job.input])).await;
        if !matches!(sent, Ok(Ok(()))) {
            worker.finish().await;
            return Ok(None);
        }
        let compiled = Some(Duration::ZERO);
        let mut course = Course::new(worker, host, until, compiled);
        let (run, _) = course.follow(started, limits.deadline()).await;
        course.worker.finish().await;
        Ok(Some(Run { took: started.elapsed(), ..run }))
    }

    /// Has one worker wait with this module, and one with none, unless they do or all places are taken.
    pub(crate) fn keep_ready(&self, module: Arc<[u8]>, limits: Limits) {
        let sandbox = self.clone();
        tokio::spawn(async move {
            let memory = limits.within().memory;
            let has = Has::Module { hash: blake3::hash(&module), memory };
            for has in [has, Has::Nothing] {
                // Who wants to run something goes before those who only might.
                let Ok(_running) = sandbox.shared.running.try_acquire() else { return };
                if sandbox.shared.bench.has(has) {
                    continue;
                }
                let Ok(worker) = sandbox.prepare(has, &module, memory).await else { return };
                let kept = sandbox.shared.bench.put(has, worker);
                // Not a handle: with the last of those the processes end.
                let shared = Arc::downgrade(&sandbox.shared);
                tokio::spawn(async move {
                    tokio::time::sleep(kept).await;
                    if let Some(shared) = shared.upgrade() {
                        shared.bench.sweep();
                    }
                });
            }
        });
    }

    /// Whether workers wait, one for this job's module and one for any.
    pub(crate) fn is_ready(&self, job: &Job) -> bool {
        let has = Has::Module { hash: blake3::hash(&job.module), memory: job.limits.within().memory };
        self.shared.bench.has(has) && self.shared.bench.has(Has::Nothing)
    }

    /// A worker that has what is to be had.
    async fn prepare(&self, has: Has, module: &[u8], memory: usize) -> Result<Worker, SandboxError> {
        let mut worker = self.start().await?;
        if has == Has::Nothing {
            return Ok(worker);
        }
        let order = header(&Order::Load { memory })?;
        let until = Instant::now() + COMPILE_TIME + GRACE;
        let loaded = timeout_at(until, async {
            frames::send(&mut worker.stdin, JOB, &[&order, module]).await?;
            frames::receive(&mut worker.stdout).await
        });
        match loaded.await {
            Ok(Ok(frame)) if frame.kind == COMPILED => Ok(worker),
            // The module is refused, or takes too long: its next run says so.
            _ => Err(SandboxError::Start(io::Error::other("the module was not loaded"))),
        }
    }
}
