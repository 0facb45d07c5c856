//! What a service is.

use std::time::Duration;

use futures::future::BoxFuture;
use quelea_service::{Fault, MAX_PROGRESS};
use quelea_wire::ErrorCode;
use tokio::sync::mpsc;

/// What is said of a service before anybody calls it.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// Changes when answers do.
    pub(crate) version: u16,
    /// What a call costs unless the operator says otherwise, in micro-credits.
    pub(crate) price: u64,
    /// Bytes that may go in.
    pub(crate) input_max: u32,
    /// Bytes that may come out.
    pub(crate) output_max: u32,
    /// How long a call may take.
    pub(crate) deadline: Duration,
    /// Calls that are worked on at once.
    pub(crate) at_once: u16,
    /// Calls that may wait besides.
    pub(crate) queue: u16,
    /// What it does, in a sentence.
    pub(crate) about: &'static str,
}

/// One call, as the service sees it.
#[derive(Debug)]
pub(crate) struct Job {
    /// What goes in.
    pub(crate) input: Vec<u8>,
    /// The most that it may cost, in micro-credits.
    pub(crate) most: u64,
    /// What is left of its time.
    pub(crate) remaining: Duration,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Done {
    /// What comes out.
    pub(crate) output: Vec<u8>,
    /// What it costs, where that depends on what it used; the price otherwise.
    pub(crate) cost: Option<u64>,
}

impl From<Vec<u8>> for Done {
    fn from(output: Vec<u8>) -> Self {
        Self { output, cost: None }
    }
}

/// Where a service says how far it is.
#[derive(Debug, Clone)]
pub(crate) struct Progress(pub(super) mpsc::Sender<Vec<u8>>);

impl Progress {
    /// Says something of the result. Waits for callers that read slowly, as long as the call's time lasts; whether anybody
    /// listens does not matter.
    pub(crate) async fn say(&self, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_PROGRESS) {
            if self.0.send(piece.to_vec()).await.is_err() {
                return;
            }
        }
    }
}

/// Something that peers can call. Dropping the future of a call ends its work.
pub(crate) trait Service: Send + Sync {
    /// What is said of it.
    fn about(&self) -> About;

    /// Does it.
    fn call<'a>(&'a self, job: Job, progress: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>>;
}

/// A fault that costs nothing.
pub(crate) fn fault(code: ErrorCode, message: impl Into<String>) -> Fault {
    Fault { code, amount: 0, retry_ms: 0, message: message.into() }
}
