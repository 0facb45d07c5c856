//! Agents: what modules of strangers can do, which is compute, ask and nothing else.

mod corpus;
mod modules;
mod run;
mod walls;

pub use self::run::shout;

use std::{path::PathBuf, sync::OnceLock};

use quelea::agents::{Job, Limits, Run, Sandbox};

/// One for all tests: how many run at once is its business.
fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| Sandbox::new(PathBuf::from(env!("CARGO_BIN_EXE_quelea"))))
}

/// A module from its text.
fn module(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).unwrap_or_else(|e| panic!("{e}\n{wat}"))
}

fn job(module: Vec<u8>, input: &[u8], limits: Limits) -> Job {
    Job { module: module.into(), input: input.to_vec(), entry: "run".into(), limits }
}

/// Runs a module that only computes.
async fn compute(module: Vec<u8>, input: &[u8], limits: Limits) -> Run {
    sandbox().compute(&job(module, input, limits)).await.unwrap()
}
