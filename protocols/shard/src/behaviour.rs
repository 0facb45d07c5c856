//! The swarm's part: which peers are connected, how many streams they may open, and an answer to every opening.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
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
    handler::{Command, Handler, NEGOTIATION_TIMEOUT, Report},
    protocol_id,
    stream::{Place, ShardStream},
};

/// How long an opening may take in all. The connection waits up to [`NEGOTIATION_TIMEOUT`] for a substream and as long
/// for its negotiation; a second more lets it answer first.
const OPEN_TIMEOUT: Duration = NEGOTIATION_TIMEOUT.saturating_mul(2).saturating_add(Duration::from_secs(1));

/// Streams that one peer may be given in [`OPENED_PERIOD`]: eight times as many as it may hold, since links are kept and shared
/// by sessions, and are opened again when one breaks.
const OPENED_PER_PEER: u32 = 64;
/// To one address range: as many peers as it may connect.
const OPENED_PER_PREFIX: u32 = 512;
/// To all: four times as many as there are places, so that every place may change hands every three seconds. Each costs a
/// greeting and a task.
const OPENED: u32 = 4096;
const OPENED_PERIOD: Duration = Duration::from_secs(10);

/// What a node allows.
#[derive(Debug, Clone)]
pub struct Config {
    /// The network whose peers are talked to.
    pub network: NetworkId,
    /// Streams that one peer may have open to us. A neighbour that is also a coordinator needs three; more than one
    /// set may overlap while streams are replaced.
    pub max_inbound_streams_per_peer: usize,
    /// Streams that all peers together may have open to us; each can hold about 64 KiB of read buffer, of which the
    /// peer must have sent half. When they are taken, a peer that holds fewer than others gets its place from the one
    /// that holds most, so that with n peers nobody can be kept from an nth part of them.
    pub max_inbound_streams_total: usize,
    /// Openings of ours that may be under way.
    pub max_pending_opens: usize,
}

impl Config {
    /// 8 streams a peer; 1,024 in all, so that each of 256 peers can count on four; 768 openings, three to each of
    /// those peers, as openings to peers that do not answer must not keep us from the others.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        Self { network, max_inbound_streams_per_peer: 8, max_inbound_streams_total: 1024, max_pending_opens: 768 }
    }
}

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
    /// As many openings as allowed are under way.
    #[error("too many streams are being opened")]
    TooManyPending,
    /// The peer does not speak the protocol on this network.
    #[error("the peer does not speak the shard protocol of this network")]
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

/// What the behaviour tells.
#[derive(Debug)]
pub enum Event {
    /// A peer opened a stream. It has not been greeted on: see [`crate::protocol::accept`].
    Inbound {
        /// Who.
        peer: PeerId,
        /// On which connection.
        connection: ConnectionId,
        /// The stream.
        stream: ShardStream,
    },
    /// A stream was reset because streams are opened too fast.
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
        /// The stream, not yet greeted on: see [`crate::protocol::initiate`].
        result: Result<ShardStream, OpenError>,
    },
}

/// Counters since the start, and what is open now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Peers that are connected.
    pub peers: usize,
    /// Streams that peers have open to us.
    pub inbound_open: usize,
    /// Streams that peers opened and were given.
    pub inbound_accepted: u64,
    /// Streams that were reset because the peer had its share.
    pub inbound_over_peer: u64,
    /// Streams that were reset because all peers together had theirs.
    pub inbound_over_total: u64,
    /// Streams that were broken off so that a peer which held fewer could have the place.
    pub inbound_displaced: u64,
    /// Streams that were reset because they came faster than the loop turns.
    pub inbound_over_queue: u64,
    /// Streams that were reset because they were opened too fast.
    pub inbound_over_rate: u64,
    /// Openings under way.
    pub pending_opens: usize,
    /// Openings that succeeded.
    pub opened: u64,
    /// Openings that failed.
    pub open_failed: u64,
}

#[derive(Debug, Default)]
struct Peer {
    /// In order of establishment, with whether each is relayed. As many as the swarm's connection limits allow.
    connections: Vec<(ConnectionId, bool)>,
    /// The places of its streams, oldest first. At most as many as it may have.
    inbound: Vec<Weak<Place>>,
}

impl Peer {
    /// Forgets streams that have ended; how many there are.
    fn count_inbound(&mut self) -> usize {
        self.inbound.retain(|place| place.strong_count() > 0);
        self.inbound.len()
    }
}

#[derive(Debug)]
struct Pending {
    id: OpenId,
    peer: PeerId,
    connection: ConnectionId,
    deadline: Instant,
}

/// The shard protocol in the swarm: opens and accepts substreams, and nothing else.
///
/// | memory | bound | when full |
/// |---|---|---|
/// | peers and their connections | the swarm's connection limits | – |
/// | inbound streams of a peer | `max_inbound_streams_per_peer` | the new one is reset and counted |
/// | all inbound streams | `max_inbound_streams_total` | the newest of the peer that holds most is broken off, unless the opener would hold as many: then the new one is reset; both are counted |
/// | the count of each connection's streams | the swarm's connection limits | – |
/// | rates | those of a [`Limiter`] | – |
/// | openings under way | `max_pending_opens`, each with a deadline | the new one is answered `TooManyPending` |
/// | events | one per inbound stream and one per call of `open` | – |
#[derive(Debug)]
pub struct Behaviour {
    config: Config,
    protocol: StreamProtocol,
    peers: HashMap<PeerId, Peer>,
    /// In order of deadline, as all openings are given the same time.
    pending: VecDeque<Pending>,
    timer: Option<Pin<Box<Sleep>>>,
    actions: VecDeque<ToSwarm<Event, Command>>,
    next_id: u64,
    inbound: Arc<AtomicUsize>,
    /// For each connection, what its streams hold as long as they live.
    streams: HashMap<ConnectionId, Arc<()>>,
    over_queue: Arc<AtomicU64>,
    rate: Limiter,
    stats: Stats,
}

impl Behaviour {
    /// A behaviour that is connected to nobody.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            protocol: protocol_id(&config.network),
            config,
            peers: HashMap::new(),
            pending: VecDeque::new(),
            timer: None,
            actions: VecDeque::new(),
            next_id: 0,
            inbound: Arc::default(),
            streams: HashMap::new(),
            over_queue: Arc::default(),
            rate: Limiter::new(Limits {
                peer: Quota::new(OPENED_PER_PEER, OPENED_PERIOD),
                prefix: Quota::new(OPENED_PER_PREFIX, OPENED_PERIOD),
                global: Quota::new(OPENED, OPENED_PERIOD),
            }),
            stats: Stats::default(),
        }
    }

    /// Opens a stream to a connected peer, on a direct connection if there is one, and on the newest of several: an older one
    /// may lead to the process that the peer was before it was started again, which QUIC shows only after ten seconds. The
    /// answer is [`Event::Opened`] with the id returned here, within eleven seconds.
    pub fn open(&mut self, peer: PeerId) -> OpenId {
        let id = OpenId(self.next_id);
        self.next_id = self.next_id.saturating_add(1);
        // Of equals the first one is taken.
        let best = self.peers.get(&peer).and_then(|p| p.connections.iter().rev().min_by_key(|(_, relayed)| *relayed));
        match best {
            None => self.answer(id, peer, Err(OpenError::NotConnected)),
            Some(_) if self.pending.len() >= self.config.max_pending_opens => {
                self.answer(id, peer, Err(OpenError::TooManyPending));
            }
            Some(&(connection, _)) => {
                let now = Instant::now();
                let deadline = now.checked_add(OPEN_TIMEOUT).unwrap_or(now);
                self.pending.push_back(Pending { id, peer, connection, deadline });
                self.actions.push_back(ToSwarm::NotifyHandler {
                    peer_id: peer,
                    handler: NotifyHandler::One(connection),
                    event: Command::Open(id),
                });
            }
        }
        id
    }

    /// Whether a stream could be opened to `peer` now.
    #[must_use]
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    /// Streams that live on `connection`, whoever opened them.
    #[must_use]
    pub fn streams_on(&self, connection: ConnectionId) -> usize {
        self.streams.get(&connection).map_or(0, |held| Arc::strong_count(held).saturating_sub(1))
    }

    /// Counters, for metrics and tests.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            peers: self.peers.len(),
            inbound_open: self.inbound.load(Ordering::Relaxed),
            inbound_over_queue: self.over_queue.load(Ordering::Relaxed),
            pending_opens: self.pending.len(),
            ..self.stats
        }
    }

    fn answer(&mut self, id: OpenId, peer: PeerId, result: Result<ShardStream, OpenError>) {
        let counter = if result.is_ok() { &mut self.stats.opened } else { &mut self.stats.open_failed };
        *counter = counter.saturating_add(1);
        self.actions.push_back(ToSwarm::GenerateEvent(Event::Opened { id, peer, result }));
    }

    fn on_inbound(&mut self, peer: PeerId, connection: ConnectionId, stream: Stream) {
        // A handler only reports on an established connection, so the peer is known.
        let Some(held) = self.peers.get_mut(&peer).map(Peer::count_inbound) else { return };
        let over = if held >= self.config.max_inbound_streams_per_peer {
            &mut self.stats.inbound_over_peer
        } else if self.inbound.load(Ordering::Relaxed) >= self.config.max_inbound_streams_total && !self.make_room(held)
        {
            &mut self.stats.inbound_over_total
        } else if let Err(scope) = self.rate.admit(peer, std::time::Instant::now()) {
            self.actions.push_back(ToSwarm::GenerateEvent(Event::Limited { peer, scope }));
            &mut self.stats.inbound_over_rate
        } else {
            self.stats.inbound_accepted = self.stats.inbound_accepted.saturating_add(1);
            let place = Place::take(&self.inbound);
            if let Some(of_peer) = self.peers.get_mut(&peer) {
                of_peer.inbound.push(Arc::downgrade(&place));
            }
            let stream =
                ShardStream::new(stream, peer, connection, Some(place), self.streams.get(&connection).cloned());
            self.actions.push_back(ToSwarm::GenerateEvent(Event::Inbound { peer, connection, stream }));
            return;
        };
        *over = over.saturating_add(1);
        tracing::debug!(%peer, "reset an inbound stream over the limit");
    }

    /// Takes a place back from the peer that holds most, for one that holds `held`; says whether there was one to take.
    /// It is the newest that goes: whoever keeps opening streams loses those, not what serves a session for long.
    fn make_room(&mut self, held: usize) -> bool {
        let most = self.peers.iter_mut().map(|(_, peer)| (peer.count_inbound(), peer)).max_by_key(|(count, _)| *count);
        // With a difference of one the two would take turns in displacing each other.
        let Some((_, peer)) = most.filter(|(count, _)| *count > held.saturating_add(1)) else { return false };
        let Some(place) = peer.inbound.pop().and_then(|place| place.upgrade()) else { return false };
        place.take_back();
        self.stats.inbound_displaced = self.stats.inbound_displaced.saturating_add(1);
        true
    }

    fn on_opened(&mut self, id: OpenId, peer: PeerId, connection: ConnectionId, result: Result<Stream, OpenError>) {
        // An opening that is no longer pending was answered at its deadline; its stream is dropped.
        let Some(at) = self.pending.iter().position(|p| p.id == id) else { return };
        self.pending.remove(at);
        let of = self.streams.get(&connection).cloned();
        self.answer(id, peer, result.map(|stream| ShardStream::new(stream, peer, connection, None, of)));
    }

    fn fail_pending(&mut self, which: impl Fn(&Pending) -> bool, error: impl Fn() -> OpenError) {
        let (failed, kept) = std::mem::take(&mut self.pending).into_iter().partition(|p| which(p));
        self.pending = kept;
        let failed: VecDeque<Pending> = failed;
        for Pending { id, peer, .. } in failed {
            self.answer(id, peer, Err(error()));
        }
    }

    /// Answers openings whose deadline has passed and sets the timer for the next.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) {
        while let Some(next) = self.pending.front().map(|p| p.deadline) {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.fail_pending(|p| p.deadline <= next, || OpenError::Timeout);
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
        Ok(Handler::new(self.protocol.clone(), Arc::clone(&self.over_queue)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocol.clone(), Arc::clone(&self.over_queue)))
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
                        // Streams that outlive their connection still count in the total.
                        self.peers.remove(&peer_id);
                    }
                }
                self.fail_pending(|p| p.connection == connection_id, || OpenError::ConnectionClosed);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, report: THandlerOutEvent<Self>) {
        match report {
            Report::Inbound(stream) => self.on_inbound(peer, connection, stream),
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
