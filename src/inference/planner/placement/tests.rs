//! The rule for moving, by itself and with many who follow it at once.

use std::collections::VecDeque;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

fn peer(n: u8) -> PeerId {
    libp2p::identity::Keypair::ed25519_from_bytes([n; 32]).unwrap().public().to_peer_id()
}

/// Two peers, the smaller id first.
fn two() -> (PeerId, PeerId) {
    let (a, b) = (peer(1), peer(2));
    if a < b { (a, b) } else { (b, a) }
}

fn span(text: &str) -> SpanRange {
    text.parse().unwrap()
}

fn holder(peer: PeerId, text: &str, standing: Standing) -> Holder {
    Holder { peer, span: span(text), standing }
}

#[test]
fn the_last_replica_stays_and_of_two_who_would_leave_one_does() {
    let (small, great) = two();
    let own = span("0..4");
    assert!(!may_leave(own, small, &[]));
    assert!(!may_leave(own, small, &[holder(great, "0..3", Standing::Stays)]));
    assert!(!may_leave(own, small, &[holder(great, "0..4", Standing::Comes)]), "it is not there yet");
    assert!(may_leave(own, small, &[holder(great, "0..4", Standing::Stays)]));
    assert!(may_leave(own, small, &[holder(great, "0..4", Standing::Leaves)]), "the other one stays");
    assert!(!may_leave(own, great, &[holder(small, "0..4", Standing::Leaves)]));
}

#[test]
fn moves_are_for_a_quarter_more_and_to_where_nobody_comes() {
    let (here, other) = two();
    let bytes = vec![1_u64; 8];
    let own = span("0..4");
    let of = |others: &[Holder]| better(&bytes, own, here, others, 4, 0);
    let both = holder(other, "0..4", Standing::Stays);
    assert_eq!(of(&[both]), Some(span("4..8")), "nobody holds the rest");
    assert_eq!(of(&[both, holder(peer(3), "4..8", Standing::Comes)]), None, "somebody comes");
    let full = |at: &str, n: u8| (10..10 + n).map(|n| holder(peer(n), at, Standing::Stays)).collect::<Vec<_>>();
    // Five and four others: as good as even.
    assert_eq!(of(&[full("0..4", 4), full("4..8", 4)].concat()), None);
    assert_eq!(of(&[full("0..4", 4), full("4..8", 3)].concat()), Some(span("4..8")));
    // Eleven here with us, and nine there: less than a quarter.
    assert_eq!(of(&[full("0..4", 10), full("4..8", 9)].concat()), None);
}

#[test]
fn who_comes_second_thinks_better_of_it() {
    let (small, great) = two();
    let (own, to) = (span("0..4"), span("4..8"));
    let stays = [holder(peer(3), "0..4", Standing::Stays), holder(peer(4), "0..4", Standing::Stays)];
    let with = |coming: PeerId| [&stays[..], &[holder(coming, "4..8", Standing::Comes)]].concat();
    let settled = holder(peer(5), "4..8", Standing::Stays);
    assert!(still_better(8, own, to, small, &with(great)));
    assert!(!still_better(8, own, to, great, &[&with(small)[..], &[settled]].concat()));
}

/// A node of the simulation.
struct Node {
    peer: PeerId,
    budget: u64,
    span: Option<SpanRange>,
    moving: Option<(SpanRange, u64)>,
    looks_at: u64,
    /// What it said, with when: others hear of it later.
    said: VecDeque<(u64, Vec<(SpanRange, Standing)>)>,
    alive: bool,
}

/// Seconds until a node's word is known to all.
const DELAY: u64 = 4;
/// Seconds that loading takes, at least: more than two delays.
const LOADING: u64 = 10;

impl Node {
    fn say(&mut self, now: u64) {
        let own = self.span.map(|span| (span, if self.moving.is_some() { Standing::Leaves } else { Standing::Stays }));
        let coming = self.moving.map(|(span, _)| (span, Standing::Comes));
        self.said.push_back((now, own.into_iter().chain(coming).collect()));
    }

    fn heard(&self, now: u64) -> Vec<Holder> {
        let known = self.said.iter().rev().find(|(at, _)| at + DELAY <= now);
        let all = known.map(|(_, all)| all.clone()).unwrap_or_default();
        all.into_iter().map(|(span, standing)| Holder { peer: self.peer, span, standing }).collect()
    }
}

struct Simulation {
    nodes: Vec<Node>,
    layer_bytes: Vec<u64>,
    rng: StdRng,
    now: u64,
    moves: u64,
    /// Layers that have been covered, and are to stay so while nobody dies.
    covered: Vec<bool>,
}

impl Simulation {
    fn new(seed: u8, nodes: u8, layers: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(u64::from(seed));
        let nodes = (0..nodes).map(|n| Node {
            peer: peer(n),
            budget: rng.random_range(3..13),
            span: None,
            moving: None,
            // All of them are started within two seconds, before anybody has heard of anybody.
            looks_at: rng.random_range(0..3),
            said: VecDeque::new(),
            alive: true,
        });
        let nodes = nodes.collect();
        Self { nodes, layer_bytes: vec![1; layers], rng, now: 0, moves: 0, covered: vec![false; layers] }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            for n in 0..self.nodes.len() {
                self.turn(n);
            }
            self.check();
            self.now += 1;
        }
    }

    fn turn(&mut self, n: usize) {
        let now = self.now;
        if !self.nodes[n].alive || self.nodes[n].looks_at > now {
            return;
        }
        let pause = self.rng.random_range(60..120);
        let pick = self.rng.random();
        let here = self.nodes[n].peer;
        let others: Vec<Holder> = self
            .nodes
            .iter()
            .filter(|other| other.alive && other.peer != here)
            .flat_map(|other| other.heard(now))
            .collect();
        let layers = self.layer_bytes.len();
        let node = &mut self.nodes[n];
        node.looks_at = now + pause;
        match (node.span, node.moving) {
            (None, _) => {
                node.span = thinnest(&self.layer_bytes, &holdings(&others, |_| true), node.budget, pick);
                node.looks_at = now + 5 + pause / 10;
            }
            (Some(own), Some((to, _))) => {
                if still_better(layers, own, to, here, &others) {
                    node.span = Some(to);
                    self.moves += 1;
                }
                node.moving = None;
            }
            (Some(own), None) => match better(&self.layer_bytes, own, here, &others, node.budget, pick) {
                Some(to) => {
                    node.moving = Some((to, now));
                    node.looks_at = now + LOADING + pause % 8;
                }
                None => return,
            },
        }
        node.say(now);
        while node.said.len() > 64 {
            node.said.pop_front();
        }
    }

    fn counts(&self) -> Vec<u64> {
        let all: Vec<Holding> = self
            .nodes
            .iter()
            .filter(|node| node.alive)
            .filter_map(|node| Some(Holding { span: node.span?, weight: 1 }))
            .collect();
        replicas(self.layer_bytes.len(), &all)
    }

    fn check(&mut self) {
        let (now, counts) = (self.now, self.counts());
        for (layer, (count, covered)) in counts.iter().zip(&mut self.covered).enumerate() {
            assert!(*count > 0 || !*covered, "layer {layer} has lost its last holder after {now} s: {counts:?}");
            *covered |= *count > 0;
        }
    }

    /// Everybody who dies is gone at once.
    fn kill(&mut self, share: u32) {
        for n in 0..self.nodes.len() {
            if self.rng.random_range(0..100) < share {
                self.nodes[n].alive = false;
            }
        }
        self.covered.fill(false);
    }
}

#[test]
fn a_crowd_that_starts_at_once_covers_everything_and_comes_to_rest() {
    for seed in 0..12 {
        let mut all = Simulation::new(seed, 60, 40);
        all.run(600);
        assert!(all.counts().iter().all(|count| *count > 0), "seed {seed}: {:?}", all.counts());
        all.run(3000);
        let before = all.moves;
        all.run(3600);
        assert_eq!(all.moves, before, "seed {seed}: they go on moving");
        // Some 450 layers of room for 40: a layer has eleven holders on average.
        let counts = all.counts();
        assert!(counts.iter().min() >= Some(&4), "seed {seed}: {counts:?}");
        assert!(all.moves <= 4 * 60, "seed {seed}: {} moves", all.moves);
    }
}

#[test]
fn when_many_die_the_rest_covers_again() {
    for seed in 0..12 {
        let mut all = Simulation::new(seed, 40, 32);
        all.run(1800);
        all.kill(50);
        all.run(1800);
        assert!(all.counts().iter().all(|count| *count > 0), "seed {seed}: {:?}", all.counts());
        let before = all.moves;
        all.run(3600);
        assert_eq!(all.moves, before, "seed {seed}: they go on moving");
    }
}
