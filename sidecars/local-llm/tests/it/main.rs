//! The program as a process, over its socket, with models that are in the repository.

// Tests say what they expect by failing loudly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod answers;
mod folder;
mod harness;
mod process;
