//! What peers see of the ledger: bytes, proofs, and two books that speak to each other, with real signatures; swarms
//! that carry packets, and peers that break every rule of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]

mod evidence;
mod exchange;
mod frames;
mod hostile;
mod nodes;
mod samples;
mod strict;
mod swarms;
mod vectors;
