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
    runtime::{Ended, Ran, Runtime},
};
use super::{
    frames::{self, COMPILED, DONE, JOB, READY},
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
    /// Make text of a page.
    Read(pages::Page),
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
            run(&runtime, clock, module, input, entry.as_deref(), limits)?
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

fn run(
    runtime: &dyn Runtime,
    clock: Clock,
    module: &[u8],
    input: &[u8],
    entry: Option<&str>,
    limits: Limits,
) -> io::Result<Ran> {
    let (started, limits) = (Instant::now(), limits.within());
    if input.len() > INPUT_MAX {
        return Ok(Ran::refused(format!("an input of {} bytes; at most {INPUT_MAX} are taken", input.len())));
    }
    let wishes = match gate::check(module, limits.memory) {
        Ok(wishes) => wishes,
        Err(said) => return Ok(Ran::refused(said)),
    };
    let program = match runtime.compile(module) {
        Ok(program) => program,
        Err(said) => return Ok(Ran::refused(said)),
    };
    let took = started.elapsed();
    if took > COMPILE_TIME {
        return Ok(Ran::refused(too_slow(took)));
    }
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).to_le_bytes();
    Stdio.send(COMPILED, &[&micros, &serde_json::to_vec(&wishes)?])?;
    let Some(entry) = entry else {
        return Ok(Ran { ended: Ended::Ok, fuel: 0, message: String::new(), output: Vec::new() });
    };
    Ok(program.run(entry, limits, Guest::new(input, Box::new(Stdio), clock)))
}

/// What is said of a module that takes too long to compile.
pub(crate) fn too_slow(took: Duration) -> String {
    format!("the module took {:.1} s to compile; at most {} s are given", took.as_secs_f64(), COMPILE_TIME.as_secs())
}
