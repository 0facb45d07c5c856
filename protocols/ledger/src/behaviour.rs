//! Sending packets to peers, and handing theirs to whoever keeps the ledger.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    request_response::{self, InboundFailure, OutboundFailure, OutboundRequestId, ProtocolSupport, ResponseChannel},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};
use quelea_wire::{
    NetworkId,
    rate::{Limiter, Limits, Quota, Scope},
};

pub use crate::codec::Answer;
use crate::{
    codec::{Codec, Request},
    fields::DecodeError,
    packet::MAX_PACKET,
    queue::{Parcel, Queue},
};

/// The name in `/quelea/<net>/<name>/1`.
pub const PROTOCOL_NAME: &str = "ledger";

/// How long an exchange may take. Packet and answer are small, and the answer does not wait for a disk: ten seconds is a bad
/// line full of activations.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Packets to one peer that have no answer yet: they hide a round trip of 100 ms at 80 packets a second, more than two peers
/// have to tell each other.
pub const MAX_IN_FLIGHT: usize = 8;

/// Streams open at once per connection, both ways together: twice those in flight, and as many that are still being closed.
pub const MAX_STREAMS: usize = 4 * MAX_IN_FLIGHT;

/// Packets to one peer that wait or are in flight: a few for each of the 64 holds that may be open.
pub const MAX_QUEUED: usize = 256;

/// Packets to all peers that wait or are in flight: 16 MiB of the longest, and some sixteen peers that take nothing.
pub const MAX_QUEUED_ALL: usize = 4096;

/// How often a packet is sent again because the peer is busy.
pub const MAX_RETRIES: u8 = 3;

/// The shortest and the longest that a busy peer is left alone, whatever it asks for: not a storm, and not for ever.
pub const MIN_WAIT: Duration = Duration::from_millis(50);
/// See [`MIN_WAIT`].
pub const MAX_WAIT: Duration = TIMEOUT;

/// Packets of one peer in [`RATE_PERIOD`]. A job takes about six of each side (hold, result, note, receipts of them), so that
/// this is a hundred jobs in ten seconds, with room. Each may cost a signature check (60 µs) and a few writes.
const PEER_BURST: u32 = 1000;
/// Of one address range: as four peers that work behind one address.
const PREFIX_BURST: u32 = 4000;
/// Of everybody: as twenty peers at their limits. Checking 2,000 signatures a second is an eighth of a core.
const GLOBAL_BURST: u32 = 20_000;
const RATE_PERIOD: Duration = Duration::from_secs(10);

/// What somebody over the limits is told to wait: a hundred packets' worth of its share.
const RETRY_MS: u32 = 1000;

/// The right to answer one packet. When it is dropped the peer's stream ends without an answer.
#[derive(Debug)]
pub struct Reply(ResponseChannel<Answer>);

/// Why a packet was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSent {
    /// There is no connection to the peer. Nobody is dialled for a packet: the ledger syncs when there is one.
    #[error("not connected to the peer")]
    NotConnected,
    /// [`MAX_QUEUED`] are on their way to it.
    #[error("{MAX_QUEUED} packets are on their way to the peer already")]
    PeerFull,
    /// [`MAX_QUEUED_ALL`] are on their way, and nobody has more of them than this peer.
    #[error("{MAX_QUEUED_ALL} packets are on their way already")]
    Full,
    /// It has more than [`MAX_PACKET`] bytes.
    #[error("longer than {MAX_PACKET} bytes")]
    TooLong,
}

/// Why packets that were queued did not arrive, as far as is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer did not answer within [`TIMEOUT`].
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The connection closed before the answer.
    #[error("the connection closed before the answer")]
    ConnectionClosed,
    /// The peer does not speak this protocol. What waited for it is dropped.
    #[error("the peer does not speak the ledger protocol of this network")]
    Unsupported,
    /// The peer was busy each of the times that it was tried.
    #[error("the peer is busy")]
    Busy,
    /// The peer says that it is no packet.
    #[error("the peer calls it no packet")]
    Refused,
    /// It gave way to one for a peer for which fewer were waiting.
    #[error("it gave way to another peer's")]
    GaveWay,
    /// The stream broke, or its bytes are no answer.
    #[error("the exchange failed: {0}")]
    Io(io::Error),
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer sent a packet; [`Behaviour::reply`] answers.
    Received {
        /// Who sent it.
        peer: PeerId,
        /// Its bytes: a packet in its one form, of which nothing has been checked.
        packet: Vec<u8>,
        /// To be given back with the answer.
        reply: Reply,
    },
    /// A peer has taken a packet.
    Sent {
        /// Which peer.
        peer: PeerId,
        /// What it was.
        packet: Vec<u8>,
    },
    /// Packets to a peer are lost.
    NotSent {
        /// Which peer.
        peer: PeerId,
        /// How many.
        packets: usize,
        /// Why.
        error: SendError,
    },
    /// A peer sent too much and was told to wait.
    Limited {
        /// Which peer.
        peer: PeerId,
        /// Which limit it met.
        scope: Scope,
    },
    /// A peer sent what is no packet, as no honest peer does.
    Misbehaved {
        /// Which peer.
        peer: PeerId,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// A peer's packet was not answered.
    Failed {
        /// Which peer.
        peer: PeerId,
        /// Why.
        error: InboundFailure,
    },
}

type Inner = request_response::Behaviour<Codec>;

/// `/quelea/<net>/ledger/1`.
///
/// | memory | bound | when full |
/// |---|---|---|
/// | packets to a peer | [`MAX_QUEUED`], of these [`MAX_IN_FLIGHT`] in flight | refused: [`NotSent::PeerFull`] |
/// | packets to all | [`MAX_QUEUED_ALL`] | the longest line loses its newest: [`SendError::GaveWay`] |
/// | packets of a peer | [`MAX_STREAMS`] a connection, each with a deadline | libp2p drops the stream; its sender sees it end |
/// | the rate limits' buckets | see [`Limiter`] | – |
///
/// Packets leave in the order in which they were queued, several at a time, so that they may overtake each other: the ledger
/// is made for that. In a composite it must stand after every behaviour that can deny a connection, as all that are built
/// on libp2p's request-response.
pub struct Behaviour {
    inner: Inner,
    queue: Queue,
    in_flight: HashMap<OutboundRequestId, (PeerId, Parcel)>,
    /// What is known at once. At most one for each call of [`Behaviour::send`] and each closed connection, drained by the
    /// next poll.
    ready: VecDeque<Event>,
    rate: Limiter,
    timer: Delay,
    /// When the timer is set to, while a peer has asked us to wait.
    wake: Option<Instant>,
}

impl Behaviour {
    /// For one network.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        let quota = |burst| Quota::new(burst, RATE_PERIOD);
        let limits = Limits { peer: quota(PEER_BURST), prefix: quota(PREFIX_BURST), global: quota(GLOBAL_BURST) };
        Self::with_limits(network, limits)
    }

    /// For one network, with other limits to what peers may send.
    #[must_use]
    pub fn with_limits(network: NetworkId, limits: Limits) -> Self {
        let protocol = network.protocol(PROTOCOL_NAME, 1);
        let config =
            request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(MAX_STREAMS);
        Self {
            inner: Inner::with_codec(Codec, [(protocol, ProtocolSupport::Full)], config),
            queue: Queue::default(),
            in_flight: HashMap::new(),
            ready: VecDeque::new(),
            rate: Limiter::new(limits),
            timer: Delay::new(Duration::ZERO),
            wake: None,
        }
    }

    /// Queues a packet to a connected peer; [`Event::Sent`] or [`Event::NotSent`] follows.
    ///
    /// # Errors
    /// When it is not queued; then nothing follows.
    pub fn send(&mut self, peer: PeerId, packet: Vec<u8>) -> Result<(), NotSent> {
        if packet.len() > MAX_PACKET {
            return Err(NotSent::TooLong);
        }
        if let Some(other) = self.queue.push(peer, packet)? {
            self.ready.push_back(Event::NotSent { peer: other, packets: 1, error: SendError::GaveWay });
        }
        self.pump(&peer, Instant::now());
        Ok(())
    }

    /// Answers a peer's packet.
    pub fn reply(&mut self, reply: Reply, answer: Answer) {
        // Fails only when the peer has gone already; its end is reported as `InboundFailure`.
        let _ = self.inner.send_response(reply.0, answer);
    }

    /// Packets that wait or are in flight, and those in flight.
    #[must_use]
    pub fn under_way(&self) -> (usize, usize) {
        (self.queue.len(), self.in_flight.len())
    }

    /// Entries of the maps behind peers and rate limits; bounded by the connections and by [`Limiter`].
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.queue.lines().saturating_add(self.rate.remembered())
    }

    /// Sends what may leave for `peer` now.
    fn pump(&mut self, peer: &PeerId, now: Instant) {
        while let Some(parcel) = self.queue.take(peer, now) {
            let id = self.inner.send_request(peer, Request::Packet(parcel.packet.clone()));
            self.in_flight.insert(id, (*peer, parcel));
        }
    }

    fn set_timer(&mut self, now: Instant) {
        self.wake = self.queue.due();
        if let Some(at) = self.wake {
            self.timer.reset(at.saturating_duration_since(now));
        }
    }

    /// Some peers have waited long enough.
    fn resume(&mut self, now: Instant) {
        for peer in self.queue.rested(now) {
            self.pump(&peer, now);
        }
        self.set_timer(now);
    }

    fn on_inner(&mut self, event: request_response::Event<Request, Answer>) -> Option<Event> {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => {
                    Some(self.received(peer, request, Reply(channel)))
                }
                request_response::Message::Response { request_id, response } => {
                    let (peer, parcel) = self.in_flight.remove(&request_id)?;
                    self.answered(peer, parcel, response)
                }
            },
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                let (peer, _) = self.in_flight.remove(&request_id)?;
                self.queue.ended(&peer);
                Some(self.failed(peer, error))
            }
            request_response::Event::InboundFailure { peer, error, .. } => Some(Event::Failed { peer, error }),
            request_response::Event::ResponseSent { .. } => None,
        }
    }

    fn received(&mut self, peer: PeerId, request: Request, reply: Reply) -> Event {
        if let Err(scope) = self.rate.admit(peer, Instant::now()) {
            self.reply(reply, Answer::Busy { retry_ms: RETRY_MS });
            return Event::Limited { peer, scope };
        }
        match request {
            Request::Packet(packet) => Event::Received { peer, packet, reply },
            Request::Malformed(error) => {
                self.reply(reply, Answer::Refused);
                Event::Misbehaved { peer, error }
            }
        }
    }

    fn answered(&mut self, peer: PeerId, parcel: Parcel, answer: Answer) -> Option<Event> {
        let now = Instant::now();
        let lost = |error| Some(Event::NotSent { peer, packets: 1, error });
        match answer {
            Answer::Busy { retry_ms } => {
                let wait = Duration::from_millis(retry_ms.into()).clamp(MIN_WAIT, MAX_WAIT);
                let goes_again = self.queue.again(&peer, parcel, now.checked_add(wait).unwrap_or(now));
                self.set_timer(now);
                if goes_again { None } else { lost(SendError::Busy) }
            }
            Answer::Taken | Answer::Refused => {
                self.queue.ended(&peer);
                self.pump(&peer, now);
                let packet = parcel.packet;
                if answer == Answer::Taken { Some(Event::Sent { peer, packet }) } else { lost(SendError::Refused) }
            }
        }
    }

    fn failed(&mut self, peer: PeerId, error: OutboundFailure) -> Event {
        let (dropped, error) = match error {
            OutboundFailure::UnsupportedProtocols => (self.queue.clear(&peer), SendError::Unsupported),
            OutboundFailure::Timeout => (0, SendError::Timeout),
            OutboundFailure::DialFailure | OutboundFailure::ConnectionClosed => (0, SendError::ConnectionClosed),
            OutboundFailure::Io(error) => (0, SendError::Io(error)),
        };
        self.pump(&peer, Instant::now());
        Event::NotSent { peer, packets: dropped.saturating_add(1), error }
    }

    /// Its last connection is gone.
    fn gone(&mut self, peer: PeerId) {
        self.in_flight.retain(|_, (other, _)| *other != peer);
        let packets = self.queue.close(&peer);
        if packets > 0 {
            self.ready.push_back(Event::NotSent { peer, packets, error: SendError::ConnectionClosed });
        }
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
        match &event {
            FromSwarm::ConnectionEstablished(established) => self.queue.open(established.peer_id),
            FromSwarm::ConnectionClosed(closed) if closed.remaining_established == 0 => self.gone(closed.peer_id),
            _ => {}
        }
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
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    if let Some(event) = self.on_inner(event) {
                        return Poll::Ready(ToSwarm::GenerateEvent(event));
                    }
                }
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event }) => {
                    return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event });
                }
                // It dials only for peers without a connection, and to those nothing is sent.
                Poll::Ready(_) => {}
                Poll::Pending if self.wake.is_some() && Pin::new(&mut self.timer).poll(cx).is_ready() => {
                    self.resume(Instant::now());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer chooses how long it is left alone, between two bounds.
    #[test]
    fn a_busy_peer_is_left_alone_neither_for_ever_nor_not_at_all() {
        for (retry_ms, least, most) in
            [(0, MIN_WAIT, MIN_WAIT), (700, MIN_WAIT, MAX_WAIT), (u32::MAX, MAX_WAIT, MAX_WAIT)]
        {
            let mut behaviour = Behaviour::new(NetworkId::from_name("test"));
            let (peer, before) = (PeerId::random(), Instant::now());
            behaviour.queue.open(peer);
            assert_eq!(behaviour.queue.push(peer, vec![1]), Ok(None));
            let parcel = behaviour.queue.take(&peer, before).unwrap();
            assert!(behaviour.answered(peer, parcel, Answer::Busy { retry_ms }).is_none());
            let wake = behaviour.wake.unwrap();
            assert!((before + least..=Instant::now() + most).contains(&wake));
            assert_eq!(behaviour.under_way(), (1, 0));
        }
    }
}
