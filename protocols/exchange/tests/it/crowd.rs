//! Machines alone, driven by a clock of the test's: a crowd that finds itself, silence, and what is told to whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use libp2p::{PeerId, identity::Keypair};
use proptest::prelude::*;
use quelea_exchange::{
    ASKS_PER_ROUND, Ask, Entry, Exchanger, Filter, MAX_AGE_MS, MAX_RECORDS, Now, ROUND, SILENCE_MAX, SignedRecord,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::said;

const START: u64 = 1_800_000_000_000;

fn now(at: Duration) -> Now {
    Now { at, unix_ms: START + u64::try_from(at.as_millis()).unwrap() }
}

fn record(n: u32, signed_ms: u64) -> SignedRecord {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&n.to_le_bytes());
    said(&Keypair::ed25519_from_bytes(seed).unwrap(), signed_ms, signed_ms, 1)
}

struct Crowd {
    machines: BTreeMap<PeerId, (Exchanger, SignedRecord)>,
    chance: StdRng,
    asked: usize,
}

impl Crowd {
    /// `size` machines, each connected to the `links` that came before it at random.
    fn new(size: u32, links: usize, seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut machines: BTreeMap<PeerId, (Exchanger, SignedRecord)> = BTreeMap::new();
        let mut peers: Vec<PeerId> = Vec::new();
        for n in 0..size {
            let own = record(n, START);
            let mut machine = Exchanger::new(own.peer(), chance.random());
            for _ in 0..links.min(peers.len()) {
                let other = peers[chance.random_range(0..peers.len())];
                machine.connected(other);
                machines.get_mut(&other).unwrap().0.connected(own.peer());
            }
            peers.push(own.peer());
            machines.insert(own.peer(), (machine, own));
        }
        Self { machines, chance, asked: 0 }
    }

    /// One look of every machine at `at`; of a hundred exchanges `lost` fail.
    fn look(&mut self, at: Duration, lost: u32) {
        let peers: Vec<PeerId> = self.machines.keys().copied().collect();
        for asker in peers {
            for Ask { peer, want, filter } in self.machines.get_mut(&asker).unwrap().0.poll(now(at)) {
                self.asked += 1;
                if self.chance.random_range(0..100) < lost {
                    self.machines.get_mut(&asker).unwrap().0.silent(peer, now(at));
                    continue;
                }
                let own = self.machines[&asker].1.clone();
                let (other, its_own) = self.machines.get_mut(&peer).unwrap();
                other.met(own);
                let entries = other.answer(&asker, &filter, want, Some(its_own.clone()), now(at), |_| true);
                self.machines.get_mut(&asker).unwrap().0.answered(peer, entries);
            }
        }
    }

    fn least_known(&self) -> usize {
        self.machines.values().map(|(machine, _)| machine.known()).min().unwrap()
    }
}

#[test]
fn a_crowd_of_three_hundred_finds_itself_in_a_minute_though_exchanges_fail() {
    let mut crowd = Crowd::new(300, 3, 1);
    for second in 0..60 {
        crowd.look(Duration::from_secs(second), 5);
    }
    // Whoever has one neighbour, most of whose answers are lost, still hears more than one answer holds.
    assert!(crowd.least_known() > usize::from(MAX_RECORDS), "somebody knows of {} only", crowd.least_known());
    // At start and in seven rounds.
    assert!(crowd.asked <= 300 * (6 + 7 * ASKS_PER_ROUND), "{}", crowd.asked);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut crowd = Crowd::new(40, 2, seed);
        (0..40).for_each(|second| crowd.look(Duration::from_secs(second), 20));
        (crowd.asked, crowd.machines.values().map(|(machine, _)| machine.known()).collect::<Vec<_>>())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn a_record_travels_four_hops_and_no_further() {
    let machines: Vec<SignedRecord> = (0..8).map(|n| record(n, START)).collect();
    let mut line: Vec<Exchanger> = machines.iter().map(|own| Exchanger::new(own.peer(), 1)).collect();
    for hop in 1..8 {
        let (teller, own) = (machines[hop - 1].peer(), Some(machines[hop - 1].clone()));
        let at = now(Duration::from_secs(hop as u64));
        let filter = Filter::new(1, 1);
        let entries = line[hop - 1].answer(&machines[hop].peer(), &filter, 64, own, at, |_| true);
        line[hop].answered(teller, entries);
    }
    let reached = line.iter().filter(|machine| machine.record(&machines[0].peer()).is_some()).count();
    assert_eq!(reached, 4);
}

#[test]
fn a_silent_peer_is_left_alone_ever_longer() {
    let (mut machine, peer) = (Exchanger::new(PeerId::random(), 1), PeerId::random());
    machine.connected(peer);
    let mut asked = Vec::new();
    for second in 0..6 * 3600 {
        let at = Duration::from_secs(second);
        for ask in machine.poll(now(at)) {
            asked.push(at);
            machine.silent(ask.peer, now(at));
            // Coming back does not help.
            machine.disconnected(&peer);
            machine.connected(peer);
        }
    }
    let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(asked.len() <= 12, "asked {} times in six hours", asked.len());
    assert!(pauses[0] >= Duration::from_secs(48) && pauses.iter().max() > Some(&(SILENCE_MAX / 2)), "{pauses:?}");
    machine.answered(peer, Vec::new());
    let at = Duration::from_secs(7 * 3600);
    assert!(!machine.poll(now(at)).is_empty(), "once it has answered, it is asked again");
}

#[test]
fn rounds_come_soon_at_first_and_then_every_half_minute() {
    let mut machine = Exchanger::new(PeerId::random(), 7);
    let peers: Vec<PeerId> = (0..50).map(|_| PeerId::random()).collect();
    peers.iter().for_each(|peer| machine.connected(*peer));
    let mut asked: BTreeMap<u64, usize> = BTreeMap::new();
    let (mut at_once, mut seen) = (0, BTreeSet::new());
    for tick in 0..3_000 {
        let at = Duration::from_millis(100 * tick);
        let asks = machine.poll(now(at));
        if tick < 8 {
            at_once += asks.len();
        } else if !asks.is_empty() {
            *asked.entry(tick / 10).or_default() += asks.len();
        }
        for ask in asks {
            seen.insert(ask.peer);
            machine.answered(ask.peer, Vec::new());
        }
    }
    assert_eq!(at_once, 50, "newcomers are asked before the first round");
    let rounds: Vec<u64> = asked.keys().copied().collect();
    assert!(rounds.iter().filter(|second| **second < 10).count() >= 2, "{rounds:?}");
    let late: Vec<u64> = rounds.iter().copied().filter(|second| *second > 60).collect();
    for pair in late.windows(2) {
        assert!((ROUND.as_secs() - 7..=ROUND.as_secs() + 7).contains(&(pair[1] - pair[0])), "{rounds:?}");
    }
    assert_eq!(seen.len(), 50);
}

#[test]
fn the_most_trusted_come_first_and_not_what_is_known_or_untellable() {
    let mut machine = Exchanger::new(PeerId::random(), 1);
    let (teller, asker) = (PeerId::random(), PeerId::random());
    let all: Vec<SignedRecord> = (0..100).map(|n| record(n, START)).collect();
    machine.answered(teller, all.iter().map(|record| Entry { ttl: 2, record: record.clone() }).collect());
    machine.set_trust(&all[70].peer(), 900);
    machine.set_trust(&all[30].peer(), 500);
    let mut filter = Filter::new(100, 5);
    filter.insert(&all[70].peer());
    let told = machine.answer(&asker, &filter, 200, None, now(Duration::ZERO), |r| r.peer() != all[1].peer());
    assert_eq!(told.len(), usize::from(MAX_RECORDS));
    assert_eq!(told[0].record.peer(), all[30].peer());
    assert!(told.iter().all(|e| e.ttl == 1 && e.record.peer() != all[70].peer() && e.record.peer() != all[1].peer()));
    let other = machine.answer(&asker, &filter, 200, None, now(Duration::ZERO), |_| true);
    assert_ne!(told[1..], other[1..], "those of equal trust come in random order");
    let late = now(Duration::from_millis(MAX_AGE_MS + 1));
    assert!(machine.answer(&asker, &filter, 200, None, late, |_| true).is_empty(), "too old to tell");
    assert!(
        machine.answer(&all[30].peer(), &filter, 1, None, now(Duration::ZERO), |_| true)[0].record.peer()
            != all[30].peer()
    );
}

proptest! {
    #[test]
    fn no_map_outgrows_its_bound(steps in proptest::collection::vec((0_u8..4, any::<u16>()), 1..400)) {
        let mut machine = Exchanger::new(PeerId::random(), 1);
        let peers: Vec<PeerId> = (0..40).map(|_| PeerId::random()).collect();
        for (n, (what, which)) in steps.into_iter().enumerate() {
            let at = now(Duration::from_secs(n as u64));
            let peer = peers[usize::from(which) % peers.len()];
            match what {
                0 => machine.connected(peer),
                1 => machine.disconnected(&peer),
                2 => machine.silent(peer, at),
                _ => drop(machine.poll(at)),
            }
            let [partners, silent, records] = machine.sizes();
            prop_assert!(partners <= 40 && silent <= 40 && records == 0);
            prop_assert!(machine.next_at(at).is_none_or(|next| next <= at.at + Duration::from_secs(37)));
        }
    }
}
