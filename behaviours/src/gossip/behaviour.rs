//! gossipsub, with what its peers send metered.

use std::{
    ops::{Deref, DerefMut},
    task::{Context, Poll},
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    gossipsub,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};

use super::{conduct::Conduct, topic::Filter};

pub(super) type Inner = gossipsub::Behaviour<gossipsub::IdentityTransform, Filter>;

/// What gossipsub's handler says. The type has no name of its own outside the crate.
type FromHandler = THandlerOutEvent<Inner>;

/// gossipsub that knows our topics only, with [`Conduct`] as its application score. Everything else is gossipsub's, which it
/// dereferences to.
///
/// In a composite it must stand after every behaviour that can deny a connection: gossipsub notes a connection when it is
/// asked for a handler.
pub struct Behaviour {
    inner: Inner,
    conduct: Conduct,
}

impl Behaviour {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner, conduct: Conduct::default() }
    }

    /// Forgives what time forgives. Call it now and then.
    pub fn tick(&mut self, now: Instant) {
        for (peer, score) in self.conduct.passed(now) {
            self.inner.set_application_score(&peer, score);
        }
    }

    /// What peers' control traffic has cost them.
    #[must_use]
    pub fn conduct(&self) -> &Conduct {
        &self.conduct
    }
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
    type ConnectionHandler = <Inner as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = gossipsub::Event;

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
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: FromHandler) {
        if let FromHandler::Message { rpc, .. } = &event {
            // An RPC that brings messages pays with them: they are judged one by one.
            let control = rpc.control_msgs.len().saturating_add(rpc.subscriptions.len());
            let scored = control > 0 || rpc.messages.is_empty();
            if let Some(score) = scored.then(|| self.conduct.sent(peer, control, Instant::now())).flatten() {
                self.inner.set_application_score(&peer, score);
            }
        }
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}
