//! Real nodes on loopback, with just enough of an event loop: what they learn goes where a node would put it.

use std::{
    fmt::Debug,
    task::Poll,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::poll_fn};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, gossipsub, identify,
    identity::Keypair,
    kad as libkad, noise,
    swarm::{SwarmEvent, dummy},
    tcp, yamux,
};
use prometheus_client::registry::Registry;
use quelea_announce::{Announcement, Ends, Offer, SignedAnnouncement, State};
use quelea_behaviours::{
    Behaviour, BehaviourEvent, Config, KadMode, build_memory_swarm, build_swarm,
    gossip::{Content, Gate, Verdict},
    identify::learn,
    kad,
};
use quelea_broadcast::SignedLine;
use quelea_ledger::behaviour::{Answer, Event as Ledger};
use quelea_shard::ShardStream;
use quelea_wire::{ModelId, NetworkId, Profile, SpanRange, time::unix_ms};

pub type Event = SwarmEvent<BehaviourEvent>;

/// Nothing here takes more than a second or two; a loaded machine may be ten times slower.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub swarm: Swarm<Behaviour>,
    pub keypair: Keypair,
    pub id: PeerId,
    pub addr: Multiaddr,
    pub network: NetworkId,
    pub gate: Gate,
    /// What gossip brought, after validation.
    pub heard: Vec<SignedAnnouncement>,
    pub lines: Vec<SignedLine>,
    pub rejected: usize,
    /// The shard streams last accepted and opened.
    pub inbound: Option<(PeerId, ShardStream)>,
    pub outbound: Option<ShardStream>,
    /// Packets of the ledger, all taken.
    pub packets: Vec<(PeerId, Vec<u8>)>,
}

pub fn config() -> Config {
    let mut config = Config::new(NetworkId::from_name("behaviours test"));
    config.kad_mode = KadMode::Server;
    config.autonat_probe_interval = Duration::from_millis(100);
    config
}

impl Node {
    /// A node that listens on a free TCP port of loopback.
    pub async fn start(config: Config) -> Self {
        Self::listen(config, "/ip4/127.0.0.1/tcp/0").await
    }

    pub async fn listen(config: Config, on: &str) -> Self {
        let keypair = Keypair::generate_ed25519();
        let network = config.network;
        let swarm = build_swarm(keypair.clone(), config, None).unwrap();
        Box::pin(Self::of(swarm, keypair, network, on)).await
    }

    /// A node that listens in the memory of this process.
    pub async fn in_memory(config: Config, registry: &mut Registry) -> Self {
        let keypair = Keypair::generate_ed25519();
        let network = config.network;
        let swarm = build_memory_swarm(keypair.clone(), config, Some(registry)).unwrap();
        Box::pin(Self::of(swarm, keypair, network, "/memory/0")).await
    }

    async fn of(mut swarm: Swarm<Behaviour>, keypair: Keypair, network: NetworkId, on: &str) -> Self {
        swarm.listen_on(on.parse().unwrap()).unwrap();
        let addr = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        let id = keypair.public().to_peer_id();
        let gate = Gate::new(network, Instant::now());
        Self {
            swarm,
            keypair,
            id,
            addr,
            network,
            gate,
            heard: Vec::new(),
            lines: Vec::new(),
            rejected: 0,
            inbound: None,
            outbound: None,
            packets: Vec::new(),
        }
    }

    pub fn announcement(&self, seq: u64) -> SignedAnnouncement {
        let mut said = Announcement::new(self.id, seq, unix_ms());
        said.offers.push(Offer {
            model: ModelId([5; 32]),
            profile: Profile::CandleCpu,
            span: SpanRange::new(0, 8).unwrap(),
            layers_total: 16,
            state: State::Ready,
            decode_rows_per_s: 1000,
            prefill_rows_per_s: 9000,
            queue: 0,
            kv_pages_free: 64,
            price_decode: 10,
            price_prefill: 2,
            ends: Ends::default(),
        });
        SignedAnnouncement::sign(&self.keypair, &self.network, said).unwrap()
    }

    /// What every node does with what it hears.
    pub fn act(&mut self, event: Event) {
        let SwarmEvent::Behaviour(event) = event else { return };
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                learn(&mut self.swarm.behaviour_mut().kad, peer_id, &info, None);
            }
            BehaviourEvent::Kad(libkad::Event::InboundRequest { request }) => {
                kad::receive(&mut self.swarm.behaviour_mut().kad, request);
            }
            BehaviourEvent::Gossipsub(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let verdict = self.gate.judge(&message, unix_ms(), Instant::now());
                self.swarm.behaviour_mut().gossipsub.report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    verdict.acceptance(),
                );
                match verdict {
                    Verdict::Accept(Content::Announcement(signed)) => self.heard.push(*signed),
                    Verdict::Accept(Content::Line(line)) => self.lines.push(*line),
                    _ => self.rejected += 1,
                }
            }
            BehaviourEvent::Shard(quelea_shard::Event::Inbound { peer, stream, .. }) => {
                self.inbound = Some((peer, stream));
            }
            BehaviourEvent::Shard(quelea_shard::Event::Opened { result, .. }) => self.outbound = result.ok(),
            BehaviourEvent::Ledger(Ledger::Received { peer, packet, reply }) => {
                self.packets.push((peer, packet));
                self.swarm.behaviour_mut().ledger.reply(reply, Answer::Taken);
            }
            _ => {}
        }
    }
}

/// Runs all nodes until `pick` finds what it looks for among their events.
pub async fn until<T>(
    nodes: &mut [Node],
    what: &str,
    mut pick: impl FnMut(usize, &mut Node, &Event) -> Option<T>,
) -> T {
    let search = async {
        loop {
            let (i, event) = next(nodes).await;
            let found = pick(i, &mut nodes[i], &event);
            nodes[i].act(event);
            if let Some(found) = found {
                return found;
            }
        }
    };
    patiently(what, search).await
}

/// Runs all nodes until their state is as wanted; looked at after every event, and now and then.
pub async fn until_state(nodes: &mut [Node], what: &str, mut wanted: impl FnMut(&mut [Node]) -> bool) {
    let search = async {
        let mut glance = tokio::time::interval(Duration::from_millis(20));
        while !wanted(nodes) {
            tokio::select! {
                (i, event) = next(nodes) => nodes[i].act(event),
                _ = glance.tick() => {}
            }
        }
    };
    patiently(what, search).await;
}

/// Runs all nodes until `work` is done.
pub async fn during<T>(nodes: &mut [Node], what: &str, work: impl Future<Output = T>) -> T {
    let both = async {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                (i, event) = next(nodes) => nodes[i].act(event),
            }
        }
    };
    patiently(what, both).await
}

async fn patiently<T>(what: &str, search: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(found) => found,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

async fn next(nodes: &mut [Node]) -> (usize, Event) {
    poll_fn(|cx| {
        for (i, node) in nodes.iter_mut().enumerate() {
            if let Poll::Ready(Some(event)) = node.swarm.poll_next_unpin(cx) {
                return Poll::Ready((i, event));
            }
        }
        Poll::Pending
    })
    .await
}

/// Connects two nodes and waits until both have identified each other, and so know what the other speaks.
pub async fn connect(nodes: &mut [Node], from: usize, to: usize) {
    let (target, addr) = (nodes[to].id, nodes[to].addr.clone());
    let dialler = nodes[from].id;
    nodes[from].swarm.dial(addr).unwrap();
    let (mut forth, mut back) = (false, false);
    until(nodes, "two nodes to identify each other", |i, _, event| {
        if let SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, .. })) = event {
            forth |= i == from && *peer_id == target;
            back |= i == to && *peer_id == dialler;
        }
        (forth && back).then_some(())
    })
    .await;
}

/// A stranger that speaks the transport and nothing else.
pub fn stranger() -> Swarm<dummy::Behaviour> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| dummy::Behaviour)
        .unwrap()
        .build()
}

/// The reason, with all its causes, as text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// For assertions on events of which only some implement more than `Debug`.
pub fn text(event: &impl Debug) -> String {
    format!("{event:?}")
}
