//! Pings on demand: how long a round trip to a peer takes now, over which connection.
//!
//! libp2p's ping measures on its own schedule and does not say over which connection. This one opens a stream of the same
//! protocol, `/ipfs/ping/1.0.0`, when it is asked to: every libp2p peer answers it. A payload longer than the protocol's 32
//! bytes is sent as several rounds at once.

use std::{
    collections::{HashMap, VecDeque},
    io,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::BoxFuture,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    stream::{FuturesUnordered, StreamExt as _},
};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{DeniedUpgrade, ReadyUpgrade},
    },
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, Stream, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::ConnectionEstablished,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedOutbound},
    },
};

/// libp2p's ping.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");

/// Bytes of one round of the protocol.
const ROUND: usize = 32;

/// The longest payload. One relayed ping of this size takes half of the 128 KiB that libp2p's relays give a circuit.
pub const MAX_BYTES: usize = 64 * 1024;

/// How long one ping may take, from opening its stream to the last byte.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Pings under way at once, of all callers together.
pub const MAX_PENDING: usize = 64;

/// Names one ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PingId(u64);

/// Why a ping was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// There is no connection to the peer.
    #[error("not connected")]
    NotConnected,
    /// [`MAX_PENDING`] are under way.
    #[error("{MAX_PENDING} pings are under way already")]
    TooMany,
    /// No answer within [`TIMEOUT`].
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The peer does not speak libp2p's ping.
    #[error("the peer does not answer pings")]
    Unsupported,
    /// The connection closed before the answer.
    #[error("the connection closed")]
    ConnectionClosed,
    /// The answer is not what was sent.
    #[error("the answer differs from what was sent")]
    WrongEcho,
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
}

/// What became of a ping; exactly one for every [`Behaviour::ping`].
#[derive(Debug)]
pub struct Event {
    /// Which.
    pub id: PingId,
    /// Over which connection; `None` when there was none.
    pub connection: Option<ConnectionId>,
    /// The round trip.
    pub result: Result<Duration, PingError>,
}

/// Pings peers when asked to.
///
/// | memory | bound |
/// |---|---|
/// | connections | the swarm's connection limits |
/// | pings under way | [`MAX_PENDING`], each ended by its handler after [`TIMEOUT`] or with its connection |
#[derive(Default)]
pub struct Behaviour {
    /// In order of establishment, with whether each is relayed.
    connections: HashMap<PeerId, Vec<(ConnectionId, bool)>>,
    pending: HashMap<PingId, ConnectionId>,
    actions: VecDeque<ToSwarm<Event, Order>>,
    next_id: u64,
}

/// How often a ping is sent whose stream the peer broke. libp2p answers one ping stream of a connection at a time and drops it
/// when another one comes: its own first ping, say, which it sends when a connection is new.
const TRIES: u8 = 3;

/// What the behaviour asks of a connection: this many bytes there and back.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    id: PingId,
    bytes: usize,
    tries: u8,
}

impl Behaviour {
    /// Sends `bytes` (rounded up to 32, at most [`MAX_BYTES`]) to `peer` and back, over its newest direct connection if there
    /// is one. [`Event`] with this id follows, always.
    pub fn ping(&mut self, peer: PeerId, bytes: usize) -> PingId {
        let id = PingId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let best = self.connections.get(&peer).and_then(|all| all.iter().rev().min_by_key(|(_, relayed)| *relayed));
        match best {
            None => self.answer(id, None, Err(PingError::NotConnected)),
            Some(_) if self.pending.len() >= MAX_PENDING => self.answer(id, None, Err(PingError::TooMany)),
            Some(&(connection, _)) => {
                self.pending.insert(id, connection);
                self.actions.push_back(ToSwarm::NotifyHandler {
                    peer_id: peer,
                    handler: NotifyHandler::One(connection),
                    event: Order { id, bytes: bytes.min(MAX_BYTES), tries: TRIES },
                });
            }
        }
        id
    }

    /// Pings under way; bounded by [`MAX_PENDING`].
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    fn answer(&mut self, id: PingId, connection: Option<ConnectionId>, result: Result<Duration, PingError>) {
        self.actions.push_back(ToSwarm::GenerateEvent(Event { id, connection, result }));
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    // No state is kept here: another behaviour may still deny the connection.
    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, endpoint, .. }) => {
                self.connections.entry(peer_id).or_default().push((connection_id, endpoint.is_relayed()));
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                if let Some(all) = self.connections.get_mut(&peer_id) {
                    all.retain(|(id, _)| *id != connection_id);
                    if all.is_empty() {
                        self.connections.remove(&peer_id);
                    }
                }
                let lost: Vec<PingId> =
                    self.pending.extract_if(|_, on| *on == connection_id).map(|(id, _)| id).collect();
                for id in lost {
                    self.answer(id, Some(connection_id), Err(PingError::ConnectionClosed));
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, connection: ConnectionId, outcome: THandlerOutEvent<Self>) {
        if self.pending.remove(&outcome.id).is_some() {
            self.answer(outcome.id, Some(connection), outcome.result);
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// How one ping of a connection ended.
#[derive(Debug)]
pub struct Outcome {
    id: PingId,
    result: Result<Duration, PingError>,
}

/// The handler of one connection. It keeps the connection alive while a ping is under way.
#[derive(Default)]
pub struct Handler {
    /// Together not more than the behaviour's [`MAX_PENDING`].
    orders: VecDeque<Order>,
    opening: usize,
    under_way: FuturesUnordered<BoxFuture<'static, (Order, Result<Duration, PingError>)>>,
    outcomes: VecDeque<Outcome>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Outcome;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Order;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        !self.orders.is_empty() || self.opening > 0 || !self.under_way.is_empty()
    }

    fn on_behaviour_event(&mut self, order: Order) {
        self.orders.push_back(order);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Order, Self::ToBehaviour>> {
        if let Some(outcome) = self.outcomes.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(outcome));
        }
        while let Poll::Ready(Some((order, result))) = self.under_way.poll_next_unpin(cx) {
            let tries = order.tries.saturating_sub(1);
            if matches!(result, Err(PingError::Io(_))) && tries > 0 {
                self.orders.push_back(Order { tries, ..order });
            } else {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Outcome { id: order.id, result }));
            }
        }
        if let Some(order) = self.orders.pop_front() {
            self.opening = self.opening.saturating_add(1);
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), order).with_timeout(TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Order>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info: order }) => {
                self.opening = self.opening.saturating_sub(1);
                self.under_way.push(measure(stream, order).boxed());
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: Order { id, .. }, error }) => {
                self.opening = self.opening.saturating_sub(1);
                let error = match error {
                    StreamUpgradeError::Timeout => PingError::Timeout,
                    StreamUpgradeError::NegotiationFailed => PingError::Unsupported,
                    StreamUpgradeError::Io(error) => PingError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.outcomes.push_back(Outcome { id, result: Err(error) });
            }
            _ => {}
        }
    }
}

async fn measure(stream: Stream, order: Order) -> (Order, Result<Duration, PingError>) {
    let timed = tokio::time::timeout(TIMEOUT, echo(stream, order.bytes)).await;
    (order, timed.unwrap_or(Err(PingError::Timeout)))
}

/// Sends and reads at once: the peer answers each round when it has it, and a window smaller than the payload would have
/// both wait for ever.
async fn echo(stream: Stream, bytes: usize) -> Result<Duration, PingError> {
    let rounds = bytes.div_ceil(ROUND).max(1);
    let sent: Vec<u8> = std::iter::repeat_with(rand::random::<[u8; ROUND]>).take(rounds).flatten().collect();
    let mut read = vec![0; sent.len()];
    let (mut reader, mut writer) = stream.split();
    let start = Instant::now();
    let send = async {
        writer.write_all(&sent).await?;
        writer.flush().await
    };
    futures::future::try_join(send, reader.read_exact(&mut read)).await?;
    let took = start.elapsed();
    // The answer is here; how the stream ends does not matter.
    let _ = writer.close().await;
    if read == sent { Ok(took) } else { Err(PingError::WrongEcho) }
}
