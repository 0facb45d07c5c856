//! The loop. It selects and counts; what to do is decided in [`super::dispatch`] and done under `on`.

use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, Swarm, identity::Keypair, metrics::Recorder, swarm::SwarmEvent};
use quelea_behaviours::{Behaviour, BehaviourEvent, KadMode, bans::Ban, gossip::Gate, traffic::Traffic};
use quelea_service::ServiceStream;
use quelea_shard::ShardStream;
use quelea_wire::NetworkId;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    command::Command, dispatch, events::SwarmNotice, handle::Handle, on, on::peers::Remembered, state::State,
    validation::Validation,
};
use crate::{
    storage::{Db, DhtSaved},
    telemetry::Telemetry,
};

/// Notices kept for slow watchers.
const NOTICE_BUFFER: usize = 256;

/// How often deadlines are looked at. Answers are late by at most this much.
const TICK: Duration = Duration::from_millis(250);

/// Commands handled before the swarm is polled again, so that neither starves the other.
const COMMAND_BUDGET: usize = 32;

/// How long what was said last may take to leave, before connections are cut.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long connections may take to say goodbye when the loop ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the loop needs besides its swarm.
pub(crate) struct DriverConfig {
    /// Which swarm this is.
    pub(crate) network: NetworkId,
    /// Signs what this node says to everybody.
    pub(crate) keypair: Keypair,
    /// Where peers are remembered; a passing peer has none.
    pub(crate) db: Option<Db>,
    /// Where inbound shard streams go.
    pub(crate) inbound: mpsc::Sender<(PeerId, ShardStream)>,
    /// Where others' calls of services go.
    pub(crate) services: mpsc::Sender<ServiceStream>,
    /// Where others' questions about weights go.
    pub(crate) weights: crate::weights::shelf::Desk,
    /// Where peers' packets of the ledger go; a passing peer keeps none.
    pub(crate) ledger: Option<mpsc::Sender<crate::ledger::Input>>,
    /// Where figures and health go.
    pub(crate) telemetry: Telemetry,
    /// Bans of earlier runs.
    pub(crate) bans: Vec<Ban>,
    /// The node's part in the DHT.
    pub(crate) kad_mode: KadMode,
    /// Whether the DHT may tell everybody where it can be dialled; a masked node keeps that to itself.
    pub(crate) publishes: bool,
    /// Whether it relays for others.
    pub(crate) relay_server: bool,
    /// What the swarm counts of each peer.
    pub(crate) traffic: Traffic,
}

/// The task that owns the swarm.
pub(crate) struct Driver {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) state: State,
    pub(super) config: DriverConfig,
    pub(super) notices: broadcast::Sender<SwarmNotice>,
    pub(super) next_republish: Instant,
    pub(super) gate: Gate,
    pub(super) validation: Validation,
    /// When this node last said something to everybody, as it signed it.
    pub(super) said_ms: u64,
    metrics: libp2p::metrics::Metrics,
    commands: mpsc::Receiver<Command>,
}

impl Driver {
    /// A driver and the handle to it. Nothing happens until [`Driver::run`].
    ///
    /// libp2p's own metrics are counted here and shown by whoever scrapes the registry they were made from.
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        mut config: DriverConfig,
        metrics: libp2p::metrics::Metrics,
    ) -> (Self, Handle) {
        let (notices, _) = broadcast::channel(NOTICE_BUFFER);
        let (handle, commands) = Handle::new(*swarm.local_peer_id(), notices.clone(), config.telemetry.metrics.clone());
        let next_republish = Instant::now();
        let bans = std::mem::take(&mut config.bans);
        let mut driver = Self {
            swarm,
            state: State::new(),
            gate: Gate::new(config.network, Instant::now()),
            validation: Validation::start(config.network),
            said_ms: 0,
            config,
            notices,
            next_republish,
            metrics,
            commands,
        };
        on::conduct::load(&mut driver, bans);
        on::gossip::listen(&mut driver);
        (driver, handle)
    }

    /// Takes back what the DHT had when the node stopped.
    pub(crate) fn restore(&mut self, saved: DhtSaved) {
        super::on::keep::restore(self, saved);
    }

    /// Opens a listener; its addresses follow as notices.
    pub(crate) fn listen(&mut self, addr: Multiaddr) -> Result<(), String> {
        self.swarm.listen_on(addr.clone()).map(|_| ()).map_err(|e| format!("cannot listen on {addr}: {}", causes(&e)))
    }

    /// Takes in what the node knew when it stopped last.
    pub(crate) fn remember(&mut self, remembered: Remembered) {
        super::on::peers::restore(self, remembered);
    }

    /// Advertises addresses that lead here by the operator's word, and notes whether the router is asked to open ports.
    pub(crate) fn declare(&mut self, external: &[Multiaddr], upnp: bool) {
        for addr in external {
            self.state.nat.declared.push(addr.clone());
            self.swarm.add_external_address(addr.clone());
        }
        if upnp {
            self.state.nat.upnp = super::nat::Upnp::Searching;
        }
    }

    /// Runs until `stop` resolves or every handle is gone.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(COMMAND_BUDGET);
        loop {
            tokio::select! {
                _ = &mut stop => break,
                taken = self.commands.recv_many(&mut batch, COMMAND_BUDGET) => {
                    if taken == 0 {
                        break;
                    }
                    for command in batch.drain(..) {
                        dispatch::command(&mut self, command);
                    }
                }
                event = self.swarm.select_next_some() => self.event(event),
                Some(checked) = self.validation.next() => on::gossip::checked(&mut self, checked),
                due = tick.tick() => {
                    self.config.telemetry.metrics.swarm_late(due.elapsed());
                    self.tick();
                }
            }
        }
        Box::pin(self.goodbye()).await;
    }

    fn event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        self.metrics.record(&event);
        if let SwarmEvent::Behaviour(event) = &event {
            record(&self.metrics, event);
        }
        dispatch::event(self, event);
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.state.expire(now);
        self.state.book.sweep(quelea_wire::time::unix_ms());
        self.config.telemetry.health.beat();
        super::on::kad::tick(self, now);
        super::on::conduct::tick(self);
        super::on::peers::tick(self, now);
        super::on::nat::tick(self, now);
        super::on::record::tick(self, now);
        super::on::connection::tick(self);
        super::on::rendezvous::tick(self);
        on::gossip::tick(self, now);
    }

    /// Tells a watcher, if there is one.
    pub(super) fn notify(&self, notice: SwarmNotice) {
        let _ = self.notices.send(notice);
    }

    /// Sends what was asked for last, then closes every connection, so that peers hear of it now and not after a timeout.
    async fn goodbye(mut self) {
        super::on::peers::save(&mut self);
        while let Ok(command) = self.commands.try_recv() {
            dispatch::command(&mut self, command);
        }
        super::on::keep::last(&mut self);
        if self.swarm.behaviour().announce.local().is_some() {
            // The tombstone is on its way to neighbours.
            let flush = async {
                loop {
                    let event = self.swarm.select_next_some().await;
                    self.event(event);
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, flush).await;
        }
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, closed).await;
    }
}

/// An error with what is behind it: libp2p's outermost errors often say nothing themselves.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    let mut said: Vec<String> = chain.map(ToString::to_string).filter(|text| !text.is_empty()).collect();
    said.dedup();
    if said.is_empty() { format!("{error:?}") } else { said.join(": ") }
}

/// Lets libp2p's metrics see the events of the protocols they know.
fn record(metrics: &libp2p::metrics::Metrics, event: &BehaviourEvent) {
    match event {
        BehaviourEvent::Identify(event) => metrics.record(event),
        BehaviourEvent::Ping(event) => metrics.record(event),
        BehaviourEvent::Kad(event) => metrics.record(event),
        BehaviourEvent::Gossipsub(event) => metrics.record(event),
        BehaviourEvent::Dcutr(event) => metrics.record(event),
        BehaviourEvent::RelayServer(event) => metrics.record(event),
        _ => {}
    }
}
