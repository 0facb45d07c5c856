//! Nodes, their disks, and the network between them.

use std::collections::BTreeMap;

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::NetworkId;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

use super::invariants::Witness;
use crate::{
    book::{Ablation, Book, Event, HoldTerms, KEPT_STEPS, Key, Outcome, Refusal, Rules, Side, Terms, Write},
    fields::{Hash, HoldId, Unit},
};

pub(super) const UNIT: Unit = Unit::CREDIT;
pub(super) const LIMIT: u64 = 400;
const NODES: usize = 3;
const STEPS: usize = 400;
/// A millisecond and a bit a step: holds end within a run.
const STEP_MS: u64 = 3_000;

/// What goes wrong, and which rules are left out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) crashes: bool,
    pub(super) restores: bool,
    pub(super) send_first: bool,
    pub(super) plain_seq: bool,
    pub(super) no_gate: bool,
    pub(super) no_binding: bool,
}

/// How often each fault happened.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) before_commit: u64,
    pub(super) after_commit: u64,
    pub(super) disk_errors: u64,
    pub(super) restored: u64,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) recovered: u64,
    pub(super) notes: u64,
    pub(super) redeems: u64,
}

impl Seen {
    pub(super) fn add(&mut self, o: Self) {
        self.before_commit += o.before_commit;
        self.after_commit += o.after_commit;
        self.disk_errors += o.disk_errors;
        self.restored += o.restored;
        self.lost += o.lost;
        self.repeated += o.repeated;
        self.recovered += o.recovered;
        self.notes += o.notes;
        self.redeems += o.redeems;
    }
}

pub(super) type Disk = BTreeMap<Key, Vec<u8>>;

pub(super) struct Node {
    pub(super) keypair: Keypair,
    pub(super) peer: PeerId,
    pub(super) book: Book,
    pub(super) disk: Disk,
    backups: Vec<Disk>,
    pub(super) restored: bool,
}

struct Packet {
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    net: Vec<Packet>,
    pub(super) now: u64,
    rng: SmallRng,
    faults: Faults,
    pub(super) witness: Witness,
    holds: u64,
    boots: u64,
    /// The one node that has its backups put back.
    forgetful: usize,
    seen: Seen,
    calm: bool,
}

fn network() -> NetworkId {
    NetworkId::from_name("ledger simulation")
}

impl World {
    pub(super) fn run(seed: u64, faults: Faults) -> Result<(), String> {
        let mut world = Self::new(seed, faults);
        world.play()
    }

    pub(super) fn seen(seed: u64, faults: Faults) -> Seen {
        let mut world = Self::new(seed, faults);
        world.play().unwrap();
        world.seen
    }

    fn new(seed: u64, faults: Faults) -> Self {
        super::signatures::begin();
        let mut rng = SmallRng::seed_from_u64(seed);
        let nodes = (0..NODES)
            .map(|i| {
                let keypair = Keypair::ed25519_from_bytes([u8::try_from(i).unwrap() + 1; 32]).unwrap();
                let peer = keypair.public().to_peer_id();
                let book = Book::new(keypair.clone(), network(), Rules::default(), [0; 32]);
                Node { keypair, peer, book, disk: Disk::new(), backups: Vec::new(), restored: false }
            })
            .collect();
        let forgetful = rng.random_range(0..NODES);
        let mut world = Self {
            nodes,
            net: Vec::new(),
            now: 1_700_000_000_000,
            rng,
            faults,
            witness: Witness::default(),
            holds: 0,
            boots: 0,
            forgetful,
            seen: Seen::default(),
            calm: false,
        };
        for i in 0..NODES {
            world.boot(i).unwrap();
        }
        world
    }

    fn play(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.now += self.rng.random_range(1..STEP_MS);
            self.step()?;
            self.witness.check(&self.nodes)?;
        }
        self.quiesce()
    }

    fn pair(&mut self) -> (usize, usize) {
        let a = self.rng.random_range(0..NODES);
        (a, (a + self.rng.random_range(1..NODES)) % NODES)
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..1000) {
            0..550 => (0..self.rng.random_range(1..6)).try_for_each(|_| self.deliver()),
            550..670 => self.hold(),
            670..720 => self.redeem(),
            720..870 => self.work(),
            870..890 => self.promise(),
            890..900 => {
                let i = self.rng.random_range(0..NODES);
                let disk = self.nodes[i].disk.clone();
                self.nodes[i].backups.push(disk);
                Ok(())
            }
            900..910 if self.faults.crashes => {
                let i = self.rng.random_range(0..NODES);
                self.crash(i)
            }
            910..980 => {
                // Whoever hears nothing connects again; now and then others do.
                let (a, b) = self.pair();
                let peer = self.nodes[b].peer;
                let live = self.nodes[a].book.account(&peer, UNIT).is_some_and(|account| account.live);
                if live && self.rng.random_range(0..20) > 0 { Ok(()) } else { self.connect(a, b) }
            }
            _ => {
                let i = self.rng.random_range(0..NODES);
                let out = self.nodes[i].book.expire(self.now);
                self.apply(i, out)
            }
        }
    }

    fn deliver(&mut self) -> Result<(), String> {
        if self.net.is_empty() {
            return Ok(());
        }
        // Mostly in some order, sometimes long after.
        let near = if self.rng.random_range(0..10) == 0 { self.net.len() } else { self.net.len().min(6) };
        let at = self.rng.random_range(0..near);
        let fate = self.rng.random_range(0..100);
        let packet = if fate < 15 && !self.calm {
            self.seen.lost += 1;
            self.net.remove(at);
            return Ok(());
        } else if fate < 30 && !self.calm {
            self.seen.repeated += 1;
            let Packet { from, to, bytes } = &self.net[at];
            Packet { from: *from, to: *to, bytes: bytes.clone() }
        } else {
            self.net.remove(at)
        };
        self.receive(packet.from, packet.to, &packet.bytes)
    }

    fn receive(&mut self, from: usize, to: usize, bytes: &[u8]) -> Result<(), String> {
        let peer = self.nodes[from].peer;
        let before = self.nodes[to].book.accounts().collect::<Vec<_>>();
        match self.nodes[to].book.receive(self.now, peer, bytes) {
            Ok(out) => {
                self.witness.admitted(&self.nodes[to].book, &out)?;
                let first = self.nodes[to].book.accounts().collect::<Vec<_>>();
                self.apply(to, out)?;
                // The same packet again changes nothing.
                if first == self.nodes[to].book.accounts().collect::<Vec<_>>()
                    && let Ok(out) = self.nodes[to].book.receive(self.now, peer, bytes)
                {
                    let second = self.nodes[to].book.accounts().collect::<Vec<_>>();
                    if first != second {
                        return Err(format!("a packet counts twice: {first:?} {second:?}"));
                    }
                    self.apply(to, out)?;
                }
                Ok(())
            }
            Err(rejected) => {
                if before != self.nodes[to].book.accounts().collect::<Vec<_>>() {
                    return Err(format!("a packet that was not taken ({rejected}) changed something"));
                }
                if rejected.is_fault() {
                    return Err(format!("an honest node is blamed: {rejected}"));
                }
                Ok(())
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) -> Result<(), String> {
        for (a, b) in [(a, b), (b, a)] {
            let peer = self.nodes[b].peer;
            let out = self.nodes[a].book.connected(peer, UNIT);
            self.apply(a, out)?;
        }
        Ok(())
    }

    fn hold(&mut self) -> Result<(), String> {
        let (a, b) = self.pair();
        self.holds += 1;
        let mut hold = [0; 16];
        hold[..8].copy_from_slice(&self.holds.to_le_bytes());
        let terms = HoldTerms {
            hold: HoldId(hold),
            max: self.rng.random_range(1..60),
            job_hash: Hash([1; 32]),
            expires_at: self.now + self.rng.random_range(1..600_000),
            due_days: 1,
        };
        let peer = self.nodes[b].peer;
        let result = self.nodes[a].book.hold(self.now, peer, UNIT, terms);
        self.commanded(a, result)
    }

    fn promise(&mut self) -> Result<(), String> {
        let (a, b) = self.pair();
        let (peer, amount) = (self.nodes[b].peer, self.rng.random_range(1..20));
        let result = self.nodes[a].book.promise(self.now, peer, UNIT, amount, self.now);
        self.commanded(a, result)
    }

    fn redeem(&mut self) -> Result<(), String> {
        let (a, b) = self.pair();
        let peer = self.nodes[b].peer;
        let open = self.nodes[a]
            .book
            .account(&peer, UNIT)
            .map_or(0, |account| account.received.saturating_sub(account.redeemed));
        // Sometimes more than there is.
        let amount = self.rng.random_range(1..open + 10);
        let result = self.nodes[a].book.redeem(self.now, peer, UNIT, amount, (1, Hash::ZERO));
        self.commanded(a, result)
    }

    /// Somebody finishes a job, sends a voucher, pays, or takes a hold back.
    fn work(&mut self) -> Result<(), String> {
        let i = self.rng.random_range(0..NODES);
        let unfinished: Vec<_> = self.nodes[i].book.unfinished().collect();
        if let Some(&(peer, hold, _, max)) = unfinished.choose(&mut self.rng) {
            let price = self.rng.random_range(0..=max);
            let result = self.nodes[i].book.finish(peer, hold, price, Hash([2; 32]));
            self.commanded(i, result)?;
        }
        let unpaid: Vec<_> = self.nodes[i].book.unpaid().collect();
        if let Some(&(peer, hold, price)) = unpaid.choose(&mut self.rng) {
            let result = match self.rng.random_range(0..10) {
                0 => self.nodes[i].book.void(peer, Side::Mine, hold),
                1..4 => self.nodes[i].book.voucher(peer, hold, 1, price / 2),
                _ => self.nodes[i].book.pay(self.now, peer, hold, price, Hash([2; 32])),
            };
            self.commanded(i, result)?;
        }
        Ok(())
    }

    fn commanded(&mut self, i: usize, result: Result<Outcome, Refusal>) -> Result<(), String> {
        match result {
            Ok(out) => self.apply(i, out),
            Err(Refusal::Frozen) => Err("an account between honest nodes is frozen".into()),
            Err(_) => Ok(()),
        }
    }

    /// What a node's owner does with an outcome: first the disk, then the network.
    fn apply(&mut self, i: usize, out: Outcome) -> Result<(), String> {
        let fate = if self.faults.crashes && !self.calm { self.rng.random_range(0..400) } else { 400 };
        if self.faults.send_first {
            let disk = self.nodes[i].disk.clone();
            self.commit(i, &out);
            self.send(i, &out)?;
            if !out.writes.is_empty() && fate < 20 {
                self.seen.before_commit += 1;
                self.nodes[i].disk = disk;
                return self.boot(i);
            }
            return self.tell(i, out);
        }
        if !out.writes.is_empty() && fate < 6 {
            // The transaction is lost, or failed: either way this process signs nothing more.
            if fate < 3 {
                self.seen.before_commit += 1;
            } else {
                self.seen.disk_errors += 1;
            }
            return self.boot(i);
        }
        self.commit(i, &out);
        if !out.writes.is_empty() && fate < 10 {
            self.seen.after_commit += 1;
            return self.boot(i);
        }
        self.send(i, &out)?;
        self.tell(i, out)
    }

    fn commit(&mut self, i: usize, out: &Outcome) {
        let disk = &mut self.nodes[i].disk;
        for write in &out.writes {
            match write {
                Write::Put(key, value) => drop(disk.insert(*key, value.clone())),
                Write::Delete(key) => drop(disk.remove(key)),
                Write::Prune(lane, side, peer, unit) => {
                    let of_lane =
                        Key::Step(*lane, *side, *peer, *unit, 0)..=Key::Step(*lane, *side, *peer, *unit, u64::MAX);
                    let keys: Vec<_> = disk.range(of_lane).map(|(key, _)| *key).collect();
                    for key in keys.iter().rev().skip(KEPT_STEPS) {
                        disk.remove(key);
                    }
                }
            }
        }
    }

    fn send(&mut self, i: usize, out: &Outcome) -> Result<(), String> {
        for send in &out.sends {
            let disk = &self.nodes[i].disk;
            let Some(bytes) = send.render(|key| disk.get(key).cloned()) else { continue };
            self.witness.left(&self.nodes[i], &bytes)?;
            let to = self.nodes.iter().position(|node| node.peer == send.to).unwrap();
            self.net.push(Packet { from: i, to, bytes });
        }
        Ok(())
    }

    fn tell(&mut self, i: usize, out: Outcome) -> Result<(), String> {
        for &(peer, _, ref event) in &out.events {
            match event {
                Event::SelfRecovered => {
                    self.seen.recovered += 1;
                    if !self.nodes[i].restored && !self.faults.send_first {
                        return Err("a node that lost nothing recovers something".into());
                    }
                }
                Event::NoteArrived { id, hold, .. } => {
                    self.seen.notes += 1;
                    self.witness.took(&self.nodes[i], peer, *hold, *id)?;
                }
                Event::RedeemArrived { .. } => self.seen.redeems += 1,
                Event::Frozen(why) => return Err(format!("an honest account is frozen: {why:?}")),
                _ => {}
            }
        }
        for compare in out.compares {
            if let Some(stored) = self.nodes[i].disk.get(&compare.stored).cloned() {
                let out = self.nodes[i].book.compare(&stored, &compare.received);
                self.tell(i, out)?;
            }
        }
        Ok(())
    }

    fn crash(&mut self, i: usize) -> Result<(), String> {
        let restore = self.faults.restores && i == self.forgetful && self.rng.random_range(0..2) == 0;
        if let Some(backup) = self.nodes[i].backups.choose(&mut self.rng).cloned().filter(|_| restore) {
            self.seen.restored += 1;
            self.nodes[i].disk = backup;
            self.nodes[i].restored = true;
        }
        self.boot(i)
    }

    /// A new process with what is on disk.
    fn boot(&mut self, i: usize) -> Result<(), String> {
        self.boots += 1;
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&self.boots.to_le_bytes());
        let node = &mut self.nodes[i];
        let mut book = Book::new(node.keypair.clone(), network(), Rules::default(), secret);
        let Faults { plain_seq, no_gate, no_binding, .. } = self.faults;
        book.ablation = Ablation { no_gate, plain_seq, no_binding };
        for (key, value) in &node.disk {
            book.restore(key, value).map_err(|e| format!("what was written cannot be read: {e}"))?;
        }
        node.book = book;
        let peers: Vec<_> = self.nodes.iter().map(|node| node.peer).collect();
        for (j, peer) in peers.into_iter().enumerate().filter(|(j, _)| *j != i) {
            self.nodes[i].book.set_terms(
                peer,
                UNIT,
                Terms { limit: LIMIT, counted: LIMIT, proven: j == 0, known: j == 0, group: None },
            );
            // A new connection: both notice.
            let calm = std::mem::replace(&mut self.calm, true);
            let result = self.connect(i, j);
            self.calm = calm;
            result?;
        }
        Ok(())
    }

    /// Everything arrives, everybody syncs; then both views of each account are the same.
    fn quiesce(&mut self) -> Result<(), String> {
        self.calm = true;
        for _ in 0..3 {
            for a in 0..NODES {
                for b in 0..a {
                    self.connect(a, b)?;
                }
            }
            let mut left = 100_000;
            while !self.net.is_empty() {
                left -= 1;
                if left == 0 {
                    return Err("two nodes never stop talking".into());
                }
                self.deliver()?;
            }
        }
        self.witness.check(&self.nodes)?;
        self.witness.settled(&self.nodes)?;
        self.now += 4 * 3600 * 1000;
        for i in 0..NODES {
            for _ in 0..2 {
                let out = self.nodes[i].book.expire(self.now);
                self.apply(i, out)?;
                self.now += 3600 * 1000;
            }
        }
        self.witness.at_rest(&self.nodes)
    }
}
