//! The exchange on a swarm.

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
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};
use quelea_wire::{
    NetworkId,
    rate::{Limiter, Limits, Quota, Scope},
    time::unix_ms,
};

use self::own::Own;
use crate::{
    codec::Codec,
    exchanger::{Exchanger, Now},
    message::{ENTRY_OVERHEAD, Request, Response},
    record::{SignedRecord, VerifyError},
};

mod own;

/// The name in `/quelea/<net>/<name>/1`.
pub const PROTOCOL_NAME: &str = "exchange";
/// How long an exchange may take: at most 9 KiB there and 32 KiB back, from memory. Ten seconds is a very bad line.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Streams open at once per connection, both ways together. One each way is enough.
pub const MAX_STREAMS: usize = 4;
/// Requests a peer may make in [`RATE_PERIOD`]. An honest one makes five in its first half minute and one in thirty seconds
/// later.
const PEER_BURST: u32 = 10;
/// Of one address range: eight connections may come from one, and each may bring a peer.
const PREFIX_BURST: u32 = 80;
/// Of everybody: as many as 200 inbound peers may make. An answer costs a look at every record held, about a millisecond.
const GLOBAL_BURST: u32 = 2000;
const RATE_PERIOD: Duration = Duration::from_secs(30);
/// The longest sleep: how late a change of the clock or of the partners may be noticed.
const LOOK: Duration = Duration::from_secs(30);

/// Which addresses may be told to whom, and by whom. Both are asked with the address of the connection to the peer first.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Whether a peer connected at the first address is told the second.
    pub may_tell: fn(&Multiaddr, &Multiaddr) -> bool,
    /// Whether a peer connected at the first address is believed when it names the second.
    pub may_name: fn(&Multiaddr, &Multiaddr) -> bool,
}

/// What the behaviour needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which swarm this is.
    pub network: NetworkId,
    /// What this node calls itself.
    pub agent: String,
    /// Which addresses go where.
    pub reach: Reach,
    /// What everything left to chance follows from; to be drawn at random.
    pub seed: u64,
}

/// Why a peer told nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SilentReason {
    /// No answer within [`TIMEOUT`].
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The peer says that it was asked too often.
    #[error("the peer was asked too often")]
    Busy,
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the exchange protocol of this network")]
    Unsupported,
    /// The connection or the stream broke, or its bytes are no answer.
    #[error("the exchange failed: {0}")]
    Failed(String),
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer answered.
    Received {
        /// Who was asked.
        peer: PeerId,
        /// The records that tell something new.
        learnt: Vec<SignedRecord>,
        /// How many records it sent.
        records: usize,
        /// In how many bytes.
        bytes: usize,
    },
    /// A peer did not answer; it is left alone for a while.
    Silent {
        /// Who was asked.
        peer: PeerId,
        /// Why.
        reason: SilentReason,
    },
    /// A peer asked and was answered.
    Served {
        /// Who asked.
        peer: PeerId,
        /// Its own record, when it tells something new.
        learnt: Option<SignedRecord>,
        /// How many records it got.
        records: usize,
        /// In how many bytes.
        bytes: usize,
    },
    /// A peer asked too often and was told so.
    Limited {
        /// Who asked.
        peer: PeerId,
        /// Which limit it met.
        scope: Scope,
    },
    /// A peer sent what no honest one sends.
    Misbehaved {
        /// Who.
        peer: PeerId,
        /// What was wrong; `None` for two records of one peer in an answer, or a record of somebody else as its own.
        error: Option<VerifyError>,
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

/// `/quelea/<net>/exchange/1`.
///
/// In a composite it must stand after every behaviour that can deny a connection: libp2p's request-response notes a connection
/// when it is asked for a handler, and would never forget one that a later behaviour denies.
pub struct Behaviour {
    inner: Inner,
    config: Config,
    exchanger: Exchanger,
    own: Own,
    /// Where each connected peer is. Bounded by the connection limits.
    remotes: HashMap<PeerId, HashMap<ConnectionId, Multiaddr>>,
    /// Requests under way: at most one for each partner.
    asked: HashMap<OutboundRequestId, PeerId>,
    /// At most two for each event of the inner behaviour, drained before the next.
    ready: VecDeque<Event>,
    rate: Limiter,
    started: Instant,
    timer: Delay,
}

impl Behaviour {
    /// For one network and identity.
    #[must_use]
    pub fn new(keypair: Keypair, config: Config) -> Self {
        let protocol = config.network.protocol(PROTOCOL_NAME, 1);
        let inner =
            request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(MAX_STREAMS);
        Self {
            inner: Inner::with_codec(Codec::new(config.network), [(protocol, ProtocolSupport::Full)], inner),
            exchanger: Exchanger::new(keypair.public().to_peer_id(), config.seed),
            own: Own::new(keypair, config.network, config.agent.clone()),
            config,
            remotes: HashMap::new(),
            asked: HashMap::new(),
            ready: VecDeque::new(),
            rate: Limiter::new(Limits {
                peer: Quota::new(PEER_BURST, RATE_PERIOD),
                prefix: Quota::new(PREFIX_BURST, RATE_PERIOD),
                global: Quota::new(GLOBAL_BURST, RATE_PERIOD),
            }),
            started: Instant::now(),
            timer: Delay::new(Duration::ZERO),
        }
    }

    /// What is held, and how much of it.
    #[must_use]
    pub fn exchanger(&self) -> &Exchanger {
        &self.exchanger
    }

    /// How much a peer is trusted; see [`Exchanger::set_trust`].
    pub fn set_trust(&mut self, peer: &PeerId, trust: u32) {
        self.exchanger.set_trust(peer, trust);
    }

    /// See [`Exchanger::forget`].
    pub fn forget(&mut self, peer: &PeerId) {
        self.exchanger.forget(peer);
    }

    fn now(&self) -> Now {
        Now { at: self.started.elapsed(), unix_ms: unix_ms() }
    }

    /// Asks whoever is due. Returns whether anybody was.
    fn ask(&mut self) -> bool {
        let now = self.now();
        let asks = self.exchanger.poll(now);
        let any = !asks.is_empty();
        for ask in asks {
            if !self.inner.is_connected(&ask.peer) {
                self.exchanger.disconnected(&ask.peer);
                continue;
            }
            let own = self.own_for(&ask.peer, now).map(|own| own.raw().to_vec());
            let request = Request { want: ask.want, own, filter: ask.filter };
            self.asked.insert(self.inner.send_request(&ask.peer, request), ask.peer);
        }
        any
    }

    /// Our record as `peer` may see it.
    fn own_for(&mut self, peer: &PeerId, now: Now) -> Option<SignedRecord> {
        let (remotes, may_tell) = (self.remotes.get(peer)?, self.config.reach.may_tell);
        self.own.record(now.unix_ms, |addr| remotes.values().any(|remote| may_tell(remote, addr)))
    }

    /// Whether `teller` is believed about all addresses of a record.
    fn is_nameable(&self, teller: &PeerId, record: &SignedRecord) -> bool {
        let Some(remotes) = self.remotes.get(teller) else { return false };
        let may_name = self.config.reach.may_name;
        record.record().addrs.iter().all(|addr| remotes.values().any(|remote| may_name(remote, addr)))
    }

    fn on_inner(&mut self, event: request_response::Event<Request, Response>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => {
                    let response = self.on_request(peer, request);
                    // Fails only when the asker has gone already; its end is reported as `InboundFailure`.
                    let _ = self.inner.send_response(channel, response);
                }
                request_response::Message::Response { request_id, response } => {
                    if self.asked.remove(&request_id).is_some() {
                        self.on_response(peer, response);
                    }
                }
            },
            request_response::Event::OutboundFailure {
                peer,
                request_id,
                error: OutboundFailure::ConnectionClosed,
                ..
            } => {
                if self.asked.remove(&request_id).is_some() {
                    self.exchanger.interrupted(&peer);
                }
            }
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let reason = match error {
                    OutboundFailure::Timeout => SilentReason::Timeout,
                    OutboundFailure::UnsupportedProtocols => SilentReason::Unsupported,
                    other => SilentReason::Failed(other.to_string()),
                };
                if self.asked.remove(&request_id).is_some() {
                    self.on_silence(peer, reason);
                }
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                self.ready.push_back(Event::Failed { peer, error });
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn on_request(&mut self, peer: PeerId, request: Request) -> Response {
        if let Err(scope) = self.rate.admit(peer, Instant::now()) {
            self.ready.push_back(Event::Limited { peer, scope });
            return Response::Busy;
        }
        let now = self.now();
        let learnt = match request.own.map(|own| SignedRecord::verify(&own, &self.config.network, now.unix_ms)) {
            Some(Ok(own)) if own.peer() == peer => {
                // A peer may not know how we see it, and name what leads nowhere for us. That is no lie.
                (self.is_nameable(&peer, &own) && self.exchanger.met(own.clone())).then_some(own)
            }
            Some(Ok(_)) => return self.on_misbehaviour(peer, None),
            Some(Err(error)) if !error.is_honest() => return self.on_misbehaviour(peer, Some(error)),
            Some(Err(_)) | None => None,
        };
        let own = self.own_for(&peer, now);
        let (remotes, may_tell) = (self.remotes.get(&peer), self.config.reach.may_tell);
        let told = |record: &SignedRecord| {
            let tells = |addr| remotes.is_some_and(|all| all.values().any(|remote| may_tell(remote, addr)));
            !record.record().addrs.is_empty() && record.record().addrs.iter().all(tells)
        };
        let entries = self.exchanger.answer(&peer, &request.filter, request.want, own, now, told);
        let bytes = entries.iter().map(|e| e.record.raw().len().saturating_add(ENTRY_OVERHEAD)).sum::<usize>();
        let bytes = bytes.saturating_add(2);
        self.ready.push_back(Event::Served { peer, learnt, records: entries.len(), bytes });
        Response::Records { entries, stale: 0, bytes }
    }

    fn on_misbehaviour(&mut self, peer: PeerId, error: Option<VerifyError>) -> Response {
        self.ready.push_back(Event::Misbehaved { peer, error });
        Response::Busy
    }

    fn on_response(&mut self, peer: PeerId, response: Response) {
        match response {
            Response::Records { mut entries, stale, bytes } => {
                let records = entries.len().saturating_add(stale);
                entries.retain(|entry| self.is_nameable(&peer, &entry.record));
                let learnt = self.exchanger.answered(peer, entries);
                self.ready.push_back(Event::Received { peer, learnt, records, bytes });
            }
            Response::Busy => self.on_silence(peer, SilentReason::Busy),
            Response::Refused(error) => {
                self.exchanger.silent(peer, self.now());
                self.ready.push_back(Event::Misbehaved { peer, error: Some(error) });
            }
            Response::Repeated => {
                self.exchanger.silent(peer, self.now());
                self.ready.push_back(Event::Misbehaved { peer, error: None });
            }
        }
    }

    fn on_silence(&mut self, peer: PeerId, reason: SilentReason) {
        self.exchanger.silent(peer, self.now());
        self.ready.push_back(Event::Silent { peer, reason });
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
        match &event {
            FromSwarm::ConnectionEstablished(new) => {
                let remote = new.endpoint.get_remote_address().clone();
                self.remotes.entry(new.peer_id).or_default().insert(new.connection_id, remote);
                self.exchanger.connected(new.peer_id);
            }
            FromSwarm::ConnectionClosed(gone) => {
                if let Some(remotes) = self.remotes.get_mut(&gone.peer_id) {
                    remotes.remove(&gone.connection_id);
                }
                if gone.remaining_established == 0 {
                    self.remotes.remove(&gone.peer_id);
                    self.exchanger.disconnected(&gone.peer_id);
                }
            }
            FromSwarm::NewListenAddr(new) => self.own.listening(new.addr, true),
            FromSwarm::ExpiredListenAddr(gone) => self.own.listening(gone.addr, false),
            FromSwarm::ExternalAddrConfirmed(new) => self.own.reachable(new.addr, true),
            FromSwarm::ExternalAddrExpired(gone) => self.own.reachable(gone.addr, false),
            _ => {}
        }
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
            if self.ask() {
                continue;
            }
            let now = self.now();
            let wait = self.exchanger.next_at(now).map_or(LOOK, |at| at.saturating_sub(now.at)).min(LOOK);
            self.timer.reset(wait);
            if Pin::new(&mut self.timer).poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
