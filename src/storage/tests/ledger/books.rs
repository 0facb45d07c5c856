//! Two books that deal with each other, and what each asked to be written, step by step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use libp2p::{PeerId, identity::Keypair};
use quelea_ledger::{
    Hash, HoldId, Unit,
    book::{Book, Event, HoldTerms, KEPT_STEPS, Key, Outcome, Rules, Side, Terms, Write},
};
use quelea_wire::NetworkId;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

const UNIT: Unit = Unit::CREDIT;
/// Where nonces come from: any bytes.
pub(super) const NETWORK_SECRET: [u8; 32] = [9; 32];
/// What each may owe the other.
const LIMIT: u64 = 100_000;
/// So that holds end within a history.
const STEP_MS: u64 = 4_000;

pub(super) fn network() -> NetworkId {
    NetworkId::from_name("storage")
}

/// What one step of one book asked for, and the book after it.
pub(super) struct Step {
    pub(super) node: usize,
    pub(super) writes: Vec<Write>,
    pub(super) book: Book,
}

/// What happened between two nodes.
pub(super) struct History {
    pub(super) keypairs: [Keypair; 2],
    pub(super) peers: [PeerId; 2],
    pub(super) steps: Vec<Step>,
    /// What each has on disk at the end.
    pub(super) rows: [BTreeMap<Key, Vec<u8>>; 2],
    books: [Book; 2],
    packets: VecDeque<(usize, Vec<u8>)>,
    now: u64,
}

impl History {
    /// A history of so many turns, each an act of one of them and all that follows from it.
    pub(super) fn play(seed: u64, turns: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let keypairs = [0, 1].map(|_| Keypair::ed25519_from_bytes(rng.random::<[u8; 32]>()).unwrap());
        let peers = [0, 1].map(|i: usize| keypairs[i].public().to_peer_id());
        let books = [0, 1].map(|i: usize| {
            let mut book = Book::new(keypairs[i].clone(), network(), Rules::default(), NETWORK_SECRET);
            book.set_terms(peers[1 - i], UNIT, terms());
            book
        });
        let (steps, rows, packets) = (Vec::new(), [BTreeMap::new(), BTreeMap::new()], VecDeque::new());
        let mut history = Self { keypairs, peers, steps, rows, books, packets, now: 1 << 40 };
        history.step(0, |book, _, peer| Some(book.connected(peer, UNIT)));
        history.step(1, |book, _, peer| Some(book.connected(peer, UNIT)));
        history.deliver();
        assert!(history.books.iter().all(|book| book.accounts().all(|account| account.live)));
        for _ in 0..turns {
            history.now += rng.random_range(0..STEP_MS);
            let node = rng.random_range(0..2);
            history.act(node, &mut rng);
            history.deliver();
        }
        history
    }

    /// Something that a node does by itself, if it can.
    fn act(&mut self, node: usize, rng: &mut SmallRng) {
        let amount = rng.random_range(1..1_000);
        let hold = HoldId(rng.random());
        let open = self.rows[node].keys().filter_map(|key| match key {
            Key::Hold(side, _, hold) => Some((*side, *hold)),
            _ => None,
        });
        let open: Vec<_> = open.collect();
        let some = (!open.is_empty()).then(|| open[rng.random_range(0..open.len())]);
        let which = rng.random_range(0..10);
        self.step(node, |book, now, peer| match (which, some) {
            (0..=2, _) => {
                let expires_at = now + 60_000;
                let terms = HoldTerms { hold, max: 1_000, job_hash: Hash([3; 32]), expires_at, due_days: 30 };
                book.hold(now, peer, UNIT, terms).ok()
            }
            (3..=4, Some((Side::Theirs, hold))) => book.finish(peer, hold, amount, Hash([4; 32])).ok(),
            (3..=4, Some((Side::Mine, hold))) => book.pay(now, peer, hold, amount, Hash([4; 32])).ok(),
            (5, Some((Side::Mine, hold))) => book.voucher(peer, hold, 1, amount).ok(),
            (5, Some((side, hold))) => book.void(peer, side, hold).ok(),
            (6, _) => Some(book.expire(now)),
            (7, _) => book.redeem(now, peer, UNIT, amount / 4, (1, Hash::ZERO)).ok(),
            _ => book.promise(now, peer, UNIT, amount, now + 1).ok(),
        });
    }

    fn step(&mut self, node: usize, act: impl FnOnce(&mut Book, u64, PeerId) -> Option<Outcome>) {
        let now = self.now;
        let Some(outcome) = act(&mut self.books[node], now, self.peers[1 - node]) else { return };
        let Outcome { writes, sends, events, compares } = outcome;
        assert!(compares.is_empty(), "nobody contradicts himself here");
        let lost = |event: &Event| matches!(event, Event::SelfRecovered | Event::Frozen(_));
        assert!(!events.iter().any(|(_, _, event)| lost(event)), "{events:?}");
        apply(&mut self.rows[node], &writes);
        for send in &sends {
            let packet = send.render(|key| self.rows[node].get(key).cloned()).expect("what is sent is stored");
            self.packets.push_back((1 - node, packet));
        }
        if !writes.is_empty() {
            self.steps.push(Step { node, writes, book: self.books[node].clone() });
        }
    }

    fn deliver(&mut self) {
        while let Some((to, packet)) = self.packets.pop_front() {
            self.step(to, |book, now, peer| book.receive(now, peer, &packet).ok());
        }
    }
}

fn terms() -> Terms {
    Terms { limit: LIMIT, proven: true, ..Terms::default() }
}

/// What a disk does, in the simplest way there is.
pub(super) fn apply(rows: &mut BTreeMap<Key, Vec<u8>>, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Put(key, value) => drop(rows.insert(*key, value.clone())),
            Write::Delete(key) => drop(rows.remove(key)),
            Write::Prune(lane, side, peer, unit) => {
                let name = |seq| Key::Step(*lane, *side, *peer, *unit, seq);
                let all: Vec<Key> = rows.range(name(0)..=name(u64::MAX)).map(|(key, _)| *key).collect();
                for key in all.iter().rev().skip(KEPT_STEPS) {
                    rows.remove(key);
                }
            }
        }
    }
}

/// A book that was read from disk is the one that was in memory, all but what no disk keeps: sessions and terms.
pub(super) fn assert_same(restored: &Book, memory: &Book, peer: PeerId) {
    let mut restored = restored.clone();
    if restored.account(&peer, UNIT).is_some() {
        restored.set_terms(peer, UNIT, terms());
    }
    let mut memory = memory.clone();
    memory.disconnected(peer);
    // Where nothing has happened there is no account on disk, and one with terms only in memory.
    let accounts = |book: &Book| {
        book.accounts().filter(|account| account.issued + account.received + account.held > 0).collect::<Vec<_>>()
    };
    assert_eq!(accounts(&restored), accounts(&memory));
    assert_eq!(restored.pool_exposure(), memory.pool_exposure());
    assert_eq!(restored.unpaid().collect::<Vec<_>>(), memory.unpaid().collect::<Vec<_>>());
    assert_eq!(restored.unfinished().collect::<Vec<_>>(), memory.unfinished().collect::<Vec<_>>());
    // What time does to the holds of one it does to those of the other, in whatever order.
    for now in [0, u64::MAX / 2, u64::MAX] {
        assert_eq!(changed(&restored.expire(now)), changed(&memory.expire(now)));
    }
}

/// The rows that an outcome writes, and whether they are there afterwards.
fn changed(outcome: &Outcome) -> BTreeSet<(Key, bool)> {
    let row = |write: &Write| match write {
        Write::Put(key, _) => Some((*key, true)),
        Write::Delete(key) => Some((*key, false)),
        Write::Prune(..) => None,
    };
    outcome.writes.iter().filter_map(row).collect()
}
