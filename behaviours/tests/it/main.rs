//! For every field of the composite behaviour a test that fails when the field is taken out, on real swarms.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]
#![allow(clippy::print_stdout, reason = "what was measured is worth a line")]

mod denial;
mod discovery;
mod harness;
mod lines;
mod nat;
mod own;
mod relay;
mod rendezvous;
mod scale;
mod spam;
mod spammer;
mod sybils;
