//! Services: small pieces of work that this node does for others, and has others do.
//!
//! | file | holds |
//! |---|---|
//! | `service` | what a service is |
//! | `registry` | those of this node: which are offered, at what price, how busy they are |
//! | `provider` | calls of others, one task a stream |
//! | `calls` | which calls are known, so that a repeated one is answered and not done again |
//! | `run` | one call: queue, work, and who is to pay |
//! | `payers` | who has not paid for what it was given |
//! | `caller` | calls of this node: a hold, the call, a note |
//! | `builtin` | the services that ship with the node |
//!
//! # Money
//!
//! The price of a call is reserved before it is made, by a hold for exactly this call. The provider works, keeps the result and
//! signs what it asks, and only then sends it; the caller pays with one note before it hands the result on. A call that fails
//! costs nothing: the hold is taken back on both sides. What a caller can take without paying is one hold's worth per call under
//! way, within its limit; then it is worked for no more until it has paid ([`payers`]).
//!
//! | memory | bound | when full |
//! |---|---|---|
//! | streams that wait for the provider | 64 ([`INBOUND_QUEUE`]) | the stream is reset and counted |
//! | calls under way | the protocol's inbound streams | – |
//! | calls that wait for a service | each service's queue | refused with `QUE-1004` and when to try again |
//! | results kept | see [`calls`] | the oldest goes |

mod builtin;
mod caller;
mod calls;
mod payers;
mod provider;
mod registry;
mod run;
mod service;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use quelea_service::{Name, ServiceStream};
use tokio::sync::mpsc;

pub(crate) use self::{
    builtin::upstream::Upstream,
    caller::{CallDone, CallEvent, CallRequest},
    registry::{Offered, Registry},
};
use self::{calls::Calls, payers::Payers};
use crate::{
    inference::{Asker, InferError},
    ledger::Ledger,
    swarm::Handle,
    telemetry::Telemetry,
};

/// Between two looks for results whose time is over.
const SWEEP: Duration = Duration::from_secs(10);

/// Streams that may wait for the provider.
pub(crate) const INBOUND_QUEUE: usize = 64;

/// Which services a node offers.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServiceSettings {
    /// Their names, and their prices in micro-credits where they are not the usual ones.
    pub(crate) offered: Vec<(Name, Option<u64>)>,
    /// The model that `llm_distributed` asks the swarm for; the embedded one, without.
    pub(crate) llm_distributed: Option<String>,
    /// The server behind `llm_local`.
    pub(crate) llm_local: Option<Upstream>,
    /// The server behind `llm_prompt`.
    pub(crate) llm_prompt: Option<Upstream>,
}

/// What services need of the node.
pub(crate) struct Parts {
    pub(crate) handle: Handle,
    pub(crate) ledger: Ledger,
    pub(crate) telemetry: Telemetry,
    /// Asks the swarm, for the service that does.
    pub(crate) asker: Arc<Asker>,
}

/// The services of a node, and its way to those of others.
pub(crate) struct Services {
    handle: Handle,
    ledger: Ledger,
    telemetry: Telemetry,
    pub(crate) registry: Registry,
    calls: Calls,
    payers: Payers,
}

impl Services {
    /// With those that ship with the node, of which `settings` says which are offered.
    ///
    /// # Errors
    /// When a service is to be offered that there is not.
    pub(crate) fn new(parts: Parts, settings: &ServiceSettings) -> Result<Arc<Self>, InferError> {
        let Parts { handle, ledger, telemetry, asker } = parts;
        let registry = Registry::default();
        builtin::add_all(&registry, asker, settings)?;
        for (name, price) in &settings.offered {
            registry.offer(name, *price)?;
        }
        let (calls, payers) = (Calls::default(), Payers::default());
        Ok(Arc::new(Self { handle, ledger, telemetry, registry, calls, payers }))
    }

    /// Answers calls until the swarm ends.
    pub(crate) async fn run(self: Arc<Self>, mut streams: mpsc::Receiver<ServiceStream>) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                stream = streams.recv() => match stream {
                    // As many tasks as the protocol lets streams in.
                    Some(stream) => drop(tokio::spawn(self.clone().serve(stream))),
                    None => return,
                },
                _ = sweep.tick() => self.calls.sweep(Instant::now()),
            }
        }
    }

    /// Whether calls of others are worked on.
    pub(crate) fn busy(&self) -> bool {
        self.registry.running() > 0
    }

    fn local(&self) -> PeerId {
        self.handle.local()
    }
}
