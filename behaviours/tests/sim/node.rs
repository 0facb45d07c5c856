//! One node: the cores of the product, and what a swarm would keep around them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use quelea_behaviours::{
    Config, KadMode,
    conduct::Conduct,
    gossip::{Gate, dedup::Dedup},
    kad,
    peers::{Policy, book::Now},
};
use quelea_exchange::{Exchanger, MAX_AGE_MS, PeerRecord, SignedRecord};
use quelea_wire::NetworkId;

use crate::engine::Rng;

/// The Unix time of the start.
pub const NOW_MS: u64 = 1_800_000_000_000;
/// A record of one's own is signed anew six times within the age at which it is dropped, as the product does.
const RENEW_MS: u64 = MAX_AGE_MS / 6;

/// What a node does to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What it should.
    Honest,
    /// Connects, takes everything, and says nothing: no lines, no advertisements, no answers.
    Silent,
    /// Answers every lookup with the nearest of its like, and nothing else.
    Liar,
    /// Tells of peers that do not exist, with their signatures, as often as it is asked; its own filters claim to know all.
    Inventor,
}

/// A connection as one of its ends sees it.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub connection: usize,
    /// Whether we dialled.
    pub outbound: bool,
    /// Microseconds since the start.
    pub since: u64,
}

/// What a node has sent over the exchange.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    pub messages: u64,
    pub bytes: u64,
}

pub struct Node {
    pub peer: PeerId,
    pub key: Keypair,
    pub addr: Multiaddr,
    pub kind: Kind,
    pub up: bool,
    /// Starts so far: what was planned for an earlier one is void.
    pub start: u32,
    pub policy: Policy,
    pub conduct: Conduct,
    /// Whom it would have banned, and how often.
    pub banned: BTreeMap<usize, u32>,
    pub exchanger: Exchanger,
    /// For when the exchanger is woken next.
    pub wake: u64,
    /// The peers asked, and the number of the question.
    pub asked: BTreeMap<usize, u64>,
    pub own: Option<SignedRecord>,
    pub sent: Sent,
    pub links: BTreeMap<usize, Link>,
    pub gate: Gate,
    pub mesh: BTreeSet<usize>,
    /// Who pruned us, or whom we pruned, is not grafted before.
    pub backoff: BTreeMap<usize, u64>,
    /// gossipsub's own memory.
    pub seen: HashSet<usize>,
    /// Lines to advertise, with the heartbeat in which they came.
    pub recent: Vec<(usize, u64)>,
    pub beats: u64,
    /// Kademlia's routing table, where lookups are asked for.
    pub table: Option<Box<kad::Behaviour>>,
    /// Whether it has looked for itself since it started.
    pub routed: bool,
}

/// What every node is made with.
pub struct Common {
    pub network: NetworkId,
    pub config: Arc<Config>,
    pub began: Instant,
    pub tables: bool,
}

impl Common {
    pub fn new(tables: bool) -> Self {
        let network = NetworkId::from_name("sim");
        let config = Arc::new(Config { kad_mode: KadMode::Server, ..Config::new(network) });
        Self { network, config, began: Instant::now(), tables }
    }

    pub fn now(&self, micros: u64) -> Now {
        Now { at: Duration::from_micros(micros), unix_ms: NOW_MS + micros / 1000 }
    }

    pub fn instant(&self, micros: u64) -> Instant {
        self.began + Duration::from_micros(micros)
    }

    /// A node at a place of the public Internet, in a group of its own as good as always.
    pub fn node(&self, kind: Kind, rng: &mut Rng) -> Node {
        let key = rng.key();
        let peer = key.public().to_peer_id();
        Node {
            peer,
            key,
            addr: rng.addr(),
            kind,
            up: false,
            start: 0,
            policy: Policy::new(peer, self.config.outbound, rng.next()),
            conduct: Conduct::default(),
            banned: BTreeMap::new(),
            exchanger: Exchanger::new(peer, rng.next()),
            wake: u64::MAX,
            asked: BTreeMap::new(),
            own: None,
            sent: Sent::default(),
            links: BTreeMap::new(),
            gate: self.gate(rng),
            mesh: BTreeSet::new(),
            backoff: BTreeMap::new(),
            seen: HashSet::new(),
            recent: Vec::new(),
            beats: 0,
            table: self.tables.then(|| Box::new(kad::new(peer, &self.config))),
            routed: false,
        }
    }

    fn gate(&self, rng: &mut Rng) -> Gate {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&rng.next().to_le_bytes());
        Gate::with_dedup(self.network, Dedup::new(key), self.began)
    }

    /// The node after a restart: it knows what it has written down, and nothing else.
    pub fn restart(&self, node: &mut Node, rng: &mut Rng) {
        let mut policy = Policy::new(node.peer, self.config.outbound, rng.next());
        for (peer, addrs) in node.policy.chosen() {
            let known = node.policy.book().get(&peer);
            let (source, conduct) =
                known.map_or((quelea_behaviours::peers::Source::Other, 0), |k| (k.source, k.conduct));
            policy.book_mut().restore(peer, &addrs, source, (0, 0), conduct);
            policy.book_mut().set_anchor(&peer);
        }
        for (peer, known) in node.policy.book().iter() {
            if let Some(seen) = known.last_seen_ms {
                let seen = (known.first_seen_ms, seen);
                policy.book_mut().restore(*peer, &known.addrs, known.source, seen, known.conduct);
            }
        }
        let fresh = Node { policy, up: true, start: node.start + 1, ..self.node(node.kind, rng) };
        let (key, addr) = (node.key.clone(), node.addr.clone());
        let (exchanger, sent) = (Exchanger::new(node.peer, rng.next()), node.sent);
        let table = self.tables.then(|| Box::new(kad::new(node.peer, &self.config)));
        *node = Node { peer: node.peer, key, addr, exchanger, sent, table, ..fresh };
    }
}

impl Node {
    /// What the node says of itself.
    pub fn record(&mut self, network: &NetworkId, now_ms: u64) -> SignedRecord {
        match &self.own {
            Some(own) if own.age_ms(now_ms) < RENEW_MS => own.clone(),
            _ => {
                let own = sign(&self.key, network, &self.addr, now_ms);
                self.own = Some(own.clone());
                own
            }
        }
    }

    /// Connections that the dialler chose and that stand.
    pub fn chosen(&self) -> Vec<PeerId> {
        self.policy.chosen().into_iter().map(|(peer, _)| peer).collect()
    }
}

pub fn sign(key: &Keypair, network: &NetworkId, addr: &Multiaddr, now_ms: u64) -> SignedRecord {
    let peer = key.public().to_peer_id();
    let (addrs, agent) = (vec![addr.clone()], "quelea/0.1.0".to_owned());
    SignedRecord::sign(key, network, PeerRecord { peer, seq: now_ms, signed_ms: now_ms, addrs, agent }).unwrap()
}

impl Rng {
    pub fn key(&mut self) -> Keypair {
        let mut secret = [0; 32];
        secret.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_le_bytes()));
        Keypair::ed25519_from_bytes(secret).unwrap()
    }

    /// Somewhere on the public Internet.
    pub fn addr(&mut self) -> Multiaddr {
        let [a, b, c, d] = [60 + self.below(30), self.below(256), self.below(256), 1 + self.below(254)];
        format!("/ip4/{a}.{b}.{c}.{d}/tcp/8468").parse().unwrap()
    }

    /// A peer id that nobody has.
    pub fn nobody(&mut self) -> PeerId {
        let mut bytes = vec![0, 32];
        (0..4).for_each(|_| bytes.extend_from_slice(&self.next().to_le_bytes()));
        PeerId::from_bytes(&bytes).unwrap()
    }
}
