//! libp2p's identify, read at a pace, with a bound on the external addresses that peers make us try.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identify,
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};

use super::MAX_ADDRESS_BYTES;
use crate::{
    nat::is_relayed,
    pace::{self, Pace, Rates},
};

/// Different addresses that peers may claim to see us at before any of them has to wait: a node has a few addresses per
/// transport, and a symmetric NAT shows another port to each peer.
const OBSERVED_BURST: u32 = 32;
/// One more may be claimed each time this passes.
const OBSERVED_PERIOD: Duration = Duration::from_secs(60);
/// Recently claimed addresses that may be claimed again freely.
const REMEMBERED: usize = 64;

/// One unit is one time that a peer says who it is and what it speaks: once with each connection, and when an address of its own
/// comes or goes, of which a machine has a dozen. Every protocol's handler hears of up to 4 KiB of names, some 50 µs: of all
/// connections together a two-hundredth of a core, besides the first words of each.
const RATES: Rates = Rates { rate: 4, burst: 16, total: 100, trickle: 2 };

type Inner = identify::Behaviour;

/// What identify's handler says. The type has no name of its own outside the crate.
type FromHandler = THandlerOutEvent<Inner>;

/// Identify.
///
/// A peer tells us at which address it sees us, and AutoNAT keeps a map of all addresses told, for good. Left alone, one peer
/// that tells a new one with every message fills that map, so here only some get through: 32 at once, then one a minute.
pub struct Behaviour {
    inner: Inner,
    pace: Pace,
    observed: Observed,
    /// Whether to say where others see us at all.
    listens: bool,
}

impl Behaviour {
    pub(super) fn new(config: identify::Config) -> Self {
        Self { inner: Inner::new(config), pace: Pace::new(RATES), observed: Observed::default(), listens: true }
    }

    /// Takes no notice of where others see us: who is masked is reached by the address that its operator gives, or not.
    pub(crate) fn ignore_observed(&mut self) {
        self.listens = false;
    }

    /// Tells these peers our addresses and protocols now.
    pub fn push(&mut self, peers: impl IntoIterator<Item = PeerId>) {
        self.inner.push(peers);
    }
}

/// Which claims get through.
#[derive(Debug, Default)]
struct Observed {
    recent: VecDeque<Multiaddr>,
    spent: u32,
    /// When the oldest spent claim is forgiven; set while any is spent.
    refill: Option<Instant>,
}

impl Observed {
    fn admit(&mut self, addr: &Multiaddr, now: Instant) -> bool {
        if addr.len() > MAX_ADDRESS_BYTES {
            return false;
        }
        if self.recent.contains(addr) {
            return true;
        }
        while let Some(refill) = self.refill.filter(|refill| *refill <= now) {
            self.spent = self.spent.saturating_sub(1);
            self.refill = if self.spent > 0 { refill.checked_add(OBSERVED_PERIOD) } else { None };
        }
        if self.spent >= OBSERVED_BURST {
            return false;
        }
        self.spent = self.spent.saturating_add(1);
        self.refill = self.refill.or_else(|| now.checked_add(OBSERVED_PERIOD));
        if self.recent.len() >= REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(addr.clone());
        true
    }
}

/// Whether this can be where we are: who sees us through a relay sees a peer id, or the relay.
fn is_of_ours(addr: &Multiaddr) -> bool {
    !is_relayed(addr) && !matches!(addr.iter().next(), None | Some(Protocol::P2p(_)))
}

/// Units that a handler's event has cost.
fn cost(event: &FromHandler) -> u32 {
    u32::from(matches!(event, FromHandler::Identified(_)))
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = pace::Handler<THandler<Inner>>;
    type ToSwarm = identify::Event;

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
        let inner = self.inner.handle_established_outbound_connection(connection, peer, addr, role, port)?;
        Ok(pace::Handler::new(inner, &self.pace, cost))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match self.inner.poll(cx) {
                Poll::Ready(ToSwarm::NewExternalAddrCandidate(addr))
                    if !self.listens || !is_of_ours(&addr) || !self.observed.admit(&addr, Instant::now()) => {}
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u32) -> Multiaddr {
        format!("/ip4/9.9.9.9/tcp/{}", n + 1).parse().unwrap()
    }

    #[test]
    fn a_flood_of_new_addresses_gets_through_at_a_trickle() {
        let (mut observed, start) = (Observed::default(), Instant::now());
        assert_eq!((0..10_000).filter(|n| observed.admit(&addr(*n), start)).count(), OBSERVED_BURST as usize);
        assert!(observed.admit(&addr(0), start), "what was claimed before may be claimed again");
        let hour = start + Duration::from_secs(3600);
        let (mut admitted, mut now, mut n) = (0, start, 20_000);
        while now < hour {
            now += Duration::from_secs(1);
            n += 1;
            admitted += u32::from(observed.admit(&addr(n), now));
        }
        assert_eq!(admitted, 60);
        assert!(observed.recent.len() <= REMEMBERED);
    }

    #[test]
    fn an_idle_hour_refills_no_more_than_the_burst() {
        let (mut observed, start) = (Observed::default(), Instant::now());
        assert!(observed.admit(&addr(0), start));
        let later = start + Duration::from_secs(360_000);
        assert_eq!((1..1000).filter(|n| observed.admit(&addr(*n), later)).count(), OBSERVED_BURST as usize);
    }

    #[test]
    fn what_is_seen_through_a_relay_is_no_address_of_ours() {
        let (peer, relay) = (PeerId::random(), PeerId::random());
        assert!(is_of_ours(&addr(1)));
        assert!(!is_of_ours(&format!("/p2p/{peer}").parse().unwrap()));
        assert!(!is_of_ours(&format!("/ip4/9.9.9.9/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap()));
    }

    #[test]
    fn an_overlong_address_is_never_tried() {
        let long = format!("/dns4/{}/tcp/1", "x".repeat(200)).parse().unwrap();
        assert!(!Observed::default().admit(&long, Instant::now()));
    }
}
