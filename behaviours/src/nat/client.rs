//! libp2p's AutoNAT client, which tests an address by one server only, made to ask others where that one fails.
//!
//! The client draws a server for each address that peers claim to see us at, and when that server's dial-back does not
//! arrive (it is busy, sits behind a NAT of its own, or lies), the address has failed for the life of the process. It knows
//! addresses by their spelling alone, so here one that failed is given to it again as `…/p2p/SELF`, and then as
//! `…/p2p/SELF/p2p/SELF`. A server dials all of them alike: libp2p puts the peer's id behind an address to dial anyway when
//! it is not there yet, and TCP and QUIC pass over it. A server asks for 30 to 100 kB first, as for each address other than
//! the one that it sees. Nobody outside hears of these spellings; and those in which peers claim an address are none.
//!
//! What is tried again when is up to `Tries`.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::FutureExt;
use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId, autonat,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};

use super::tries::Tries;

type Inner = autonat::v2::client::Behaviour;

/// Learns which of our addresses lead here, by asking others to dial them.
pub struct Behaviour {
    inner: Inner,
    local: PeerId,
    tries: Tries,
    timer: Delay,
    /// When `timer` goes off, while it is set.
    armed: Option<Instant>,
}

impl Behaviour {
    /// `local` is this node; an address that a first server did not reach is tested again after `pause`.
    pub(super) fn new(inner: Inner, local: PeerId, pause: Duration) -> Self {
        Self { inner, local, tries: Tries::new(pause), timer: Delay::new(Duration::ZERO), armed: None }
    }

    /// Notes what an event of the client's means, and takes our spelling out of it.
    fn noted(&mut self, event: ToSwarm<autonat::v2::client::Event, THandlerInEvent<Self>>) -> Passed {
        match event {
            ToSwarm::NotifyHandler { .. } => {
                self.tries.probed(Instant::now());
                event
            }
            ToSwarm::GenerateEvent(mut event) => {
                let (addr, nth) = plain(&event.tested_addr, self.local);
                if event.result.is_err() {
                    self.tries.failed(&addr, nth, Instant::now());
                }
                event.tested_addr = addr;
                ToSwarm::GenerateEvent(event)
            }
            ToSwarm::ExternalAddrConfirmed(addr) => ToSwarm::ExternalAddrConfirmed(plain(&addr, self.local).0),
            other => other,
        }
    }

    /// Makes candidates again of what is due.
    fn retry(&mut self, now: Instant) {
        while let Some((addr, nth)) = self.tries.next(now) {
            tracing::debug!(%addr, nth, "asking another server to dial back");
            let addr = spelled(addr, self.local, nth);
            self.inner.on_swarm_event(candidate(&addr));
        }
    }
}

/// What the behaviour tells the swarm.
type Passed = ToSwarm<autonat::v2::client::Event, THandlerInEvent<Behaviour>>;

fn candidate(addr: &Multiaddr) -> FromSwarm<'_> {
    FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr })
}

/// `addr` as it is given to the client for the `nth` time (from 1).
fn spelled(addr: Multiaddr, local: PeerId, nth: u8) -> Multiaddr {
    (1..nth).fold(addr, |addr, _| addr.with(Protocol::P2p(local)))
}

/// An address as everybody else spells it, and for the how manieth time the client was given it when it spells it so.
fn plain(addr: &Multiaddr, local: PeerId) -> (Multiaddr, u8) {
    let (mut addr, mut nth) = (addr.clone(), 1_u8);
    while addr.iter().last() == Some(Protocol::P2p(local)) {
        addr.pop();
        nth = nth.saturating_add(1);
    }
    (addr, nth)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <Inner as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = autonat::v2::client::Event;

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
        match event {
            FromSwarm::NewExternalAddrCandidate(new) => {
                let (addr, _) = plain(new.addr, self.local);
                self.tries.claimed(&addr);
                self.inner.on_swarm_event(candidate(&addr));
            }
            FromSwarm::ExternalAddrConfirmed(new) => {
                self.tries.confirmed(new.addr);
                self.inner.on_swarm_event(event);
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Poll::Ready(event) = self.inner.poll(cx) {
                return Poll::Ready(self.noted(event));
            }
            let now = Instant::now();
            self.retry(now);
            let Some(at) = self.tries.wake_at() else { return Poll::Pending };
            if self.armed != Some(at) {
                self.armed = Some(at);
                self.timer.reset(at.saturating_duration_since(now));
            }
            if self.timer.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_try_has_a_spelling_that_is_taken_off_again() {
        let (local, other) = (PeerId::random(), PeerId::random());
        for text in ["/ip4/9.9.9.9/tcp/1".to_owned(), format!("/ip6/2001:db8::1/udp/1/quic-v1/p2p/{other}")] {
            let addr: Multiaddr = text.parse().unwrap();
            assert_eq!(spelled(addr.clone(), local, 1), addr);
            for nth in 1..=super::super::tries::TRIES {
                assert_eq!(plain(&spelled(addr.clone(), local, nth), local), (addr.clone(), nth));
            }
        }
    }
}
