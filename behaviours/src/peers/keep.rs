//! Which connections are kept though nobody uses them.
//!
//! Whoever dialled decides when a connection ends: the one who was dialled keeps it until it has no place for it any more
//! (see [`inbound`](crate::inbound)). Of the connections that a node has dialled it keeps those it has chosen; the others, made
//! for a lookup or a session, end when they have been idle. libp2p's own timer ends few of them, as gossip's streams count as use:
//! [`lines`](super::lines) ends the rest.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    core::upgrade::DeniedUpgrade,
    swarm::{ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol, handler::ConnectionEvent},
};

/// From now on the connection is kept, or no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep(pub bool);

/// Says whether its connection is kept. Opens no streams.
#[derive(Debug)]
pub struct Handler {
    keep: bool,
}

impl Handler {
    pub(super) fn new(keep: bool) -> Self {
        Self { keep }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Keep;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn on_behaviour_event(&mut self, Keep(keep): Keep) {
        self.keep = keep;
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Infallible>> {
        Poll::Pending
    }

    fn on_connection_event(&mut self, _: ConnectionEvent<'_, DeniedUpgrade, DeniedUpgrade, (), ()>) {}
}
