//! Frozen bytes, properties, and exchanges between swarms.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]

mod exchange;
mod numbers;
mod prop;
mod vectors;
