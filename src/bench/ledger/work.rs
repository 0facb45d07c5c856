//! Debtors that sign notes for one creditor.

use std::{collections::VecDeque, thread};

use libp2p::{PeerId, identity::Keypair};
use quelea_ledger::{
    Hash, HoldId, Unit,
    book::{Book, HoldTerms, Outcome, Rules, Send, Terms, Write},
    trust::{Dealing, Policy, Row},
};
use quelea_wire::NetworkId;

use super::super::hop::failed;
use crate::{
    node::StartError,
    storage::{Db, LedgerBatch},
};

/// Any time will do.
pub(super) const NOW: u64 = 1 << 41;
const UNIT: Unit = Unit::CREDIT;
/// What each note promises, in micro-credits.
const AMOUNT: u64 = 1_000;
/// Accounts that are made at a time, and written as one batch by each thread.
const CHUNK: u32 = 256;
/// One account of so many has an open hold.
const HOLD_EACH: u32 = 10;

/// A book and what its debtors have signed for it. The debtors take turns.
pub(super) struct Work {
    pub(super) creditor: Book,
    pub(super) keypair: Keypair,
    pub(super) network: NetworkId,
    /// What arrives.
    pub(super) packets: Vec<(PeerId, Vec<u8>)>,
    /// The notes in them.
    pub(super) envelopes: Vec<Vec<u8>>,
}

pub(super) fn network() -> NetworkId {
    NetworkId::from_name("bench")
}

pub(super) fn nonce_secret() -> [u8; 32] {
    [5; 32]
}

/// The creditor is the same in all books, so that the rows of several make one.
pub(super) fn creditor_key() -> Keypair {
    let mut secret = [7; 32];
    // 32 bytes are a secret of Ed25519 whatever they are.
    Keypair::ed25519_from_bytes(&mut secret).unwrap_or_else(|_| Keypair::generate_ed25519())
}

fn book(keypair: Keypair) -> Book {
    Book::new(keypair, network(), Rules::default(), nonce_secret())
}

impl Work {
    pub(super) fn new(debtors: u32, notes: u32) -> Result<Self, StartError> {
        let keypair = creditor_key();
        let mut creditor = book(keypair.clone());
        let at = keypair.public().to_peer_id();
        let mut all = Vec::new();
        for _ in 0..debtors {
            all.push(Debtor::of(&mut creditor, at)?);
        }
        let (mut packets, mut envelopes) = (Vec::new(), Vec::new());
        for n in (0..debtors).cycle().zip(0..notes).map(|(debtor, _)| debtor) {
            let Some(debtor) = all.get_mut(n as usize) else { continue };
            let outcome = debtor.book.promise(NOW, at, UNIT, AMOUNT, NOW).map_err(failed)?;
            let (packet, envelope) = signed(&outcome)?;
            packets.push((debtor.peer, packet));
            envelopes.push(envelope);
        }
        Ok(Self { creditor, keypair, network: network(), packets, envelopes })
    }
}

/// One who owes, and has a session with the creditor.
struct Debtor {
    peer: PeerId,
    book: Book,
}

impl Debtor {
    fn of(creditor: &mut Book, at: PeerId) -> Result<Self, StartError> {
        let keypair = Keypair::generate_ed25519();
        let peer = keypair.public().to_peer_id();
        let mut debtor = book(keypair);
        creditor.set_terms(peer, UNIT, Terms { limit: u64::MAX, proven: true, ..Terms::default() });
        // Neither has anything of the other's yet, so that nothing is to be looked up for a sync.
        let bytes = |send: &Send| send.render(|_| None);
        let mut packets: VecDeque<_> =
            debtor.connected(at, UNIT).sends.iter().map(|send| (true, bytes(send))).collect();
        while let Some((there, packet)) = packets.pop_front() {
            let packet = packet.ok_or_else(|| failed("nothing was to be looked up"))?;
            let answer = if there { creditor.receive(NOW, peer, &packet) } else { debtor.receive(NOW, at, &packet) };
            packets.extend(answer.map_err(failed)?.sends.iter().map(|send| (!there, bytes(send))));
        }
        Ok(Self { peer, book: debtor })
    }
}

/// The packet that an outcome sends, and the envelope in it.
fn signed(outcome: &Outcome) -> Result<(Vec<u8>, Vec<u8>), StartError> {
    let stored = |wanted: &_| {
        outcome.writes.iter().find_map(|write| match write {
            Write::Put(key, value) if key == wanted => Some(value.clone()),
            _ => None,
        })
    };
    let send = outcome.sends.first().ok_or_else(|| failed("nothing is sent"))?;
    let packet = send.render(stored).ok_or_else(|| failed("what is sent is not stored"))?;
    let envelope = outcome.writes.iter().find_map(|write| match write {
        Write::Put(_, value) => Some(value.clone()),
        _ => None,
    });
    Ok((packet, envelope.ok_or_else(|| failed("nothing is stored"))?))
}

/// Writes so many accounts to a database, each with a note and its acknowledgement, what dealings have made of trust, and one
/// of ten with a hold.
pub(super) async fn fill(db: &Db, accounts: u32) -> Result<(), StartError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut chunks = (0..accounts.div_ceil(CHUNK)).map(|n| CHUNK.min(accounts - n * CHUNK)).peekable();
    while chunks.peek().is_some() {
        let round: Vec<u32> = chunks.by_ref().take(cores).collect();
        let made: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = round.iter().map(|count| scope.spawn(|| some_accounts(*count))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| failed("a thread has ended"))).collect()
        });
        let mut waiting = Vec::new();
        for batch in made {
            waiting.push(db.ledger_submit(batch??).await.map_err(failed)?);
        }
        for answer in waiting {
            answer.await.map_err(failed)?.map_err(failed)?;
        }
    }
    Ok(())
}

fn some_accounts(count: u32) -> Result<LedgerBatch, StartError> {
    let keypair = creditor_key();
    let at = keypair.public().to_peer_id();
    let mut creditor = book(keypair);
    let mut batch = LedgerBatch::default();
    for n in 0..count {
        let Debtor { peer, book: mut debtor } = Debtor::of(&mut creditor, at)?;
        let mut take = |outcome: Outcome| {
            let packet = signed(&outcome)?.0;
            batch.writes.extend(creditor.receive(NOW, peer, &packet).map_err(failed)?.writes);
            Ok::<_, StartError>(())
        };
        take(debtor.promise(NOW, at, UNIT, AMOUNT, NOW).map_err(failed)?)?;
        if n % HOLD_EACH == 0 {
            let mut hold = [1; 16];
            hold.iter_mut().zip(n.to_le_bytes()).for_each(|(to, from)| *to = from);
            let terms = HoldTerms {
                hold: HoldId(hold),
                max: AMOUNT,
                job_hash: Hash([2; 32]),
                expires_at: NOW + 1_000_000,
                due_days: 30,
            };
            take(debtor.hold(NOW, at, UNIT, terms).map_err(failed)?)?;
        }
        let mut row = Row::default();
        row.deal(Dealing::Redeemed { amount: AMOUNT }, &Policy::default(), NOW);
        batch.trust.push((peer, row));
    }
    Ok(batch)
}
