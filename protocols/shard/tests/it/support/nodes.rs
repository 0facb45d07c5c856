//! Real swarms with nothing but the shard protocol, over TCP or QUIC on loopback.

use std::{collections::HashMap, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, noise,
    swarm::{ConnectionId, SwarmEvent},
    tcp, yamux,
};
use quelea_shard::{Behaviour, Config, Event, OpenError, OpenId, ShardStream, Stats, frame::StreamKind, protocol};
use quelea_wire::NetworkId;
use tokio::sync::{mpsc, oneshot};

use super::soon;

/// Inbound streams that may wait for the test; more than any test lets through.
const WAITING: usize = 2048;

#[derive(Debug, Clone, Copy)]
pub enum Transport {
    Tcp,
    Quic,
}

enum Ask {
    Open(PeerId, oneshot::Sender<Result<ShardStream, OpenError>>),
    Dial(Multiaddr),
    Disconnect(PeerId),
    Stats(oneshot::Sender<Stats>),
}

/// A running node.
pub struct Node {
    pub peer: PeerId,
    addr: Multiaddr,
    asks: mpsc::Sender<Ask>,
    pub inbound: mpsc::Receiver<ShardStream>,
    pub connections: mpsc::Receiver<(PeerId, bool)>,
}

pub fn config() -> Config {
    Config::new(NetworkId::from_name("test"))
}

impl Node {
    pub async fn start(transport: Transport, config: Config) -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("noise keys")
            .with_quic()
            .with_behaviour(|_| Behaviour::new(config))
            .expect("a behaviour")
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_millis(300)))
            .build();
        let listen = match transport {
            Transport::Tcp => "/ip4/127.0.0.1/tcp/0",
            Transport::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
        };
        swarm.listen_on(listen.parse().expect("a multiaddr")).expect("a free port");
        let addr = soon(async {
            loop {
                if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                    break address;
                }
            }
        })
        .await;
        let peer = *swarm.local_peer_id();
        let (asks, asked) = mpsc::channel(64);
        let (to_inbound, inbound) = mpsc::channel(WAITING);
        let (to_connections, connections) = mpsc::channel(WAITING);
        tokio::spawn(run(swarm, asked, to_inbound, to_connections));
        Self { peer, addr, asks, inbound, connections }
    }

    async fn ask(&self, ask: Ask) {
        self.asks.send(ask).await.unwrap_or_else(|_| panic!("the node runs"));
    }

    /// Dials `other` and waits until both know.
    pub async fn connect(&mut self, other: &mut Node) {
        self.ask(Ask::Dial(other.addr.clone())).await;
        soon(self.until_connected(other.peer, true)).await;
        soon(other.until_connected(self.peer, true)).await;
    }

    pub async fn disconnect(&self, other: PeerId) {
        self.ask(Ask::Disconnect(other)).await;
    }

    /// Waits for a connection to `peer` to come, or to go.
    pub async fn until_connected(&mut self, peer: PeerId, connected: bool) {
        while self.connections.recv().await.expect("the node runs") != (peer, connected) {}
    }

    /// Asks to open a stream; what comes is the answer, later.
    pub async fn opening(&self, peer: PeerId) -> oneshot::Receiver<Result<ShardStream, OpenError>> {
        let (tx, rx) = oneshot::channel();
        self.ask(Ask::Open(peer, tx)).await;
        rx
    }

    pub async fn open(&self, peer: PeerId) -> Result<ShardStream, OpenError> {
        soon(self.opening(peer).await).await.expect("every opening is answered")
    }

    pub async fn stats(&self) -> Stats {
        let (tx, rx) = oneshot::channel();
        self.ask(Ask::Stats(tx)).await;
        soon(rx).await.expect("the node runs")
    }

    pub async fn accept(&mut self) -> ShardStream {
        soon(self.inbound.recv()).await.expect("the node runs")
    }
}

/// A greeted stream from `a` to `b`: the opener's end, the acceptor's end.
pub async fn stream(
    a: &Node,
    b: &mut Node,
    kind: StreamKind,
) -> (protocol::Negotiated<ShardStream>, protocol::Negotiated<ShardStream>) {
    let opened = a.opening(b.peer).await;
    let opener = async {
        let stream = soon(opened).await.expect("answered").expect("opened");
        protocol::initiate(stream, kind).await.expect("greets")
    };
    let acceptor = async { protocol::accept(b.accept().await).await.expect("answers") };
    tokio::join!(opener, acceptor)
}

async fn run(
    mut swarm: Swarm<Behaviour>,
    mut asks: mpsc::Receiver<Ask>,
    inbound: mpsc::Sender<ShardStream>,
    connections: mpsc::Sender<(PeerId, bool)>,
) {
    let mut opening: HashMap<OpenId, oneshot::Sender<Result<ShardStream, OpenError>>> = HashMap::new();
    loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(Event::Inbound { peer, connection, stream }) => {
                    assert_eq!((stream.peer(), stream.connection()), (peer, connection));
                    inbound.try_send(stream).expect("room, or a test that leaked");
                }
                SwarmEvent::Behaviour(Event::Opened { id, result, .. }) => {
                    // A test may have stopped waiting.
                    let _ = opening.remove(&id).expect("answered once").send(result);
                }
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    connections.try_send((peer_id, true)).expect("room");
                }
                SwarmEvent::ConnectionClosed { peer_id, .. } => {
                    connections.try_send((peer_id, false)).expect("room");
                }
                _ => {}
            },
            ask = asks.recv() => match ask {
                Some(Ask::Open(peer, answer)) => {
                    let id = swarm.behaviour_mut().open(peer);
                    opening.insert(id, answer);
                }
                Some(Ask::Dial(addr)) => swarm.dial(addr).expect("dials"),
                Some(Ask::Disconnect(peer)) => swarm.disconnect_peer_id(peer).expect("connected"),
                Some(Ask::Stats(answer)) => {
                    let _ = answer.send(swarm.behaviour().stats());
                }
                None => return,
            },
        }
    }
}

/// A connection id, for tests that call the behaviour without a swarm.
pub fn connection(n: usize) -> ConnectionId {
    ConnectionId::new_unchecked(n)
}
