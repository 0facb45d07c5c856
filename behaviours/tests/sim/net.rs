//! The network between the nodes: who can reach whom, how long it takes, what is lost, and who comes and goes.
//!
//! A dial takes three trips (TCP, Noise, Yamux) and fails after [`DIAL_TIMEOUT`] where nobody answers; a message takes one. A
//! node that leaves says so; a crash, and a cut between two halves, is noticed by pings. Inbound connections past their
//! places give way by the node's own rule of eviction. Lookups use the table alone; their connections are not kept.

mod links;

use std::collections::BTreeMap;

use libp2p::{PeerId, kad::KBucketKey};
use quelea_behaviours::{
    config::{PING_INTERVAL, PING_TIMEOUT},
    gossip,
    peers::{Source, policy::LOOK},
};
use quelea_exchange::SignedRecord;

use crate::{
    engine::{Queue, Rng, Trace, World},
    exchange::Talk,
    mesh::{Line, Said},
    node::{Common, Kind, Link, Node, sign},
    routes::{Lookup, Step},
};

pub const SECOND: u64 = 1_000_000;
pub const MINUTE: u64 = 60 * SECOND;

/// Networks (IPv4 /24) of an attacker that has many names.
pub const ECLIPSING: usize = 5;

/// What a swarm is like.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Honest nodes. The first is the one that all others are told of.
    pub nodes: usize,
    pub silent: usize,
    pub inventors: usize,
    /// Liars like any node but for their answers, each with an address of its own.
    pub liars: usize,
    /// Liars besides that are nothing but names in [`ECLIPSING`] networks, and knock at every honest node.
    pub eclipsers: usize,
    /// Whether these two kinds of liars know of each other.
    pub collusion: bool,
    pub seed: u64,
    /// Time over which they come, in microseconds.
    pub joining: u64,
    /// Share of pushes, of exchanges' messages and of lookups' that are lost.
    pub loss: f64,
    /// How often an honest node goes in an hour, every other time without a word; it comes back after a minute or two.
    pub churn: f64,
    /// Whether nodes have routing tables and fill them.
    pub tables: bool,
    /// Disjoint paths of a lookup.
    pub paths: usize,
}

impl Setting {
    pub const fn calm(nodes: usize) -> Self {
        Self {
            nodes,
            silent: 0,
            inventors: 0,
            liars: 0,
            eclipsers: 0,
            collusion: false,
            seed: 1,
            joining: 20 * SECOND,
            loss: 0.0,
            churn: 0.0,
            tables: false,
            paths: 1,
        }
    }
}

pub enum Event {
    Start(usize),
    Go(usize),
    Look(usize, u32),
    Arrive { from: usize, to: usize, connection: usize, start: u32 },
    Fail { from: usize, peer: PeerId, connection: usize, start: u32 },
    Closed { at: usize, other: usize, connection: usize },
    Idle { at: usize, other: usize, connection: usize },
    Identify { to: usize, from: usize, connection: usize },
    Exchange(Talk),
    Gossip(Said),
    Lookup(Step),
}

impl Event {
    /// What is noted of it in the trace.
    fn mark(&self) -> [u64; 3] {
        let n = |n: &usize| *n as u64;
        match self {
            Self::Start(at) => [0, n(at), 0],
            Self::Go(at) => [1, n(at), 0],
            Self::Look(at, start) => [2, n(at), u64::from(*start)],
            Self::Arrive { from, to, .. } => [3, n(from), n(to)],
            Self::Fail { from, connection, .. } => [4, n(from), n(connection)],
            Self::Closed { at, other, .. } => [5, n(at), n(other)],
            Self::Idle { at, other, .. } => [6, n(at), n(other)],
            Self::Identify { to, from, .. } => [7, n(to), n(from)],
            Self::Exchange(talk) => talk.mark(),
            Self::Gossip(said) => said.mark(),
            Self::Lookup(step) => step.mark(),
        }
    }
}

pub struct Net {
    pub setting: Setting,
    pub common: Common,
    pub rng: Rng,
    world: World,
    pub queue: Queue<Event>,
    pub nodes: Vec<Node>,
    pub by_peer: BTreeMap<PeerId, usize>,
    pub lines: Vec<Line>,
    pub lookups: Vec<Lookup>,
    /// Peers that inventors have made up, with records that they signed for them.
    pub invented: Vec<SignedRecord>,
    /// Who answers lookups with each other, and where they are in Kademlia's space.
    pub liars: Vec<(usize, KBucketKey<PeerId>)>,
    /// gossipsub's settings, as the product has them.
    pub mesh: libp2p::gossipsub::Config,
    /// Whether even and odd nodes cannot reach each other.
    pub cut: bool,
    pub trace: Trace,
    connections: usize,
    /// Inbound connections that gave way.
    pub evicted: u64,
    pub dials: u64,
    pub questions: u64,
}

impl Net {
    pub fn new(setting: Setting) -> Self {
        let mut rng = Rng::new(setting.seed);
        let common = Common::new(setting.tables);
        let own = setting.nodes + setting.silent + setting.inventors + setting.liars;
        let count = own + setting.eclipsers;
        let kind = |n| match n {
            n if n < setting.nodes => Kind::Honest,
            n if n < setting.nodes + setting.silent => Kind::Silent,
            n if n < setting.nodes + setting.silent + setting.inventors => Kind::Inventor,
            _ => Kind::Liar,
        };
        let world = World::new(count, &mut rng);
        let mut nodes: Vec<Node> = (0..count).map(|n| common.node(kind(n), &mut rng)).collect();
        for (n, node) in nodes.iter_mut().skip(own).enumerate() {
            node.addr = format!("/ip4/95.9.{}.{}/tcp/8468", n % ECLIPSING, 1 + n / ECLIPSING % 254).parse().unwrap();
            // It answers whoever asks, and is no node otherwise.
            (node.up, node.table) = (true, None);
        }
        let liars = (own - setting.liars..count).map(|n| (n, KBucketKey::from(nodes[n].peer))).collect();
        let by_peer = nodes.iter().enumerate().map(|(n, node)| (node.peer, n)).collect();
        let inventions = if setting.inventors > 0 { 1000 } else { 0 };
        let invented =
            (0..inventions).map(|_| sign(&rng.key(), &common.network, &rng.addr(), common.now(0).unix_ms)).collect();
        let mesh = gossip::settings(&common.config).unwrap();
        let mut net = Self {
            setting,
            common,
            world,
            queue: Queue::new(),
            nodes,
            by_peer,
            lines: Vec::new(),
            lookups: Vec::new(),
            invented,
            liars,
            mesh,
            cut: false,
            trace: Trace(setting.seed),
            connections: 0,
            evicted: 0,
            dials: 0,
            questions: 0,
            rng,
        };
        for n in 0..own {
            let after = if n == 0 { 0 } else { net.rng.below(setting.joining as usize) as u64 };
            net.queue.plan(after, Event::Start(n));
        }
        net
    }

    /// Runs until so many microseconds since the start.
    pub fn run_until(&mut self, end: u64) {
        while let Some(event) = self.queue.next(end) {
            let [what, who, whom] = event.mark();
            self.trace.note([self.queue.now, what, who, whom]);
            self.on(event);
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Start(n) => self.start(n),
            Event::Go(n) => self.go(n),
            Event::Look(n, start) => {
                if self.is_current(n, start) {
                    self.queue.plan(LOOK.as_micros() as u64, Event::Look(n, start));
                    self.look(n);
                }
            }
            Event::Arrive { from, to, connection, start } => {
                if self.is_current(from, start) {
                    self.arrive(from, to, connection);
                }
            }
            Event::Fail { from, peer, connection, start } => {
                if self.is_current(from, start) {
                    self.dial_failed(from, peer, connection, false);
                }
            }
            Event::Closed { at, other, connection } => self.closed(at, other, connection),
            Event::Idle { at, other, connection } => {
                let stands = self.nodes[at].links.get(&other).is_some_and(|link| link.connection == connection);
                if stands && !self.nodes[at].chosen().contains(&self.nodes[other].peer) {
                    self.close(at, other);
                }
            }
            Event::Identify { to, from, connection } => {
                if self.nodes[to].links.get(&from).is_some_and(|link| link.connection == connection) {
                    self.identified(to, from);
                }
            }
            Event::Exchange(talk) => self.on_exchange(talk),
            Event::Gossip(said) => self.on_gossip(said),
            Event::Lookup(step) => self.on_lookup(step),
        }
    }

    pub fn is_current(&self, n: usize, start: u32) -> bool {
        self.nodes[n].up && self.nodes[n].start == start
    }

    pub fn can_reach(&self, from: usize, to: usize) -> bool {
        self.nodes[to].up && !self.is_cut(from, to)
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut && from % 2 != to % 2
    }

    pub fn latency(&mut self, from: usize, to: usize) -> u64 {
        self.world.latency(from, to, &mut self.rng)
    }

    /// Sends over the connection between two nodes, if it stands.
    pub fn send(&mut self, from: usize, to: usize, event: impl FnOnce() -> Event) {
        if self.nodes[from].links.contains_key(&to) && self.can_reach(from, to) {
            let latency = self.latency(from, to);
            self.queue.plan(latency, event());
        }
    }

    fn start(&mut self, n: usize) {
        let Some(first) = self.nodes.first().map(|node| (node.peer, node.addr.clone())) else { return };
        let now = self.common.now(self.queue.now);
        if self.nodes[n].start > 0 {
            self.common.restart(&mut self.nodes[n], &mut self.rng);
        } else {
            (self.nodes[n].up, self.nodes[n].start) = (true, 1);
        }
        if n > 0 {
            self.nodes[n].policy.learn(first.0, &[first.1], Source::Bootstrap, now);
        }
        let start = self.nodes[n].start;
        let phase = self.rng.below(LOOK.as_micros() as usize) as u64;
        self.queue.plan(phase, Event::Look(n, start));
        self.first_beat(n);
        self.eclipse(n);
        self.look(n);
        if self.setting.churn > 0.0 && n > 0 && self.nodes[n].kind == Kind::Honest {
            // Exponentially distributed.
            let hours = -(1.0 - self.rng.unit()).ln() / self.setting.churn;
            self.queue.plan((hours * 60.0 * MINUTE as f64) as u64, Event::Go(n));
        }
    }

    fn go(&mut self, n: usize) {
        if !self.nodes[n].up {
            return;
        }
        let crash = self.rng.chance(0.5);
        let links: Vec<(usize, Link)> = self.nodes[n].links.iter().map(|(m, link)| (*m, *link)).collect();
        for (m, link) in links {
            let after = if crash { self.unnoticed() } else { self.latency(n, m) };
            self.queue.plan(after, Event::Closed { at: m, other: n, connection: link.connection });
        }
        self.nodes[n].up = false;
        let back = MINUTE / 2 + self.rng.below(2 * MINUTE as usize) as u64;
        self.queue.plan(back, Event::Start(n));
    }

    /// Until pings show that the other end is gone.
    fn unnoticed(&mut self) -> u64 {
        let phase = self.rng.below(PING_INTERVAL.as_micros() as usize) as u64;
        phase + PING_TIMEOUT.as_micros() as u64
    }

    /// Cuts the even from the odd, or joins them again.
    pub fn set_cut(&mut self, cut: bool) {
        self.cut = cut;
        if !cut {
            return;
        }
        for n in 0..self.nodes.len() {
            let across: Vec<(usize, Link)> =
                self.nodes[n].links.iter().filter(|(m, _)| n % 2 != **m % 2).map(|(m, link)| (*m, *link)).collect();
            for (m, link) in across {
                let after = self.unnoticed();
                self.queue.plan(after, Event::Closed { at: n, other: m, connection: link.connection });
            }
        }
    }

    /// Heartbeats since a node started: seconds.
    pub fn beats(&self, n: usize) -> u64 {
        self.nodes[n].beats
    }

    /// Nodes of one kind that are up.
    pub fn up(&self, kind: Kind) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].up && self.nodes[*n].kind == kind).collect()
    }
}
