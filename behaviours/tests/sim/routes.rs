//! Lookups over Kademlia's own tables, filled through the node's insertion filter.
//!
//! Each node has a real routing table (libp2p's, with [`kad::insert`] before it). It comes in by a lookup of itself and of
//! two random keys, and notes whom it is connected to, asks, or is asked by. Lookups are Kademlia's: of the k closest heard
//! of, alpha are asked at a time; who is down, or beyond a cut, does not answer. They run over as many disjoint paths as the
//! setting says, by libp2p's rule: all begin with the same peers, and what a peer answers is heard by the path that asked it
//! first. (The product has alpha of them; that costs questions and is for liars, of whom most of these swarms have none.)

use std::collections::{BTreeMap, HashMap, HashSet};

use libp2p::{
    PeerId,
    kad::{KBucketDistance, KBucketKey},
};
use quelea_behaviours::{
    config::DIAL_TIMEOUT,
    kad::{self, ALPHA, K},
};

use crate::{
    engine::quantile,
    net::{Event, Net},
    node::Kind,
};

pub enum Step {
    Asked { lookup: usize, to: usize, start: u32 },
    Told { lookup: usize, from: usize, closer: Vec<usize> },
    Silent { lookup: usize, from: usize },
}

impl Step {
    pub fn mark(&self) -> [u64; 3] {
        match self {
            Self::Asked { lookup, to, .. } => [60, *lookup as u64, *to as u64],
            Self::Told { lookup, from, .. } => [61, *lookup as u64, *from as u64],
            Self::Silent { lookup, from } => [62, *lookup as u64, *from as u64],
        }
    }
}

/// One of the ways of a lookup.
#[derive(Clone, Default)]
struct Path {
    /// Who was heard of, by distance, and after how many questions one after the other.
    heard: BTreeMap<KBucketDistance, (usize, u64)>,
    asked: HashSet<usize>,
    answered: HashSet<usize>,
    flying: HashSet<usize>,
}

impl Path {
    /// Whom to ask next.
    fn next(&self) -> Option<usize> {
        if self.flying.len() >= ALPHA.get() {
            return None;
        }
        let alive = self.heard.values().map(|(n, _)| *n);
        let alive = alive.filter(|n| !self.asked.contains(n) || self.answered.contains(n) || self.flying.contains(n));
        alive.take(K.get()).find(|n| !self.asked.contains(n))
    }
}

/// A peer that a path has asked, for the others.
#[derive(Clone, Copy)]
struct Contact {
    by: usize,
    /// Whether it answered, once that is known.
    answered: Option<bool>,
}

pub struct Lookup {
    from: usize,
    start: u32,
    target: KBucketKey<PeerId>,
    paths: Vec<Path>,
    contacted: HashMap<usize, Contact>,
    began: u64,
    /// How many microseconds it took.
    took: Option<u64>,
}

impl Lookup {
    /// Has all paths know whether a peer answered. Returns the one that asked it.
    fn answer(&mut self, peer: usize, answered: bool) -> Option<usize> {
        let contact = self.contacted.get_mut(&peer)?;
        contact.answered = Some(answered);
        for path in &mut self.paths {
            if path.flying.remove(&peer) && answered {
                path.answered.insert(peer);
            }
        }
        Some(contact.by)
    }

    /// The closest that answered, and after how many questions it was.
    fn closest(&self) -> Option<(usize, u64)> {
        let of = |path: &Path| {
            let mut heard = path.heard.iter();
            heard.find(|(_, (n, _))| path.answered.contains(n)).map(|(far, (n, depth))| (*far, *n, depth + 1))
        };
        self.paths.iter().filter_map(of).min().map(|(_, n, depth)| (n, depth))
    }
}

/// What came of lookups of nodes that were up.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub success: f64,
    pub hops_50: u64,
    pub hops_99: u64,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub asked: f64,
    /// Peers in a routing table.
    pub table: f64,
}

fn key(peer: PeerId) -> KBucketKey<PeerId> {
    KBucketKey::from(peer)
}

impl Net {
    /// A node has met another.
    pub fn note_route(&mut self, n: usize, m: usize) {
        let (peer, addr) = (self.nodes[m].peer, self.nodes[m].addr.clone());
        if let Some(table) = self.nodes[n].table.as_mut().filter(|_| n != m)
            && kad::addresses(table, &peer).is_empty()
        {
            kad::insert(table, peer, std::slice::from_ref(&addr), Some(&addr));
        }
    }

    /// Who has many names in few networks connects to an honest node under each of them.
    pub fn eclipse(&mut self, n: usize) {
        if self.nodes[n].kind == Kind::Honest {
            (self.nodes.len() - self.setting.eclipsers..self.nodes.len()).for_each(|m| self.note_route(n, m));
        }
    }

    /// How many places of a node's table such names have.
    pub fn eclipsed(&mut self, n: usize) -> usize {
        let first = self.nodes.len() - self.setting.eclipsers;
        let by_peer = &self.by_peer;
        let is_one = |peer: &PeerId| by_peer.get(peer).is_some_and(|m| *m >= first);
        let Some(table) = self.nodes[n].table.as_mut() else { return 0 };
        table.kbuckets().map(|bucket| bucket.iter().filter(|e| is_one(e.node.key.preimage())).count()).sum()
    }

    fn closest_of(&mut self, n: usize, target: &KBucketKey<PeerId>) -> Vec<usize> {
        if self.nodes[n].kind == Kind::Liar {
            let eclipsers = self.nodes.len() - self.setting.eclipsers;
            let alike = |m: &usize| self.setting.collusion || (*m < eclipsers) == (n < eclipsers);
            let liars = self.liars.iter().filter(|(m, _)| alike(m));
            let mut liars: Vec<_> = liars.map(|(m, key)| (key.distance(target), *m)).collect();
            liars.sort_unstable();
            return liars.into_iter().take(K.get()).map(|(_, m)| m).collect();
        }
        let by_peer = &self.by_peer;
        let Some(table) = self.nodes[n].table.as_mut() else { return Vec::new() };
        let closest = table.get_closest_local_peers(target);
        closest.take(K.get()).filter_map(|key| by_peer.get(key.preimage()).copied()).collect()
    }

    /// Looks for itself, and around.
    pub fn find_place(&mut self, n: usize) {
        let own = self.nodes[n].peer;
        self.look_up(n, own);
        for _ in 0..2 {
            let somewhere = self.rng.nobody();
            self.look_up(n, somewhere);
        }
    }

    pub fn look_up(&mut self, n: usize, target: PeerId) {
        let target = key(target);
        let mut lookup = Lookup {
            from: n,
            start: self.nodes[n].start,
            target,
            paths: Vec::new(),
            contacted: HashMap::new(),
            began: self.queue.now,
            took: None,
        };
        let mut path = Path::default();
        for m in self.closest_of(n, &target) {
            path.heard.insert(key(self.nodes[m].peer).distance(&target), (m, 0));
        }
        lookup.paths = vec![path; self.setting.paths];
        self.lookups.push(lookup);
        self.go_on(self.lookups.len() - 1);
    }

    /// On each path, asks the closest that have not been asked, as far as there is room.
    fn go_on(&mut self, id: usize) {
        let lookup = &self.lookups[id];
        if lookup.took.is_some() || !self.is_current(lookup.from, lookup.start) {
            return;
        }
        let (from, mut ask) = (lookup.from, Vec::new());
        let lookup = &mut self.lookups[id];
        for (by, path) in lookup.paths.iter_mut().enumerate() {
            while let Some(to) = path.next() {
                path.asked.insert(to);
                match lookup.contacted.get(&to).map(|contact| contact.answered) {
                    // What it answers, or has answered, is for whoever asked it.
                    Some(Some(true)) => drop(path.answered.insert(to)),
                    Some(Some(false)) => {}
                    Some(None) => drop(path.flying.insert(to)),
                    None => {
                        path.flying.insert(to);
                        lookup.contacted.insert(to, Contact { by, answered: None });
                        ask.push(to);
                    }
                }
            }
        }
        if ask.is_empty() && lookup.paths.iter().all(|path| path.flying.is_empty()) {
            lookup.took = Some(self.queue.now - lookup.began);
            return;
        }
        for to in ask {
            if self.can_reach(from, to) && !self.rng.chance(self.setting.loss) {
                // Whom it is not connected to it dials first.
                let trips = if self.nodes[from].links.contains_key(&to) { 1 } else { 4 };
                let after = trips * self.latency(from, to);
                let start = self.nodes[to].start;
                self.queue.plan(after, Event::Lookup(Step::Asked { lookup: id, to, start }));
            } else {
                let after = DIAL_TIMEOUT.as_micros() as u64;
                self.queue.plan(after, Event::Lookup(Step::Silent { lookup: id, from: to }));
            }
        }
    }

    pub fn on_lookup(&mut self, step: Step) {
        match step {
            Step::Asked { lookup, to, start } => {
                let (from, target) = (self.lookups[lookup].from, self.lookups[lookup].target);
                if !self.is_current(to, start) || self.rng.chance(self.setting.loss) {
                    let after = DIAL_TIMEOUT.as_micros() as u64;
                    self.queue.plan(after, Event::Lookup(Step::Silent { lookup, from: to }));
                    return;
                }
                let mut closer = self.closest_of(to, &target);
                closer.retain(|m| *m != from);
                self.note_route(to, from);
                let after = self.latency(to, from);
                self.queue.plan(after, Event::Lookup(Step::Told { lookup, from: to, closer }));
            }
            Step::Told { lookup: id, from, closer } => {
                let closer: Vec<_> = closer.into_iter().map(|m| (m, key(self.nodes[m].peer))).collect();
                let lookup = &mut self.lookups[id];
                let Some(by) = lookup.answer(from, true) else { return };
                let path = &mut lookup.paths[by];
                let depth = path.heard.values().find(|(n, _)| *n == from).map_or(0, |(_, depth)| *depth);
                for (m, key) in closer {
                    path.heard.entry(key.distance(&lookup.target)).or_insert((m, depth + 1));
                }
                let (asker, start) = (lookup.from, lookup.start);
                if self.is_current(asker, start) {
                    self.note_route(asker, from);
                }
                self.go_on(id);
            }
            Step::Silent { lookup, from } => {
                self.lookups[lookup].answer(from, false);
                self.go_on(lookup);
            }
        }
    }

    /// Random honest nodes look for others, ten a second.
    pub fn look_around(&mut self, count: usize) -> Found {
        let first = self.lookups.len();
        let mut wanted = Vec::new();
        for _ in 0..count {
            let up = self.up(crate::node::Kind::Honest);
            let pair = self.rng.pick(&up, 2);
            wanted.push((self.lookups.len(), pair[1]));
            let target = self.nodes[pair[1]].peer;
            self.look_up(pair[0], target);
            self.run_until(self.queue.now + crate::net::SECOND / 10);
        }
        self.run_until(self.queue.now + crate::net::MINUTE);
        let (mut hops, mut times, mut found, mut asked) = (Vec::new(), Vec::new(), 0, 0);
        for (id, target) in wanted {
            let lookup = &self.lookups[id];
            if let Some((_, depth)) = lookup.closest().filter(|(n, _)| *n == target) {
                found += 1;
                hops.push(depth);
            }
            times.push(lookup.took.unwrap_or(u64::MAX) / 1000);
            asked += lookup.contacted.len();
        }
        self.lookups.truncate(first);
        hops.sort_unstable();
        times.sort_unstable();
        let up = self.up(crate::node::Kind::Honest);
        let sizes = |table: &mut kad::Behaviour| table.kbuckets().map(|bucket| bucket.num_entries()).sum::<usize>();
        let table: usize = up.iter().filter_map(|n| self.nodes[*n].table.as_deref_mut().map(sizes)).sum();
        Found {
            success: f64::from(found) / count as f64,
            hops_50: quantile(&hops, 0.5),
            hops_99: quantile(&hops, 0.99),
            p50_ms: quantile(&times, 0.5),
            p99_ms: quantile(&times, 0.99),
            asked: asked as f64 / count as f64,
            table: table as f64 / up.len() as f64,
        }
    }
}
