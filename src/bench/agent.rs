//! How long it takes until a module runs: from the order to its first instruction.
//!
//! Three ways, in turns: a process that has to be started, one that waits with nothing, and one that waits with the module
//! compiled. Instantiating is not in it: microseconds, and the same for all.

use std::{path::Path, sync::Arc, time::Duration};

use quelea_wire::ErrorCode;
use serde::Serialize;

use crate::{
    agents::{End, Job, Limits, NoHost, Run, Sandbox},
    inference::InferError,
};

/// How long a worker may take to wait again.
const AGAIN: Duration = Duration::from_secs(30);

/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(5);

/// Milliseconds until a module ran.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AgentReport {
    pub(crate) module_bytes: usize,
    pub(crate) runs: u32,
    /// With a process to be started.
    pub(crate) cold: Times,
    /// Of that, until there is a process that is locked down.
    pub(crate) start: Times,
    /// With a process that waits with nothing.
    pub(crate) waiting: Times,
    /// With one that waits with the module, until it has run to its end: nothing else can be told from outside.
    pub(crate) loaded: Times,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Times {
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |percent: usize| all.get((all.len() * percent / 100).min(all.len().saturating_sub(1)));
        let ms = |percent| at(percent).map_or(0.0, |time| time.as_secs_f64() * 1e3);
        Self { p50_ms: ms(50), p95_ms: ms(95) }
    }
}

/// Runs `module` so many times each way. What it asks is refused, which does not matter: that comes after its first
/// instruction.
///
/// # Errors
/// When the module is refused, or there are no processes to be had.
pub(crate) async fn measure(
    program: &Path,
    module: Vec<u8>,
    entry: &str,
    runs: u32,
) -> Result<AgentReport, InferError> {
    let failed = |said: String| InferError::new(ErrorCode::AgentRefused, said);
    let job = Job { module: Arc::from(module), input: Vec::new(), entry: entry.into(), limits: Limits::default() };
    let ran = |run: Run| match run.end {
        End::Refused(said) => Err(failed(said)),
        _ => Ok(run),
    };
    let (mut cold, mut start, mut waiting, mut loaded) = (vec![], vec![], vec![], vec![]);
    let began = |run: &Run| run.ready_in + run.compiled_in;
    for _ in 0..runs {
        // One that nothing waits in.
        let sandbox = Sandbox::new(program.to_owned());
        let run = ran(sandbox.compute(&job).await.map_err(|e| failed(e.to_string()))?)?;
        cold.push(began(&run));
        start.push(run.ready_in);
        for kept in [false, true] {
            sandbox.keep_ready(job.module.clone(), job.limits);
            let until = tokio::time::Instant::now() + AGAIN;
            while !sandbox.is_ready(&job) {
                if tokio::time::Instant::now() >= until {
                    return Err(failed("no process waits for its next run".into()));
                }
                tokio::time::sleep(LOOK).await;
            }
            let run = if kept { sandbox.run_again(&job, &NoHost).await } else { sandbox.compute(&job).await };
            let run = ran(run.map_err(|e| failed(e.to_string()))?)?;
            if kept {
                loaded.push(run.took);
            } else {
                waiting.push(began(&run));
            }
        }
    }
    Ok(AgentReport {
        module_bytes: job.module.len(),
        runs,
        cold: Times::of(cold),
        start: Times::of(start),
        waiting: Times::of(waiting),
        loaded: Times::of(loaded),
    })
}
