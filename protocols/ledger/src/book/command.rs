//! What a node does by itself: takes out holds, pays, discharges.

use libp2p::PeerId;

use super::{
    Body, Book, Event, FrozenWhy, HoldState, Key, Lane, MAX_CLOSED_HOLDS, MAX_HOLD_MS, MAX_OPEN_HOLDS, Outcome, Side,
    Terms, Write, row::HoldRow,
};
use crate::{
    fields::{Hash, HoldId, Unit, is_ed25519},
    message::{Grant, Hold, JobResult, MessageError, Note, Redeem, RedeemRequest, Void, Voucher},
    overdue::LONGEST_FOR_WORK_DAYS,
    packet::Head,
};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// What a hold is taken out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldTerms {
    /// Its name: 16 random bytes, never used before.
    pub hold: HoldId,
    /// The most that the job may cost, in micro-credits.
    pub max: u64,
    /// What is to be done.
    pub job_hash: Hash,
    /// When it ends, at most an hour from now.
    pub expires_at: u64,
    /// Days after its note at which the debt is due.
    pub due_days: u16,
}

/// Why this node does not do something itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not synced: nothing is signed yet.
    #[error("the account is not synced with the peer yet")]
    NotLive,
    /// Nothing is signed any more.
    #[error("the account is frozen")]
    Frozen,
    /// Only Ed25519 identities have accounts, and none with oneself.
    #[error("no account is possible with this peer")]
    NoAccount,
    /// No such hold, or it has ended.
    #[error("this hold is not open")]
    NotOpen,
    /// The name is taken.
    #[error("a hold of this name exists")]
    Duplicate,
    /// More than is reserved, promised or possible.
    #[error("the amount is more than {most} micro-credits")]
    Amount {
        /// The most that it can be.
        most: u64,
    },
    /// Ends in the past, or more than an hour from now; or is due later than anything for work.
    #[error("a hold ends within an hour, and is due within {LONGEST_FOR_WORK_DAYS} days")]
    Times,
    /// Too many holds.
    #[error("too many holds of this account are open or have just ended")]
    Count,
    /// A counter would overflow.
    #[error("the counter is full")]
    Overflow,
    /// The message cannot be signed.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Book {
    /// What a debtor may owe from now on. Not stored: it follows from trust, which its owner keeps.
    pub fn set_terms(&mut self, peer: PeerId, unit: Unit, terms: Terms) {
        if peer != self.local && is_ed25519(&peer) {
            self.changing((peer, unit), |pair| pair.terms = terms);
        }
    }

    /// What was lost to unproven debtors lately: it takes up their pool. Not stored, like the terms.
    pub fn set_written_off(&mut self, amount: u64) {
        self.written_off = amount;
    }

    /// Tells a debtor its limit.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn grant(&self, now: u64, peer: PeerId, unit: Unit, not_after: u64) -> Result<Outcome, Refusal> {
        let pair = self.live((peer, unit))?;
        let grant = Grant { unit, debtor: peer, gseq: now, limit: pair.terms.limit, not_after };
        let signed = self.sign(grant)?;
        Ok(Outcome { sends: vec![Self::send(pair, Body::Raw(signed.raw()))], ..Outcome::default() })
    }

    /// Takes out a hold at a creditor.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn hold(&mut self, now: u64, peer: PeerId, unit: Unit, terms: HoldTerms) -> Result<Outcome, Refusal> {
        let HoldTerms { hold, max, job_hash, expires_at, due_days } = terms;
        let key = (peer, unit);
        let pair = self.live(key)?;
        if expires_at <= now || expires_at > now.saturating_add(MAX_HOLD_MS) || due_days > LONGEST_FOR_WORK_DAYS {
            return Err(Refusal::Times);
        }
        if hold == HoldId::NONE || pair.outgoing.contains(&hold) {
            return Err(Refusal::Duplicate);
        }
        let open = pair.outgoing.count_open();
        if open >= MAX_OPEN_HOLDS || pair.outgoing.count() >= MAX_CLOSED_HOLDS.saturating_add(MAX_OPEN_HOLDS) {
            return Err(Refusal::Count);
        }
        let signed = self.sign(Hold { unit, creditor: peer, hold, max, job_hash, expires_at, due_days })?;
        let row = HoldRow { peer, unit, hold, max, job_hash, expires_at, due_days, state: 0, price: None, voucher: 0 };
        let message = Key::HoldMessage(Side::Mine, peer, hold);
        let mut out = Outcome::default();
        out.writes.push(Write::Put(message, signed.raw().0));
        self.put_hold(Side::Mine, row, &mut out);
        out.sends.push(self.to(key, Body::Stored(message))?);
        Ok(out)
    }

    /// The work for a debtor's hold is done, and costs `price`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn finish(&mut self, peer: PeerId, hold: HoldId, price: u64, result_hash: Hash) -> Result<Outcome, Refusal> {
        let (key, mut row) = self.find(Side::Theirs, peer, hold)?;
        if !row.is_open() {
            return Err(Refusal::NotOpen);
        }
        if price > row.max {
            return Err(Refusal::Amount { most: row.max });
        }
        let result = Key::Result(Side::Theirs, peer, hold);
        let mut out = Outcome::default();
        // The first answer stands, also when the work was done twice.
        if row.price.is_none() {
            let signed = self.sign(JobResult { hold, price, result_hash, lock: None })?;
            out.writes.push(Write::Put(result, signed.raw().0));
            row.price = Some(price);
            self.put_hold(Side::Theirs, row, &mut out);
        }
        out.sends.push(self.to(key, Body::Stored(result))?);
        Ok(out)
    }

    /// So much of a hold is spent by now. Not stored before it is sent: vouchers have no number, the largest counts, and
    /// two of them never contradict each other.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn voucher(&mut self, peer: PeerId, hold: HoldId, epoch: u32, cumulative: u64) -> Result<Outcome, Refusal> {
        let (key, mut row) = self.find(Side::Mine, peer, hold)?;
        self.live(key)?;
        if !row.is_open() {
            return Err(Refusal::NotOpen);
        }
        if cumulative > row.max {
            return Err(Refusal::Amount { most: row.max });
        }
        row.voucher = row.voucher.max(cumulative);
        let signed = self.sign(Voucher { hold, epoch, cumulative: row.voucher })?;
        let mut out = Outcome::default();
        self.put_hold(Side::Mine, row, &mut out);
        out.writes.clear();
        out.sends.push(self.to(key, Body::Raw(signed.raw()))?);
        Ok(out)
    }

    /// Puts down that `amount` will be paid for a hold unless it is taken back, without promising it to anybody: what is not
    /// settled when the process ends stands in the [hold](Self::hold_view) in the next one, as if a voucher said so.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn intend(&mut self, peer: PeerId, hold: HoldId, amount: u64) -> Result<Outcome, Refusal> {
        let (_, mut row) = self.find(Side::Mine, peer, hold)?;
        if !row.is_open() {
            return Err(Refusal::NotOpen);
        }
        if amount > row.max {
            return Err(Refusal::Amount { most: row.max });
        }
        row.voucher = row.voucher.max(amount);
        let mut out = Outcome::default();
        self.put_hold(Side::Mine, row, &mut out);
        Ok(out)
    }

    /// Settles a hold with a note over `amount`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn pay(
        &mut self,
        now: u64,
        peer: PeerId,
        hold: HoldId,
        amount: u64,
        result_hash: Hash,
    ) -> Result<Outcome, Refusal> {
        let (key, mut row) = self.find(Side::Mine, peer, hold)?;
        // After its end a debtor may still pay; twice it must not.
        if !matches!(row.state(), HoldState::Open | HoldState::Expired) {
            return Err(Refusal::NotOpen);
        }
        if amount > row.max {
            return Err(Refusal::Amount { most: row.max });
        }
        let due_at = now.saturating_add(u64::from(row.due_days).saturating_mul(DAY_MS));
        let mut out = Outcome::default();
        row.end(HoldState::Settled);
        let job_hash = row.job_hash;
        self.note(now, key, (hold, job_hash, result_hash), amount, due_at, &mut out)?;
        self.put_hold(Side::Mine, row, &mut out);
        out.events.push((peer, key.1, Event::HoldEnded { side: Side::Mine, hold, state: HoldState::Settled }));
        Ok(out)
    }

    /// Promises `amount` for nothing that the ledger knows of.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn promise(
        &mut self,
        now: u64,
        peer: PeerId,
        unit: Unit,
        amount: u64,
        due_at: u64,
    ) -> Result<Outcome, Refusal> {
        let mut out = Outcome::default();
        self.note(now, (peer, unit), (HoldId::NONE, Hash::ZERO, Hash::ZERO), amount, due_at, &mut out)?;
        Ok(out)
    }

    fn note(
        &mut self,
        now: u64,
        key: (PeerId, Unit),
        (hold, job_hash, result_hash): (HoldId, Hash, Hash),
        delta: u64,
        due_at: u64,
        out: &mut Outcome,
    ) -> Result<(), Refusal> {
        let (peer, unit) = key;
        let before = self.live(key)?.row.issued;
        let issued = before.total.checked_add(delta).ok_or(Refusal::Overflow)?;
        let seq = self.next_seq(before.seq, now);
        let note = Note {
            unit,
            creditor: peer,
            seq,
            prev: before.hash,
            issued,
            delta,
            hold,
            job_hash,
            result_hash,
            due_at,
            lock: None,
        };
        let signed = self.sign(note)?;
        let head = Head { seq, hash: signed.id(), total: issued };
        self.step(Lane::Note, Side::Mine, key, head, &signed, out);
        let stored = Key::Step(Lane::Note, Side::Mine, peer, unit, seq);
        out.sends.push(self.to(key, Body::Stored(stored))?);
        Ok(())
    }

    /// Discharges `amount` of what the debtor has promised.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn redeem(
        &mut self,
        now: u64,
        peer: PeerId,
        unit: Unit,
        amount: u64,
        (method, reference): (u8, Hash),
    ) -> Result<Outcome, Refusal> {
        let key = (peer, unit);
        let row = &self.live(key)?.row;
        let (before, received) = (row.redeemed, row.received);
        let most = received.total.saturating_sub(before.total);
        if amount == 0 || amount > most {
            return Err(Refusal::Amount { most });
        }
        let redeemed = before.total.checked_add(amount).ok_or(Refusal::Overflow)?;
        let seq = self.next_seq(before.seq, now);
        let redeem = Redeem {
            unit,
            debtor: peer,
            seq,
            prev: before.hash,
            redeemed,
            delta: amount,
            note_seq_seen: received.seq,
            method,
            reference,
        };
        let signed = self.sign(redeem)?;
        let mut out = Outcome::default();
        self.step(Lane::Redeem, Side::Mine, key, Head { seq, hash: signed.id(), total: redeemed }, &signed, &mut out);
        out.sends.push(self.to(key, Body::Stored(Key::Step(Lane::Redeem, Side::Mine, peer, unit, seq)))?);
        Ok(out)
    }

    /// Asks a debtor to pay.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn request_redeem(
        &self,
        peer: PeerId,
        unit: Unit,
        amount: u64,
        deadline: u64,
        nonce: u64,
    ) -> Result<Outcome, Refusal> {
        let pair = self.live((peer, unit))?;
        let signed = self.sign(RedeemRequest { unit, debtor: peer, amount, deadline, nonce })?;
        Ok(Outcome { sends: vec![Self::send(pair, Body::Raw(signed.raw()))], ..Outcome::default() })
    }

    /// Takes a hold back, or ends one of the debtor's that no work will be done for.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn void(&mut self, peer: PeerId, side: Side, hold: HoldId) -> Result<Outcome, Refusal> {
        let (key, mut row) = self.find(side, peer, hold)?;
        if !row.is_open() {
            return Err(Refusal::NotOpen);
        }
        let signed = self.sign(Void { hold, reason: 0 })?;
        let mut out = Outcome::default();
        row.end(HoldState::Void);
        self.put_hold(side, row, &mut out);
        out.events.push((peer, key.1, Event::HoldEnded { side, hold, state: HoldState::Void }));
        out.sends.push(self.to(key, Body::Raw(signed.raw()))?);
        Ok(out)
    }

    /// From now on nothing is signed for the peer. What it has promised stays.
    pub fn freeze(&mut self, peer: PeerId, unit: Unit, why: FrozenWhy) -> Outcome {
        let mut out = Outcome::default();
        self.freeze_into((peer, unit), why, &mut out);
        out
    }

    pub(super) fn freeze_into(&mut self, key: (PeerId, Unit), why: FrozenWhy, out: &mut Outcome) {
        let frozen = self.changing(key, |pair| {
            let was = pair.row.frozen;
            pair.row.frozen = if was == 0 { why.code() } else { was };
            was == 0
        });
        if frozen {
            self.put_pair(key, out);
            out.events.push((key.0, key.1, Event::Frozen(why)));
        }
    }

    /// What time alone does: holds end, and those that ended long ago are forgotten.
    pub fn expire(&mut self, now: u64) -> Outcome {
        let mut out = Outcome::default();
        while let Some(&due) = self.timers.first().filter(|timer| timer.0 <= now) {
            let (_, side, peer, unit, hold) = due;
            self.timers.remove(&due);
            let Some(pair) = self.pairs.get(&(peer, unit)) else { continue };
            let holds = if side == Side::Mine { &pair.outgoing } else { &pair.incoming };
            let Some(row) = holds.get(&hold).filter(|row| row.next_at() <= now) else { continue };
            if row.is_open() {
                let mut row = row.clone();
                row.end(HoldState::Expired);
                self.put_hold(side, row, &mut out);
                out.events.push((peer, unit, Event::HoldEnded { side, hold, state: HoldState::Expired }));
            } else {
                self.changing((peer, unit), |pair| {
                    let holds = if side == Side::Mine { &mut pair.outgoing } else { &mut pair.incoming };
                    holds.remove(&hold);
                });
                out.writes.extend(
                    [
                        Key::Hold(side, peer, hold),
                        Key::HoldMessage(side, peer, hold),
                        Key::Result(side, peer, hold),
                        Key::Voucher(side, peer, hold),
                    ]
                    .map(Write::Delete),
                );
            }
        }
        out
    }

    /// Holds of this node whose work is done and not paid, with what it costs: what is to be paid after a restart.
    pub fn unpaid(&self) -> impl Iterator<Item = (PeerId, HoldId, u64)> {
        let open = self.pairs.values().flat_map(|pair| pair.outgoing.open());
        open.filter_map(|row| Some((row.peer, row.hold, row.price?)))
    }

    /// Holds of others that nothing has been answered to: what is to be worked for after a restart, with what they are for
    /// and the most that it may cost.
    pub fn unfinished(&self) -> impl Iterator<Item = (PeerId, HoldId, Hash, u64)> {
        let open = self.pairs.values().flat_map(|pair| pair.incoming.open());
        open.filter(|row| row.price.is_none()).map(|row| (row.peer, row.hold, row.job_hash, row.max))
    }
}
