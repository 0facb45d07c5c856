//! Lookups over Kademlia's own table, filled through our insertion filter.
//!
//! Each node has a real routing table (libp2p's, with [`kad::insert`] before it) and an address of the public Internet. It
//! joins by a lookup of itself from three nodes that are there, and of some random keys. Lookups are Kademlia's: the k = 20
//! closest heard of, alpha = 3 asked at a time; asked and asking nodes take note of each other. A node that is down does not
//! answer.

use std::collections::{BTreeMap, HashSet};

use libp2p::{
    Multiaddr, PeerId,
    identity::Keypair,
    kad::{self as libkad, KBucketKey},
};
use quelea_behaviours::{Config, KadMode, kad};

use crate::engine::{Rng, quantile};

const K: usize = 20;
const ALPHA: usize = 3;

struct Node {
    peer: PeerId,
    addr: Multiaddr,
    table: kad::Behaviour,
    up: bool,
}

struct Net {
    nodes: Vec<Node>,
    by_peer: BTreeMap<PeerId, usize>,
    rng: Rng,
}

/// One lookup.
struct Found {
    /// The closest that answered, closest first.
    closest: Vec<usize>,
    /// Questions asked one after the other on the way to the closest.
    hops: u64,
    asked: usize,
}

fn key(peer: PeerId) -> KBucketKey<PeerId> {
    KBucketKey::from(peer)
}

impl Net {
    /// Joins one after the other.
    fn new(count: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let config = Config { kad_mode: KadMode::Server, ..Config::default() };
        let nodes: Vec<Node> = (0..count)
            .map(|_| {
                let mut secret = [0; 32];
                secret.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&rng.next().to_le_bytes()));
                let peer = Keypair::ed25519_from_bytes(secret).unwrap().public().to_peer_id();
                let [a, b, c, d] = [60 + rng.below(30), rng.below(256), rng.below(256), 1 + rng.below(254)];
                let addr = format!("/ip4/{a}.{b}.{c}.{d}/tcp/8468").parse().unwrap();
                Node { peer, addr, table: kad::new(peer, &config), up: true }
            })
            .collect();
        let by_peer = nodes.iter().enumerate().map(|(n, node)| (node.peer, n)).collect();
        let mut net = Self { nodes, by_peer, rng };
        for n in 1..count {
            let there: Vec<usize> = (0..n).collect();
            for m in net.rng.pick(&there, 3) {
                net.meet(n, m);
            }
            net.lookup(n, key(net.nodes[n].peer));
            for _ in 0..2 {
                let somewhere = key(PeerId::random_from(&mut net.rng));
                net.lookup(n, somewhere);
            }
        }
        net
    }

    /// Two nodes take note of each other, as far as their filters allow.
    fn meet(&mut self, a: usize, b: usize) {
        for (n, m) in [(a, b), (b, a)] {
            let (peer, addr) = (self.nodes[m].peer, self.nodes[m].addr.clone());
            kad::insert(&mut self.nodes[n].table, peer, std::slice::from_ref(&addr), Some(&addr));
        }
    }

    fn known(&mut self, n: usize, target: &KBucketKey<PeerId>) -> Vec<usize> {
        let by_peer = &self.by_peer;
        let closest = self.nodes[n].table.get_closest_local_peers(target);
        closest.take(K).filter_map(|key| by_peer.get(key.preimage()).copied()).collect()
    }

    fn lookup(&mut self, from: usize, target: KBucketKey<PeerId>) -> Found {
        let mut depths: BTreeMap<libkad::KBucketDistance, (usize, u64)> = BTreeMap::new();
        let distance = |net: &Self, n: usize| key(net.nodes[n].peer).distance(&target);
        for n in self.known(from, &target) {
            depths.insert(distance(self, n), (n, 0));
        }
        let (mut done, mut answered) = (HashSet::new(), Vec::new());
        loop {
            // The k closest that have not failed; the first of them that have not been asked.
            let ask: Vec<(usize, u64)> = depths
                .values()
                .filter(|(n, _)| !done.contains(n) || answered.contains(n))
                .take(K)
                .filter(|(n, _)| !done.contains(n))
                .take(ALPHA)
                .copied()
                .collect();
            if ask.is_empty() {
                break;
            }
            for (n, depth) in ask {
                done.insert(n);
                if !self.nodes[n].up {
                    continue;
                }
                answered.push(n);
                self.meet(from, n);
                for m in self.known(n, &target).into_iter().filter(|m| *m != from) {
                    depths.entry(distance(self, m)).or_insert((m, depth + 1));
                }
            }
        }
        let closest: Vec<(usize, u64)> =
            depths.values().filter(|(n, _)| answered.contains(n)).take(K).copied().collect();
        Found {
            hops: closest.first().map_or(0, |(_, depth)| depth + 1),
            closest: closest.into_iter().map(|(n, _)| n).collect(),
            asked: done.len(),
        }
    }
}

/// A peer id that nobody has.
trait RandomFrom {
    fn random_from(rng: &mut Rng) -> PeerId;
}

impl RandomFrom for PeerId {
    fn random_from(rng: &mut Rng) -> PeerId {
        let mut bytes = vec![0, 32];
        (0..4).for_each(|_| bytes.extend_from_slice(&rng.next().to_le_bytes()));
        PeerId::from_bytes(&bytes).unwrap()
    }
}

#[derive(Debug)]
struct Outcome {
    success: f64,
    hops_50: u64,
    hops_99: u64,
    asked: f64,
    table: f64,
}

/// Looks for random nodes that are up, from random nodes; `down` of all have crashed just before.
fn lookups(nodes: usize, seed: u64, down: f64, count: usize) -> Outcome {
    let mut net = Net::new(nodes, seed);
    for n in 0..nodes {
        net.nodes[n].up = !net.rng.chance(down);
    }
    let up: Vec<usize> = (0..nodes).filter(|n| net.nodes[*n].up).collect();
    let (mut hops, mut found, mut asked) = (Vec::new(), 0, 0);
    for _ in 0..count {
        let pair = net.rng.pick(&up, 2);
        let lookup = net.lookup(pair[0], key(net.nodes[pair[1]].peer));
        found += usize::from(lookup.closest.first() == Some(&pair[1]));
        hops.push(lookup.hops);
        asked += lookup.asked;
    }
    hops.sort_unstable();
    let table: usize =
        net.nodes.iter_mut().map(|node| node.table.kbuckets().map(|bucket| bucket.num_entries()).sum::<usize>()).sum();
    let outcome = Outcome {
        success: found as f64 / count as f64,
        hops_50: quantile(&hops, 0.5),
        hops_99: quantile(&hops, 0.99),
        asked: asked as f64 / count as f64,
        table: table as f64 / nodes as f64,
    };
    let Outcome { success, hops_50, hops_99, asked, table } = &outcome;
    println!(
        "{nodes} nodes, {down} down: {:.1} % of {count} lookups found their peer, half after {hops_50} hops, 99 % after \
         {hops_99}; {asked:.1} asked each; {table:.1} peers in a table",
        success * 100.0
    );
    outcome
}

#[test]
fn lookups_find_whom_they_look_for() {
    let calm = lookups(200, 1, 0.0, 100);
    assert!(calm.success >= 0.99 && calm.hops_99 <= 4, "{calm:?}");
    let crashed = lookups(200, 2, 0.3, 100);
    assert!(crashed.success >= 0.95, "{crashed:?}");
}

#[test]
#[ignore = "minutes; with --release, prints figures"]
fn how_it_grows() {
    for nodes in [100, 300, 1000, 3000] {
        for down in [0.0, 0.3] {
            let outcome = lookups(nodes, 1, down, 500);
            assert!(outcome.success >= 0.95, "{outcome:?}");
        }
    }
}
