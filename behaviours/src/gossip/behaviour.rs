//! gossipsub, with what its peers send metered.

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    task::{Context, Poll},
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    gossipsub,
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

use super::{conduct::Conduct, score::standing, topic::Filter};
use crate::pace::{self, Pace, Rates};

pub(super) type Inner = gossipsub::Behaviour<gossipsub::IdentityTransform, Filter>;

/// What gossipsub's handler says. The type has no name of its own outside the crate.
pub(super) type FromHandler = THandlerOutEvent<Inner>;

/// gossipsub checks the signatures of an RPC where it reads it. One unit is one message: as many a second of one connection as
/// [`guard`](crate::guard) checks within them, at once as many as a neighbour's whole memory has when it is asked for it; of all
/// connections, at 40 µs each, a sixth of a core.
const RATES: Rates = Rates { rate: 200, burst: 400, total: 4_000, trickle: 50 };
/// Units of a message that is wrong: a signature of 40 µs, its place in the scores, and no use.
const INVALID: u32 = 10;

/// Peers whose conduct elsewhere is known: more than there are connections.
const MAX_STANDINGS: usize = 1024;

/// Peers whose invalid messages are counted between two looks: more than there are connections.
const MAX_WRONG: usize = 1024;

/// gossipsub that knows our topics only, with [`Conduct`] as its application score. Everything else is gossipsub's, which it
/// dereferences to.
///
/// In a composite it must stand after every behaviour that can deny a connection: gossipsub notes a connection when it is
/// asked for a handler.
pub struct Behaviour {
    inner: Inner,
    conduct: Conduct,
    pace: Pace,
    /// Messages that failed gossipsub's own checks since the last look.
    wrong: HashMap<PeerId, u32>,
    /// Points for conduct elsewhere; those with none are left out.
    standings: HashMap<PeerId, f64>,
}

impl Behaviour {
    pub(super) fn new(inner: Inner) -> Self {
        Self {
            inner,
            conduct: Conduct::default(),
            pace: Pace::new(RATES),
            wrong: HashMap::new(),
            standings: HashMap::new(),
        }
    }

    /// Forgives what time forgives. Call it now and then.
    pub fn tick(&mut self, now: Instant) {
        for (peer, _) in self.conduct.passed(now) {
            self.score(&peer);
        }
    }

    /// How a connected peer behaves by all that is known of it: its score in [`conduct`](crate::conduct). To be told when it
    /// connects, and when it changes.
    pub fn stands(&mut self, peer: &PeerId, conduct: i32) {
        let points = standing(conduct);
        if points == 0.0 {
            self.standings.remove(peer);
        } else if self.standings.len() < MAX_STANDINGS || self.standings.contains_key(peer) {
            self.standings.insert(*peer, points);
        }
        self.score(peer);
    }

    /// Tells gossipsub the application score: control traffic, and conduct elsewhere.
    fn score(&mut self, peer: &PeerId) {
        let standing = self.standings.get(peer).copied().unwrap_or_default();
        self.inner.set_application_score(peer, self.conduct.score(peer) + standing);
    }

    /// Who sent messages that failed gossipsub's own checks (no author, a bad signature), and how many, since this was asked
    /// last.
    pub fn take_wrong(&mut self) -> impl Iterator<Item = (PeerId, u32)> + use<> {
        std::mem::take(&mut self.wrong).into_iter()
    }

    /// What peers' control traffic has cost them.
    #[must_use]
    pub fn conduct(&self) -> &Conduct {
        &self.conduct
    }
}

/// Units that an RPC has cost.
fn cost(event: &FromHandler) -> u32 {
    let FromHandler::Message { rpc, invalid_messages } = event else { return 0 };
    let [messages, invalid] =
        [rpc.messages.len(), invalid_messages.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    messages.saturating_add(invalid.saturating_mul(INVALID)).max(1)
}

impl Deref for Behaviour {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Behaviour {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = pace::Handler<THandler<Inner>>;
    type ToSwarm = gossipsub::Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let inner = self.inner.handle_established_inbound_connection(connection, peer, local, remote)?;
        Ok(pace::Handler::new(inner, &self.pace, cost))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let inner = self.inner.handle_established_outbound_connection(connection, peer, addr, role, port)?;
        Ok(pace::Handler::new(inner, &self.pace, cost))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, remaining_established: 0, .. }) = &event {
            self.standings.remove(peer_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: FromHandler) {
        if let FromHandler::Message { rpc, invalid_messages } = &event {
            let wrong = u32::try_from(invalid_messages.len()).unwrap_or(u32::MAX);
            if wrong > 0 && (self.wrong.len() < MAX_WRONG || self.wrong.contains_key(&peer)) {
                let count = self.wrong.entry(peer).or_default();
                *count = count.saturating_add(wrong);
            }
            // An RPC that brings messages pays with them: they are judged one by one.
            let control = rpc.control_msgs.len().saturating_add(rpc.subscriptions.len());
            let scored = control > 0 || rpc.messages.is_empty();
            if scored && self.conduct.sent(peer, control, Instant::now()).is_some() {
                self.score(&peer);
            }
        }
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}
