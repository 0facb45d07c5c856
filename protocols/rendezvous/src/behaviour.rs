//! Both sides of rendezvous on a swarm.

mod serving;
mod types;

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::Future;
use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identity::Keypair,
    request_response::{self, InboundFailure, OutboundFailure, OutboundRequestId, ProtocolSupport},
    swarm::{
        ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use quelea_wire::rate::{Limiter, Limits, Quota};

pub use self::types::{Config, Event, Failure, Reach, Served};
use crate::{
    PROTOCOL,
    codec::{Codec, Page, Response},
    message::{MAX_LISTED, Request},
    own::Own,
    points::{Ask, Point, Points},
    record::Record,
    registry::{MAX_TTL, Registry},
};

/// How long an exchange may take: at most 2 KiB there and 96 KiB back, from memory. Ten seconds is a very bad line.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Streams open at once per connection, both ways together. One each way is enough.
pub const MAX_STREAMS: usize = 4;
/// Requests a peer may make in [`RATE_PERIOD`]. An honest one makes five in a visit and visits once.
const PEER_BURST: u32 = 20;
/// Of one address range: eight connections may come from one, and each may bring a peer.
const PREFIX_BURST: u32 = 160;
/// Of everybody: 200 inbound peers of ten each. A request costs a signature of 60 µs, or a copy of 80 KiB.
const GLOBAL_BURST: u32 = 2000;
const RATE_PERIOD: Duration = Duration::from_secs(60);
/// The longest sleep: how late a registration that has ended may be forgotten.
const LOOK: Duration = Duration::from_secs(30);

type Inner = request_response::Behaviour<Codec>;

/// `/rendezvous/1.0.0`, as a client of some points, as a point, or both.
///
/// It dials its points itself. In a composite it must stand after every behaviour that can deny a connection.
///
/// | memory | bound |
/// |---|---|
/// | points | [`MAX_POINTS`](crate::MAX_POINTS) |
/// | registrations | see [`Registry`] |
/// | requests under way | one for each point |
/// | connections | the swarm's connection limits |
/// | rate limits | see [`Limiter`] |
pub struct Behaviour {
    inner: Inner,
    local: PeerId,
    namespace: String,
    reach: Reach,
    own: Own,
    points: Points,
    /// Present when we are a point.
    registry: Option<Registry>,
    rate: Limiter,
    remotes: HashMap<PeerId, HashMap<ConnectionId, Multiaddr>>,
    /// Requests under way; whether they are to register.
    asked: HashMap<OutboundRequestId, bool>,
    /// Dials of points under way.
    dials: HashMap<ConnectionId, PeerId>,
    /// Filled by one event, drained before the next.
    ready: VecDeque<ToSwarm<Event, THandlerInEvent<Inner>>>,
    started: Instant,
    timer: Delay,
}

impl Behaviour {
    /// For the node of `keypair`.
    #[must_use]
    pub fn new(keypair: Keypair, config: Config) -> Self {
        let local = keypair.public().to_peer_id();
        let support = match (config.points.is_empty(), config.server) {
            (false, true) => ProtocolSupport::Full,
            (true, true) => ProtocolSupport::Inbound,
            (_, false) => ProtocolSupport::Outbound,
        };
        let settings =
            request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(MAX_STREAMS);
        Self {
            inner: Inner::with_codec(Codec, [(PROTOCOL, support)], settings),
            local,
            namespace: crate::namespace(&config.network),
            reach: config.reach,
            own: Own::new(keypair),
            points: Points::new(config.points.into_iter().filter(|point| point.peer != local), config.seed),
            registry: config.server.then(|| Registry::new(rand::random())),
            rate: Limiter::new(Limits {
                peer: Quota::new(PEER_BURST, RATE_PERIOD),
                prefix: Quota::new(PREFIX_BURST, RATE_PERIOD),
                global: Quota::new(GLOBAL_BURST, RATE_PERIOD),
            }),
            remotes: HashMap::new(),
            asked: HashMap::new(),
            dials: HashMap::new(),
            ready: VecDeque::new(),
            started: Instant::now(),
            timer: Delay::new(LOOK),
        }
    }

    /// Whether `peer` is a point of ours.
    #[must_use]
    pub fn is_point(&self, peer: &PeerId) -> bool {
        self.points.contains(peer)
    }

    /// What this node holds as a point.
    #[must_use]
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    /// Entries of its other maps, for watching their bounds: rate limits, connections, requests under way, dials.
    #[must_use]
    pub fn sizes(&self) -> [usize; 4] {
        [self.rate.remembered(), self.remotes.len(), self.asked.len(), self.dials.len()]
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn tell(&mut self, event: Event) {
        self.ready.push_back(ToSwarm::GenerateEvent(event));
    }

    /// Visits the points that are due. Returns whether any was.
    fn visit(&mut self) -> bool {
        let now = self.now();
        let due = self.points.due(now);
        let any = !due.is_empty();
        for Point { peer, addr } in due {
            if !self.inner.is_connected(&peer) {
                self.points.dialling(&peer);
                let opts = DialOpts::peer_id(peer)
                    .addresses(vec![addr])
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .build();
                self.dials.insert(opts.connection_id(), peer);
                self.ready.push_back(ToSwarm::Dial { opts });
                continue;
            }
            let mut record = None;
            let (own, remotes, may_tell) = (&self.own, self.remotes.get(&peer), self.reach.may_tell);
            let tells = |addr: &Multiaddr| remotes.is_some_and(|all| all.values().any(|remote| may_tell(remote, addr)));
            let ask = self.points.begin(
                &peer,
                |form| {
                    record = own.record(form, tells);
                    record.is_some()
                },
                now,
            );
            let namespace = self.namespace.clone();
            let request = match (ask, record) {
                (Some(Ask::Register(_)), Some(record)) => {
                    Request::Register { namespace, record: record.raw().to_vec(), ttl: Some(MAX_TTL.as_secs()) }
                }
                (Some(Ask::Discover(cookie)), _) => {
                    Request::Discover { namespace: Some(namespace), cookie, limit: u64::try_from(MAX_LISTED).ok() }
                }
                _ => continue,
            };
            let registers = matches!(request, Request::Register { .. });
            self.asked.insert(self.inner.send_request(&peer, request), registers);
        }
        any
    }

    fn on_inner(&mut self, event: request_response::Event<Request, Response>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => self.on_request(peer, request, channel),
                request_response::Message::Response { request_id, response } => {
                    if let Some(registers) = self.asked.remove(&request_id) {
                        self.on_response(peer, registers, response);
                    }
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                if self.asked.remove(&request_id).is_some() {
                    let now = self.now();
                    self.points.failed(&peer, now);
                    let reason = match error {
                        OutboundFailure::Timeout => Failure::Timeout,
                        OutboundFailure::UnsupportedProtocols => Failure::Unsupported,
                        other => Failure::Failed(other.to_string()),
                    };
                    self.tell(Event::Failed { point: peer, reason });
                }
            }
            // There is no answer to an `Unregister`.
            request_response::Event::InboundFailure { error: InboundFailure::ResponseOmission, .. }
            | request_response::Event::ResponseSent { .. } => {}
            request_response::Event::InboundFailure { peer, error, .. } => self.tell(Event::Broken { peer, error }),
        }
    }

    fn on_response(&mut self, point: PeerId, registers: bool, response: Response) {
        let now = self.now();
        match response {
            other if registers != matches!(other, Response::Register(_)) => {
                self.points.failed(&point, now);
                self.tell(Event::Failed { point, reason: Failure::Failed("an answer to another question".into()) });
            }
            Response::Register(Ok(ttl)) => {
                self.points.registered(&point, ttl, now);
                self.tell(Event::Registered { point, ttl });
            }
            Response::Register(Err(status)) => {
                self.points.not_registered(&point, status, now);
                self.tell(Event::Failed { point, reason: Failure::Refused(status) });
            }
            Response::Discover(Ok(Page { records, invalid, cookie })) => {
                self.points.discovered(&point, cookie, records.len().saturating_add(invalid), now);
                let all = records.len();
                let ours: Vec<Record> = records
                    .into_iter()
                    .filter_map(|(namespace, record, _)| (namespace == self.namespace).then_some(record))
                    .collect();
                let invalid = invalid.saturating_add(all.saturating_sub(ours.len()));
                let peers = ours.iter().filter_map(|record| self.believed(&point, record)).collect();
                self.tell(Event::Discovered { point, peers, invalid });
            }
            Response::Discover(Err(status)) => {
                self.points.not_discovered(&point, status, now);
                self.tell(Event::Failed { point, reason: Failure::Refused(status) });
            }
        }
    }

    /// Those addresses of a record about which the point is believed.
    fn believed(&self, point: &PeerId, record: &Record) -> Option<(PeerId, Vec<Multiaddr>)> {
        let (remotes, may_name) = (self.remotes.get(point)?, self.reach.may_name);
        let nameable = |addr: &&Multiaddr| remotes.values().any(|remote| may_name(remote, addr));
        let addrs: Vec<Multiaddr> = record.addrs().iter().filter(nameable).cloned().collect();
        (record.peer() != self.local && !addrs.is_empty()).then(|| (record.peer(), addrs))
    }

    fn on_connections(&mut self, event: &FromSwarm<'_>) {
        let now = self.now();
        match event {
            FromSwarm::ConnectionEstablished(new) => {
                let remote = new.endpoint.get_remote_address().clone();
                self.remotes.entry(new.peer_id).or_default().insert(new.connection_id, remote);
                self.dials.remove(&new.connection_id);
                if new.other_established == 0 {
                    self.points.connected(&new.peer_id, now);
                }
            }
            FromSwarm::ConnectionClosed(gone) => {
                if let Some(remotes) = self.remotes.get_mut(&gone.peer_id) {
                    remotes.remove(&gone.connection_id);
                }
                if gone.remaining_established == 0 {
                    self.remotes.remove(&gone.peer_id);
                }
            }
            FromSwarm::DialFailure(failure) => {
                let Some(point) = self.dials.remove(&failure.connection_id) else { return };
                if matches!(failure.error, DialError::DialPeerConditionFalse(_)) {
                    self.points.elsewhere(&point, now);
                } else {
                    self.points.failed(&point, now);
                    let reason = Failure::Unreachable(failure.error.to_string());
                    self.tell(Event::Failed { point, reason });
                }
            }
            _ => {}
        }
    }

    fn on_own_addresses(&mut self, event: &FromSwarm<'_>) {
        match event {
            FromSwarm::NewListenAddr(new) => self.own.listening(new.addr, true),
            FromSwarm::ExpiredListenAddr(gone) => self.own.listening(gone.addr, false),
            FromSwarm::ExternalAddrConfirmed(new) => self.own.reachable(new.addr, true),
            FromSwarm::ExternalAddrExpired(gone) => self.own.reachable(gone.addr, false),
            _ => return,
        }
        let now = self.now();
        self.points.moved(now);
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
        self.on_connections(&event);
        self.on_own_addresses(&event);
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(event);
            }
            match self.inner.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.on_inner(event);
                    continue;
                }
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event }) => {
                    return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event });
                }
                // It dials only for peers without a connection, and those are never asked.
                Poll::Ready(_) => continue,
                Poll::Pending => {}
            }
            if self.visit() {
                continue;
            }
            let now = self.now();
            if let Some(registry) = &mut self.registry {
                registry.sweep(now);
            }
            let wait = self.points.next_at().map_or(LOOK, |at| at.saturating_sub(now)).min(LOOK);
            self.timer.reset(wait);
            if Pin::new(&mut self.timer).poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
