//! A hostile peer: a bare libp2p swarm that opens whatever streams it is told to, takes what it is sent, and keeps no
//! rule. Its frames are the real ones, or any bytes.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    AsyncReadExt, AsyncWriteExt, StreamExt,
    future::{Ready, ready},
};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, SwarmBuilder,
    core::{
        Endpoint, UpgradeInfo,
        transport::PortUse,
        upgrade::{InboundUpgrade, ReadyUpgrade},
    },
    noise,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
        NotifyHandler, Stream, SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        dial_opts::DialOpts,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
    tcp, yamux,
};
use quelea_shard::{
    frame::{Frame, Hello, StreamKind},
    protocol::{FEATURES, VERSION},
};
use quelea_wire::NetworkId;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// How long a stream may take before it counts as refused.
const OPENING: Duration = Duration::from_secs(10);

/// How long a write may take before the stream is given up: a victim that has done with a stream takes nothing more.
const WRITING: Duration = Duration::from_millis(500);

pub type Opening = (StreamProtocol, oneshot::Sender<Option<Stream>>);

/// One identity, connected to the victim. The connection ends when it is dropped.
pub struct Attacker {
    pub peer: PeerId,
    openings: mpsc::Sender<Opening>,
    /// Shard streams that the victim has opened to us.
    pub inbound: mpsc::Receiver<Stream>,
    _end: oneshot::Sender<()>,
}

impl Attacker {
    /// Connects to the victim; `None` when it does not want to.
    pub async fn connect(victim: &str) -> Option<Self> {
        let victim: Multiaddr = victim.parse().unwrap();
        let Some(libp2p::multiaddr::Protocol::P2p(peer)) = victim.iter().last() else { panic!("{victim}") };
        let muxer = || {
            let mut muxer = yamux::Config::default();
            muxer.set_max_num_streams(4096);
            muxer
        };
        let (to_us, inbound) = mpsc::channel(64);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, muxer)
            .unwrap()
            .with_quic()
            .with_behaviour(|_| Behaviour::new(to_us))
            .unwrap()
            .build();
        let local = *swarm.local_peer_id();
        swarm.dial(DialOpts::peer_id(peer).addresses(vec![victim]).build()).unwrap();
        let connected = async {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => return true,
                    SwarmEvent::OutgoingConnectionError { .. } => return false,
                    _ => {}
                }
            }
        };
        if !timeout(OPENING, connected).await.unwrap_or(false) {
            return None;
        }
        let (openings, mut to_open) = mpsc::channel::<Opening>(64);
        let (end, mut ended) = oneshot::channel();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(opening) = to_open.recv() => swarm.behaviour_mut().open(peer, opening),
                    event = swarm.select_next_some() => if let SwarmEvent::ConnectionClosed { .. } = event { return },
                    _ = &mut ended => return,
                }
            }
        });
        Some(Self { peer: local, openings, inbound, _end: end })
    }

    /// Opens a stream for `protocol`; `None` when the victim does not take it.
    pub async fn open(&self, protocol: &StreamProtocol) -> Option<Stream> {
        let (reply, answer) = oneshot::channel();
        self.openings.send((protocol.clone(), reply)).await.ok()?;
        timeout(OPENING, answer).await.ok()?.ok()?
    }

    /// Opens a shard stream and greets on it. The answer is not waited for.
    pub async fn greeted(&self, network: &NetworkId, stream: StreamKind) -> Option<Stream> {
        let mut opened = self.open(&quelea_shard::protocol_id(network)).await?;
        write(&mut opened, &[Hello { version: VERSION, stream, features: FEATURES }.into()]).await.then_some(opened)
    }
}

/// Writes frames; says whether the victim still takes them.
pub async fn write(stream: &mut Stream, frames: &[Frame]) -> bool {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    write_raw(stream, &bytes).await
}

/// Writes bytes; says whether the victim still takes them.
pub async fn write_raw(stream: &mut Stream, bytes: &[u8]) -> bool {
    let written = async { stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok() };
    timeout(WRITING, written).await.unwrap_or(false)
}

pub struct Behaviour {
    to_us: mpsc::Sender<Stream>,
    actions: VecDeque<(PeerId, Opening)>,
}

impl Behaviour {
    /// Streams that are opened to it go to `to_us`.
    pub fn new(to_us: mpsc::Sender<Stream>) -> Self {
        Self { to_us, actions: VecDeque::new() }
    }

    /// Opens a stream to a peer.
    pub fn open(&mut self, peer: PeerId, opening: Opening) {
        self.actions.push_back((peer, opening));
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Err(ConnectionDenied::new("nobody calls here"))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler { to_us: self.to_us.clone(), to_open: VecDeque::new() })
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, never: THandlerOutEvent<Self>) {
        match never {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.actions.pop_front() {
            Some((peer_id, event)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event })
            }
            None => Poll::Pending,
        }
    }
}

pub struct Handler {
    to_us: mpsc::Sender<Stream>,
    to_open: VecDeque<Opening>,
}

/// What the victim may open to us: shard streams, and gossip, without which it would not listen to ours.
#[derive(Clone)]
pub struct Spoken;

fn shard() -> StreamProtocol {
    quelea_shard::protocol_id(&super::network())
}

impl UpgradeInfo for Spoken {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 2];

    fn protocol_info(&self) -> Self::InfoIter {
        [shard(), super::network().protocol("gossip", 1)]
    }
}

impl InboundUpgrade<Stream> for Spoken {
    type Output = (StreamProtocol, Stream);
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Opening;
    type ToBehaviour = std::convert::Infallible;
    type InboundProtocol = Spoken;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Option<Stream>>;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(Spoken, ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn on_behaviour_event(&mut self, opening: Opening) {
        self.to_open.push_back(opening);
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        match self.to_open.pop_front() {
            Some((protocol, reply)) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(protocol), reply),
            }),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, mut stream),
                ..
            }) => {
                if protocol == shard() {
                    let _ = self.to_us.try_send(stream);
                } else {
                    // Read and forgotten.
                    tokio::spawn(async move { while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} });
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info: reply }) => {
                let _ = reply.send(Some(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: reply, .. }) => {
                let _ = reply.send(None);
            }
            _ => {}
        }
    }
}
