//! What a run may use at most. Each bound is a named constant; a run may be given less, never more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The largest module that an operator may install.
pub const MODULE_MAX: usize = 8 << 20;

/// The largest module that a peer may have run.
pub const CONTRACT_MAX: usize = 64 << 10;

/// The longest input.
pub const INPUT_MAX: usize = 1 << 20;

/// What a run may hand over or be handed through host functions, its input and output among it.
pub const ARENA_MAX: usize = 4 << 20;

/// The longest output.
pub const OUTPUT_MAX: usize = 1 << 20;

/// A module's memory at most, in bytes: 1,024 pages.
pub const MEMORY_MAX: usize = 64 << 20;

/// Elements of a table at most, and tables of a module.
pub(super) const TABLE_ELEMENTS: usize = 10_000;
pub(super) const TABLES: u32 = 4;

/// The stack of a module's calls.
pub(super) const STACK: usize = 512 << 10;

/// How long reading and compiling a module may take.
pub(super) const COMPILE_TIME: Duration = Duration::from_secs(5);

/// What compiling may use of memory, besides what a worker has from the start and a module's own.
pub(super) const COMPILE_MEMORY: usize = 256 << 20;

/// The longest a module may compute.
pub(super) const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// How long a run may take in all, with what it waits for: answers of models are waited for, and not for ever.
pub(super) const LIFE_MAX: Duration = Duration::from_secs(600);

/// Between the deadline, at which a worker ends a run itself, and the moment at which it is killed.
pub(super) const GRACE: Duration = Duration::from_millis(50);

/// How long a process may take until it is ready.
pub(super) const START_TIME: Duration = Duration::from_secs(10);

/// Calls of host functions that reach the daemon, in one run.
pub(super) const CALLS_MAX: u32 = 1_000;

/// Lines of log of a run, and bytes of them all. What is beyond is dropped, and said to be.
pub(super) const LOG_LINES: usize = 256;
pub(super) const LOG_BYTES: usize = 64 << 10;

/// What a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Units of fuel: about one per instruction. The same module with the same input uses the same on every machine.
    pub fuel: u64,
    /// Milliseconds of computing; waiting for answers of models is not counted.
    pub deadline_ms: u64,
    /// Bytes of memory.
    pub memory: usize,
}

impl Default for Limits {
    /// What agents have: some ten times what a second's computing uses.
    fn default() -> Self {
        Self { fuel: 10_000_000_000, deadline_ms: 5_000, memory: MEMORY_MAX }
    }
}

impl Limits {
    /// The time to compute.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms).min(DEADLINE_MAX)
    }

    /// No more than a worker gives.
    #[must_use]
    pub fn within(self) -> Self {
        let deadline_ms = u64::try_from(self.deadline().as_millis()).unwrap_or(u64::MAX);
        Self { deadline_ms, memory: self.memory.min(MEMORY_MAX), ..self }
    }
}
