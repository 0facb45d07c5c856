//! Agents: WASM modules of the operator or of strangers, each run in a process of its own that can do nothing but compute and
//! ask.
//!
//! | file | holds |
//! |---|---|
//! | `worker/` | the process: its walls, the engine, what modules may import; all that names wasmtime |
//! | `frames` | what passes between it and the daemon |
//! | `spawn` | how it is started |
//! | `waiting` | workers that wait for a module's next run |
//! | `sandbox` | one run from the daemon's side: deadlines, and answers to what the module asks |
//! | `hands` | answers to what an agent asks: capabilities, allowance, quotas |
//! | `offered` | what the sandbox does for other peers, and services that agents call |
//! | `limits` | what a run may use |
//! | `installed` | the agents that the operator installed: see `storage` for where they lie |
//!
//! A module is bytes and the BLAKE3 of them. No manifest, no compiled code and no path is ever taken from anybody.

mod frames;
mod hands;
pub(crate) mod installed;
pub mod limits;
pub(crate) mod offered;
mod sandbox;
mod spawn;
mod waiting;
#[doc(hidden)]
pub mod worker;

pub use limits::Limits;
pub use sandbox::{End, Job, NoHost, Run, Sandbox, SandboxError};
pub(crate) use worker::guest::HostFunction;
