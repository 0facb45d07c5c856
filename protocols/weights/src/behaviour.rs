//! Asking peers, and handing their questions to whoever reads disks.

use std::{
    collections::{HashMap, VecDeque},
    io,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    request_response::{
        self, InboundFailure, InboundRequestId, OutboundFailure, OutboundRequestId, ProtocolSupport, ResponseChannel,
    },
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};
use quelea_wire::{
    NetworkId,
    rate::{Limiter, Limits, Quota, Scope},
};

use crate::{
    codec::Codec,
    message::{Answer, Request},
};

/// The name in `/quelea/<net>/<name>/1`.
pub const PROTOCOL_NAME: &str = "weights";

/// How long one exchange may take: 1 MiB at 512 kbit/s is 17 s.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Streams open at once per connection, both ways together: a few chunks under way hide the round trip.
const MAX_STREAMS: usize = 8;

/// Questions of ours under way at once: each may bring 1 MiB.
pub const MAX_ASKS: usize = 64;

/// Questions of others that wait for an answer at once, all peers together; each answer is 1 MiB in memory until it has left.
pub const MAX_WAITING: usize = 32;

/// Questions a peer may ask per second: 64 MiB of chunks, more than a home line carries.
pub const PEER_RATE: u32 = 64;
/// Questions that all may ask per second: 256 MiB of chunks, a quarter of what hashing one core checks. What a node gives
/// besides is its own, lower setting.
pub const GLOBAL_RATE: u32 = 256;

/// What somebody over the limits is told to wait.
const RETRY: Duration = Duration::from_millis(500);

/// Names one question of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(u64);

/// Names one question of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyId(InboundRequestId);

/// Why a question brought no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// There is no connection to the peer; dial first.
    #[error("not connected to the peer")]
    NotConnected,
    /// [`MAX_ASKS`] are under way.
    #[error("{MAX_ASKS} questions are under way already")]
    TooMany,
    /// The peer did not answer within [`TIMEOUT`].
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke before the answer.
    #[error("the connection closed before the answer")]
    ConnectionClosed,
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the weights protocol of this network")]
    Unsupported,
    /// The stream broke, or its bytes are no answer.
    #[error("the exchange failed: {0}")]
    Io(io::Error),
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A question of ours ended.
    Answered {
        /// Which.
        id: AskId,
        /// Who was asked.
        peer: PeerId,
        /// The answer; its bytes are not checked against anything.
        result: Result<Answer, AskError>,
    },
    /// A peer asks; [`Behaviour::reply`] answers.
    Asked {
        /// Which question.
        id: ReplyId,
        /// Who asks.
        peer: PeerId,
        /// What.
        request: Request,
    },
    /// A peer asked too often and was told so.
    Limited {
        /// Who asked.
        peer: PeerId,
        /// Which limit it met.
        scope: Scope,
    },
    /// A peer's question could not be read or answered.
    Failed {
        /// Who asked.
        peer: PeerId,
        /// Why it failed.
        error: InboundFailure,
    },
}

type Inner = request_response::Behaviour<Codec>;

/// `/quelea/<net>/weights/1`.
///
/// | memory | bound | when full |
/// |---|---|---|
/// | questions of ours | [`MAX_ASKS`], each with a deadline | answered [`AskError::TooMany`] |
/// | questions of others | [`MAX_WAITING`], each with a deadline | answered busy |
/// | the rate limits' buckets | see [`Limiter`] | – |
///
/// In a composite it must stand after every behaviour that can deny a connection, as all that are built on libp2p's
/// request-response.
pub struct Behaviour {
    inner: Inner,
    asks: HashMap<OutboundRequestId, AskId>,
    next_id: u64,
    waiting: HashMap<InboundRequestId, ResponseChannel<Answer>>,
    /// Results known at once. At most one per call of [`Behaviour::ask`], drained by the next poll.
    ready: VecDeque<Event>,
    rate: Limiter,
}

impl Behaviour {
    /// For one network.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        let protocol = network.protocol(PROTOCOL_NAME, 1);
        let config =
            request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(MAX_STREAMS);
        Self {
            inner: Inner::with_codec(Codec, [(protocol, ProtocolSupport::Full)], config),
            asks: HashMap::new(),
            next_id: 0,
            waiting: HashMap::new(),
            ready: VecDeque::new(),
            rate: Limiter::new(Limits {
                peer: Quota::per_second(PEER_RATE),
                prefix: Quota::per_second(PEER_RATE.saturating_mul(2)),
                global: Quota::per_second(GLOBAL_RATE),
            }),
        }
    }

    /// Asks a connected peer; [`Event::Answered`] with this id follows, always.
    pub fn ask(&mut self, peer: PeerId, request: Request) -> AskId {
        let id = AskId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let refused = if !self.inner.is_connected(&peer) {
            Some(AskError::NotConnected)
        } else if self.asks.len() >= MAX_ASKS {
            Some(AskError::TooMany)
        } else {
            None
        };
        match refused {
            Some(error) => self.ready.push_back(Event::Answered { id, peer, result: Err(error) }),
            None => {
                self.asks.insert(self.inner.send_request(&peer, request), id);
            }
        }
        id
    }

    /// Answers a peer's question. Whether the peer still waits for it.
    pub fn reply(&mut self, id: ReplyId, answer: Answer) -> bool {
        self.waiting.remove(&id.0).is_some_and(|channel| self.inner.send_response(channel, answer).is_ok())
    }

    /// Questions of ours, and of others, that have no answer yet.
    #[must_use]
    pub fn under_way(&self) -> (usize, usize) {
        (self.asks.len(), self.waiting.len())
    }

    fn on_inner(&mut self, event: request_response::Event<Request, Answer>) -> Option<Event> {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request_id, request, channel } => {
                    let admitted = self.rate.admit(peer, Instant::now());
                    let refused = match admitted {
                        Err(scope) => Some(scope),
                        Ok(()) if self.waiting.len() >= MAX_WAITING => Some(Scope::Global),
                        Ok(()) => None,
                    };
                    if let Some(scope) = refused {
                        // Fails only when the asker has gone already; its end is reported as `InboundFailure`.
                        let _ = self.inner.send_response(channel, Answer::Busy { retry: RETRY });
                        return Some(Event::Limited { peer, scope });
                    }
                    self.waiting.insert(request_id, channel);
                    Some(Event::Asked { id: ReplyId(request_id), peer, request })
                }
                request_response::Message::Response { request_id, response } => {
                    self.answered(request_id, peer, Ok(response))
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let error = match error {
                    OutboundFailure::DialFailure => AskError::NotConnected,
                    OutboundFailure::Timeout => AskError::Timeout,
                    OutboundFailure::ConnectionClosed => AskError::ConnectionClosed,
                    OutboundFailure::UnsupportedProtocols => AskError::Unsupported,
                    OutboundFailure::Io(error) => AskError::Io(error),
                };
                self.answered(request_id, peer, Err(error))
            }
            request_response::Event::InboundFailure { peer, request_id, error, .. } => {
                self.waiting.remove(&request_id);
                Some(Event::Failed { peer, error })
            }
            request_response::Event::ResponseSent { .. } => None,
        }
    }

    fn answered(
        &mut self,
        request: OutboundRequestId,
        peer: PeerId,
        result: Result<Answer, AskError>,
    ) -> Option<Event> {
        self.asks.remove(&request).map(|id| Event::Answered { id, peer, result })
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <Inner as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(connection, peer, addr, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.rate.on_swarm_event(&event);
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(event));
            }
            match self.inner.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    if let Some(event) = self.on_inner(event) {
                        return Poll::Ready(ToSwarm::GenerateEvent(event));
                    }
                }
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event }) => {
                    return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event });
                }
                // It dials only for peers without a connection, and those are never asked.
                Poll::Ready(_) => {}
            }
        }
    }
}
