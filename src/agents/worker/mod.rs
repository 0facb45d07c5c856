//! `quelea agent-worker`: the process that one module runs in.
//!
//! It is started by the daemon with an empty environment and three pipes, gives everything up that it does not need, says that it
//! is ready, takes one job, answers, and ends. It has no key, no file and no socket: what a module asks for goes through the
//! pipe to the daemon, which decides. See `lockdown` for the walls and `gate` for what is refused unread.

mod abi;
mod arena;
mod check;
mod clock;
mod engine;
pub(crate) mod gate;
pub(crate) mod guest;
#[cfg(target_os = "linux")]
mod lockdown;
#[cfg(not(target_os = "linux"))]
mod lockdown {
    //! Elsewhere there is no second wall, so nothing is run.
    pub(super) fn limit() -> std::io::Result<()> {
        Err(std::io::Error::other("agents run on Linux only"))
    }
    pub(super) use limit as close;
    pub(super) use limit as no_files;
}
pub(crate) mod pages;
pub(crate) mod runtime;

use std::{
    io,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::{
    clock::Clock,
    engine::Wasmtime,
    guest::{Guest, Pipe as _, Stdio},
    runtime::{Program, Ran, Runtime},
};
use super::{
    frames::{self, COMPILED, DONE, GO, JOB, READY},
    limits::{COMPILE_TIME, INPUT_MAX, Limits},
};

/// What a worker is to do. The bytes of module and input, or of a page, come behind it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Run a module; without an entry only look at it.
    Run {
        /// Bytes of the module; what follows is the input.
        module: usize,
        entry: Option<String>,
        limits: Limits,
    },
    /// Compile a module, whose bytes follow, and wait for what it is to do.
    Load {
        /// Bytes of memory that it may use.
        memory: usize,
    },
    /// Make text of a page.
    Read(pages::Page),
}

/// What a module that was loaded is to do. Its input comes behind it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Go {
    pub(crate) entry: String,
    pub(crate) limits: Limits,
}

/// Runs a worker. `inherited` are the arguments after `agent-worker`.
#[must_use]
pub fn main(arguments: &[String]) -> ExitCode {
    let result = match arguments {
        [] => work(),
        [one] if one == "--check" => check::run(),
        _ => Err(io::Error::other("agent-worker takes no arguments: the daemon starts it")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use io::Write as _;
            let _ = writeln!(io::stderr(), "agent-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything up to the point where a job may be looked at.
fn prepare() -> io::Result<(Wasmtime, Clock)> {
    lockdown::limit()?;
    let runtime = Wasmtime::new().map_err(|e| io::Error::other(format!("{e:#}")))?;
    let clock = Clock::start(runtime.interrupter())?;
    lockdown::close()?;
    Ok((runtime, clock))
}

fn work() -> io::Result<()> {
    lockdown::no_files()?;
    let (runtime, clock) = prepare()?;
    let mut pipe = Stdio;
    pipe.send(READY, &[])?;
    let frame = pipe.receive()?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the job is not understood");
    let (order, bytes) = frames::split(&frame.body).filter(|_| frame.kind == JOB).ok_or_else(malformed)?;
    let order = serde_json::from_slice(order).map_err(io::Error::other)?;
    let ran = match order {
        Order::Run { module, entry, limits } => {
            let (module, input) = bytes.split_at_checked(module).ok_or_else(malformed)?;
            match (compiled(&runtime, module, limits.within().memory)?, entry) {
                (Err(refused), _) => refused,
                (Ok(_), None) => Ran::looked_at(),
                (Ok(program), Some(entry)) => run(program, clock, input, &entry, limits),
            }
        }
        Order::Load { memory } => {
            match compiled(&runtime, bytes, Limits { memory, ..Limits::default() }.within().memory)? {
                Err(refused) => refused,
                Ok(program) => {
                    let frame = pipe.receive()?;
                    let (go, input) = frames::split(&frame.body).filter(|_| frame.kind == GO).ok_or_else(malformed)?;
                    let Go { entry, limits } = serde_json::from_slice(go).map_err(io::Error::other)?;
                    // No more than it was looked at with.
                    let limits = Limits { memory: limits.memory.min(memory), ..limits };
                    run(program, clock, input, &entry, limits)
                }
            }
        }
        Order::Read(page) => {
            pipe.send(COMPILED, &[&0_u64.to_le_bytes(), b"{}"])?;
            pages::read(&page, bytes)
        }
    };
    let message = u32::try_from(ran.message.len()).unwrap_or(0).to_le_bytes();
    let head = [&[ran.ended as u8][..], &ran.fuel.to_le_bytes(), &message, ran.message.as_bytes()].concat();
    pipe.send(DONE, &[&head, &ran.output])
}

/// Reads and compiles a module, and says so; or why it is not run.
fn compiled(runtime: &dyn Runtime, module: &[u8], memory: usize) -> io::Result<Result<Box<dyn Program>, Ran>> {
    let started = Instant::now();
    let wishes = match gate::check(module, memory) {
        Ok(wishes) => wishes,
        Err(said) => return Ok(Err(Ran::refused(said))),
    };
    let program = match runtime.compile(module) {
        Ok(program) => program,
        Err(said) => return Ok(Err(Ran::refused(said))),
    };
    let took = started.elapsed();
    if took > COMPILE_TIME {
        return Ok(Err(Ran::refused(too_slow(took))));
    }
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).to_le_bytes();
    Stdio.send(COMPILED, &[&micros, &serde_json::to_vec(&wishes)?])?;
    Ok(Ok(program))
}

fn run(program: Box<dyn Program>, clock: Clock, input: &[u8], entry: &str, limits: Limits) -> Ran {
    if input.len() > INPUT_MAX {
        return Ran::refused(format!("an input of {} bytes; at most {INPUT_MAX} are taken", input.len()));
    }
    program.run(entry, limits.within(), Guest::new(input, Box::new(Stdio), clock))
}

/// What is said of a module that takes too long to compile.
pub(crate) fn too_slow(took: Duration) -> String {
    format!("the module took {:.1} s to compile; at most {} s are given", took.as_secs_f64(), COMPILE_TIME.as_secs())
}
