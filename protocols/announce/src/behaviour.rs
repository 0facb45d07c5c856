//! Asking peers for their announcement, and answering them from memory.

use std::{
    collections::{HashMap, VecDeque},
    io,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    request_response::{self, InboundFailure, OutboundFailure, OutboundRequestId, ProtocolSupport},
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
    codec::{Answer, Codec, Request},
    signed::{SignedAnnouncement, VerifyError},
};

/// The name in `/quelea/<net>/<name>/1`.
pub const PROTOCOL_NAME: &str = "announce";

/// How long an exchange may take. The answer is one packet from memory: five seconds is a very bad line.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Streams open at once per connection, both ways together. One is enough; eight leave room for a burst.
pub const MAX_STREAMS: usize = 8;

/// Fetches under way at once: three queries' worth of the 32 providers that one key holds, with room. More is refused.
pub const MAX_FETCHES: usize = 256;

/// Requests a peer may make in [`RATE_PERIOD`]. An announcement changes every few seconds at most, and gossip brings it
/// anyway: ten in ten seconds serves every honest use.
const PEER_BURST: u32 = 10;
/// Of one address range: eight connections may come from one, and each may bring a peer.
const PREFIX_BURST: u32 = 80;
/// Of everybody: as many as 200 inbound peers may make. An answer costs a copy of 1 KiB.
const GLOBAL_BURST: u32 = 2000;
const RATE_PERIOD: Duration = Duration::from_secs(10);

/// Names one fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FetchId(u64);

/// Why a fetch brought nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// There is no connection to the peer; dial first.
    #[error("not connected to the peer")]
    NotConnected,
    /// [`MAX_FETCHES`] are under way.
    #[error("{MAX_FETCHES} fetches are under way already")]
    TooMany,
    /// The peer did not answer within [`TIMEOUT`].
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke before the answer.
    #[error("the connection closed before the answer")]
    ConnectionClosed,
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the announce protocol of this network")]
    Unsupported,
    /// The peer says that it was asked too often.
    #[error("the peer was asked too often")]
    Busy,
    /// The answer is not to be believed.
    #[error("the announcement is not valid: {0}")]
    Invalid(#[from] VerifyError),
    /// The answer speaks for somebody else.
    #[error("the announcement speaks for {0}")]
    WrongPeer(PeerId),
    /// The stream broke, or its bytes are no answer.
    #[error("the exchange failed: {0}")]
    Io(io::Error),
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A fetch ended.
    Fetched {
        /// Which.
        id: FetchId,
        /// Who was asked.
        peer: PeerId,
        /// The peer's checked announcement, or `None` when it announces nothing.
        result: Result<Option<SignedAnnouncement>, FetchError>,
    },
    /// A peer asked and was answered.
    Served {
        /// Who asked.
        peer: PeerId,
    },
    /// A peer asked too often and was told so.
    Limited {
        /// Who asked.
        peer: PeerId,
        /// Which limit it met.
        scope: Scope,
    },
    /// A peer's request could not be read or answered.
    Failed {
        /// Who asked.
        peer: PeerId,
        /// Why it failed.
        error: InboundFailure,
    },
}

type Inner = request_response::Behaviour<Codec>;

/// `/quelea/<net>/announce/1`.
///
/// Answers come from memory at once. Requests are limited per peer. In a composite it must stand after every behaviour that
/// can deny a connection: libp2p's request-response notes a connection when it is asked for a handler, and would
/// never forget one that a later behaviour denies.
pub struct Behaviour {
    inner: Inner,
    local: Option<SignedAnnouncement>,
    fetches: HashMap<OutboundRequestId, FetchId>,
    next_id: u64,
    /// Results known at once. At most one per call of [`Behaviour::fetch`], drained by the next poll.
    ready: VecDeque<Event>,
    rate: Limiter,
}

impl Behaviour {
    /// For one network; announces nothing until [`Behaviour::set_local`].
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        let protocol = network.protocol(PROTOCOL_NAME, 1);
        let config =
            request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(MAX_STREAMS);
        Self {
            inner: Inner::with_codec(Codec::new(network), [(protocol, ProtocolSupport::Full)], config),
            local: None,
            fetches: HashMap::new(),
            next_id: 0,
            ready: VecDeque::new(),
            rate: Limiter::new(Limits {
                peer: Quota::new(PEER_BURST, RATE_PERIOD),
                prefix: Quota::new(PREFIX_BURST, RATE_PERIOD),
                global: Quota::new(GLOBAL_BURST, RATE_PERIOD),
            }),
        }
    }

    /// What this node answers from now on.
    pub fn set_local(&mut self, announcement: Option<SignedAnnouncement>) {
        self.local = announcement;
    }

    /// What this node answers.
    #[must_use]
    pub fn local(&self) -> Option<&SignedAnnouncement> {
        self.local.as_ref()
    }

    /// Asks a connected peer; [`Event::Fetched`] with this id follows, always.
    pub fn fetch(&mut self, peer: PeerId) -> FetchId {
        let id = FetchId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let refused = if !self.inner.is_connected(&peer) {
            Some(FetchError::NotConnected)
        } else if self.fetches.len() >= MAX_FETCHES {
            Some(FetchError::TooMany)
        } else {
            None
        };
        match refused {
            Some(error) => self.ready.push_back(Event::Fetched { id, peer, result: Err(error) }),
            None => {
                self.fetches.insert(self.inner.send_request(&peer, Request), id);
            }
        }
        id
    }

    /// Whether requests to `peer` would find a connection.
    #[must_use]
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.inner.is_connected(peer)
    }

    /// Entries of the maps behind the rate limits; bounded, see [`Limiter`].
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.rate.remembered()
    }

    /// Fetches under way; bounded by [`MAX_FETCHES`].
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.fetches.len()
    }

    fn on_inner(&mut self, event: request_response::Event<Request, Answer>) -> Option<Event> {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { channel, .. } => {
                    let admitted = self.rate.admit(peer, Instant::now());
                    let answer = match (&self.local, admitted) {
                        (_, Err(_)) => Answer::Busy,
                        (None, Ok(())) => Answer::None,
                        (Some(local), Ok(())) => Answer::Some(Box::new(local.clone())),
                    };
                    // Fails only when the asker has gone already; its end is reported as `InboundFailure`.
                    let _ = self.inner.send_response(channel, answer);
                    Some(match admitted {
                        Ok(()) => Event::Served { peer },
                        Err(scope) => Event::Limited { peer, scope },
                    })
                }
                request_response::Message::Response { request_id, response } => {
                    let result = match response {
                        Answer::None => Ok(None),
                        Answer::Some(signed) if signed.peer() == peer => Ok(Some(*signed)),
                        Answer::Some(signed) => Err(FetchError::WrongPeer(signed.peer())),
                        Answer::Busy => Err(FetchError::Busy),
                        Answer::Refused(error) => Err(FetchError::Invalid(error)),
                    };
                    self.fetched(request_id, peer, result)
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let error = match error {
                    OutboundFailure::DialFailure => FetchError::NotConnected,
                    OutboundFailure::Timeout => FetchError::Timeout,
                    OutboundFailure::ConnectionClosed => FetchError::ConnectionClosed,
                    OutboundFailure::UnsupportedProtocols => FetchError::Unsupported,
                    OutboundFailure::Io(error) => FetchError::Io(error),
                };
                self.fetched(request_id, peer, Err(error))
            }
            request_response::Event::InboundFailure { peer, error, .. } => Some(Event::Failed { peer, error }),
            request_response::Event::ResponseSent { .. } => None,
        }
    }

    fn fetched(
        &mut self,
        request: OutboundRequestId,
        peer: PeerId,
        result: Result<Option<SignedAnnouncement>, FetchError>,
    ) -> Option<Event> {
        self.fetches.remove(&request).map(|id| Event::Fetched { id, peer, result })
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
