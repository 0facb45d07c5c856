//! The tables of schemas 5 and 6: the book of who owes whom, and what dealings have made of trust.
//!
//! Keys are bytes, numbers in them big-endian so that they sort; a peer is the 38 bytes of an Ed25519 peer id; a side is 0 for
//! this node's and 1 for the peer's; a lane is 0 for notes, 1 for redeems, 2 for acknowledgements of notes.
//!
//! | table                | key                                                                  | value                   |
//! |----------------------|----------------------------------------------------------------------|-------------------------|
//! | `ledger_pair_v1`     | peer ‖ unit u32                                                      | the account's counters  |
//! | `ledger_hold_v1`     | side u8 ‖ peer ‖ hold's id `[16]`                                    | the hold                |
//! | `ledger_step_v1`     | lane u8 ‖ side u8 ‖ peer ‖ unit u32 ‖ seq u64                        | its signed envelope     |
//! | `ledger_message_v1`  | kind u8 (0 hold, 1 result, 2 voucher) ‖ side u8 ‖ peer ‖ hold's id   | its signed envelope     |
//! | `ledger_evidence_v1` | BLAKE3 of the value                                                  | two signed envelopes    |
//! | `trust_v1`           | peer                                                                 | [`Row`]                 |
//! | `ledger_debt_v1`     | peer                                                                 | [`Debt`]                |
//! | `ledger_losses_v1`   | `"days"`                                                             | [`Losses`]              |
//!
//! Values have the one encoding that `quelea_ledger` gives them. A value is checked before it is written, and again when it is
//! read: a damaged row poisons the database.
//!
//! # How much there can be
//!
//! Of each lane, side, peer and unit the newest [`KEPT_STEPS`] envelopes stay, of each account at most 64 open and 1,024 ended
//! holds each way, so that a peer takes up a bounded room whatever it sends. Of evidence there are at most [`EVIDENCE_MAX`]
//! rows: a proof beyond them is not kept, which is logged. Nothing hangs on it: that the offender's accounts are frozen, and its
//! trust gone, is in rows of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use libp2p::PeerId;
use quelea_ledger::{
    DecodeError, HoldId, PEER_BYTES, Unit,
    book::{KEPT_STEPS, Key, Lane, Side, Write},
    overdue::Debt,
    trust::{Losses, Row},
};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata as _, Table, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

use super::{Db, ReadError, WriteError, tables::bad_row, writer};

/// All tables here are of bytes by bytes.
type Bytes = &'static [u8];
type Definition = TableDefinition<'static, Bytes, Bytes>;

/// See the module's table.
pub(super) const PAIRS: Definition = TableDefinition::new("ledger_pair_v1");
/// See the module's table.
pub(super) const HOLDS: Definition = TableDefinition::new("ledger_hold_v1");
/// See the module's table.
pub(super) const STEPS: Definition = TableDefinition::new("ledger_step_v1");
/// See the module's table.
pub(super) const MESSAGES: Definition = TableDefinition::new("ledger_message_v1");
/// See the module's table.
pub(super) const EVIDENCE: Definition = TableDefinition::new("ledger_evidence_v1");
/// See the module's table.
pub(super) const TRUST: Definition = TableDefinition::new("trust_v1");
/// See the module's table.
pub(super) const DEBTS: Definition = TableDefinition::new("ledger_debt_v1");
/// See the module's table.
pub(super) const LOSSES: Definition = TableDefinition::new("ledger_losses_v1");

/// The one key of `ledger_losses_v1`.
const DAYS: &[u8] = b"days";

/// Proofs that are kept: 10 MiB. Names are free, and so are proofs against them; what counts is in the accounts.
pub(super) const EVIDENCE_MAX: u64 = 10_000;

/// What one step of the book, or several, ask for: durable together or not at all.
#[derive(Default, Debug)]
pub(crate) struct LedgerBatch {
    /// Changes of the book, in their order.
    pub(crate) writes: Vec<Write>,
    /// What is known of peers from now on.
    pub(crate) trust: Vec<(PeerId, Row)>,
    /// What of peers' promises is due when, likewise.
    pub(crate) debts: BTreeMap<PeerId, Debt>,
    /// What was lost lately, where that has changed.
    pub(crate) losses: Option<Losses>,
}

/// What a book and its owner begin with.
#[derive(Default, Debug)]
pub(crate) struct LedgerRows {
    /// Accounts and holds, for `Book::restore`.
    pub(crate) rows: Vec<(Key, Vec<u8>)>,
    /// What is known of peers.
    pub(crate) trust: Vec<(PeerId, Row)>,
    /// What of their promises is due when.
    pub(crate) debts: Vec<(PeerId, Debt)>,
    /// What was lost lately.
    pub(crate) losses: Losses,
}

impl LedgerBatch {
    /// Rows that it may change.
    pub(crate) fn rows(&self) -> usize {
        let losses = usize::from(self.losses.is_some());
        [self.trust.len(), self.debts.len(), losses].into_iter().fold(self.writes.len(), usize::saturating_add)
    }

    /// Whether all of it can be read again.
    fn check(&self) -> Result<(), DecodeError> {
        for write in &self.writes {
            if let Write::Put(key, value) = write {
                key.check(value)?;
            }
        }
        let known = |peer: &PeerId| peer.to_bytes().len() == PEER_BYTES;
        if self.trust.iter().map(|(peer, _)| peer).chain(self.debts.keys()).all(known) {
            Ok(())
        } else {
            Err(DecodeError::Field("peer"))
        }
    }
}

impl Db {
    /// Queues a batch, after all that were queued before; the receiver answers once it is durable, in one transaction with
    /// whatever else waits. A receiver that is dropped unanswered means that the database was closed.
    ///
    /// # Errors
    /// When the storage failed before, it is closed, or a row could not be read again; nothing of the batch is written then.
    pub(crate) async fn ledger_submit(
        &self,
        batch: LedgerBatch,
    ) -> Result<oneshot::Receiver<Result<(), WriteError>>, WriteError> {
        self.health()?;
        batch.check().map_err(WriteError::LedgerRow)?;
        let (reply, answer) = oneshot::channel();
        let job = writer::Job::Write(writer::Write::Ledger(Box::new(batch)), Some(reply));
        self.queue.send(job).await.map_err(|_closed| WriteError::Closed)?;
        Ok(answer)
    }

    /// All accounts and holds, trust and losses: read once, at the start.
    ///
    /// # Errors
    /// When the storage fails or a row is damaged (both poison it), or it is closed.
    pub(crate) async fn ledger_load(&self) -> Result<LedgerRows, ReadError> {
        self.read(load).await
    }

    /// Values by key, in the order asked for; `None` where there is no row.
    ///
    /// # Errors
    /// As [`Db::ledger_load`].
    pub(crate) async fn ledger_read(&self, keys: Vec<Key>) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
        self.read(move |txn| {
            keys.iter()
                .map(|key| {
                    let (table, name) = place(key);
                    let row = txn.open_table(table)?.get(name.as_slice())?;
                    row.map(|value| checked(key, value.value())).transpose()
                })
                .collect()
        })
        .await
    }

    /// For people: the envelopes of an account's steps, all lanes and both sides, the highest number first; at most `most`.
    ///
    /// # Errors
    /// As [`Db::ledger_load`].
    pub(crate) async fn ledger_steps(
        &self,
        peer: PeerId,
        unit: Unit,
        most: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, ReadError> {
        self.read(move |txn| {
            let table = txn.open_table(STEPS)?;
            let mut steps = Vec::new();
            for lane in [Lane::Note, Lane::Redeem, Lane::Ack] {
                for side in [Side::Mine, Side::Theirs] {
                    for entry in table.range::<&[u8]>(all_steps(lane, side, &peer, unit).as_bytes())?.rev().take(most) {
                        let (name, value) = entry?;
                        let seq = name.value().last_chunk().map(|seq| u64::from_be_bytes(*seq)).unwrap_or_default();
                        let key = Key::Step(lane, side, peer, unit, seq);
                        steps.push((seq, key, checked(&key, value.value())?));
                    }
                }
            }
            // A note comes before its acknowledgement, which has its number.
            steps.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            Ok(steps.into_iter().take(most).map(|(_, key, value)| (key, value)).collect())
        })
        .await
    }
}

/// The tables while a transaction writes them.
pub(super) struct Tables<'txn> {
    txn: &'txn WriteTransaction,
    pairs: Table<'txn, Bytes, Bytes>,
    holds: Table<'txn, Bytes, Bytes>,
    steps: Table<'txn, Bytes, Bytes>,
    messages: Table<'txn, Bytes, Bytes>,
    evidence: Table<'txn, Bytes, Bytes>,
    /// Steps to prune once all are written: each once, however many a commit has of them.
    prune: BTreeSet<Steps>,
    /// Proofs that were not kept.
    refused: u64,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            txn,
            pairs: txn.open_table(PAIRS)?,
            holds: txn.open_table(HOLDS)?,
            steps: txn.open_table(STEPS)?,
            messages: txn.open_table(MESSAGES)?,
            evidence: txn.open_table(EVIDENCE)?,
            prune: BTreeSet::new(),
            refused: 0,
        })
    }

    /// Makes a batch's changes; `false` when there are none.
    pub(super) fn apply(&mut self, batch: &LedgerBatch) -> Result<bool, redb::Error> {
        for write in &batch.writes {
            match write {
                Write::Put(key, value) => self.put(key, value)?,
                Write::Delete(key) => drop(self.table(key).remove(place(key).1.as_slice())?),
                Write::Prune(lane, side, peer, unit) => drop(self.prune.insert(all_steps(*lane, *side, peer, *unit))),
            }
        }
        if !batch.trust.is_empty() {
            let mut trust = self.txn.open_table(TRUST)?;
            for (peer, row) in &batch.trust {
                trust.insert(peer.to_bytes().as_slice(), row.encode().as_slice())?;
            }
        }
        if !batch.debts.is_empty() {
            let mut debts = self.txn.open_table(DEBTS)?;
            for (peer, debt) in &batch.debts {
                debts.insert(peer.to_bytes().as_slice(), debt.encode().as_slice())?;
            }
        }
        if let Some(losses) = &batch.losses {
            self.txn.open_table(LOSSES)?.insert(DAYS, losses.encode().as_slice())?;
        }
        Ok(batch.rows() > 0)
    }

    fn put(&mut self, key: &Key, value: &[u8]) -> Result<(), redb::Error> {
        let name = place(key).1;
        if matches!(key, Key::Evidence(_)) && self.evidence.len()? >= EVIDENCE_MAX {
            // What is there already is the same, because its name is its hash.
            self.refused = self.refused.saturating_add(u64::from(self.evidence.get(name.as_slice())?.is_none()));
            return Ok(());
        }
        self.table(key).insert(name.as_slice(), value)?;
        Ok(())
    }

    fn table(&mut self, key: &Key) -> &mut Table<'txn, Bytes, Bytes> {
        match key {
            Key::Pair(..) => &mut self.pairs,
            Key::Hold(..) => &mut self.holds,
            Key::Step(..) => &mut self.steps,
            Key::HoldMessage(..) | Key::Result(..) | Key::Voucher(..) => &mut self.messages,
            Key::Evidence(_) => &mut self.evidence,
        }
    }

    /// Of the steps that were written the newest stay.
    pub(super) fn finish(mut self) -> Result<(), redb::Error> {
        if self.refused > 0 {
            tracing::warn!(refused = self.refused, kept = EVIDENCE_MAX, "no more evidence is kept");
        }
        for steps in &self.prune {
            let mut old = Vec::new();
            for entry in self.steps.range::<&[u8]>(steps.as_bytes())?.rev().skip(KEPT_STEPS) {
                old.push(entry?.0.value().to_vec());
            }
            for name in old {
                self.steps.remove(name.as_slice())?;
            }
        }
        Ok(())
    }
}

/// The names of the first and the last step that there can be of a lane, side, peer and unit.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Steps {
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Steps {
    fn as_bytes(&self) -> RangeInclusive<&[u8]> {
        self.first.as_slice()..=self.last.as_slice()
    }
}

fn all_steps(lane: Lane, side: Side, peer: &PeerId, unit: Unit) -> Steps {
    let name = |seq| place(&Key::Step(lane, side, *peer, unit, seq)).1;
    Steps { first: name(0), last: name(u64::MAX) }
}

/// Where a row is: its table and its name there.
fn place(key: &Key) -> (Definition, Vec<u8>) {
    match key {
        Key::Pair(peer, unit) => (PAIRS, [peer.to_bytes().as_slice(), &unit.0.to_be_bytes()].concat()),
        Key::Hold(side, peer, hold) => (HOLDS, of_hold(&[side_byte(*side)], peer, hold)),
        Key::Step(lane, side, peer, unit, seq) => {
            let lane = match lane {
                Lane::Note => 0,
                Lane::Redeem => 1,
                Lane::Ack => 2,
            };
            let peer = peer.to_bytes();
            let name = [&[lane, side_byte(*side)], peer.as_slice(), &unit.0.to_be_bytes(), &seq.to_be_bytes()].concat();
            (STEPS, name)
        }
        Key::HoldMessage(side, peer, hold) => (MESSAGES, of_hold(&[0, side_byte(*side)], peer, hold)),
        Key::Result(side, peer, hold) => (MESSAGES, of_hold(&[1, side_byte(*side)], peer, hold)),
        Key::Voucher(side, peer, hold) => (MESSAGES, of_hold(&[2, side_byte(*side)], peer, hold)),
        Key::Evidence(hash) => (EVIDENCE, hash.0.to_vec()),
    }
}

fn of_hold(head: &[u8], peer: &PeerId, hold: &HoldId) -> Vec<u8> {
    [head, peer.to_bytes().as_slice(), &hold.0].concat()
}

fn side_byte(side: Side) -> u8 {
    match side {
        Side::Mine => 0,
        Side::Theirs => 1,
    }
}

/// A value that was read.
fn checked(key: &Key, value: &[u8]) -> Result<Vec<u8>, redb::Error> {
    key.check(value).map_err(|e| bad_row("row of the ledger", &e))?;
    Ok(value.to_vec())
}

fn load(txn: &ReadTransaction) -> Result<LedgerRows, redb::Error> {
    let mut all = LedgerRows::default();
    for entry in txn.open_table(PAIRS)?.iter()? {
        let (name, value) = entry?;
        let key = pair_key(name.value()).ok_or_else(|| bad_row("account", &"its key has another form"))?;
        all.rows.push((key, checked(&key, value.value())?));
    }
    for entry in txn.open_table(HOLDS)?.iter()? {
        let (name, value) = entry?;
        let key = hold_key(name.value()).ok_or_else(|| bad_row("hold", &"its key has another form"))?;
        all.rows.push((key, checked(&key, value.value())?));
    }
    for entry in txn.open_table(TRUST)?.iter()? {
        let (name, value) = entry?;
        let peer = peer_of(name.value()).ok_or_else(|| bad_row("peer of trust", &"its key has another form"))?;
        all.trust.push((peer, Row::decode(value.value()).map_err(|e| bad_row("row of trust", &e))?));
    }
    for entry in txn.open_table(DEBTS)?.iter()? {
        let (name, value) = entry?;
        let peer = peer_of(name.value()).ok_or_else(|| bad_row("peer of a debt", &"its key has another form"))?;
        all.debts.push((peer, Debt::decode(value.value()).map_err(|e| bad_row("debt", &e))?));
    }
    for entry in txn.open_table(LOSSES)?.iter()? {
        let (name, value) = entry?;
        if name.value() != DAYS {
            return Err(bad_row("list of losses", &"its key has another form"));
        }
        all.losses = Losses::decode(value.value()).map_err(|e| bad_row("list of losses", &e))?;
    }
    Ok(all)
}

fn peer_of(bytes: &[u8]) -> Option<PeerId> {
    PeerId::from_bytes(bytes).ok().filter(|peer| bytes.len() == PEER_BYTES && peer.to_bytes() == bytes)
}

fn pair_key(name: &[u8]) -> Option<Key> {
    let (peer, unit) = name.split_last_chunk::<4>()?;
    Some(Key::Pair(peer_of(peer)?, Unit(u32::from_be_bytes(*unit))))
}

fn hold_key(name: &[u8]) -> Option<Key> {
    let (rest, hold) = name.split_last_chunk::<16>()?;
    let (side, peer) = rest.split_first()?;
    let side = match side {
        0 => Side::Mine,
        1 => Side::Theirs,
        _ => return None,
    };
    Some(Key::Hold(side, peer_of(peer)?, HoldId(*hold)))
}
