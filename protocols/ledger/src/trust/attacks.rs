//! Attackers at one honest node: what each gets away with, by the real book and the real trust, in many seeded runs.
//!
//! A day is a dozen jobs. The victim works for whoever may take out a hold; a job that it did is the attacker's gain, what the
//! attacker pays outside for what it owes is its cost. Nothing else counts: notes that are never paid are paper.

use std::collections::BTreeMap;

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::NetworkId;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{DAY_MS, Dealing, LEAST, Losses, Policy, Row};
use crate::{
    book::{Book, Event, HoldTerms, Key, Outcome, Rules, Terms, Write},
    fields::{Hash, HoldId, Raw, Unit},
    message::{DefaultClaim, SignedMessage},
    packet::{Content, Packet},
};

const UNIT: Unit = Unit::CREDIT;
const START: u64 = 20_833 * DAY_MS;
const POOL: u64 = 10_000_000;
/// Runs of each attack; `QUELEA_ATTACKS` sets another number.
const RUNS: u64 = 100;

fn runs() -> u64 {
    std::env::var("QUELEA_ATTACKS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS)
}

fn policy() -> Policy {
    Policy { base: 1_000_000, most: 50_000_000 }
}

/// A book with its disk.
struct Side {
    keypair: Keypair,
    book: Book,
    peer: PeerId,
    disk: BTreeMap<Key, Vec<u8>>,
}

impl Side {
    fn new(n: u64) -> Self {
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&(n + 1).to_le_bytes());
        let keypair = Keypair::ed25519_from_bytes(secret).unwrap();
        let peer = keypair.public().to_peer_id();
        let rules = Rules { pool: POOL, ..Rules::default() };
        let book =
            Book::new(keypair.clone(), NetworkId::from_name("attacks"), rules, [u8::try_from(n % 251).unwrap(); 32]);
        Self { keypair, book, peer, disk: BTreeMap::new() }
    }

    fn apply(&mut self, out: Outcome) -> Vec<Vec<u8>> {
        for write in out.writes {
            match write {
                Write::Put(key, value) => drop(self.disk.insert(key, value)),
                Write::Delete(key) => drop(self.disk.remove(&key)),
                Write::Prune(..) => {}
            }
        }
        out.sends.iter().filter_map(|send| send.render(|key| self.disk.get(key).cloned())).collect()
    }
}

fn carry(now: u64, a: &mut Side, b: &mut Side, sent: Vec<Vec<u8>>) {
    let mut ways = [sent, Vec::new()];
    while ways.iter().any(|way| !way.is_empty()) {
        for side in 0..2 {
            for packet in std::mem::take(&mut ways[side]) {
                let (from, to) = if side == 0 { (a.peer, &mut *b) } else { (b.peer, &mut *a) };
                let out = to.book.receive(now, from, &packet).unwrap();
                ways[1 - side].extend(to.apply(out));
            }
        }
    }
}

/// An honest node, and what it thinks of others.
struct Victim {
    side: Side,
    rows: BTreeMap<PeerId, Row>,
    losses: Losses,
    now: u64,
    holds: u64,
}

impl Victim {
    fn new() -> Self {
        crate::sim::signatures::begin();
        Self { side: Side::new(0), rows: BTreeMap::new(), losses: Losses::default(), now: START, holds: 0 }
    }

    fn row(&mut self, peer: PeerId) -> &mut Row {
        self.rows.entry(peer).or_default()
    }

    fn deal(&mut self, peer: PeerId, dealing: Dealing) {
        let now = self.now;
        self.row(peer).deal(dealing, &policy(), now);
    }

    fn limit(&mut self, peer: PeerId) -> u64 {
        let now = self.now;
        self.row(peer).limit(&policy(), now)
    }

    fn meet(&mut self, other: &mut Side) {
        let out = self.side.book.connected(other.peer, UNIT);
        let sent = self.side.apply(out);
        carry(self.now, &mut self.side, other, sent);
    }

    /// Does a job for as much as the other may still take, up to `most`; how much that was.
    fn work(&mut self, other: &mut Side, most: u64) -> Option<(HoldId, u64)> {
        let (peer, now) = (other.peer, self.now);
        let row = *self.row(peer);
        let (limit, proven) = (row.limit(&policy(), now), row.proven(&policy()));
        let terms = Terms { limit, counted: limit.max(policy().base), proven, known: proven, group: None };
        self.side.book.set_terms(peer, UNIT, terms);
        let lost = self.losses.sum(now);
        self.side.book.set_written_off(lost);
        self.holds += 1;
        let mut hold = [0; 16];
        hold[..8].copy_from_slice(&self.holds.to_le_bytes());
        let terms =
            HoldTerms { hold: HoldId(hold), max: most, job_hash: Hash([1; 32]), expires_at: now + 60_000, due_days: 1 };
        let out = other.book.hold(now, self.side.peer, UNIT, terms).ok()?;
        let sent = other.apply(out);
        carry(now, other, &mut self.side, sent);
        let out = self.side.book.finish(peer, terms.hold, most, Hash([2; 32])).ok()?;
        let sent = self.side.apply(out);
        carry(now, &mut self.side, other, sent);
        Some((terms.hold, most))
    }

    /// The other promises what a job cost.
    fn promised(&mut self, other: &mut Side, hold: HoldId, price: u64) {
        let out = other.book.pay(self.now, self.side.peer, hold, price, Hash([2; 32])).unwrap();
        let sent = other.apply(out);
        carry(self.now, other, &mut self.side, sent);
        self.deal(other.peer, Dealing::Transfer { amount: price });
    }

    /// The other does not; the hold ends.
    fn stiffed(&mut self, other: &mut Side, price: u64) {
        self.now += 60_000 + 2 * crate::book::GRACE_MS;
        for side in [&mut self.side, other] {
            let out = side.book.expire(self.now);
            side.apply(out);
        }
        if !self.row(other.peer).proven(&policy()) {
            self.losses.add(self.now, price);
        }
        // Its line may have been cut: nobody can tell.
        self.deal(other.peer, Dealing::Failed { amount: price, proven: false });
    }

    fn owed(&self, other: PeerId) -> u64 {
        let account = self.side.book.account(&other, UNIT);
        account.map_or(0, |account| u64::try_from(account.owed.max(0)).unwrap())
    }

    /// The other pays outside for what it owes.
    fn redeemed(&mut self, other: &mut Side, amount: u64) {
        let out = self.side.book.redeem(self.now, other.peer, UNIT, amount, (0, Hash::ZERO)).unwrap();
        let sent = self.side.apply(out);
        carry(self.now, &mut self.side, other, sent);
        self.deal(other.peer, Dealing::Redeemed { amount });
    }

    /// What is owed was due, and asked for, and is not paid.
    fn defaulted(&mut self, other: PeerId) {
        let overdue = self.owed(other);
        if overdue > 0 && self.row(other).overdue == 0 {
            if !self.row(other).proven(&policy()) {
                self.losses.add(self.now, overdue);
            }
            self.deal(other, Dealing::Defaulted { overdue });
        }
    }

    fn day(&mut self) {
        self.now = (self.now / DAY_MS + 1) * DAY_MS + 1000;
    }
}

/// Takes jobs as long as it gets any, promising what it will not pay. What they were worth.
fn take_all(victim: &mut Victim, attacker: &mut Side) -> u64 {
    let (mut taken, mut size) = (0, victim.limit(attacker.peer) / 4);
    while size > 0 {
        match victim.work(attacker, size) {
            Some((hold, price)) => {
                victim.promised(attacker, hold, price);
                taken += price;
            }
            None => size /= 2,
        }
    }
    taken
}

/// An honest customer's day: jobs, promised and paid for by the evening.
fn honest_day(victim: &mut Victim, other: &mut Side, rng: &mut SmallRng) -> u64 {
    for _ in 0..12 {
        let most = (victim.limit(other.peer) / 4).max(2);
        if let Some((hold, price)) = victim.work(other, rng.random_range(1..most)) {
            victim.promised(other, hold, price);
        }
    }
    let owed = victim.owed(other.peer);
    if owed > 0 {
        victim.redeemed(other, owed);
    }
    victim.day();
    owed
}

#[test]
fn a_thousand_names_take_the_pool_once_in_thirty_days() {
    for seed in 0..runs().div_ceil(20) {
        let (mut victim, mut rng, mut taken) = (Victim::new(), SmallRng::seed_from_u64(seed), 0);
        for n in 0..1000 {
            let mut name = Side::new(1 + n);
            victim.meet(&mut name);
            let size = rng.random_range(1..=250_000);
            if rng.random_range(0..2) == 0 {
                if let Some((_, price)) = victim.work(&mut name, size) {
                    taken += price;
                    victim.stiffed(&mut name, price);
                }
            } else {
                taken += take_all(&mut victim, &mut name);
                if rng.random_range(0..10) == 0 {
                    victim.defaulted(name.peer);
                }
            }
        }
        assert!(taken <= POOL, "seed {seed}: {taken}");
        assert!(taken > POOL / 2, "seed {seed}: an attack that does not attack: {taken}");
        assert!(victim.now < START + 30 * DAY_MS);
    }
}

#[test]
fn on_and_off_costs_more_than_it_brings() {
    for seed in 0..runs() {
        let (mut victim, mut rng, mut other) = (Victim::new(), SmallRng::seed_from_u64(seed), Side::new(1));
        victim.meet(&mut other);
        let (mut taken, mut limits) = (0, 0);
        for _ in 0..2 {
            for _ in 0..5 {
                honest_day(&mut victim, &mut other, &mut rng);
            }
            limits += victim.limit(other.peer);
            taken += take_all(&mut victim, &mut other);
            victim.day();
            victim.defaulted(other.peer);
            assert_eq!(victim.limit(other.peer), 0);
            assert!(victim.work(&mut other, 1).is_none(), "seed {seed}: credit in default");
            victim.now += rng.random_range(1..100) * DAY_MS;
        }
        assert!(taken <= limits && limits <= policy().base, "seed {seed}: {taken} of {limits}");
    }
}

#[test]
fn a_slow_exit_takes_less_than_was_paid_before() {
    for seed in 0..runs().div_ceil(5) {
        let (mut victim, mut rng, mut other) = (Victim::new(), SmallRng::seed_from_u64(seed), Side::new(1));
        victim.meet(&mut other);
        let days = rng.random_range(10..120);
        let paid: u64 = (0..days).map(|_| honest_day(&mut victim, &mut other, &mut rng)).sum();
        let limit = victim.limit(other.peer);
        let taken = take_all(&mut victim, &mut other);
        victim.day();
        victim.defaulted(other.peer);
        assert!(taken <= limit, "seed {seed}: {taken} of {limit}");
        assert!(limit <= policy().base + paid / 2, "seed {seed}: {limit} for {paid}");
        assert_eq!(take_all(&mut victim, &mut other), 0);
    }
}

#[test]
fn who_takes_results_and_hangs_up_gets_one() {
    for seed in 0..runs() {
        let (mut victim, mut rng, mut other) = (Victim::new(), SmallRng::seed_from_u64(seed), Side::new(1));
        victim.meet(&mut other);
        let mut taken = 0;
        for _ in 0..20 {
            if let Some((_, price)) = victim.work(&mut other, rng.random_range(1..=250_000)) {
                taken += price;
                victim.stiffed(&mut other, price);
            }
        }
        assert!((1..=250_000).contains(&taken), "seed {seed}: {taken}");
    }
}

#[test]
fn a_ring_that_pays_itself_is_ten_strangers_here() {
    for seed in 0..runs() {
        let (mut victim, mut rng) = (Victim::new(), SmallRng::seed_from_u64(seed));
        let mut ring: Vec<Side> = (1..=10).map(Side::new).collect();
        // They owe each other fortunes, and say so. Of none of it this node holds anything signed to itself.
        let mut taken = 0;
        for side in &mut ring {
            victim.meet(side);
            assert_eq!(victim.limit(side.peer), policy().base);
            assert!(!victim.row(side.peer).proven(&policy()));
            taken += take_all(&mut victim, side);
            victim.now += rng.random_range(0..DAY_MS);
        }
        assert!(taken <= POOL, "seed {seed}: {taken}");
    }
}

#[test]
fn a_slanderer_changes_nothing() {
    let (mut victim, mut slanderer, mut honest) = (Victim::new(), Side::new(1), Side::new(2));
    victim.meet(&mut slanderer);
    victim.meet(&mut honest);
    let (hold, price) = victim.work(&mut honest, 1000).unwrap();
    victim.promised(&mut honest, hold, price);
    let terms =
        HoldTerms { hold: HoldId([9; 16]), max: 1, job_hash: Hash::ZERO, expires_at: START + 1000, due_days: 1 };
    let out = slanderer.book.hold(START, victim.side.peer, UNIT, terms).unwrap();
    let Packet { from, to, .. } = Packet::decode(&slanderer.apply(out)[0]).unwrap();
    let claim = DefaultClaim {
        unit: UNIT,
        debtor: honest.peer,
        overdue: u64::MAX,
        as_of: START,
        redeem_seq_seen: 0,
        note: Raw(Vec::new()),
        ack: Raw(Vec::new()),
    };
    let signed = SignedMessage::sign(&slanderer.keypair, &NetworkId::from_name("attacks"), claim).unwrap();
    let packet = Packet { from, to, content: Content::Signed(signed.raw()) }.encode();
    let (accounts, row) = (victim.side.book.accounts().collect::<Vec<_>>(), *victim.row(honest.peer));
    let out = victim.side.book.receive(START, slanderer.peer, &packet).unwrap();
    let claimed = Event::DefaultClaimed { debtor: honest.peer, overdue: u64::MAX };
    assert_eq!(out.events, [(slanderer.peer, UNIT, claimed)], "it is told, and that is all");
    assert!(out.writes.is_empty() && victim.side.apply(out).is_empty());
    assert_eq!((victim.side.book.accounts().collect::<Vec<_>>(), *victim.row(honest.peer)), (accounts, row));
}

#[test]
fn an_honest_customer_on_a_bad_line_is_never_in_disgrace() {
    for seed in 0..runs() {
        let (mut victim, mut rng, mut other) = (Victim::new(), SmallRng::seed_from_u64(seed), Side::new(1));
        victim.meet(&mut other);
        let small = rng.random_range(1..=16);
        for day in 0..40 {
            for _ in 0..12 {
                let most = (victim.limit(other.peer) / 4 / small).max(2);
                let Some((hold, price)) = victim.work(&mut other, rng.random_range(1..most)) else { continue };
                victim.promised(&mut other, hold, price);
                // Of twenty jobs one is cut off, and done again.
                if rng.random_range(0..20) == 0 {
                    victim.deal(other.peer, Dealing::Failed { amount: price, proven: false });
                }
            }
            let owed = victim.owed(other.peer);
            if owed > 0 {
                victim.redeemed(&mut other, owed);
            }
            victim.day();
            let now = victim.now;
            let commerce = victim.row(other.peer).commerce(now);
            assert!(day < 3 || commerce > 0, "seed {seed}, day {day}: {commerce}");
            assert!(commerce > LEAST / 20, "seed {seed}, day {day}: {commerce}");
        }
        assert!(victim.limit(other.peer) > policy().base, "seed {seed}: {:?}", victim.row(other.peer));
    }
}
