//! Tests of the shard protocol, by kind: frozen bytes (`vectors`), memory (`preallocate`), arbitrary and hostile bytes
//! (`prop`), the session's table (`session`), streams without a swarm (`greeting`, `links`, `control`), and two swarms
//! (`exchange`, `limits`).

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]

mod control;
mod exchange;
mod greeting;
mod limits;
mod links;
mod numbers;
mod preallocate;
mod prop;
mod session;
mod support;
mod vectors;
