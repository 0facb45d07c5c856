//! What peers see of the ledger: bytes, proofs, and two books that speak to each other, with real signatures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]

mod evidence;
mod exchange;
mod samples;
mod strict;
mod vectors;
