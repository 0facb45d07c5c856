//! The threads that kernels are spread over.
//!
//! One job at a time: `tasks` indices, handed out by a counter to the caller and to whichever workers are awake. A worker
//! that sleeps through a job is not waited for. Between jobs workers spin for a moment, because the next product of a
//! decode step is microseconds away, and then park: an idle pool costs nothing.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Most threads of a pool: more than any machine has cores for. A system runs out of mappings for stacks at some ten
/// thousand threads, and that ends the process.
pub const MAX_THREADS: usize = 1024;

/// How long a worker looks for the next job before it parks: longer than the gap between two products of a decode step,
/// shorter than a scheduler's slice.
const SPIN: Duration = Duration::from_micros(50);

/// Spin-loop hints between two looks at the clock.
const HINTS_PER_LOOK: u32 = 32;

/// A job can be joined while this bit of [`Shared::state`] is set.
const OPEN: u64 = 1 << 31;

/// One step of the job's number, which stands above the open bit and the count of workers inside.
const EPOCH: u64 = 1 << 32;

/// Bits of [`Shared::state`] that count the workers inside the job.
const INSIDE: u64 = OPEN - 1;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// A fixed set of threads, of which the caller of [`Pool::run`] is one.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held for the length of a job: callers take turns.
    turn: Mutex<()>,
}

struct Worker {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
    asleep: Arc<AtomicBool>,
}

struct Shared {
    /// `epoch << 32 | open << 31 | workers inside`.
    state: AtomicU64,
    /// Written only while the job is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    /// The first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

// SAFETY: `job` is written by the one caller whose turn it is, before it opens the job (a release store that every worker
// acquires by joining) and only when the count of workers inside is zero; workers only read it.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, and is followed only while the caller waits in `run`.
unsafe impl Send for Shared {}

thread_local! {
    /// Set while this thread is inside a task: a job within a job runs on the spot.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// A pool of `threads` threads, [`MAX_THREADS`] at most, the caller of [`Pool::run`] included. Where the system
    /// refuses a thread the pool goes on with fewer; results do not depend on it.
    pub fn new(threads: NonZeroUsize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..threads.get().min(MAX_THREADS))
            .map_while(|index| {
                let asleep = Arc::new(AtomicBool::new(false));
                let (theirs, flag) = (Arc::clone(&shared), Arc::clone(&asleep));
                let handle = std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || theirs.serve(&flag))
                    .ok()?;
                Some(Worker { thread: handle.thread().clone(), handle: Some(handle), asleep })
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// How many threads take part, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0)`, …, `f(tasks - 1)`, in no order, on this thread and the pool's, and returns when all have ended.
    ///
    /// Concurrent calls take turns. A call from inside a task runs on the spot, one index after another.
    ///
    /// # Panics
    /// With the first panic of a task, once no task runs any more; the tasks not yet begun are left out.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            (0..tasks).for_each(f);
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime is erased. `finish` below waits until no worker is inside the job, and no worker
        // joins a closed one, so the pointer is not followed after this call.
        let task: *const Task<'static> = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(f) };
        // SAFETY: the last job was closed and left by all before the lock was given back.
        unsafe { *self.shared.job.get() = Some(Job { task, tasks }) };
        self.shared.next.store(0, Ordering::Relaxed);
        let epoch = self.shared.state.load(Ordering::Relaxed) & !(EPOCH - 1);
        self.shared.state.store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            for worker in self.workers.iter().take(tasks - 1).filter(|w| w.asleep.load(Ordering::SeqCst)) {
                worker.thread.unpark();
            }
        }
        self.shared.work(f, tasks);
        self.shared.finish();
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Shared {
    /// Takes indices until none is left. A panic is kept for the caller and ends the job.
    fn work(&self, task: &Task<'_>, tasks: usize) {
        IN_TASK.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                task(index);
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = outcome {
            self.next.store(tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// Closes the job and waits until no worker is inside.
    fn finish(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spinner = Spinner::new();
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            if !spinner.spin() {
                // The worker may need this very core to finish its task.
                std::thread::yield_now();
            }
        }
    }

    /// A worker's life: join, work, leave; spin; park.
    fn serve(&self, asleep: &AtomicBool) {
        let mut seen = 0;
        while !self.stop.load(Ordering::SeqCst) {
            if self.join(&mut seen) {
                // SAFETY: this worker is counted inside an open job: the caller wrote it before opening and waits for
                // this worker to leave before it returns or writes another.
                if let Some(job) = unsafe { *self.job.get() } {
                    // SAFETY: as above, the closure is borrowed by the caller, who waits.
                    self.work(unsafe { &*job.task }, job.tasks);
                }
                self.state.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let mut spinner = Spinner::new();
            while !self.has_news(seen) && spinner.spin() {}
            if self.has_news(seen) {
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            // The caller opens a job first and looks for sleepers after; this thread does the reverse. One of the two
            // sees the other.
            while !self.has_news(seen) {
                std::thread::park();
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            asleep.store(false, Ordering::SeqCst);
        }
    }

    fn has_news(&self, seen: u64) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        (state & OPEN != 0 && state / EPOCH != seen) || self.stop.load(Ordering::SeqCst)
    }

    /// Counts this worker into the open job, once per job.
    fn join(&self, seen: &mut u64) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        while state & OPEN != 0 && state / EPOCH != *seen {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    *seen = state / EPOCH;
                    return true;
                }
                Err(now) => state = now,
            }
        }
        false
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker catches the panics of tasks and has none of its own.
                let _ = handle.join();
            }
        }
    }
}

/// Waits actively, for a bounded time.
struct Spinner {
    started: Option<Instant>,
}

impl Spinner {
    fn new() -> Self {
        Self { started: None }
    }

    /// Lets a moment pass; false once the time is up.
    fn spin(&mut self) -> bool {
        for _ in 0..HINTS_PER_LOOK {
            std::hint::spin_loop();
        }
        self.started.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn every_index_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = pool(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 7, 100, 3000] {
                let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    ran[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(ran.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn there_are_never_more_threads_than_a_system_has_room_for() {
        // A system may refuse some; asked for as many as this without a bound it ends the process.
        assert!(pool(1_000_000).threads() <= MAX_THREADS);
    }

    #[test]
    fn callers_take_turns() {
        let pool = pool(3);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(10, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 45);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = pool(2);
        for round in 0..50 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, &|i| assert_ne!(i, round % 20, "task"));
            }));
            assert!(caught.is_err());
            let count = AtomicUsize::new(0);
            pool.run(20, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 20);
        }
    }

    #[test]
    fn a_job_within_a_job_runs_on_the_spot() {
        let pool = pool(2);
        let count = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 20);
    }

    #[test]
    fn parked_workers_wake_for_the_next_job() {
        let pool = pool(2);
        let helper = AtomicBool::new(false);
        let me = std::thread::current().id();
        // Only a job that the worker joins ends the loop, and it has parked long before.
        while pool.shared.sleepers.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let both = std::sync::Barrier::new(2);
        pool.run(2, &|_| {
            both.wait();
            if std::thread::current().id() != me {
                helper.store(true, Ordering::Relaxed);
            }
        });
        assert!(helper.into_inner());
    }
}
