//! The book and the dialler on a swarm.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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
    dialler::{View, chance, plan},
    keep::{Handler, Keep},
    uses::Uses,
};

/// How often the dialler looks, besides when something happens.
const LOOK: Duration = Duration::from_secs(1);
/// How long a peer is not dialled after the operator has ended its connection.
const HOLD_OFF: Duration = Duration::from_secs(600);

/// A connection that stands.
#[derive(Debug, Clone, Copy)]
struct Line {
    outbound: bool,
    relayed: bool,
    /// The relay that it goes through.
    via: Option<PeerId>,
    /// It has been told to close.
    closing: bool,
}

/// Remembers peers, and keeps a few connections that no stranger can take.
///
/// Everything about connections is noted at `ConnectionEstablished` and forgotten at `ConnectionClosed`.
///
/// | memory | bound |
/// |---|---|
/// | peers known | [`MAX_PEERS`](super::book::MAX_PEERS) |
/// | connections, chosen peers, uses | the swarm's connection limits |
/// | holds | those who hold; forgotten with the last of a peer |
/// | relays that keep a place | our own listeners |
/// | dials under way | [`AT_ONCE`](super::dialler::AT_ONCE) |
pub struct Behaviour {
    book: Book,
    /// Outbound connections wanted.
    target: usize,
    seed: u64,
    started: Instant,
    /// How long few lines may be unused.
    idle: Duration,
    /// The connections of each peer.
    connections: HashMap<PeerId, HashMap<ConnectionId, Line>>,
    uses: Uses,
    holds: HashMap<PeerId, Weak<()>>,
    /// The relays behind listeners of ours.
    relays: HashMap<Multiaddr, PeerId>,
    /// Lines closed because nobody used them.
    trimmed: u64,
    /// The outbound connection that is kept to each chosen peer, and since when.
    chosen: BTreeMap<PeerId, (ConnectionId, Instant)>,
    dialling: HashMap<PeerId, ConnectionId>,
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
            book: Book::new(local),
            target,
            seed,
            started: Instant::now(),
            idle,
            connections: HashMap::new(),
            uses: Uses::default(),
            holds: HashMap::new(),
            relays: HashMap::new(),
            trimmed: 0,
            chosen: BTreeMap::new(),
            dialling: HashMap::new(),
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
        &self.book
    }

    /// Hears of a peer and of where it is. Returns whether it was unknown and is remembered now.
    pub fn learn(&mut self, peer: PeerId, addrs: &[Multiaddr], told: impl Into<Told>) -> bool {
        let now = self.now();
        let new = self.book.learn(peer, addrs, told, now);
        if self.connections.contains_key(&peer) {
            self.book.met(&peer, now);
        }
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
        self.book.restore(peer, addrs, source, seen, conduct);
        if anchor {
            self.book.set_anchor(&peer);
        }
        self.look = true;
    }

    /// What a connected peer calls itself.
    pub fn named(&mut self, peer: &PeerId, agent: String) {
        self.book.named(peer, agent);
    }

    /// Changes a peer's conduct by so many steps of a ten-thousandth, and returns what it is now.
    pub fn judge(&mut self, peer: &PeerId, change: i32) -> Option<u16> {
        self.book.judge(peer, change)
    }

    /// Forgets a peer: it is banned.
    pub fn forget(&mut self, peer: &PeerId) {
        self.book.forget(peer);
    }

    /// The operator ends the connection: for ten minutes we do not dial the peer by ourselves.
    pub fn hold_off(&mut self, peer: &PeerId) {
        let until = self.now().at.saturating_add(HOLD_OFF);
        self.book.hold_off(peer, until);
    }

    /// The peers we chose and are connected to, with their addresses: the best conduct and the longest connection first.
    #[must_use]
    pub fn chosen(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut chosen: Vec<_> = self.chosen.iter().filter_map(|(p, c)| Some((p, c.1, self.book.get(p)?))).collect();
        chosen.sort_by_key(|(_, since, known)| (std::cmp::Reverse(known.conduct / 1000), *since));
        chosen.into_iter().map(|(peer, _, known)| (*peer, known.addrs.clone())).collect()
    }

    /// Whether we dialled the peer's connection.
    #[must_use]
    pub fn is_outbound(&self, peer: &PeerId) -> bool {
        self.connections.get(peer).is_some_and(|all| all.values().any(|line| line.outbound))
    }

    /// Entries in each of its maps besides the book's, for watching their bounds: peers connected, chosen, dialled, uses.
    #[must_use]
    pub fn sizes(&self) -> [usize; 4] {
        [self.connections.len(), self.chosen.len(), self.dialling.len(), self.uses.len()]
    }

    fn is_named(&self, peer: &PeerId) -> bool {
        self.book.get(peer).is_some_and(|known| known.anchor || known.source == Source::Bootstrap)
    }

    fn opened(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let (addr, outbound, relayed) = (endpoint.get_remote_address(), endpoint.is_dialer(), endpoint.is_relayed());
        let via = match endpoint {
            ConnectedPoint::Dialer { address, .. } => relay_of(address),
            ConnectedPoint::Listener { local_addr, .. } => relay_of(local_addr),
        };
        self.uses.opened(peer, connection);
        let wanted = self.dialling.remove(&peer).is_some();
        let now = self.now();
        if outbound && !relayed {
            self.book.learn(peer, std::slice::from_ref(addr), Source::Other, now);
        } else {
            // Where it listens it says later.
            self.book.learn(peer, &[], Source::Inbound, now);
        }
        self.book.met(&peer, now);
        let line = Line { outbound, relayed, via, closing: false };
        self.connections.entry(peer).or_default().insert(connection, line);
        let place = self.chosen.len() < self.target && !self.chosen.contains_key(&peer);
        if outbound && !relayed && place && (wanted || self.is_named(&peer)) {
            self.choose(peer, connection);
        }
        self.look = true;
    }

    /// From now on the line is one of the few that are kept.
    fn choose(&mut self, peer: PeerId, connection: ConnectionId) {
        self.chosen.insert(peer, (connection, Instant::now()));
        let handler = NotifyHandler::One(connection);
        self.ready.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: Keep(true) });
    }

    fn closed(&mut self, peer: PeerId, connection: ConnectionId) {
        self.uses.closed(&peer, connection);
        if let Some(all) = self.connections.get_mut(&peer) {
            all.remove(&connection);
            if all.is_empty() {
                self.connections.remove(&peer);
            }
        }
        if self.chosen.get(&peer).is_some_and(|(kept, _)| *kept == connection) {
            self.chosen.remove(&peer);
        }
        self.look = true;
    }

    fn dial_failed(&mut self, peer: PeerId, connection: ConnectionId, error: &DialError) {
        if self.dialling.get(&peer) != Some(&connection) {
            return;
        }
        self.dialling.remove(&peer);
        if self.connections.contains_key(&peer) {
            return;
        }
        let now = self.now();
        if matches!(error, DialError::DialPeerConditionFalse(_)) {
            // Somebody else of us dials it already. Trying again at once would be refused at once, for ever.
            self.book.hold_off(&peer, now.at.saturating_add(LOOK));
        } else {
            self.book.failed(&peer, chance(self.seed, &peer), now);
            self.look = true;
        }
    }

    /// Dials whom the dialler names, unless a line to it stands already.
    fn dial(&mut self) {
        let connected = || self.connections.keys().copied();
        let view = View {
            connected: connected().collect(),
            spare: connected().filter(|peer| self.adoptable(peer).is_some()).collect(),
            chosen: self.chosen.keys().copied().collect(),
            dialling: self.dialling.keys().copied().collect(),
        };
        for peer in plan(&self.book, &view, self.target, self.now().at, self.seed) {
            if let Some(line) = self.adoptable(&peer) {
                self.choose(peer, line);
                continue;
            }
            let addrs = self.book.get(&peer).map(|known| known.addrs.clone()).unwrap_or_default();
            let opts =
                DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).addresses(addrs).build();
            self.dialling.insert(peer, opts.connection_id());
            self.ready.push_back(ToSwarm::Dial { opts });
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
        Ok(peer.and_then(|peer| self.book.get(&peer)).map(|known| known.addrs.clone()).unwrap_or_default())
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
