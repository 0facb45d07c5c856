//! The book and the dialler as one machine: what it is told of connections and dials, and when, decides what it asks for.
//! It has no clock, no socket and no chance of its own; [`Behaviour`](super::Behaviour) drives it on a swarm, a simulator by the
//! thousand.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};

use super::{
    book::{Book, Now, Source, Told},
    dialler::{View, chance, plan},
};

/// How often the dialler looks, besides when something happens.
pub const LOOK: Duration = Duration::from_secs(1);
/// How long a peer is not dialled after the operator has ended its connection.
const HOLD_OFF: Duration = Duration::from_secs(600);

/// A connection of ours that ends before is as good as none: whoever is full lets us in and then somebody give way. Without
/// a pause of their own, those that found no place among the two hundred of a bootstrap node would knock for ever.
pub const LASTING: Duration = Duration::from_secs(60);

/// Somebody to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// Whom.
    pub peer: PeerId,
    /// Where it may be, what it claims now first.
    pub addrs: Vec<Multiaddr>,
}

/// A connection that stands.
#[derive(Debug, Clone)]
pub struct Opened<'a> {
    /// With whom.
    pub peer: PeerId,
    /// Which.
    pub connection: ConnectionId,
    /// Where the peer is, as far as the connection shows.
    pub addr: &'a Multiaddr,
    /// Whether we dialled.
    pub outbound: bool,
    /// Whether it goes through a relay.
    pub relayed: bool,
    /// Through which.
    pub via: Option<PeerId>,
    /// What led to it, when we dialled a peer that is not known.
    pub source: Source,
}

/// What is kept of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) outbound: bool,
    pub(super) relayed: bool,
    /// The relay that it goes through.
    pub(super) via: Option<PeerId>,
    /// It has been told to close.
    pub(super) closing: bool,
}

/// The machine. After whatever it is told, and each [`LOOK`], it is asked whom to [`dial`](Policy::dial).
///
/// | memory | bound |
/// |---|---|
/// | peers known | [`MAX_PEERS`](super::book::MAX_PEERS) |
/// | connections, chosen peers | the swarm's connection limits |
/// | dials under way | [`AT_ONCE`](super::dialler::AT_ONCE) |
#[derive(Debug)]
pub struct Policy {
    book: Book,
    /// Outbound connections wanted.
    target: usize,
    seed: u64,
    /// The connections of each peer.
    pub(super) connections: HashMap<PeerId, HashMap<ConnectionId, Line>>,
    /// The outbound connection that is kept to each chosen peer, and since when.
    pub(super) chosen: BTreeMap<PeerId, (ConnectionId, Duration)>,
    dialling: HashMap<PeerId, ConnectionId>,
}

impl Policy {
    /// Knows nobody yet; wants `target` outbound connections. Everything left to chance follows from `seed`.
    #[must_use]
    pub fn new(local: PeerId, target: usize, seed: u64) -> Self {
        let (connections, chosen, dialling) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        Self { book: Book::new(local), target, seed, connections, chosen, dialling }
    }

    /// The peers known.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// The same, to be changed.
    pub fn book_mut(&mut self) -> &mut Book {
        &mut self.book
    }

    /// Hears of a peer and of where it is. Returns whether it was unknown and is remembered now.
    pub fn learn(&mut self, peer: PeerId, addrs: &[Multiaddr], told: impl Into<Told>, now: Now) -> bool {
        let new = self.book.learn(peer, addrs, told, now);
        if self.connections.contains_key(&peer) {
            self.book.met(&peer, now);
        }
        new
    }

    /// The operator ends the connection: for ten minutes we do not dial the peer by ourselves.
    pub fn hold_off(&mut self, peer: &PeerId, now: Now) {
        self.book.hold_off(peer, now.at.saturating_add(HOLD_OFF));
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

    /// Entries in each of its maps besides the book's, for watching their bounds: peers connected, chosen, dialled.
    #[must_use]
    pub fn sizes(&self) -> [usize; 3] {
        [self.connections.len(), self.chosen.len(), self.dialling.len()]
    }

    /// A connection stands. Returns whether it is one that we chose, and keep though nobody uses it.
    pub fn opened(&mut self, opened: &Opened<'_>, now: Now) -> bool {
        let &Opened { peer, connection, addr, outbound, relayed, via, source } = opened;
        let wanted = self.dialling.remove(&peer).is_some();
        if outbound && !relayed {
            self.book.learn(peer, std::slice::from_ref(addr), source, now);
        } else {
            // Where it listens it says later.
            self.book.learn(peer, &[], Source::Inbound, now);
        }
        self.book.met(&peer, now);
        self.connections.entry(peer).or_default().insert(connection, Line { outbound, relayed, via, closing: false });
        let place = self.chosen.len() < self.target && !self.chosen.contains_key(&peer);
        let keep = outbound && !relayed && place && (wanted || self.is_named(&peer));
        if keep {
            self.chosen.insert(peer, (connection, now.at));
        }
        keep
    }

    /// The operator named the peer, or it is an anchor.
    pub(super) fn is_named(&self, peer: &PeerId) -> bool {
        self.book.get(peer).is_some_and(|known| known.anchor || known.source == Source::Bootstrap)
    }

    /// A direct line that could be chosen, to a peer that holds none to us.
    fn adoptable(&self, peer: &PeerId) -> Option<ConnectionId> {
        let lines = self.connections.get(peer)?;
        let adoptable = lines.values().all(|line| line.outbound && !line.closing) && !self.chosen.contains_key(peer);
        let direct = lines.iter().filter(|(_, line)| !line.relayed).map(|(id, _)| *id);
        direct.min().filter(|_| adoptable)
    }

    /// A connection has ended. One that we chose we do not end by ourselves: the peer did, or it is gone.
    pub fn closed(&mut self, peer: PeerId, connection: ConnectionId, now: Now) {
        if let Some(all) = self.connections.get_mut(&peer) {
            all.remove(&connection);
            if all.is_empty() {
                self.connections.remove(&peer);
            }
        }
        let Some((_, since)) = self.chosen.get(&peer).copied().filter(|(kept, _)| *kept == connection) else { return };
        self.chosen.remove(&peer);
        if now.at.saturating_sub(since) >= LASTING {
            self.book.lasted(&peer);
        } else {
            self.book.failed(&peer, chance(self.seed, &peer), now);
        }
    }

    /// A dial of ours failed; `refused` when it never began because somebody else of us dials or has the peer already.
    /// Returns whether it is worth looking at once for another.
    pub fn dial_failed(&mut self, peer: PeerId, connection: ConnectionId, refused: bool, now: Now) -> bool {
        if self.dialling.get(&peer) != Some(&connection) {
            return false;
        }
        self.dialling.remove(&peer);
        if self.connections.contains_key(&peer) {
            return false;
        }
        if refused {
            // Trying again at once would be refused at once, for ever.
            self.book.hold_off(&peer, now.at.saturating_add(LOOK));
        } else {
            self.book.failed(&peer, chance(self.seed, &peer), now);
        }
        !refused
    }

    /// Whom to dial now. `begin` begins each dial and says which connection it will be. Returns the lines that were taken over
    /// instead of dialling their peers: they are chosen now, and kept.
    pub fn dial(&mut self, now: Now, mut begin: impl FnMut(Dial) -> ConnectionId) -> Vec<(PeerId, ConnectionId)> {
        let mut adopted = Vec::new();
        if self.chosen.len().saturating_add(self.dialling.len()) >= self.target {
            return adopted;
        }
        let connected = || self.connections.keys().copied();
        let view = View {
            connected: connected().collect(),
            spare: connected().filter(|peer| self.adoptable(peer).is_some()).collect(),
            chosen: self.chosen.keys().copied().collect(),
            dialling: self.dialling.keys().copied().collect(),
        };
        for peer in plan(&self.book, &view, self.target, now.at, self.seed) {
            if let Some(line) = self.adoptable(&peer) {
                self.chosen.insert(peer, (line, now.at));
                adopted.push((peer, line));
                continue;
            }
            let addrs = self.book.get(&peer).map(|known| known.addrs.clone()).unwrap_or_default();
            self.dialling.insert(peer, begin(Dial { peer, addrs }));
        }
        adopted
    }
}
