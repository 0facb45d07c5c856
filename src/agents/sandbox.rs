//! One run, from the daemon's side.
//!
//! The daemon has the last word on time: a worker ends its module itself when the deadline is over, and is killed a moment later
//! if it has not. Nothing that a worker says is believed without a look: it may have been taken over by its module.

use std::{
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    frames::{self, ANSWER, CALL, COMPILED, DONE, Frame, JOB, READY},
    limits::{
        CALLS_MAX, COMPILE_TIME, GRACE, INPUT_MAX, LIFE_MAX, LOG_BYTES, LOG_LINES, Limits, MODULE_MAX, OUTPUT_MAX,
        START_TIME,
    },
    spawn::{Spawner, Worker},
    waiting::{Bench, Has},
    worker::{Order, gate::Wishes, guest::HostFunction, runtime::Ended, too_slow},
};

/// Processes at once. Each may have a processor and [`super::limits::MEMORY_MAX`] of memory.
const AT_ONCE: usize = 4;

/// Runs that may wait for a place. The next is told that there is none.
const WAITING: usize = 64;

/// A module to run.
#[derive(Debug, Clone)]
pub struct Job {
    /// The module's bytes.
    pub module: Arc<[u8]>,
    /// What it is given.
    pub input: Vec<u8>,
    /// The export to call; the kits of the extism project leave its name to the author.
    pub entry: String,
    /// What it may use.
    pub limits: Limits,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It returned.
    Ok,
    /// The module itself said that it failed, and why.
    Failed(String),
    /// It did what no module may, or its process died.
    Trapped(String),
    /// Its fuel is used up.
    OutOfFuel,
    /// Its time was over.
    Timeout,
    /// It was not run, and why.
    Refused(String),
}

impl End {
    /// A word of a fixed set, as metrics have it.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(_) | Self::Trapped(_) => "trap",
            Self::OutOfFuel => "out_of_fuel",
            Self::Timeout => "timeout",
            Self::Refused(_) => "denied",
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// How it ended.
    pub end: End,
    /// What it gave out; empty unless it returned or failed by its own word.
    pub output: Vec<u8>,
    /// Fuel that it used: the same for the same module, input and answers. 0 where its process was killed.
    pub fuel: u64,
    /// How long it took until there was a process that is locked down; nothing where one waited.
    pub ready_in: Duration,
    /// How long reading and compiling took; nothing where that was done before.
    pub compiled_in: Duration,
    /// How long it took in all, from the moment at which there was a process.
    pub took: Duration,
}

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// More than wait already.
    #[error("{AT_ONCE} agents run and {WAITING} wait; try again later")]
    Busy,
    /// No process.
    #[error("a process for the agent cannot be started: {0}")]
    Start(io::Error),
}

/// The answer to what a module asks: bytes, or why not. Both go to the module.
pub(crate) type HostFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, Vec<u8>>> + Send + 'a>>;

/// Answers what a module asks.
pub(crate) trait Host: Send + Sync {
    /// Answers a question.
    fn ask<'a>(&'a self, function: HostFunction, first: &'a [u8], second: &'a [u8]) -> HostFuture<'a>;

    /// A line of its log, cleaned; the level is 0 (trace) to 4 (error).
    fn log(&self, level: u8, line: String);
}

/// For a module that only computes: whatever it asks is refused.
#[derive(Debug, Clone, Copy)]
pub struct NoHost;

impl Host for NoHost {
    fn ask<'a>(&'a self, _: HostFunction, _: &'a [u8], _: &'a [u8]) -> HostFuture<'a> {
        Box::pin(async { Err(refusal("denied", "this run may only compute")) })
    }

    fn log(&self, _: u8, _: String) {}
}

/// A refusal as modules read it.
pub(crate) fn refusal(code: &str, message: &str) -> Vec<u8> {
    serde_json::json!({ "error": { "code": code, "message": message } }).to_string().into_bytes()
}

/// Runs modules. Clones share the limit on how many run at once.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    program: PathBuf,
    spawner: OnceLock<Spawner>,
    pub(super) running: Semaphore,
    pub(super) waiting: Semaphore,
    /// Workers that wait for the next run of a module.
    pub(super) bench: Bench,
}

/// What is left to do for a run that was ordered.
pub(super) struct Course<'a> {
    pub(super) worker: Worker,
    host: &'a dyn Host,
    /// When the process is killed, whatever it does.
    until: Instant,
    /// How long compiling took, once that is done.
    compiled: Option<Duration>,
    calls: u32,
    log_lines: usize,
    log_bytes: usize,
}

impl Sandbox {
    /// Workers are `program agent-worker`: for a daemon its own program.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            shared: Arc::new(Shared {
                program,
                spawner: OnceLock::new(),
                running: Semaphore::new(AT_ONCE),
                waiting: Semaphore::new(AT_ONCE + WAITING),
                bench: Bench::default(),
            }),
        }
    }

    /// Runs a module that only computes.
    ///
    /// # Errors
    /// When too much waits, or no process can be had. That the module fails is no error of this kind.
    pub async fn compute(&self, job: &Job) -> Result<Run, SandboxError> {
        self.run(job, &NoHost).await
    }

    /// Runs a module; `host` answers what it asks.
    ///
    /// # Errors
    /// As [`Sandbox::compute`].
    pub(super) async fn run(&self, job: &Job, host: &dyn Host) -> Result<Run, SandboxError> {
        let limits = job.limits.within();
        if job.module.len() > MODULE_MAX || job.input.len() > INPUT_MAX {
            let said = format!("a module of {} bytes with {} of input is too much", job.module.len(), job.input.len());
            return Ok(nothing(End::Refused(said)));
        }
        let order = Order::Run { module: job.module.len(), entry: Some(job.entry.clone()), limits };
        let (run, _) = self.ordered(&order, &[&job.module, &job.input], limits.deadline(), host).await?;
        Ok(run)
    }

    /// Reads and compiles a module without running it: what it imports and exports.
    ///
    /// # Errors
    /// As [`Sandbox::compute`].
    pub(crate) async fn look(&self, module: &[u8]) -> Result<Result<Wishes, String>, SandboxError> {
        if module.len() > MODULE_MAX {
            return Ok(Err(format!("the module has {} bytes; at most {MODULE_MAX} are taken", module.len())));
        }
        let order = Order::Run { module: module.len(), entry: None, limits: Limits::default() };
        let (run, wishes) = self.ordered(&order, &[module], Duration::ZERO, &NoHost).await?;
        Ok(match run.end {
            End::Ok => Ok(wishes),
            End::Refused(said) | End::Trapped(said) | End::Failed(said) => Err(said),
            End::OutOfFuel | End::Timeout => Err("the module could not be read in time".into()),
        })
    }

    /// Has a worker do something else than running a module.
    pub(crate) async fn other(&self, order: &Order, bytes: &[u8], time: Duration) -> Result<Run, SandboxError> {
        self.ordered(order, &[bytes], time, &NoHost).await.map(|(run, _)| run)
    }

    async fn ordered(
        &self,
        order: &Order,
        parts: &[&[u8]],
        time: Duration,
        host: &dyn Host,
    ) -> Result<(Run, Wishes), SandboxError> {
        let _waiting = self.shared.waiting.try_acquire().map_err(|_| SandboxError::Busy)?;
        let _running = self.shared.running.acquire().await.map_err(|_| SandboxError::Busy)?;
        let order = header(order)?;
        let all: Vec<&[u8]> = std::iter::once(&order[..]).chain(parts.iter().copied()).collect();
        let asked = Instant::now();
        let mut worker = match self.shared.bench.take(Has::Nothing) {
            Some(waiting) => waiting.worker,
            None => self.start().await?,
        };
        let started = Instant::now();
        let until = started + COMPILE_TIME + GRACE;
        let mut sent = timeout_at(until, frames::send(&mut worker.stdin, JOB, &all)).await;
        if matches!(sent, Ok(Err(_))) {
            // It waited, and was ended by somebody meanwhile.
            worker = self.start().await?;
            sent = timeout_at(until, frames::send(&mut worker.stdin, JOB, &all)).await;
        }
        let mut course = Course::new(worker, host, until, None);
        let (mut run, wishes) = match sent {
            Ok(Ok(())) => course.follow(started, time).await,
            _ => (nothing(died(&mut course.worker).await), Wishes::default()),
        };
        run.took = started.elapsed();
        run.ready_in = started.saturating_duration_since(asked);
        course.worker.finish().await;
        Ok((run, wishes))
    }

    /// A worker that is locked down.
    pub(super) async fn start(&self) -> Result<Worker, SandboxError> {
        let spawner = match self.shared.spawner.get() {
            Some(spawner) => spawner,
            None => {
                let spawner = Spawner::new(self.shared.program.clone()).map_err(SandboxError::Start)?;
                // Two at once: the thread of the one that comes late ends with its handle.
                self.shared.spawner.get_or_init(|| spawner)
            }
        };
        let mut worker = spawner.start().await.map_err(SandboxError::Start)?;
        let ready = timeout_at(Instant::now() + START_TIME, frames::receive(&mut worker.stdout)).await;
        match ready {
            Ok(Ok(Frame { kind: READY, .. })) => Ok(worker),
            Ok(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => Err(SandboxError::Start(error)),
            _ => Err(SandboxError::Start(io::Error::other(
                "it ended before it was ready; 'quelea agent-worker --check' says why",
            ))),
        }
    }
}

impl<'a> Course<'a> {
    /// Of a worker that has its order, and its module where `compiled` says how long that took.
    pub(super) fn new(worker: Worker, host: &'a dyn Host, until: Instant, compiled: Option<Duration>) -> Self {
        Self { worker, host, until, compiled, calls: 0, log_lines: 0, log_bytes: 0 }
    }

    /// Until the worker is done, dead, or out of time.
    pub(super) async fn follow(&mut self, started: Instant, time: Duration) -> (Run, Wishes) {
        let mut wishes = Wishes::default();
        let end = loop {
            let frame = match timeout_at(self.until, frames::receive(&mut self.worker.stdout)).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(_)) => break died(&mut self.worker).await,
                Err(_) if self.compiled.is_some() => break End::Timeout,
                Err(_) => break End::Refused(too_slow(started.elapsed())),
            };
            match frame.kind {
                COMPILED if self.compiled.is_none() => {
                    let now = Instant::now();
                    self.compiled = Some(now.saturating_duration_since(started));
                    self.until = now + time + GRACE;
                    wishes = wishes_of(&frame.body);
                }
                CALL if self.compiled.is_some() => {
                    if let Err(end) = self.answer(&frame.body, started + LIFE_MAX).await {
                        break end;
                    }
                }
                DONE => {
                    let run = done(&frame.body).unwrap_or_else(|| nothing(broken()));
                    return (Run { compiled_in: self.compiled.unwrap_or_default(), ..run }, wishes);
                }
                _ => break broken(),
            }
        };
        (Run { compiled_in: self.compiled.unwrap_or_default(), ..nothing(end) }, wishes)
    }

    /// Answers a call of a host function; a line of log has no answer.
    async fn answer(&mut self, body: &[u8], life: Instant) -> Result<(), End> {
        let function = body.first().and_then(|n| HostFunction::from_u8(*n)).ok_or_else(broken)?;
        let (first, second) = body.get(1..).and_then(frames::split).ok_or_else(broken)?;
        if function == HostFunction::Log {
            self.log(first.first().copied().unwrap_or(2), second);
            return Ok(());
        }
        // The worker counts, too; one that does not is not what we started.
        self.calls = self.calls.saturating_add(1);
        if self.calls > CALLS_MAX {
            return Err(broken());
        }
        let asked = Instant::now();
        let free = function.stops_the_clock();
        let until = if free { life } else { self.until };
        let answer = timeout_at(until, self.host.ask(function, first, second)).await.map_err(|_| End::Timeout)?;
        if free {
            self.until += asked.elapsed();
        }
        let (refused, bytes) = match &answer {
            Ok(bytes) => (0, bytes),
            Err(bytes) => (1, bytes),
        };
        match timeout_at(self.until, frames::send(&mut self.worker.stdin, ANSWER, &[&[refused], bytes])).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(died(&mut self.worker).await),
            Err(_) => Err(End::Timeout),
        }
    }

    fn log(&mut self, level: u8, text: &[u8]) {
        self.log_lines = self.log_lines.saturating_add(1);
        self.log_bytes = self.log_bytes.saturating_add(text.len());
        if self.log_lines <= LOG_LINES && self.log_bytes <= LOG_BYTES {
            self.host.log(level.min(4), clean(&String::from_utf8_lossy(text)));
        }
    }
}

/// A header and its length.
pub(super) fn header(header: &impl serde::Serialize) -> Result<Vec<u8>, SandboxError> {
    let header = serde_json::to_vec(header).map_err(|e| SandboxError::Start(io::Error::other(e)))?;
    let len = u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes();
    Ok([&len[..], &header].concat())
}

/// What a worker says that its module imports and exports.
fn wishes_of(compiled: &[u8]) -> Wishes {
    compiled.get(8..).and_then(|wishes| serde_json::from_slice(wishes).ok()).unwrap_or_default()
}

/// A line of log without anything that a terminal would act on.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl Worker {
    /// Kills the process, if it has not ended, and takes its end, so that nothing of it is left.
    pub(super) async fn finish(mut self) {
        // That it has ended already is no error.
        let _ = self.child.start_kill();
        let _ = self.child.wait().await;
    }
}

/// A worker that stopped answering.
async fn died(worker: &mut Worker) -> End {
    use std::os::unix::process::ExitStatusExt as _;
    let _ = worker.child.start_kill();
    let signal = worker.child.wait().await.ok().and_then(|status| status.signal());
    End::Trapped(match signal {
        // An abort: no memory for what was compiled or run.
        Some(6) => "its process ran out of memory".into(),
        Some(24) => "its process used all the processor time it may".into(),
        Some(signal) => format!("its process was ended by signal {signal}"),
        None => "its process ended".into(),
    })
}

fn broken() -> End {
    End::Trapped("its process did not keep to the protocol".into())
}

fn nothing(end: End) -> Run {
    Run {
        end,
        output: Vec::new(),
        fuel: 0,
        ready_in: Duration::ZERO,
        compiled_in: Duration::ZERO,
        took: Duration::ZERO,
    }
}

/// A worker's last word.
fn done(body: &[u8]) -> Option<Run> {
    let (ended, rest) = body.split_first()?;
    let (fuel, rest) = rest.split_first_chunk::<8>()?;
    let (message, output) = frames::split(rest)?;
    let message = || clean(&String::from_utf8_lossy(message));
    let end = match Ended::from_u8(*ended)? {
        Ended::Ok => End::Ok,
        Ended::Failed => End::Failed(message()),
        Ended::Trapped => End::Trapped(message()),
        Ended::OutOfFuel => End::OutOfFuel,
        Ended::Timeout => End::Timeout,
        Ended::Refused => End::Refused(message()),
    };
    let output = output.get(..output.len().min(OUTPUT_MAX))?.to_vec();
    Some(Run { end, output, fuel: u64::from_le_bytes(*fuel), ..nothing(End::Ok) })
}
