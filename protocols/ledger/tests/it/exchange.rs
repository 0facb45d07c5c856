//! Two books that speak to each other, and a third that lies.

use std::collections::BTreeMap;

use libp2p::PeerId;
use quelea_ledger::{
    Hash, HoldId, Unit,
    book::{Book, Event, FrozenWhy, HoldState, HoldTerms, Key, Outcome, Refusal, Rejected, Rules, Side, Terms, Write},
    message::{Message, SignedMessage},
    packet::{Content, Packet},
};

use crate::samples::{keypair, network, note, peer, signed};

const UNIT: Unit = Unit::CREDIT;
const NOW: u64 = 1_800_000_000_000;
const LIMIT: u64 = 1000;

/// A book, and what its owner does with an outcome.
struct Node {
    book: Book,
    peer: PeerId,
    disk: BTreeMap<Key, Vec<u8>>,
    events: Vec<Event>,
}

impl Node {
    fn new(n: u8, process: u8) -> Self {
        let book = Book::new(keypair(n), network(), Rules::default(), [process; 32]);
        Self { book, peer: peer(n), disk: BTreeMap::new(), events: Vec::new() }
    }

    /// A new process with a disk.
    fn restarted(n: u8, process: u8, disk: BTreeMap<Key, Vec<u8>>) -> Self {
        let mut node = Self::new(n, process);
        disk.iter().for_each(|(key, value)| node.book.restore(key, value).unwrap());
        Self { disk, ..node }
    }

    fn trusts(mut self, n: u8, terms: Terms) -> Self {
        self.book.set_terms(peer(n), UNIT, terms);
        self
    }

    /// Writes, and then gives what is to be sent.
    fn apply(&mut self, out: Outcome) -> Vec<Vec<u8>> {
        for write in out.writes {
            match write {
                Write::Put(key, value) => drop(self.disk.insert(key, value)),
                Write::Delete(key) => drop(self.disk.remove(&key)),
                Write::Prune(..) => {}
            }
        }
        self.events.extend(out.events.into_iter().map(|(_, _, event)| event));
        for compare in out.compares {
            if let Some(stored) = self.disk.get(&compare.stored).cloned() {
                let out = self.book.compare(&stored, &compare.received);
                assert!(self.apply(out).is_empty());
            }
        }
        out.sends.iter().filter_map(|send| send.render(|key| self.disk.get(key).cloned())).collect()
    }
}

/// Carries packets both ways until there are none; `a` has sent these.
fn carry(a: &mut Node, b: &mut Node, sent: Vec<Vec<u8>>) {
    let mut ways = [sent, Vec::new()];
    for _ in 0..50 {
        for side in 0..2 {
            for packet in std::mem::take(&mut ways[side]) {
                let (from, to) = if side == 0 { (a.peer, &mut *b) } else { (b.peer, &mut *a) };
                let out = to.book.receive(NOW, from, &packet).unwrap();
                ways[1 - side].extend(to.apply(out));
            }
        }
    }
    assert!(ways.iter().all(Vec::is_empty), "two nodes never stop talking");
}

fn meet(a: &mut Node, b: &mut Node) {
    let out = b.book.connected(a.peer, UNIT);
    let late = b.apply(out);
    let out = a.book.connected(b.peer, UNIT);
    let sent = a.apply(out);
    carry(b, a, late);
    carry(a, b, sent);
    assert!(a.book.account(&b.peer, UNIT).unwrap().live && b.book.account(&a.peer, UNIT).unwrap().live);
}

/// 1 owes, 2 works for it.
fn two() -> (Node, Node) {
    let mut debtor = Node::new(1, 1);
    let mut creditor = Node::new(2, 2).trusts(1, Terms { limit: LIMIT, proven: true, ..Terms::default() });
    meet(&mut debtor, &mut creditor);
    (debtor, creditor)
}

fn terms(n: u64, max: u64) -> HoldTerms {
    let mut hold = [0; 16];
    hold[..8].copy_from_slice(&n.to_le_bytes());
    HoldTerms { hold: HoldId(hold), max, job_hash: Hash([1; 32]), expires_at: NOW + 60_000, due_days: 30 }
}

fn take_out(debtor: &mut Node, creditor: &mut Node, terms: HoldTerms) {
    let out = debtor.book.hold(NOW, creditor.peer, UNIT, terms).unwrap();
    let sent = debtor.apply(out);
    carry(debtor, creditor, sent);
}

fn finish(debtor: &mut Node, creditor: &mut Node, hold: HoldId, price: u64) {
    let out = creditor.book.finish(debtor.peer, hold, price, Hash([2; 32])).unwrap();
    let sent = creditor.apply(out);
    carry(creditor, debtor, sent);
}

/// Pays, and gives what would be sent.
fn pay(debtor: &mut Node, creditor: PeerId, hold: HoldId, price: u64) -> Vec<Vec<u8>> {
    let out = debtor.book.pay(NOW, creditor, hold, price, Hash([2; 32])).unwrap();
    debtor.apply(out)
}

#[test]
fn a_job_is_reserved_done_paid_and_acknowledged() {
    let (mut debtor, mut creditor) = two();
    let terms = terms(1, 200);
    take_out(&mut debtor, &mut creditor, terms);
    assert!(creditor.events.contains(&Event::HoldOpened { hold: terms.hold, max: 200, job_hash: terms.job_hash }));
    assert_eq!(creditor.book.account(&debtor.peer, UNIT).unwrap().held, 200);
    finish(&mut debtor, &mut creditor, terms.hold, 150);
    assert_eq!(debtor.book.unpaid().collect::<Vec<_>>(), [(creditor.peer, terms.hold, 150)]);
    let sent = pay(&mut debtor, creditor.peer, terms.hold, 150);
    carry(&mut debtor, &mut creditor, sent.clone());
    let (owed, owes) =
        (creditor.book.account(&debtor.peer, UNIT).unwrap(), debtor.book.account(&creditor.peer, UNIT).unwrap());
    assert_eq!((owed.owed, owed.held, owes.owed, owes.issued), (150, 0, -150, 150));
    assert!(debtor.events.iter().any(|event| matches!(event, Event::Acknowledged { .. })));
    // Once more changes nothing, and is acknowledged again.
    carry(&mut debtor, &mut creditor, sent);
    assert_eq!(creditor.book.account(&debtor.peer, UNIT), Some(owed));
    assert_eq!(debtor.book.pay(NOW, creditor.peer, terms.hold, 150, Hash::ZERO), Err(Refusal::NotOpen));
    // Discharged in two parts, of which the second is too much.
    let out = creditor.book.redeem(NOW, debtor.peer, UNIT, 100, (1, Hash::ZERO)).unwrap();
    let sent = creditor.apply(out);
    carry(&mut creditor, &mut debtor, sent);
    assert_eq!(debtor.book.account(&creditor.peer, UNIT).unwrap().owed, -50);
    let too_much = creditor.book.redeem(NOW, debtor.peer, UNIT, 51, (1, Hash::ZERO));
    assert_eq!(too_much, Err(Refusal::Amount { most: 50 }));
}

#[test]
fn a_thousand_holds_at_once_never_exceed_the_limit() {
    let (mut debtor, mut creditor) = two();
    let mut sent = Vec::new();
    for n in 1..=1000 {
        if let Ok(out) = debtor.book.hold(NOW, creditor.peer, UNIT, terms(n, 7)) {
            sent.extend(debtor.apply(out));
        }
    }
    // Not only those that an honest debtor would open.
    let nonces = Packet::decode(&sent[0]).unwrap();
    for n in 1001..=2000 {
        let HoldTerms { hold, max, job_hash, expires_at, due_days } = terms(n, 7);
        let body = quelea_ledger::message::Hold {
            unit: UNIT,
            creditor: creditor.peer,
            hold,
            max,
            job_hash,
            expires_at,
            due_days,
        };
        let content = Content::Signed(signed(1, body).raw());
        sent.push(Packet { from: nonces.from, to: nonces.to, content }.encode());
    }
    let mut opened = 0;
    for packet in sent {
        let out = creditor.book.receive(NOW, debtor.peer, &packet).unwrap();
        creditor.apply(out);
        let held = creditor.book.account(&debtor.peer, UNIT).unwrap().held;
        assert!(held <= LIMIT / 4, "{held}: open holds take a quarter of the limit at most");
        opened = held / 7;
    }
    assert_eq!(opened, LIMIT / 4 / 7);
    assert!(creditor.disk.len() < 200, "{} rows", creditor.disk.len());
}

#[test]
fn a_packet_of_another_session_is_not_heard() {
    let (mut debtor, mut creditor) = two();
    let terms = terms(1, 200);
    take_out(&mut debtor, &mut creditor, terms);
    let old = pay(&mut debtor, creditor.peer, terms.hold, 150);
    meet(&mut debtor, &mut creditor);
    // It was resent, byte for byte, in the new session.
    assert_eq!(creditor.book.account(&debtor.peer, UNIT).unwrap().received, 150);
    for packet in old {
        let rejected = creditor.book.receive(NOW, debtor.peer, &packet).unwrap_err();
        assert!(!rejected.is_fault(), "{rejected}");
        let stranger = creditor.book.receive(NOW, peer(3), &packet).unwrap_err();
        assert!(!stranger.is_fault(), "{stranger}");
    }
}

#[test]
fn nothing_is_signed_before_a_sync_and_nothing_when_frozen() {
    let mut debtor = Node::new(1, 1);
    assert_eq!(debtor.book.hold(NOW, peer(2), UNIT, terms(1, 1)), Err(Refusal::NotLive));
    let out = debtor.book.connected(peer(2), UNIT);
    debtor.apply(out);
    assert_eq!(debtor.book.promise(NOW, peer(2), UNIT, 1, NOW), Err(Refusal::NotLive));
    let (mut debtor, creditor) = two();
    let out = debtor.book.freeze(creditor.peer, UNIT, FrozenWhy::Operator);
    debtor.apply(out);
    assert_eq!(debtor.book.promise(NOW, creditor.peer, UNIT, 1, NOW), Err(Refusal::Frozen));
    let again = Node::restarted(1, 9, debtor.disk);
    assert_eq!(again.book.account(&creditor.peer, UNIT).unwrap().frozen, Some(FrozenWhy::Operator));
}

#[test]
fn a_debtor_that_signs_two_stories_is_convicted_and_frozen() {
    let (mut debtor, mut creditor) = two();
    let sent = {
        let out = debtor.book.promise(NOW, creditor.peer, UNIT, 40, NOW).unwrap();
        debtor.apply(out)
    };
    let Packet { from, to, content } = Packet::decode(&sent[0]).unwrap();
    carry(&mut debtor, &mut creditor, sent);
    let Content::Signed(raw) = content else { panic!("a note is signed") };
    let Message::Note(honest) = SignedMessage::open(&raw.0, &network()).unwrap().message else { panic!("a note") };
    let other = signed(1, quelea_ledger::message::Note { issued: 10, delta: 10, ..honest });
    let packet = Packet { from, to, content: Content::Signed(other.raw()) }.encode();
    let out = creditor.book.receive(NOW, debtor.peer, &packet).unwrap();
    assert!(creditor.apply(out).is_empty());
    let account = creditor.book.account(&debtor.peer, UNIT).unwrap();
    assert_eq!((account.frozen, account.received), (Some(FrozenWhy::Evidence), 40), "what it promised stays");
    let proof = creditor.disk.iter().find(|(key, _)| matches!(key, Key::Evidence(_)));
    assert!(proof.is_some(), "the proof is kept");
    assert!(
        creditor.events.iter().any(|event| matches!(event, Event::Proven { offender, .. } if *offender == peer(1)))
    );
    // Nor is it lost with the process.
    let again = Node::restarted(2, 9, creditor.disk);
    assert_eq!(again.book.account(&debtor.peer, UNIT).unwrap().frozen, Some(FrozenWhy::Evidence));
}

#[test]
fn impossible_numbers_are_refused_and_change_nothing() {
    let (mut debtor, mut creditor) = two();
    let out = debtor.book.promise(NOW, creditor.peer, UNIT, 40, NOW).unwrap();
    let sent = debtor.apply(out);
    let Packet { from, to, .. } = Packet::decode(&sent[0]).unwrap();
    carry(&mut debtor, &mut creditor, sent);
    let before = creditor.book.account(&debtor.peer, UNIT);
    let last = SignedMessage::open(&creditor.disk.iter().find_map(stored_note).unwrap(), &network()).unwrap().id();
    for wrong in [
        note(u64::MAX, Hash::ZERO, 39, 1),
        note(u64::MAX, last, 50, 9),
        note(u64::MAX, last, u64::MAX, u64::MAX),
        note(u64::MAX, last, 39, u64::MAX),
        note(NOW * 2, Hash([1; 32]), 10, 11),
    ] {
        let packet = Packet { from, to, content: Content::Signed(signed(1, wrong.clone()).raw()) }.encode();
        let rejected = creditor.book.receive(NOW, debtor.peer, &packet).unwrap_err();
        assert!(rejected.is_fault(), "{wrong:?}: {rejected}");
        assert_eq!(creditor.book.account(&debtor.peer, UNIT), before);
    }
}

fn stored_note((key, value): (&Key, &Vec<u8>)) -> Option<Vec<u8>> {
    matches!(key, Key::Step(quelea_ledger::book::Lane::Note, Side::Theirs, ..)).then(|| value.clone())
}

#[test]
fn an_old_backup_finds_its_own_newest_note_with_the_creditor() {
    let (mut debtor, mut creditor) = two();
    let backup = debtor.disk.clone();
    for n in 1..=3 {
        let terms = terms(n, 50);
        take_out(&mut debtor, &mut creditor, terms);
        let sent = pay(&mut debtor, creditor.peer, terms.hold, 50);
        carry(&mut debtor, &mut creditor, sent);
    }
    let mut restored = Node::restarted(1, 3, backup);
    assert_eq!(restored.book.account(&creditor.peer, UNIT).map_or(0, |account| account.issued), 0);
    meet(&mut restored, &mut creditor);
    assert!(restored.events.contains(&Event::SelfRecovered));
    assert_eq!(restored.book.account(&creditor.peer, UNIT).unwrap().owed, -150);
    let out = restored.book.promise(NOW, creditor.peer, UNIT, 1, NOW).unwrap();
    let sent = restored.apply(out);
    carry(&mut restored, &mut creditor, sent);
    assert_eq!(creditor.book.account(&peer(1), UNIT).unwrap().owed, 151);
    assert!(creditor.book.account(&peer(1), UNIT).unwrap().frozen.is_none());
}

#[test]
fn a_hold_ends_with_its_time_and_can_still_be_paid() {
    let (mut debtor, mut creditor) = two();
    let terms = terms(1, 200);
    take_out(&mut debtor, &mut creditor, terms);
    let late = terms.expires_at + quelea_ledger::book::GRACE_MS;
    for node in [&mut debtor, &mut creditor] {
        let out = node.book.expire(late);
        assert!(node.apply(out).is_empty());
    }
    let ended = Event::HoldEnded { side: Side::Theirs, hold: terms.hold, state: HoldState::Expired };
    assert!(creditor.events.contains(&ended));
    assert_eq!(creditor.book.account(&debtor.peer, UNIT).unwrap().held, 0);
    let sent = pay(&mut debtor, creditor.peer, terms.hold, 120);
    carry(&mut debtor, &mut creditor, sent);
    assert_eq!(creditor.book.account(&debtor.peer, UNIT).unwrap().owed, 120, "value is never refused");
}

#[test]
fn strangers_share_one_pool_however_many_they_are() {
    let rules = Rules { pool: 1000, ..Rules::default() };
    let mut creditor = Node::new(200, 2);
    creditor.book = Book::new(keypair(200), network(), rules, [2; 32]);
    for n in 1..=100 {
        let mut stranger = Node::new(n, n);
        creditor.book.set_terms(peer(n), UNIT, Terms { limit: 400, counted: 400, ..Terms::default() });
        meet(&mut stranger, &mut creditor);
        let out = stranger.book.hold(NOW, creditor.peer, UNIT, terms(u64::from(n), 100)).unwrap();
        let sent = stranger.apply(out);
        carry(&mut stranger, &mut creditor, sent);
        assert!(creditor.book.pool_exposure() <= 1000);
    }
    assert_eq!(creditor.book.pool_exposure(), 1000);
}

/// Promising costs nothing. Who gives away more than anybody would let it owe takes no place of others by that.
#[test]
fn promises_that_nobody_worked_for_take_no_more_of_the_pool_than_debts_may() {
    let rules = Rules { pool: 1000, ..Rules::default() };
    let mut creditor = Node::new(200, 2);
    creditor.book = Book::new(keypair(200), network(), rules, [2; 32]);
    let stranger = Terms { limit: 400, counted: 400, ..Terms::default() };
    let mut generous = Node::new(1, 1);
    creditor.book.set_terms(peer(1), UNIT, stranger);
    meet(&mut generous, &mut creditor);
    let out = generous.book.promise(NOW, creditor.peer, UNIT, u64::MAX, NOW + 1).unwrap();
    let sent = generous.apply(out);
    carry(&mut generous, &mut creditor, sent);
    assert_eq!(creditor.book.account(&generous.peer, UNIT).unwrap().owed, i128::from(u64::MAX), "it owes what it says");
    assert_eq!(creditor.book.pool_exposure(), 400);
    let out = generous.book.hold(NOW, creditor.peer, UNIT, terms(1, 1)).unwrap();
    let sent = generous.apply(out);
    carry(&mut generous, &mut creditor, sent);
    assert_eq!(creditor.book.account(&generous.peer, UNIT).unwrap().held, 0, "and gets nothing for it");
    let mut other = Node::new(3, 3);
    creditor.book.set_terms(peer(3), UNIT, stranger);
    meet(&mut other, &mut creditor);
    take_out(&mut other, &mut creditor, terms(2, 100));
    assert_eq!(creditor.book.account(&other.peer, UNIT).unwrap().held, 100);
}

#[test]
fn accounts_are_bounded_and_those_that_there_are_go_on() {
    let mut creditor = Node::new(200, 2);
    creditor.book = Book::new(keypair(200), network(), Rules { accounts: 10, ..Rules::default() }, [2; 32]);
    let mut nodes = Vec::new();
    for n in 1..=20 {
        let mut node = Node::new(n, n);
        creditor.book.set_terms(peer(n), UNIT, Terms { limit: 400, counted: 400, ..Terms::default() });
        meet(&mut node, &mut creditor);
        let out = node.book.promise(NOW, creditor.peer, UNIT, 5, NOW + 1).unwrap();
        for packet in node.apply(out) {
            let taken = creditor.book.receive(NOW, node.peer, &packet);
            assert_eq!(taken.as_ref().err(), (n > 10).then_some(&Rejected::Full));
            taken.into_iter().for_each(|out| drop(creditor.apply(out)));
        }
        take_out(&mut node, &mut creditor, terms(u64::from(n), 7));
        let held = creditor.book.account(&node.peer, UNIT).unwrap().held;
        assert_eq!(held, if n > 10 { 0 } else { 7 });
        creditor.book.disconnected(node.peer);
        nodes.push(node);
    }
    assert_eq!(creditor.book.accounts().count(), 10);
    // Whoever has one goes on, on a new line too.
    meet(&mut nodes[0], &mut creditor);
    take_out(&mut nodes[0], &mut creditor, terms(100, 9));
    assert_eq!(creditor.book.account(&nodes[0].peer, UNIT).unwrap().held, 16);
}

/// A proof is the longest of all messages: two notes, each whole.
#[test]
fn a_proof_travels_in_a_packet_and_is_believed() {
    let (mut debtor, mut creditor) = two();
    let out = debtor.book.hold(NOW, creditor.peer, UNIT, terms(1, 7)).unwrap();
    let newest = Packet::decode(&debtor.apply(out)[0]).unwrap();
    let [a, b] = [40, 41].map(|issued| signed(3, note(3, Hash::ZERO, issued, issued)).raw());
    let proof = signed(1, quelea_ledger::message::Evidence { a, b }).raw();
    assert!(proof.0.len() > 2 * 300);
    let packet = Packet { content: Content::Signed(proof), ..newest };
    assert_eq!(Packet::decode(&packet.encode()).as_ref(), Ok(&packet));
    let out = creditor.book.receive(NOW, debtor.peer, &packet.encode()).unwrap();
    assert!(creditor.apply(out).is_empty());
    assert!(
        creditor.events.iter().any(|event| matches!(event, Event::Proven { offender, .. } if *offender == peer(3)))
    );
}

#[test]
fn what_a_debtor_has_vouched_for_or_put_down_outlives_its_process() {
    let (mut debtor, mut creditor) = two();
    let holds: Vec<HoldTerms> = (1..=4).map(|n| terms(n, 50)).collect();
    for hold in &holds {
        take_out(&mut debtor, &mut creditor, *hold);
    }
    // A voucher is not stored where it is signed, and is where it is taken; the other is put down and told to nobody.
    for (hold, cumulative) in [(holds[0].hold, 20), (holds[0].hold, 30), (holds[3].hold, 10)] {
        let out = debtor.book.voucher(creditor.peer, hold, 1, cumulative).unwrap();
        let sent = debtor.apply(out);
        carry(&mut debtor, &mut creditor, sent);
    }
    let out = debtor.book.intend(creditor.peer, holds[1].hold, 40).unwrap();
    assert!(debtor.apply(out).is_empty());
    assert_eq!(debtor.book.intend(creditor.peer, holds[1].hold, 51), Err(Refusal::Amount { most: 50 }));
    let out = debtor.book.void(creditor.peer, Side::Mine, holds[3].hold).unwrap();
    debtor.apply(out);
    assert_eq!(debtor.book.intend(creditor.peer, holds[3].hold, 1), Err(Refusal::NotOpen));

    let mut again = Node::restarted(1, 3, debtor.disk.clone());
    let outstanding = |node: &Node| {
        let spent = |(peer, hold)| (hold, node.book.hold_view(Side::Mine, &peer, hold).unwrap().voucher);
        node.book.reserved().map(spent).collect::<Vec<_>>()
    };
    let expected = |first| vec![(holds[0].hold, first), (holds[1].hold, 40), (holds[2].hold, 0)];
    assert_eq!(outstanding(&again), expected(0));
    meet(&mut again, &mut creditor);
    assert_eq!(outstanding(&again), expected(30), "the creditor shows the voucher; what was taken back stays so");
    let sent = pay(&mut again, creditor.peer, holds[1].hold, 40);
    carry(&mut again, &mut creditor, sent);
    assert_eq!(creditor.book.account(&again.peer, UNIT).unwrap().owed, 40);
    assert_eq!(again.book.pay(NOW, creditor.peer, holds[1].hold, 40, Hash::ZERO), Err(Refusal::NotOpen));
    // In the next process nothing of it is outstanding any more.
    let last = Node::restarted(1, 4, again.disk.clone());
    assert!(last.book.reserved().all(|(_, hold)| hold != holds[1].hold));
}

/// Packets overtake each other. Each hold is settled all the same, once, and by nothing that was made up afterwards.
#[test]
fn notes_that_overtake_each_other_settle_all_holds() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (mut debtor, mut creditor) = two();
        let holds = [1, 2, 3].map(|n| terms(n, 50));
        holds.iter().for_each(|hold| take_out(&mut debtor, &mut creditor, *hold));
        let mut notes: Vec<Vec<Vec<u8>>> =
            holds.iter().map(|hold| pay(&mut debtor, creditor.peer, hold.hold, 40)).collect();
        let mut answers = Vec::new();
        for n in order {
            for packet in std::mem::take(&mut notes[n]) {
                let out = creditor.book.receive(NOW, debtor.peer, &packet).unwrap();
                answers.extend(creditor.apply(out));
                // Once more changes nothing.
                let again = creditor.book.receive(NOW, debtor.peer, &packet).unwrap();
                assert!(again.events.is_empty(), "{order:?} {n}: {:?}", again.events);
            }
        }
        let account = creditor.book.account(&debtor.peer, UNIT).unwrap();
        assert_eq!((account.owed, account.held), (120, 0), "{order:?}");
        carry(&mut creditor, &mut debtor, answers);
    }
}

#[test]
fn a_note_of_before_that_nothing_names_settles_nothing() {
    let (mut debtor, mut creditor) = two();
    for n in [1, 2] {
        take_out(&mut debtor, &mut creditor, terms(n, 50));
    }
    // A copy of the debtor, which would rather not pay the second: it signs a note of before the first one's.
    let mut cheat =
        Node { book: debtor.book.clone(), disk: debtor.disk.clone(), events: Vec::new(), peer: debtor.peer };
    let sent = pay(&mut debtor, creditor.peer, terms(1, 50).hold, 40);
    carry(&mut debtor, &mut creditor, sent);
    let out = cheat.book.pay(NOW - 1, creditor.peer, terms(2, 50).hold, 1, Hash([2; 32])).unwrap();
    for packet in cheat.apply(out) {
        let out = creditor.book.receive(NOW, debtor.peer, &packet).unwrap();
        assert!(out.events.is_empty(), "{:?}", out.events);
        creditor.apply(out);
    }
    let account = creditor.book.account(&debtor.peer, UNIT).unwrap();
    assert_eq!((account.owed, account.held), (40, 50));
}
