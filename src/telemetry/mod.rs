//! What the node tells about itself: logs, metrics, health, and the small server that shows the last two.
//!
//! - [`logging`]: to stderr, as text or JSON lines.
//! - [`stats`]: the atomics that the node's parts keep up to date and that gauges are read from at scrape time.
//! - [`metrics`]: what is counted as it happens, and the scrape, with libp2p's own registry joined by [`libp2p_text`].
//! - [`front`]: what a masked node's web front has answered.
//! - [`gossip`]: what gossip has judged and remembers.
//! - [`ledger`]: what peers owe, in sums.
//! - [`health`]: which components work; liveness and readiness.
//! - `history`: the last hour of the most important figures.
//! - [`storage`]: what is on disk.
//! - `tail`: the newest log lines.
//! - `traces`: what a request took, span by span; to a collector by OTLP.
//! - [`server`]: `/livez`, `/readyz`, `/health` and `/metrics`.

pub mod front;
pub mod gossip;
pub mod health;
pub(crate) mod history;
mod instruments;
pub mod ledger;
mod libp2p_text;
pub mod local_llm;
pub mod logging;
pub mod metrics;
mod node;
pub(crate) mod process;
pub mod server;
pub mod stats;
pub mod storage;
pub(crate) mod tail;
pub(crate) mod traces;

pub use health::{Component, Status};
pub(crate) use node::{Telemetry, operation, say_what_came, way};

#[cfg(test)]
mod tests;
