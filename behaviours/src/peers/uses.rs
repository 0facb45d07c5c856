//! When a connection was used last, by the protocols for whose sake connections are made.
//!
//! libp2p tells no behaviour what runs on a connection, and its own idle timer counts every stream alike: gossip's, which
//! last as long as the connection, keep it for ever. So the behaviours whose exchanges count are [`Watched`], and note here
//! when one passes between them and a connection; upkeep (ping, identify, exchange, gossip, AutoNAT) is not.

use std::{
    collections::{HashMap, HashSet},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

/// When each connection that stands was used last. Connections enter when they are established and leave when they are
/// closed, so that there are never more than the swarm's limits allow.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    lines: Arc<Mutex<Map>>,
    /// Dials under way that a lookup in Kademlia led to; at most [`MAX_LOOKUPS`].
    lookups: Arc<Mutex<HashSet<ConnectionId>>>,
}

/// Four times the dials that the swarm has under way at once. What is past it counts as found otherwise.
const MAX_LOOKUPS: usize = 256;

/// The connections of each peer.
type Map = HashMap<PeerId, Vec<(ConnectionId, Instant)>>;

impl Uses {
    fn map(&self) -> MutexGuard<'_, Map> {
        // Nothing that holds it can panic half-way.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lookups(&self) -> MutexGuard<'_, HashSet<ConnectionId>> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This dial is of a peer to whom a lookup in Kademlia led.
    pub fn looked_up(&self, dial: ConnectionId) {
        let mut lookups = self.lookups();
        if lookups.len() < MAX_LOOKUPS {
            lookups.insert(dial);
        }
    }

    /// The dial has ended; whether a lookup had led to it.
    pub(super) fn was_looked_up(&self, dial: ConnectionId) -> bool {
        self.lookups().remove(&dial)
    }

    /// Dials noted that lookups led to, for watching their bound.
    #[must_use]
    pub fn lookups_under_way(&self) -> usize {
        self.lookups().len()
    }

    pub(super) fn opened(&self, peer: PeerId, connection: ConnectionId) {
        self.map().entry(peer).or_default().push((connection, Instant::now()));
    }

    pub(super) fn closed(&self, peer: &PeerId, connection: ConnectionId) {
        let mut map = self.map();
        if let Some(all) = map.get_mut(peer) {
            all.retain(|(id, _)| *id != connection);
            if all.is_empty() {
                map.remove(peer);
            }
        }
    }

    /// `connection` is used now; with `None`, any of the peer's may be.
    pub fn used(&self, peer: &PeerId, connection: Option<ConnectionId>) {
        let now = Instant::now();
        for (id, at) in self.map().get_mut(peer).into_iter().flatten() {
            if connection.is_none_or(|used| used == *id) {
                *at = now;
            }
        }
    }

    /// When the connection was used last, if it stands.
    #[must_use]
    pub fn last(&self, peer: &PeerId, connection: ConnectionId) -> Option<Instant> {
        self.map().get(peer)?.iter().find(|(id, _)| *id == connection).map(|(_, at)| *at)
    }

    /// Connections noted, for watching their bound.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map().values().map(Vec::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A behaviour whose exchanges with its connections are uses of them. Everything else is the behaviour's, which it
/// dereferences to.
#[derive(Debug)]
pub struct Watched<B> {
    inner: B,
    uses: Uses,
}

impl<B> Watched<B> {
    /// Notes in `uses` what `inner` does.
    pub fn new(inner: B, uses: Uses) -> Self {
        Self { inner, uses }
    }
}

impl<B> Deref for Watched<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.inner
    }
}

impl<B> DerefMut for Watched<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Watched<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addrs: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(connection, peer, addrs, role)
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
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.uses.used(&peer, Some(connection));
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let polled = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, .. }) = &polled {
            let connection = match handler {
                NotifyHandler::One(connection) => Some(*connection),
                NotifyHandler::Any => None,
            };
            self.uses.used(peer_id, connection);
        }
        // Of all that are watched, Kademlia alone dials by itself.
        if let Poll::Ready(ToSwarm::Dial { opts }) = &polled {
            self.uses.looked_up(opts.connection_id());
        }
        polled
    }
}
