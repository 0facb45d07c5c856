//! A running node: the swarm, the layers it serves, its APIs, and the order in which they start and stop.

mod bootstrap;
mod builder;
mod embedded;
mod listening;
pub(crate) mod ports;
mod serving;
pub(crate) mod settings;
#[cfg(test)]
mod tests;
mod watching;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::identity::Keypair;
use quelea_behaviours::{build_masked_swarm, build_swarm};
use quelea_ledger::{book::Rules, trust::Policy};
use quelea_wire::{ErrorCode, NetworkId};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use self::settings::{Keep, Settings};
pub use self::{
    builder::{NodeBuilder, StartError},
    embedded::ConnectError,
};
use crate::{
    address::PeerAddress,
    agents::{Sandbox, installed::Agents, offered},
    home::HomeLock,
    identity,
    inference::{
        Asker, EVENT_QUEUE, InferError, InferEvent, InferRequest, Summary,
        auditor::{Auditor, Share},
        claims::Claims,
        models::Models,
        plane::{INBOUND_QUEUE, Plane, Terms},
        prefix,
        session_log::SessionLogs,
    },
    ledger::{self, Ledger, LedgerConfig},
    masking::{self, Certificates, Prepared},
    services::{self, Services},
    storage::{Db, ReadError},
    swarm::{Driver, DriverConfig, Handle, Remembered},
    telemetry::{Component, Telemetry},
    weights::{
        fetch::Puller,
        provide,
        shelf::{self, Librarian, Shelf},
        store::Store,
    },
};

/// How long listeners may take to say where they listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what is under way may take when the node stops; less than the 30 s that supervisors give.
pub(crate) const GRACE: Duration = Duration::from_secs(20);

/// Between two looks for answers whose day is over.
const FORGET: Duration = Duration::from_secs(600);

/// Between two looks at how much is on disk.
const MEASURE: Duration = Duration::from_secs(60);

/// How often a draining node looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// How long the goodbye to the swarm may take: a tombstone to a few neighbours.
const GOODBYE: Duration = Duration::from_secs(3);

/// Peers taken from the database at start, those seen last first: more than are dialled before others are heard of.
const REMEMBERED: usize = 1024;

/// How far along a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It takes work.
    Running,
    /// It finishes what it has.
    Draining,
    /// It closes.
    Stopping,
}

/// A running node. Dropping it stops it without a goodbye; [`Node::shutdown`] is the polite way.
pub struct Node {
    handle: Handle,
    plane: Arc<Plane>,
    asker: Arc<Asker>,
    services: Arc<Services>,
    agents: Arc<Agents>,
    telemetry: Telemetry,
    db: Option<Db>,
    front_addr: Option<SocketAddr>,
    certificates: Option<Arc<Certificates>>,
    metrics_addr: Option<SocketAddr>,
    api_addr: Option<SocketAddr>,
    socket: Option<PathBuf>,
    daemon_json: Option<PathBuf>,
    life: watch::Sender<Life>,
    stop_swarm: oneshot::Sender<()>,
    swarm: JoinHandle<()>,
    /// Tells the keeper of the ledger to end.
    stop_ledger: watch::Sender<bool>,
    keeper: JoinHandle<()>,
    publisher: Option<JoinHandle<()>>,
    servers: Vec<JoinHandle<()>>,
    /// Given up last, when everything is closed.
    _lock: Option<HomeLock>,
}

impl Node {
    /// Starts everything; when this returns, the node is ready.
    pub(crate) async fn start(settings: Settings) -> Result<Self, StartError> {
        // Boxed: starting holds a whole swarm across its waits.
        Box::pin(Self::launch(settings)).await
    }

    async fn launch(settings: Settings) -> Result<Self, StartError> {
        let telemetry = Telemetry::new().map_err(|e| StartError::internal(e.to_string()))?;
        let network = NetworkId::from_name(&settings.network);
        let (lock, keypair, db) = open_home(&settings.keep, &telemetry).await?;

        let mut registry = prometheus_client::registry::Registry::default();
        let mut config = quelea_behaviours::Config::new(network);
        let traffic = config.traffic.clone();
        config.relay_server = settings.relay_server;
        config.relay = settings.relay.clone();
        config.upnp = settings.upnp;
        config.limits.prefixes.exempt_local = !settings.limit_local;
        config.line_delay = settings.line_delay;
        config.mdns = settings.mdns;
        let point = |of: &PeerAddress| quelea_rendezvous::Point { peer: of.peer, addr: of.addr.clone() };
        config.rendezvous = settings.rendezvous.iter().map(point).collect();
        config.rendezvous_server = settings.rendezvous_server;
        config.trust = masking::trusted(settings.trust.as_deref())?;
        config.provider_ttl = settings.announce_ttl * 3 / 2;
        config.kad_mode = settings.kad_mode;
        if settings.listen.is_empty() && matches!(settings.keep, Keep::Nothing) {
            // A passing peer asks and goes; it needs nobody but those it asks.
            config.outbound = 0;
        }
        let masked = prepare_masking(&settings, &telemetry).await?;
        let publishes = masked.is_none();
        let certificates = masked.as_ref().and_then(|masked| masked.certificates.clone());
        let (swarm, front, public) = match masked {
            None => (build_swarm(keypair.clone(), config, Some(&mut registry)), None, None),
            Some(Prepared { masking, front, public, .. }) => {
                let swarm = build_masked_swarm(keypair.clone(), config, masking, Some(&mut registry));
                (swarm, front, Some(public))
            }
        };
        let swarm = swarm.map_err(|e| StartError::internal(e.to_string()))?;
        let libp2p_metrics = libp2p::metrics::Metrics::new(&mut registry);
        telemetry.metrics.join_libp2p(registry);

        let bans = match &db {
            Some(db) => db.bans().await.map_err(|e| StartError::new(ErrorCode::StorageFailed, e.to_string()))?,
            None => Vec::new(),
        };
        let (inbound, streams) = mpsc::channel(INBOUND_QUEUE);
        let (calls, called) = mpsc::channel(services::INBOUND_QUEUE);
        let (desk, questions) = shelf::desk();
        let (tell_ledger, ledger_inputs) = mpsc::channel(ledger::INPUTS);
        let driver_config = DriverConfig {
            network,
            ledger: Some(tell_ledger),
            services: calls,
            weights: desk,
            keypair: keypair.clone(),
            db: db.clone(),
            inbound,
            telemetry: telemetry.clone(),
            bans,
            kad_mode: settings.kad_mode,
            publishes,
            relay_server: settings.relay_server,
            traffic,
        };
        let (mut driver, handle) = Driver::new(swarm, driver_config, libp2p_metrics);
        if let Some(db) = &db {
            driver.restore(db.dht().await.map_err(|e| StartError::new(ErrorCode::StorageFailed, e.to_string()))?);
        }
        let bootstrap = match &db {
            Some(db) => {
                driver.remember(remembered(db).await?);
                bootstrap::starts(&settings.bootstrap, db).await
            }
            None => settings.bootstrap.clone(),
        };
        // A masked node is where its front is reached, and nowhere else.
        driver.declare(public.as_ref().unwrap_or(&settings.external), settings.upnp);
        let listen = public.as_ref().unwrap_or(&settings.listen);
        for addr in listen {
            if public.is_none() {
                ports::check_free(addr).map_err(StartError::listen)?;
            }
            driver.listen(addr.clone()).map_err(StartError::listen)?;
        }
        let (stop_swarm, swarm_stopped) = oneshot::channel();
        let notices = handle.watch();
        let swarm = tokio::spawn(driver.run(swarm_stopped));
        telemetry.ok(Component::Swarm, "the event loop turns");
        if listen.is_empty() {
            telemetry.ok(Component::Listeners, "none wanted");
        } else {
            wait_for_listeners(&handle, listen.len()).await?;
        }

        let (stop_ledger, ledger_stopping) = watch::channel(false);
        let ledger_config = LedgerConfig {
            keypair: keypair.clone(),
            network,
            rules: Rules::default(),
            policy: Policy::default(),
            debts: settings.debts,
            db: db.clone(),
            handle: handle.clone(),
            telemetry: telemetry.clone(),
        };
        let (ledger, keeper) = Ledger::start(ledger_config, ledger_inputs, ledger_stopping)
            .await
            .map_err(|e| StartError::new(ErrorCode::StorageFailed, e.to_string()))?;
        let plane = Plane::new(
            ledger,
            handle.clone(),
            network,
            telemetry.clone(),
            keypair.clone(),
            Terms {
                price: settings.price,
                exposure: settings.exposure,
                logs: settings
                    .replay
                    .room(&settings.keep)
                    .map_err(|e| StartError::internal(format!("no thread for rows: {e}")))?,
            },
        );
        tokio::spawn(plane.clone().run(streams));
        let own = Arc::default();
        let salt = prefix::salt(&keypair, prefix::OWN_TENANT);
        let folder = match &settings.keep {
            Keep::In { home, .. } => Some(home.models()),
            Keep::Nothing => settings.models.clone(),
        };
        let store = folder.map(|folder| Store::new(folder, settings.models_quota));
        let puller = Puller { handle: handle.clone(), shelf: Arc::new(Shelf::new(store)) };
        let computing = plane.clone();
        let busy = Box::new(move || computing.served().iter().any(|served| served.runner.load().sessions > 0));
        Librarian::new(puller.shelf.clone(), handle.clone(), settings.upload, busy)
            .start(questions)
            .map_err(|e| StartError::internal(format!("no thread for weights: {e}")))?;
        let models = Models::new(settings.compute, salt, puller.clone());
        let logs = match &settings.keep {
            Keep::In { home, .. } => SessionLogs::new(home.sessions(), &keypair),
            Keep::Nothing => settings.sessions.clone(),
        };
        let (life, stopping) = watch::channel(Life::Running);
        let claims = match &settings.keep {
            Keep::In { home, .. } => Some(Claims::new(home.claims(), keypair.clone(), network)),
            Keep::Nothing => None,
        };
        let share = Share { answers: settings.audit, price: settings.audit_price };
        let auditor = Auditor::new(plane.clone(), share, settings.compute, stopping.clone(), claims);
        let asker = Arc::new(Asker { models, plane: plane.clone(), own, logs: logs.clone(), auditor });
        let db_file = match &settings.keep {
            Keep::In { db, .. } => Some(db.clone()),
            Keep::Nothing => None,
        };
        tokio::spawn(measure_disk(telemetry.stats.clone(), puller.shelf.clone(), db_file, stopping.clone()));
        if let Some(logs) = logs {
            tokio::spawn(forget_answers(logs, stopping.clone()));
        }
        if !matches!(settings.keep, Keep::Nothing) || settings.serve.is_some() {
            tokio::spawn(provide::run(handle.clone(), puller.shelf.clone(), stopping.clone()));
        }
        bootstrap::spawn(&handle, &telemetry, bootstrap, notices, stopping.clone());
        // Workers are this program itself.
        let program = std::env::current_exe().map_err(|e| StartError::internal(e.to_string()))?;
        let sandbox = Sandbox::new(program);
        let parts = services::Parts {
            handle: handle.clone(),
            ledger: plane.ledger().clone(),
            telemetry: telemetry.clone(),
            asker: asker.clone(),
            db: db.clone(),
            more: offered::WebRead::named(&sandbox).into_iter().collect(),
            runner: Some(Arc::new(offered::Contracts { sandbox: sandbox.clone(), telemetry: telemetry.clone() })),
            local_socket: match &settings.keep {
                Keep::In { home, .. } => Some(home.local_llm_socket()),
                Keep::Nothing => None,
            },
        };
        let services = Services::start(parts, &settings.services).await?;
        tokio::spawn(services.clone().run(called));
        if !matches!(settings.keep, Keep::Nothing) {
            tokio::spawn(services::publish::run(services.clone(), stopping.clone()));
        }

        let agents = Agents::new(sandbox, asker.clone(), db.clone(), telemetry.clone());
        agents.join(Arc::new(offered::Calling(services.clone())));
        let traces = match settings.traces.clone() {
            Some(to) => {
                let sending = telemetry.traces.export(to, handle.local(), listening::stopped(stopping.clone()));
                Some(sending.map_err(|e| StartError::new(ErrorCode::Usage, e.to_string()))?)
            }
            None => None,
        };
        let mut node = Self {
            handle,
            plane,
            asker,
            services,
            agents: Arc::new(agents),
            telemetry,
            db,
            front_addr: None,
            certificates,
            metrics_addr: None,
            api_addr: None,
            socket: None,
            daemon_json: None,
            life,
            stop_swarm,
            swarm,
            stop_ledger,
            keeper,
            publisher: None,
            servers: traces.into_iter().collect(),
            _lock: lock,
        };
        node.serve_front(front, stopping.clone());
        node.serve_metrics(settings.metrics, stopping.clone()).await?;
        node.serve_layers(&settings, keypair, stopping.clone()).await?;
        node.serve_api(&settings, stopping).await?;
        Ok(node)
    }

    /// Where a masked node's web front listens.
    #[must_use]
    pub(crate) fn front_addr(&self) -> Option<SocketAddr> {
        self.front_addr
    }

    /// The web front's certificate, if it has one of its own: to be read again.
    pub(crate) fn certificates(&self) -> Option<Arc<Certificates>> {
        self.certificates.clone()
    }

    /// Where metrics and health are served.
    #[must_use]
    pub(crate) fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Where the control API is served.
    #[must_use]
    pub(crate) fn api_addr(&self) -> Option<SocketAddr> {
        self.api_addr
    }

    /// Asks. The events end with exactly one `Done` or `Error`; dropping the receiver cancels the request.
    #[must_use]
    pub(crate) fn ask(&self, request: InferRequest) -> mpsc::Receiver<InferEvent> {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let asker = self.asker.clone();
        tokio::spawn(async move { asker.infer(request, events).await });
        receiver
    }

    /// Asks, and waits for the end; `see` is shown each event.
    pub(crate) async fn answer(
        &self,
        request: InferRequest,
        mut see: impl FnMut(&InferEvent),
    ) -> Result<Summary, InferError> {
        let mut events = self.ask(request);
        while let Some(event) = events.recv().await {
            see(&event);
            match event {
                InferEvent::Done { summary } => return Ok(*summary),
                InferEvent::Error { error } => return Err(error),
                _ => {}
            }
        }
        Err(InferError::new(ErrorCode::Internal, "the answer stopped before its end"))
    }

    /// The services of this node, and its way to those of others.
    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// What pulls models for this node.
    pub(crate) fn puller(&self) -> &Puller {
        self.asker.models.puller()
    }

    /// Waits until this node has a connection to one of the peers it was told to start from.
    ///
    /// # Errors
    /// When none of them can be reached.
    pub(crate) async fn wait_for_bootstrap(&self, peers: &[crate::address::PeerAddress]) -> Result<(), InferError> {
        bootstrap::reach(&self.handle, peers).await
    }

    /// Waits until somebody asks over the API that the node ends: how long what is under way has.
    pub(crate) async fn asked_to_stop(&self) -> Duration {
        self.telemetry.health.asked_to_stop().await
    }

    /// Counts panics of any thread from now on, besides what the process does about them.
    pub(crate) fn count_panics(&self) {
        let metrics = self.telemetry.metrics.clone();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            metrics.task_panicked();
            before(info);
        }));
    }

    /// Stops taking work, finishes what is under way for at most `grace`, takes its announcement back and closes. A node that is
    /// dropped instead ends without a goodbye.
    pub async fn shutdown(self, grace: Duration) {
        self.telemetry.health.drain();
        self.plane.drain();
        // The publisher says so: who asks for our announcement now looks elsewhere.
        let _ = self.life.send(Life::Draining);
        let deadline = Instant::now() + grace;
        while (self.plane.busy() || self.services.busy()) && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        let _ = self.life.send(Life::Stopping);
        self.services.stop().await;
        if let Some(publisher) = self.publisher {
            let _ = tokio::time::timeout(GOODBYE, publisher).await;
        }
        let _ = self.stop_swarm.send(());
        let _ = tokio::time::timeout(GOODBYE, self.swarm).await;
        for server in self.servers {
            let _ = tokio::time::timeout(GOODBYE, server).await;
        }
        // What it has taken is on disk when it ends.
        let _ = self.stop_ledger.send(true);
        let _ = tokio::time::timeout(GOODBYE, self.keeper).await;
        if let Some(db) = self.db
            && let Err(error) = db.close().await
        {
            tracing::error!(%error, "the database did not close cleanly");
        }
        for path in [self.socket, self.daemon_json].into_iter().flatten() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes what is kept of answers once it has expired, also while nobody asks.
async fn forget_answers(logs: SessionLogs, mut stopping: watch::Receiver<Life>) {
    let mut look = tokio::time::interval(FORGET);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = stopping.wait_for(|life| *life == Life::Stopping) => return,
        }
        let logs = logs.clone();
        let _ = tokio::task::spawn_blocking(move || logs.sweep()).await;
    }
}

/// Keeps the gauges of what is on disk, until the node stops.
async fn measure_disk(
    stats: Arc<crate::telemetry::stats::NodeStats>,
    shelf: Arc<Shelf>,
    db: Option<PathBuf>,
    mut stopping: watch::Receiver<Life>,
) {
    let mut look = tokio::time::interval(MEASURE);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = stopping.wait_for(|life| *life == Life::Stopping) => return,
        }
        let (stats, shelf, db) = (stats.clone(), shelf.clone(), db.clone());
        let measured = tokio::task::spawn_blocking(move || {
            if let Ok(store) = shelf.store() {
                stats.storage.models.set(store.used());
                stats.storage.models_limit.set(store.quota().unwrap_or(0));
            }
            if let Some(meta) = db.and_then(|db| std::fs::metadata(db).ok()) {
                stats.storage.database.set(meta.len());
            }
        });
        let _ = measured.await;
    }
}

/// Every listen address with the peer id, loopback ones included: what another node on the same machine or LAN needs.
pub(crate) async fn full_addresses(handle: &Handle) -> Vec<String> {
    let local = handle.local();
    let snapshot = handle.snapshot().await;
    let all = snapshot.map(|s| [s.listeners, s.external].concat()).unwrap_or_default();
    let mut seen: Vec<String> =
        all.into_iter().filter_map(|addr| addr.with_p2p(local).ok()).map(|addr| addr.to_string()).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

async fn open_home(keep: &Keep, telemetry: &Telemetry) -> Result<(Option<HomeLock>, Keypair, Option<Db>), StartError> {
    let Keep::In { home, identity, db } = keep else {
        telemetry.ok(Component::Storage, "keeps nothing");
        return Ok((None, Keypair::generate_ed25519(), None));
    };
    let lock = home.lock().map_err(StartError::home)?;
    let keypair = identity::load_or_create(identity).map_err(StartError::identity)?;
    let (path, metrics) = (db.clone(), telemetry.metrics.clone());
    let open = move || Db::open(&path, Box::new(move |took| metrics.db_commit(took)));
    let db = tokio::task::spawn_blocking(open)
        .await
        .map_err(|e| StartError::internal(e.to_string()))?
        .map_err(|e| StartError::new(ErrorCode::StorageFailed, e.to_string()))?;
    telemetry.ok(Component::Storage, "open");
    Ok((Some(lock), keypair, Some(db)))
}

/// Opens the web front of a node that wants one.
async fn prepare_masking(settings: &Settings, telemetry: &Telemetry) -> Result<Option<Prepared>, StartError> {
    let Some(masking) = &settings.masking else { return Ok(None) };
    let secret = match &settings.keep {
        Keep::In { home, .. } => Some(home.masking_secret()),
        Keep::Nothing => None,
    };
    masking::prepare(masking, secret.as_deref(), &telemetry.stats).await.map(Some)
}

/// What the database tells of the swarm.
async fn remembered(db: &Db) -> Result<Remembered, StartError> {
    let failed = |e: ReadError| StartError::new(ErrorCode::StorageFailed, e.to_string());
    let mut rows = db.peers().await.map_err(failed)?;
    rows.truncate(REMEMBERED);
    let (conduct, anchors) = (db.conduct().await.map_err(failed)?, db.anchors().await.map_err(failed)?);
    Ok(Remembered { rows, conduct, anchors })
}

/// Waits until `wanted` listeners have told an address each.
async fn wait_for_listeners(handle: &Handle, wanted: usize) -> Result<(), StartError> {
    let mut notices = handle.watch();
    let all = async {
        loop {
            let snapshot = handle.snapshot().await;
            if snapshot.is_none_or(|s| s.listening >= wanted) {
                return;
            }
            let _ = notices.recv().await;
        }
    };
    tokio::time::timeout(LISTEN_TIMEOUT, all)
        .await
        .map_err(|_| StartError::listen("the listeners do not say where they listen".into()))
}
