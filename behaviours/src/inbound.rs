//! Inbound connections beyond what a node takes: somebody gives way, by the rule of [`crate::eviction`].
//!
//! The connection limits let a few more in than there are places. When one more stands than should, one is closed here: the
//! worst of those that were there, or the newcomer when all of them are protected. Outbound connections are never closed,
//! and their number is taken from the places there are, so that strangers cannot crowd out those we chose.
//!
//! Everything is noted at `ConnectionEstablished` and forgotten at `ConnectionClosed`.
//!
//! | memory | bound |
//! |---|---|
//! | connections, and what is known of their peers | the swarm's connection limits |
//! | peers that are held on to | [`MAX_KEPT`] |

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
        dummy,
    },
};
use quelea_wire::prefix::{OPERATOR, Prefix, ip_of};

use crate::{
    Limits,
    eviction::{Candidate, select},
};

/// Peers that are held on to: those the operator named, and anchors.
pub const MAX_KEPT: usize = 64;

/// How long a connection stands at least before it gives way to a stranger. When a crowd comes at once, each of it has the
/// time to ask whom else there is, instead of making room for the next within a round trip; those who come too early are
/// turned away, and come again.
pub const GRACE: Duration = Duration::from_secs(2);

/// How many of `places` stand above them for a moment, or are left free for outbound ones: a sixteenth, at most 16. As many
/// connections may be established between two turns of the loop.
#[must_use]
pub(crate) fn slack(places: u32) -> u32 {
    (places / 16).min(16)
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    inbound: bool,
    group: Option<Prefix>,
    since: Instant,
    /// It has been told to close.
    closing: bool,
}

/// What protects a peer.
#[derive(Debug, Default)]
struct Merit {
    ping: Option<Duration>,
    worked: Option<Instant>,
    conduct: i32,
}

/// Keeps inbound connections within their places; see the module.
#[derive(Debug)]
pub struct Behaviour {
    inbound: usize,
    total: usize,
    /// Orders network groups as nobody outside can know.
    secret: RandomState,
    connections: HashMap<ConnectionId, Connection>,
    merits: HashMap<PeerId, Merit>,
    kept: HashSet<PeerId>,
    closing: VecDeque<(PeerId, ConnectionId)>,
    evicted: u64,
}

impl Behaviour {
    /// As many places as `limits` has, less what outbound connections need.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let places = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            inbound: places(limits.established_inbound),
            total: places(limits.established_total.saturating_sub(slack(limits.established_total))),
            secret: RandomState::new(),
            connections: HashMap::new(),
            merits: HashMap::new(),
            kept: HashSet::new(),
            closing: VecDeque::new(),
            evicted: 0,
        }
    }

    /// Holds on to this peer: its connections never give way. `false` when [`MAX_KEPT`] are held already.
    pub fn keep(&mut self, peer: PeerId) -> bool {
        if self.kept.len() >= MAX_KEPT && !self.kept.contains(&peer) {
            return false;
        }
        self.kept.insert(peer);
        true
    }

    /// A round trip to this peer took so long.
    pub fn pinged(&mut self, peer: &PeerId, took: Duration) {
        if let Some(merit) = self.merits.get_mut(peer) {
            merit.ping = Some(merit.ping.map_or(took, |least| least.min(took)));
        }
    }

    /// This peer has just done something useful: told something new that was true, or served.
    pub fn worked(&mut self, peer: &PeerId) {
        if let Some(merit) = self.merits.get_mut(peer) {
            merit.worked = Some(Instant::now());
        }
    }

    /// This connected peer's score in [`conduct`](crate::conduct).
    pub fn stands(&mut self, peer: &PeerId, conduct: i32) {
        if let Some(merit) = self.merits.get_mut(peer) {
            merit.conduct = conduct;
        }
    }

    /// Connections that had to give way, since the start.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Entries of all its maps, for tests and figures.
    #[must_use]
    pub fn remembered(&self) -> usize {
        let sizes = [self.connections.len(), self.merits.len(), self.kept.len(), self.closing.len()];
        sizes.iter().fold(0, |sum, size| sum.saturating_add(*size))
    }

    fn established(&mut self, id: ConnectionId, peer: PeerId, endpoint: &ConnectedPoint) {
        let ip = ip_of(endpoint.get_remote_address()).filter(|_| !endpoint.is_relayed());
        let group = ip.map(|ip| Prefix::around(ip, OPERATOR));
        let inbound = endpoint.is_listener();
        self.connections.insert(id, Connection { peer, inbound, group, since: Instant::now(), closing: false });
        self.merits.entry(peer).or_default();
        while self.too_many() {
            let settled = self.worst(id, GRACE).or_else(|| self.may_go(id).then_some(id));
            let Some(worst) = settled.or_else(|| self.worst(id, Duration::ZERO)) else { return };
            self.close(worst);
        }
    }

    /// Whether more inbound connections stand than there are places for.
    fn too_many(&self) -> bool {
        let open = |inbound: bool| self.connections.values().filter(|c| c.inbound == inbound && !c.closing).count();
        open(true) > self.inbound.min(self.total.saturating_sub(open(false)))
    }

    fn may_go(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_some_and(|c| c.inbound && !c.closing && !self.kept.contains(&c.peer))
    }

    /// Of those that were there before `newcomer`, and for so long, the one that gives way.
    fn worst(&self, newcomer: ConnectionId, age: Duration) -> Option<ConnectionId> {
        let others = self.connections.iter().filter(|(id, c)| c.inbound && !c.closing && **id != newcomer);
        let before = others.filter(|(_, connection)| connection.since.elapsed() >= age);
        let candidates = before.map(|(id, connection)| {
            let merit = self.merits.get(&connection.peer);
            Candidate {
                key: *id,
                group: connection.group,
                order: self.secret.hash_one(connection.group),
                ping: merit.and_then(|merit| merit.ping),
                worked: merit.and_then(|merit| merit.worked),
                conduct: merit.map_or(0, |merit| merit.conduct),
                since: connection.since,
                kept: self.kept.contains(&connection.peer),
            }
        });
        select(candidates.collect())
    }

    fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.closing = true;
        tracing::debug!(peer = %connection.peer, "an inbound connection gives way");
        self.closing.push_back((connection.peer, id));
        self.evicted = self.evicted.saturating_add(1);
    }

    fn closed(&mut self, id: ConnectionId, peer: &PeerId, remaining: usize) {
        self.connections.remove(&id);
        self.closing.retain(|(_, closing)| *closing != id);
        if remaining == 0 {
            self.merits.remove(peer);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, endpoint, .. }) => {
                self.established(connection_id, peer_id, endpoint);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, remaining_established, .. }) => {
                self.closed(connection_id, &peer_id, remaining_established);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, never: THandlerOutEvent<Self>) {
        match never {}
    }

    // Connections are told to close only while an event of the swarm is handled, after which it polls.
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.closing.pop_front() {
            Some((peer_id, id)) => {
                Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) })
            }
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests;
