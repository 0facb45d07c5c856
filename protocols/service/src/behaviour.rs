//! The swarm's part: opens and accepts substreams, within limits.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, Stream, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
    },
};
use quelea_wire::{
    NetworkId,
    rate::{Limiter, Limits, Quota, Scope},
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    handler::{Handler, NEGOTIATION_TIMEOUT, Open, Report},
    protocol_id,
    stream::ServiceStream,
};

/// Streams that one peer may have open to us: as many calls as it may have under way.
pub const MAX_INBOUND_PER_PEER: usize = 16;

/// Streams that all peers may have open to us. A call may hold 1 MiB of input and 1 MiB of output: 512 MiB at the very worst, by
/// sixteen peers that each send all they may.
pub const MAX_INBOUND: usize = 256;

/// Openings of ours that may be under way.
pub const MAX_OPENING: usize = 256;

/// Streams that a peer may open per second. A call that is paid costs both a few flushes of the disk, which bounds it lower.
pub const PEER_RATE: u32 = 64;

/// Streams that all may open per second.
pub const GLOBAL_RATE: u32 = 512;

/// How long an opening may take in all: the connection waits that long for a substream, and as long for its negotiation; a second
/// more lets it answer first.
const OPEN_TIMEOUT: Duration = NEGOTIATION_TIMEOUT.saturating_mul(2).saturating_add(Duration::from_secs(1));

/// Names one call of [`Behaviour::open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpenId(u64);

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no connection to the peer, and this protocol dials nobody.
    #[error("not connected to the peer")]
    NotConnected,
    /// [`MAX_OPENING`] are under way.
    #[error("too many streams are being opened")]
    TooMany,
    /// The peer does not speak the protocol on this network.
    #[error("the peer does not speak the service protocol of this network")]
    Unsupported,
    /// The peer did not negotiate in time.
    #[error("the peer did not negotiate in time")]
    Timeout,
    /// The connection closed meanwhile.
    #[error("the connection closed")]
    ConnectionClosed,
    /// The connection failed to carry it.
    #[error("the stream broke: {0}")]
    Io(io::Error),
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer opened a stream.
    Inbound {
        /// Who.
        peer: PeerId,
        /// The stream, of which nothing has been read.
        stream: ServiceStream,
    },
    /// A stream was reset because the peer, its range or all together have their share.
    Limited {
        /// Who opened it.
        peer: PeerId,
        /// Whose limit it was.
        scope: Scope,
    },
    /// What became of an opening; exactly one for every [`Behaviour::open`].
    Opened {
        /// Which opening.
        id: OpenId,
        /// To whom.
        peer: PeerId,
        /// The stream, on which nothing has been written.
        result: Result<ServiceStream, OpenError>,
    },
}

#[derive(Debug)]
struct Opening {
    id: OpenId,
    peer: PeerId,
    connection: ConnectionId,
    deadline: Instant,
}

#[derive(Debug, Default)]
struct Peer {
    /// In order of establishment, with whether each is relayed. As many as the swarm's connection limits allow.
    connections: Vec<(ConnectionId, bool)>,
    /// What its inbound streams hold. At most as many as it may have.
    inbound: Vec<Weak<()>>,
}

/// `/quelea/<net>/service/1`: opens and accepts substreams, and nothing else.
///
/// | memory | bound | when full |
/// |---|---|---|
/// | peers and their connections | the swarm's connection limits | – |
/// | inbound streams of a peer | [`MAX_INBOUND_PER_PEER`] | the new one is reset, and told as [`Event::Limited`] |
/// | all inbound streams | [`MAX_INBOUND`] | likewise |
/// | rates | those of a [`Limiter`] | likewise |
/// | openings under way | [`MAX_OPENING`], each with a deadline | the new one is answered [`OpenError::TooMany`] |
///
/// In a composite it must stand after every behaviour that can deny a connection.
pub struct Behaviour {
    protocol: StreamProtocol,
    peers: HashMap<PeerId, Peer>,
    /// For each connection, what its streams hold as long as they live.
    streams: HashMap<ConnectionId, Arc<()>>,
    /// In order of deadline, as all are given the same time.
    opening: VecDeque<Opening>,
    timer: Option<Pin<Box<Sleep>>>,
    actions: VecDeque<ToSwarm<Event, Open>>,
    next_id: u64,
    rate: Limiter,
}

impl Behaviour {
    /// For one network.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        Self {
            protocol: protocol_id(&network),
            peers: HashMap::new(),
            streams: HashMap::new(),
            opening: VecDeque::new(),
            timer: None,
            actions: VecDeque::new(),
            next_id: 0,
            rate: Limiter::new(Limits {
                peer: Quota::per_second(PEER_RATE),
                prefix: Quota::per_second(PEER_RATE.saturating_mul(2)),
                global: Quota::per_second(GLOBAL_RATE),
            }),
        }
    }

    /// Opens a stream to a connected peer, on a direct connection if there is one, and on the newest of several.
    /// [`Event::Opened`] with the id returned here follows, within eleven seconds.
    pub fn open(&mut self, peer: PeerId) -> OpenId {
        let id = OpenId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let best = self.peers.get(&peer).and_then(|p| p.connections.iter().rev().min_by_key(|(_, relayed)| *relayed));
        match best {
            None => self.answer(id, peer, Err(OpenError::NotConnected)),
            Some(_) if self.opening.len() >= MAX_OPENING => self.answer(id, peer, Err(OpenError::TooMany)),
            Some(&(connection, _)) => {
                let now = Instant::now();
                let deadline = now.checked_add(OPEN_TIMEOUT).unwrap_or(now);
                self.opening.push_back(Opening { id, peer, connection, deadline });
                self.actions.push_back(ToSwarm::NotifyHandler {
                    peer_id: peer,
                    handler: NotifyHandler::One(connection),
                    event: Open(id),
                });
            }
        }
        id
    }

    /// Streams that live on `connection`, whoever opened them.
    #[must_use]
    pub fn streams_on(&self, connection: ConnectionId) -> usize {
        self.streams.get(&connection).map_or(0, |held| Arc::strong_count(held).saturating_sub(1))
    }

    /// Streams that peers have open to us.
    #[must_use]
    pub fn inbound_open(&self) -> usize {
        let of = |peer: &Peer| peer.inbound.iter().filter(|place| place.strong_count() > 0).count();
        self.peers.values().map(of).fold(0, usize::saturating_add)
    }

    /// Openings under way.
    #[must_use]
    pub fn opening(&self) -> usize {
        self.opening.len()
    }

    fn answer(&mut self, id: OpenId, peer: PeerId, result: Result<ServiceStream, OpenError>) {
        self.actions.push_back(ToSwarm::GenerateEvent(Event::Opened { id, peer, result }));
    }

    fn on_inbound(&mut self, peer: PeerId, connection: ConnectionId, stream: Stream) {
        // A handler only reports on an established connection, so both are known.
        let Some(held) = self.streams.get(&connection).cloned() else { return };
        let all = self.inbound_open();
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.inbound.retain(|place| place.strong_count() > 0);
        let refused = if known.inbound.len() >= MAX_INBOUND_PER_PEER {
            Some(Scope::Peer)
        } else if all >= MAX_INBOUND {
            Some(Scope::Global)
        } else {
            self.rate.admit(peer, std::time::Instant::now()).err()
        };
        if let Some(scope) = refused {
            return self.limited(peer, scope);
        }
        let own = Arc::new(());
        known.inbound.push(Arc::downgrade(&own));
        let stream = ServiceStream::new(stream, peer, held, Some(own));
        self.actions.push_back(ToSwarm::GenerateEvent(Event::Inbound { peer, stream }));
    }

    fn limited(&mut self, peer: PeerId, scope: Scope) {
        self.actions.push_back(ToSwarm::GenerateEvent(Event::Limited { peer, scope }));
    }

    fn on_opened(&mut self, id: OpenId, peer: PeerId, connection: ConnectionId, result: Result<Stream, OpenError>) {
        // An opening that is no longer there was answered at its deadline; its stream is dropped.
        let Some(at) = self.opening.iter().position(|opening| opening.id == id) else { return };
        self.opening.remove(at);
        let held = self.streams.get(&connection).cloned();
        let result = match (result, held) {
            (Ok(stream), Some(held)) => Ok(ServiceStream::new(stream, peer, held, None)),
            (Ok(_), None) => Err(OpenError::ConnectionClosed),
            (Err(error), _) => Err(error),
        };
        self.answer(id, peer, result);
    }

    fn fail(&mut self, which: impl Fn(&Opening) -> bool, error: impl Fn() -> OpenError) {
        let (failed, kept) = std::mem::take(&mut self.opening).into_iter().partition(|opening| which(opening));
        self.opening = kept;
        let failed: VecDeque<Opening> = failed;
        for Opening { id, peer, .. } in failed {
            self.answer(id, peer, Err(error()));
        }
    }

    /// Answers openings whose deadline has passed and sets the timer for the next.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) {
        while let Some(next) = self.opening.front().map(|opening| opening.deadline) {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.fail(|opening| opening.deadline <= next, || OpenError::Timeout);
        }
        self.timer = None;
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    // No state is kept here: another behaviour may still deny the connection, and then nothing would remove it.
    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocol.clone()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocol.clone()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.rate.on_swarm_event(&event);
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, endpoint, .. }) => {
                self.peers.entry(peer_id).or_default().connections.push((connection_id, endpoint.is_relayed()));
                self.streams.insert(connection_id, Arc::default());
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.streams.remove(&connection_id);
                if let Some(peer) = self.peers.get_mut(&peer_id) {
                    peer.connections.retain(|(id, _)| *id != connection_id);
                    if peer.connections.is_empty() {
                        self.peers.remove(&peer_id);
                    }
                }
                self.fail(|opening| opening.connection == connection_id, || OpenError::ConnectionClosed);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, report: THandlerOutEvent<Self>) {
        match report {
            Report::Inbound(stream) => self.on_inbound(peer, connection, stream),
            Report::Flooded => self.limited(peer, Scope::Peer),
            Report::Opened(id, result) => self.on_opened(id, peer, connection, result),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.poll_deadlines(cx);
        match self.actions.pop_front() {
            Some(action) => Poll::Ready(action),
            None => Poll::Pending,
        }
    }
}
