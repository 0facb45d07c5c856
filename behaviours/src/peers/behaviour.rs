//! The peer policy on a swarm.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::Weak,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::Future;
use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use quelea_wire::time::unix_ms;

pub use self::spare::Hold;
use self::spare::relay_of;
use super::{
    book::{Book, Now, Source, Told},
    keep::{Handler, Keep},
    policy::{Dial, LOOK, Opened, Policy},
    uses::Uses,
};

/// Remembers peers, and keeps a few connections that no stranger can take: a [`Policy`] with a clock.
///
/// Everything about connections is noted at `ConnectionEstablished` and forgotten at `ConnectionClosed`.
///
/// | memory | bound |
/// |---|---|
/// | of the policy | see there |
/// | uses | the swarm's connection limits |
/// | holds | those who hold; forgotten with the last of a peer |
/// | relays that keep a place | our own listeners |
pub struct Behaviour {
    policy: Policy,
    started: Instant,
    /// How long few lines may be unused.
    idle: Duration,
    uses: Uses,
    holds: HashMap<PeerId, Weak<()>>,
    /// The relays behind listeners of ours.
    relays: HashMap<Multiaddr, PeerId>,
    /// Lines closed because nobody used them.
    trimmed: u64,
    /// Filled by one look or one event of the swarm, drained before the next look.
    ready: VecDeque<ToSwarm<Infallible, Keep>>,
    look: bool,
    timer: Delay,
}

impl Behaviour {
    /// Knows nobody yet; wants `target` outbound connections, and leaves few others unused for `idle`.
    #[must_use]
    pub fn new(local: PeerId, target: usize, idle: Duration, seed: u64) -> Self {
        Self {
            policy: Policy::new(local, target, seed),
            started: Instant::now(),
            idle,
            uses: Uses::default(),
            holds: HashMap::new(),
            relays: HashMap::new(),
            trimmed: 0,
            ready: VecDeque::new(),
            look: true,
            timer: Delay::new(LOOK),
        }
    }

    /// What time it is by the book's clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { at: self.started.elapsed(), unix_ms: unix_ms() }
    }

    /// The peers known.
    #[must_use]
    pub fn book(&self) -> &Book {
        self.policy.book()
    }

    /// Hears of a peer and of where it is. Returns whether it was unknown and is remembered now.
    pub fn learn(&mut self, peer: PeerId, addrs: &[Multiaddr], told: impl Into<Told>) -> bool {
        let now = self.now();
        let new = self.policy.learn(peer, addrs, told, now);
        self.look |= new;
        new
    }

    /// Takes in what was written down before the node stopped; see [`Book::restore`]. Anchors are tried first.
    pub fn restore(
        &mut self,
        peer: PeerId,
        addrs: &[Multiaddr],
        source: Source,
        seen: (u64, u64),
        conduct: u16,
        anchor: bool,
    ) {
        self.policy.book_mut().restore(peer, addrs, source, seen, conduct);
        if anchor {
            self.policy.book_mut().set_anchor(&peer);
        }
        self.look = true;
    }

    /// What a connected peer calls itself.
    pub fn named(&mut self, peer: &PeerId, agent: String) {
        self.policy.book_mut().named(peer, agent);
    }

    /// A peer's conduct is this now; see [`Book::set_conduct`].
    pub fn set_conduct(&mut self, peer: &PeerId, conduct: u16) {
        self.policy.book_mut().set_conduct(peer, conduct);
    }

    /// Forgets a peer: it is banned.
    pub fn forget(&mut self, peer: &PeerId) {
        self.policy.book_mut().forget(peer);
    }

    /// The operator ends the connection: for ten minutes we do not dial the peer by ourselves.
    pub fn hold_off(&mut self, peer: &PeerId) {
        let now = self.now();
        self.policy.hold_off(peer, now);
    }

    /// See [`Policy::chosen`].
    #[must_use]
    pub fn chosen(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        self.policy.chosen()
    }

    /// See [`Policy::is_outbound`].
    #[must_use]
    pub fn is_outbound(&self, peer: &PeerId) -> bool {
        self.policy.is_outbound(peer)
    }

    /// Entries in each of its maps besides the book's, for watching their bounds: peers connected, chosen, dialled, uses.
    #[must_use]
    pub fn sizes(&self) -> [usize; 4] {
        let [connected, chosen, dialled] = self.policy.sizes();
        [connected, chosen, dialled, self.uses.len()]
    }

    fn opened(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let via = match endpoint {
            ConnectedPoint::Dialer { address, .. } => relay_of(address),
            ConnectedPoint::Listener { local_addr, .. } => relay_of(local_addr),
        };
        self.uses.opened(peer, connection);
        let opened = Opened {
            peer,
            connection,
            addr: endpoint.get_remote_address(),
            outbound: endpoint.is_dialer(),
            relayed: endpoint.is_relayed(),
            via,
            source: if self.uses.was_looked_up(connection) { Source::Dht } else { Source::Other },
        };
        let now = self.now();
        if self.policy.opened(&opened, now) {
            self.keep(peer, connection);
        }
        self.look = true;
    }

    /// From now on the line is one of the few that are kept.
    fn keep(&mut self, peer: PeerId, connection: ConnectionId) {
        let handler = NotifyHandler::One(connection);
        self.ready.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: Keep(true) });
    }

    fn closed(&mut self, peer: PeerId, connection: ConnectionId) {
        self.uses.closed(&peer, connection);
        let now = self.now();
        self.policy.closed(peer, connection, now);
        self.look = true;
    }

    fn dial_failed(&mut self, peer: PeerId, connection: ConnectionId, error: &DialError) {
        let refused = matches!(error, DialError::DialPeerConditionFalse(_));
        let now = self.now();
        self.look |= self.policy.dial_failed(peer, connection, refused, now);
    }

    /// Dials whom the dialler names, unless a line to it stands already.
    fn dial(&mut self) {
        let now = self.now();
        let ready = &mut self.ready;
        let adopted = self.policy.dial(now, |Dial { peer, addrs }| {
            let opts =
                DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).addresses(addrs).build();
            let connection = opts.connection_id();
            ready.push_back(ToSwarm::Dial { opts });
            connection
        });
        for (peer, connection) in adopted {
            self.keep(peer, connection);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(true))
    }

    /// What is known of a peer helps every dial of it.
    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer.and_then(|peer| self.book().get(&peer)).map(|known| known.addrs.clone()).unwrap_or_default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(false))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(new) => {
                self.opened(new.peer_id, new.connection_id, new.endpoint);
            }
            FromSwarm::ConnectionClosed(gone) => self.closed(gone.peer_id, gone.connection_id),
            FromSwarm::DialFailure(failed) => {
                self.uses.was_looked_up(failed.connection_id);
                if let Some(peer) = failed.peer_id {
                    self.dial_failed(peer, failed.connection_id, failed.error);
                }
            }
            FromSwarm::NewListenAddr(new) => {
                if let Some(relay) = relay_of(new.addr) {
                    self.relays.insert(new.addr.clone(), relay);
                }
            }
            FromSwarm::ExpiredListenAddr(gone) => {
                self.relays.remove(gone.addr);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, never: THandlerOutEvent<Self>) {
        match never {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(event);
            }
            if Pin::new(&mut self.timer).poll(cx).is_pending() {
                if !self.look {
                    return Poll::Pending;
                }
            } else {
                self.timer.reset(LOOK);
            }
            self.look = false;
            self.dial();
        }
    }
}

mod spare;
#[cfg(test)]
mod tests;
