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
//! | `find`, `publish` | who offers what, and telling others |
//! | `caller`, `lanes` | calls of this node: a hold, the call, a note; whose turn it is |
//! | `builtin` | the services that ship with the node |
//! | `local` | the process behind `llm_local`, for a model of this machine |
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
mod find;
mod lanes;
mod local;
mod payers;
mod provider;
pub(crate) mod publish;
mod registry;
mod run;
pub(crate) mod service;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use quelea_service::{CallId, Name, ServiceStream};
use quelea_wire::{ErrorCode, time::unix_ms};
use tokio::sync::mpsc;

pub(crate) use self::{
    builtin::{compute::Runner, upstream::Upstream},
    caller::{CallEvent, CallRequest},
    find::Offer,
    local::{IDLE, LocalModel},
    registry::{Offered, Registry},
};
use self::{
    calls::{Calls, Kept},
    find::Experience,
    lanes::Lanes,
    local::Local,
    payers::Payers,
    provider::Answering,
    service::Service,
};
use crate::{
    inference::{Asker, InferError},
    ledger::Ledger,
    storage::{Db, ReadError},
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
    /// Or the model.
    pub(crate) llm_local_model: Option<LocalModel>,
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
    pub(crate) db: Option<Db>,
    /// Services of other parts of the node, which are offered or not like those that ship.
    pub(crate) more: Vec<(Name, Arc<dyn Service>)>,
    /// Runs what callers of `compute` submit.
    pub(crate) runner: Option<Arc<dyn Runner>>,
    /// Where the process behind `llm_local` listens.
    pub(crate) local_socket: Option<PathBuf>,
}

/// The services of a node, and its way to those of others.
pub(crate) struct Services {
    handle: Handle,
    ledger: Ledger,
    telemetry: Telemetry,
    pub(crate) registry: Registry,
    /// A node that keeps nothing has none.
    db: Option<Db>,
    calls: Calls,
    payers: Payers,
    experience: Experience,
    lanes: Lanes,
    local: Option<Arc<Local>>,
    /// Calls of peers that have not been answered to the last byte.
    answering: Answering,
}

impl Services {
    /// With those that ship with the node, of which `settings`, and what was set before, say which are offered.
    ///
    /// # Errors
    /// When a service is to be offered that there is not, or what is kept cannot be read.
    pub(crate) async fn start(parts: Parts, settings: &ServiceSettings) -> Result<Arc<Self>, InferError> {
        let Parts { handle, ledger, telemetry, asker, db, more, runner, local_socket } = parts;
        let registry = Registry::default();
        let local = builtin::add_all(&registry, asker, runner, settings, local_socket, &telemetry)?;
        for (name, service) in more {
            registry.add(name, service);
        }
        let calls = Calls::default();
        if let Some(db) = &db {
            let unread = |error: ReadError| InferError::new(ErrorCode::StorageFailed, error.to_string());
            for (name, enabled, price) in db.services().await.map_err(unread)? {
                restore(&registry, &name, enabled, price);
            }
            let now = unix_ms();
            for row in db.service_results(now).await.map_err(unread)? {
                let rest = Duration::from_millis(row.expires_ms.saturating_sub(now));
                let kept = Kept { amount: row.amount, output: row.output };
                calls.restore((row.peer, CallId(row.call)), row.job, kept, rest, Instant::now());
            }
        }
        for (name, price) in &settings.offered {
            registry.offer(name, *price)?;
        }
        let (payers, experience, lanes) = (Payers::default(), Experience::default(), Lanes::default());
        Ok(Arc::new(Self {
            handle,
            ledger,
            telemetry,
            registry,
            db,
            calls,
            payers,
            experience,
            lanes,
            local,
            answering: Answering::default(),
        }))
    }

    /// Offers a service or not, and asks another price, from now on and after a restart.
    ///
    /// # Errors
    /// When there is no such service, or it cannot be kept.
    pub(crate) async fn set(
        &self,
        name: &Name,
        enabled: Option<bool>,
        price: Option<u64>,
    ) -> Result<Arc<Offered>, InferError> {
        let offered = match enabled {
            Some(true) => self.registry.offer(name, price)?,
            Some(false) => self.registry.withdraw(name)?,
            None => self.registry.get_or_say(name)?,
        };
        if let Some(price) = price {
            self.registry.set_price(name, price)?;
        }
        if let Some(db) = &self.db {
            let kept = db.put_service(name.to_string(), offered.enabled(), offered.price()).await;
            kept.map_err(|error| InferError::new(ErrorCode::StorageFailed, error.to_string()))?;
        }
        Ok(offered)
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
        self.registry.running() > 0 || self.answering.any()
    }

    /// Ends what runs beside the node.
    pub(crate) async fn stop(&self) {
        if let Some(local) = &self.local {
            local.stop().await;
        }
    }

    fn local(&self) -> PeerId {
        self.handle.local()
    }
}

/// What was set before. A service that has nothing behind it any more is left alone.
fn restore(registry: &Registry, name: &str, enabled: bool, price: u64) {
    let Ok(name) = name.parse::<Name>() else { return };
    let set = registry.set_price(&name, price);
    if enabled && let Err(error) = set.and_then(|_| registry.offer(&name, None)) {
        tracing::warn!(%name, %error, "a service is not offered any more");
    }
}
