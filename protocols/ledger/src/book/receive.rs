//! What peers send.

use std::collections::btree_map::Entry;

use libp2p::PeerId;
use quelea_wire::envelope::{EnvelopeError, Signer};

use super::{
    Body, Book, Compare, Event, FrozenWhy, HoldState, KEPT_STEPS, Key, Lane, MAX_UNNAMED, Outcome, Side, Write,
    row::HoldRow,
};
use crate::{
    evidence::{self, Offence},
    fields::{DecodeError, Hash, HoldId, Nonce, Raw, Unit, encode, is_ed25519},
    message::{self, Ack, Message, MessageError, Note, Redeem, SignedMessage, Void},
    packet::{Content, Head, Packet},
};

/// Why a packet is not taken, and who is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// Not a packet.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message that is not believed.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Signed by somebody else than who sent it.
    #[error("a message that somebody else has signed")]
    Signer,
    /// For somebody else, or not for a creditor to sign, or not for a debtor.
    #[error("a message that is not about this account")]
    Account,
    /// Of a session that is over, or of none: nobody is to blame.
    #[error("a message of another session")]
    Session,
    /// There are as many accounts as there may be: nobody is to blame.
    #[error("there is no room for another account")]
    Full,
    /// Its numbers cannot be.
    #[error("{0}")]
    Numbers(&'static str),
}

impl Rejected {
    /// Whether an honest peer never sends it.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Session | Self::Full)
    }
}

impl Book {
    /// A packet from a peer.
    ///
    /// # Errors
    /// When it is not taken; nothing has changed then.
    pub fn receive(&mut self, now: u64, peer: PeerId, packet: &[u8]) -> Result<Outcome, Rejected> {
        if peer == self.local || !is_ed25519(&peer) {
            return Err(Rejected::Account);
        }
        let Packet { from, to, content } = Packet::decode(packet)?;
        let mut out = Outcome::default();
        match content {
            Content::Sync(sync) => {
                let key = (peer, sync.unit);
                // Accounts in other units are made by this node's side only, or a peer could make any number of them.
                if sync.unit != Unit::CREDIT && !self.pairs.contains_key(&key) {
                    return Err(Rejected::Account);
                }
                self.synced(key, from, to, &sync, &mut out);
            }
            Content::Signed(raw) => {
                // The cheap check comes before the signature. A peer's sessions are one for each unit.
                if !self.has_session(peer, from, to) {
                    return Err(Rejected::Session);
                }
                let signed = self.open(peer, &raw)?;
                self.take(now, peer, (from, to), signed, &mut out)?;
            }
        }
        Ok(out)
    }

    /// A message of the peer's: what others have signed is not looked at.
    fn open(&mut self, peer: PeerId, raw: &Raw) -> Result<SignedMessage, Rejected> {
        let signer = match self.signers.entry(peer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Signer::of(peer).map_err(|_| Rejected::Account)?),
        };
        SignedMessage::open_by(&raw.0, &self.network, signer).map_err(|why| match why {
            MessageError::Envelope(EnvelopeError::Signer) => Rejected::Signer,
            why => why.into(),
        })
    }

    fn has_session(&self, peer: PeerId, from: Nonce, to: Nonce) -> bool {
        let mut of_peer = self.pairs.range((peer, Unit(0))..=(peer, Unit(u32::MAX)));
        of_peer.any(|(key, _)| self.is_current(*key, from, to))
    }

    fn take(
        &mut self,
        now: u64,
        peer: PeerId,
        (from, to): (Nonce, Nonce),
        signed: SignedMessage,
        out: &mut Outcome,
    ) -> Result<(), Rejected> {
        let local = self.local;
        let about_us = |unit, us: PeerId| if us == local { Ok((peer, unit)) } else { Err(Rejected::Account) };
        // Evidence is believed for what it shows, whoever signs the letter around it.
        if signed.signer != peer {
            return Err(Rejected::Signer);
        }
        let key = match &signed.message {
            Message::Grant(m) => about_us(m.unit, m.debtor)?,
            Message::Hold(m) => about_us(m.unit, m.creditor)?,
            Message::Note(m) => about_us(m.unit, m.creditor)?,
            Message::Redeem(m) => about_us(m.unit, m.debtor)?,
            Message::RedeemRequest(m) => about_us(m.unit, m.debtor)?,
            Message::Result(m) => self.known_hold(Side::Mine, peer, m.hold)?,
            Message::Voucher(m) => self.known_hold(Side::Theirs, peer, m.hold)?,
            Message::Void(m) => {
                self.known_hold(Side::Mine, peer, m.hold).or_else(|_| self.known_hold(Side::Theirs, peer, m.hold))?
            }
            Message::Ack(_) | Message::Evidence(_) | Message::DefaultClaim(_) => self.session_key(peer, from, to)?,
        };
        if !self.is_current(key, from, to) {
            return Err(Rejected::Session);
        }
        match signed.message.clone() {
            Message::Grant(m) => {
                out.events.push((key.0, key.1, Event::Granted { limit: m.limit, not_after: m.not_after }));
            }
            Message::Hold(m) => self.hold_came(now, key, &m, &signed, out)?,
            Message::Result(m) => self.result_came(key, &m, &signed, out)?,
            Message::Voucher(m) => self.voucher_came(key, &m, &signed, out)?,
            Message::Note(m) => self.note_came(key, &m, &signed, out)?,
            Message::Ack(m) => self.ack_came(key, &m, &signed, out)?,
            Message::Void(m) => self.void_came(key, &m, out),
            Message::Redeem(m) => self.redeem_came(key, &m, &signed, out)?,
            Message::RedeemRequest(m) => {
                let event = Event::RedeemRequested { amount: m.amount, deadline: m.deadline };
                out.events.push((key.0, key.1, event));
            }
            Message::Evidence(m) => self.evidence_came(&m, out)?,
            Message::DefaultClaim(m) => {
                out.events.push((key.0, key.1, Event::DefaultClaimed { debtor: m.debtor, overdue: m.overdue }));
            }
        }
        Ok(())
    }

    fn known_hold(&self, side: Side, peer: PeerId, hold: HoldId) -> Result<(PeerId, Unit), Rejected> {
        // Ours may have been forgotten after a sync; nobody is to blame.
        self.find(side, peer, hold).map(|(key, _)| key).map_err(|_| Rejected::Session)
    }

    fn session_key(&self, peer: PeerId, from: Nonce, to: Nonce) -> Result<(PeerId, Unit), Rejected> {
        let mut of_peer = self.pairs.range((peer, Unit(0))..=(peer, Unit(u32::MAX)));
        of_peer.find(|(key, _)| self.is_current(**key, from, to)).map(|(key, _)| *key).ok_or(Rejected::Session)
    }

    fn hold_came(
        &mut self,
        now: u64,
        key: (PeerId, Unit),
        hold: &message::Hold,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) -> Result<(), Rejected> {
        let (peer, unit) = key;
        if hold.hold == HoldId::NONE {
            return Err(Rejected::Numbers("a hold without a name"));
        }
        if let Ok((_, row)) = self.find(Side::Theirs, peer, hold.hold) {
            // It came again. What we answered may be lost.
            if row.is_open() && row.price.is_some() {
                out.sends.extend(self.to(key, Body::Stored(Key::Result(Side::Theirs, peer, hold.hold))));
            }
            return Ok(());
        }
        if let Err(why) = self.admit(key, hold, now) {
            out.events.push((peer, unit, Event::HoldRefused { hold: hold.hold, why }));
            let refusal = self.sign(Void { hold: hold.hold, reason: 1 });
            out.sends.extend(refusal.and_then(|signed| self.to(key, Body::Raw(signed.raw()))));
            return Ok(());
        }
        let row = HoldRow {
            peer,
            unit,
            hold: hold.hold,
            max: hold.max,
            job_hash: hold.job_hash,
            expires_at: hold.expires_at,
            due_days: hold.due_days,
            state: 0,
            price: None,
            voucher: 0,
        };
        out.writes.push(Write::Put(Key::HoldMessage(Side::Theirs, peer, hold.hold), signed.raw().0));
        self.put_hold(Side::Theirs, row, out);
        let event = Event::HoldOpened { hold: hold.hold, max: hold.max, job_hash: hold.job_hash };
        out.events.push((peer, unit, event));
        Ok(())
    }

    fn result_came(
        &mut self,
        key: (PeerId, Unit),
        result: &message::JobResult,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) -> Result<(), Rejected> {
        let (_, mut row) = self.find(Side::Mine, key.0, result.hold).map_err(|_| Rejected::Session)?;
        if result.price > row.max {
            return Err(Rejected::Numbers("a price above what is reserved"));
        }
        if row.is_open() && row.price.is_none() {
            row.price = Some(result.price);
            out.writes.push(Write::Put(Key::Result(Side::Mine, key.0, result.hold), signed.raw().0));
            self.put_hold(Side::Mine, row, out);
            let (hold, price, result_hash) = (result.hold, result.price, result.result_hash);
            out.events.push((key.0, key.1, Event::ResultArrived { hold, price, result_hash }));
        }
        Ok(())
    }

    pub(super) fn voucher_came(
        &mut self,
        key: (PeerId, Unit),
        voucher: &message::Voucher,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) -> Result<(), Rejected> {
        let (_, mut row) = self.find(Side::Theirs, key.0, voucher.hold).map_err(|_| Rejected::Session)?;
        if voucher.cumulative > row.max {
            return Err(Rejected::Numbers("a voucher above what is reserved"));
        }
        if row.is_open() && voucher.cumulative > row.voucher {
            row.voucher = voucher.cumulative;
            out.writes.push(Write::Put(Key::Voucher(Side::Theirs, key.0, voucher.hold), signed.raw().0));
            self.put_hold(Side::Theirs, row, out);
            let event = Event::VoucherArrived { hold: voucher.hold, cumulative: voucher.cumulative };
            out.events.push((key.0, key.1, event));
        }
        Ok(())
    }

    fn note_came(
        &mut self,
        key: (PeerId, Unit),
        note: &Note,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) -> Result<(), Rejected> {
        let (peer, unit) = key;
        let last = self.changing(key, |pair| pair.row.received);
        if note.seq <= last.seq {
            if self.overtaken(key, note, signed, out)? {
                while let Some(before) = self.named_now(key) {
                    let Message::Note(note) = &before.message else { continue };
                    // Were it wrong, what came now would still be right.
                    self.overtaken(key, note, &before, out).ok();
                }
                return Ok(());
            }
            self.changing(key, |pair| {
                if !pair.overtaken.is_empty() && pair.unnamed.len() < MAX_UNNAMED && !pair.unnamed.contains(signed) {
                    pair.unnamed.push(signed.clone());
                }
            });
            self.older(Lane::Note, key, (note.seq, last), signed, out);
            return Ok(());
        }
        let follows = note.prev == last.hash;
        if follows && last.total.checked_add(note.delta) != Some(note.issued) || note.delta > note.issued {
            return Err(Rejected::Numbers("a note whose step is not the difference to the note before"));
        }
        if note.issued < last.total {
            // It may have lost something; what it is shown in the next sync is its own newest note.
            return Err(Rejected::Numbers("a note that promises less than the one before"));
        }
        if self.is_full_for(key) {
            return Err(Rejected::Full);
        }
        let head = Head { seq: note.seq, hash: signed.id(), total: note.issued };
        self.step(Lane::Note, Side::Theirs, key, head, signed, out);
        if !follows {
            self.comes_before(key, note);
        }
        self.settle_theirs(key, note.hold, out);
        // Notes in between may have been lost: the counter says by how much it rose for us.
        let delta = note.issued.saturating_sub(last.total);
        let own = note.delta.min(delta);
        let event = Event::NoteArrived { id: signed.id(), delta, own, hold: note.hold, due_at: note.due_at };
        out.events.push((peer, unit, event));
        self.acknowledge(key, note.seq, signed.id(), out);
        Ok(())
    }

    /// A note settles its hold.
    fn settle_theirs(&mut self, key: (PeerId, Unit), hold: HoldId, out: &mut Outcome) {
        let row = self.pairs.get(&key).and_then(|pair| pair.incoming.get(&hold)).cloned();
        if let Some(mut row) = row.filter(|row| row.state() != HoldState::Settled) {
            row.end(HoldState::Settled);
            self.put_hold(Side::Theirs, row, out);
            let event = Event::HoldEnded { side: Side::Theirs, hold, state: HoldState::Settled };
            out.events.push((key.0, key.1, event));
        }
    }

    /// Remembers which note comes before one whose predecessor is not here.
    fn comes_before(&mut self, key: (PeerId, Unit), note: &Note) {
        if note.prev == Hash::ZERO {
            return;
        }
        self.changing(key, |pair| {
            if pair.overtaken.len() >= KEPT_STEPS {
                pair.overtaken.remove(0);
            }
            pair.overtaken.push((note.prev, note.issued.saturating_sub(note.delta)));
        });
    }

    /// One of the notes that came before anything named them, if it is named by now.
    fn named_now(&mut self, key: (PeerId, Unit)) -> Option<SignedMessage> {
        self.changing(key, |pair| {
            let is_named = |signed: &SignedMessage| pair.overtaken.iter().any(|(name, _)| *name == signed.id());
            let at = pair.unnamed.iter().position(is_named)?;
            Some(pair.unnamed.swap_remove(at))
        })
    }

    /// A note that was overtaken on its way: what it promises is counted already, its hold is not settled yet. Only one that
    /// those after it name is believed, or a debtor could make up notes of before to be rid of holds.
    fn overtaken(
        &mut self,
        key: (PeerId, Unit),
        note: &Note,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) -> Result<bool, Rejected> {
        let (peer, unit) = key;
        let id = signed.id();
        let named = self.pairs.get(&key).and_then(|pair| pair.overtaken.iter().find(|(name, _)| *name == id).copied());
        let Some((_, total)) = named else { return Ok(false) };
        if note.issued != total || note.delta > note.issued {
            return Err(Rejected::Numbers("a note that is not what those after it add to"));
        }
        self.changing(key, |pair| pair.overtaken.retain(|(name, _)| *name != id));
        out.writes.push(Write::Put(Key::Step(Lane::Note, Side::Theirs, peer, unit, note.seq), signed.raw().0));
        out.writes.push(Write::Prune(Lane::Note, Side::Theirs, peer, unit));
        self.comes_before(key, note);
        self.settle_theirs(key, note.hold, out);
        out.events.push((peer, unit, Event::NoteOvertaken { hold: note.hold, delta: note.delta }));
        self.acknowledge(key, note.seq, id, out);
        Ok(true)
    }

    /// An acknowledgement is signed even where nothing else is: it promises nothing.
    fn acknowledge(&self, key: (PeerId, Unit), seq: u64, note: Hash, out: &mut Outcome) {
        let (peer, unit) = key;
        let stored = Key::Step(Lane::Ack, Side::Theirs, peer, unit, seq);
        if let Ok(ack) = self.sign(Ack { note, seq, preimage: None }) {
            out.writes.push(Write::Put(stored, ack.raw().0));
            out.writes.push(Write::Prune(Lane::Ack, Side::Theirs, peer, unit));
            out.sends.extend(self.to(key, Body::Stored(stored)));
        }
    }

    /// A step that is not newer than the last: the same again, or a contradiction.
    fn older(
        &self,
        lane: Lane,
        key: (PeerId, Unit),
        (seq, last): (u64, Head),
        signed: &SignedMessage,
        out: &mut Outcome,
    ) {
        let (peer, unit) = key;
        if seq == last.seq && signed.id() == last.hash {
            if lane == Lane::Note {
                let ack = Key::Step(Lane::Ack, Side::Theirs, peer, unit, seq);
                out.sends.extend(self.to(key, Body::Stored(ack)));
            }
            return;
        }
        let stored = Key::Step(lane, Side::Theirs, peer, unit, seq);
        out.compares.push(Compare { stored, received: signed.raw() });
    }

    /// Compares a step that came with the one that is stored under its number, as an [`Outcome`] asked for.
    pub fn compare(&mut self, stored: &[u8], received: &Raw) -> Outcome {
        let mut out = Outcome::default();
        if let Ok(offence) = evidence::check(stored, &received.0, &self.network) {
            self.proven(&offence, &Raw(stored.to_vec()), received, &mut out);
        }
        out
    }

    fn proven(&mut self, offence: &Offence, a: &Raw, b: &Raw, out: &mut Outcome) {
        let proof = message::Evidence { a: a.clone(), b: b.clone() };
        let bytes = encode(&proof);
        let evidence = Key::Evidence(Hash(*blake3::hash(&bytes).as_bytes()));
        out.writes.push(Write::Put(evidence, bytes));
        let units: Vec<Unit> = self
            .pairs
            .range((offence.signer, Unit(0))..=(offence.signer, Unit(u32::MAX)))
            .map(|(key, _)| key.1)
            .collect();
        for unit in units {
            self.freeze_into((offence.signer, unit), FrozenWhy::Evidence, out);
        }
        let offender = offence.signer;
        out.events.push((offender, offence.unit, Event::Proven { offender, evidence }));
    }

    fn evidence_came(&mut self, proof: &message::Evidence, out: &mut Outcome) -> Result<(), Rejected> {
        let offence = evidence::check(&proof.a.0, &proof.b.0, &self.network)
            .map_err(|_| Rejected::Numbers("evidence that proves nothing"))?;
        // Against oneself: both were signed here, or the key is not one's own any more. Nothing to freeze.
        if offence.signer != self.local {
            self.proven(&offence, &proof.a, &proof.b, out);
        }
        Ok(())
    }

    fn ack_came(
        &self,
        key: (PeerId, Unit),
        ack: &Ack,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) -> Result<(), Rejected> {
        let (peer, unit) = key;
        let Some(issued) = self.pairs.get(&key).map(|pair| pair.row.issued) else { return Ok(()) };
        if ack.seq > issued.seq {
            return Err(Rejected::Numbers("an acknowledgement of a note that there is not"));
        }
        if ack.seq == issued.seq {
            if ack.note != issued.hash {
                return Err(Rejected::Numbers("an acknowledgement of another note"));
            }
            out.writes.push(Write::Put(Key::Step(Lane::Ack, Side::Mine, peer, unit, ack.seq), signed.raw().0));
            out.writes.push(Write::Prune(Lane::Ack, Side::Mine, peer, unit));
        }
        out.events.push((peer, unit, Event::Acknowledged { seq: ack.seq }));
        Ok(())
    }

    fn void_came(&mut self, key: (PeerId, Unit), void: &Void, out: &mut Outcome) {
        self.close_mine(key, void.hold, HoldState::Void, out);
        let row = self.pairs.get(&key).and_then(|pair| pair.incoming.get(&void.hold)).cloned();
        // What has been worked for, or is partly spent, is not taken back.
        if let Some(mut row) = row.filter(|row| row.is_open() && row.price.is_none() && row.voucher == 0) {
            row.end(HoldState::Void);
            self.put_hold(Side::Theirs, row, out);
            let event = Event::HoldEnded { side: Side::Theirs, hold: void.hold, state: HoldState::Void };
            out.events.push((key.0, key.1, event));
        }
    }

    fn redeem_came(
        &mut self,
        key: (PeerId, Unit),
        redeem: &Redeem,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) -> Result<(), Rejected> {
        let (last, issued) = self.changing(key, |pair| (pair.row.discharged, pair.row.issued));
        if redeem.seq <= last.seq {
            self.older(Lane::Redeem, key, (redeem.seq, last), signed, out);
            return Ok(());
        }
        let follows = redeem.prev == last.hash;
        if follows && last.total.checked_add(redeem.delta) != Some(redeem.redeemed) || redeem.delta > redeem.redeemed {
            return Err(Rejected::Numbers("a redeem whose step is not the difference to the one before"));
        }
        if redeem.redeemed < last.total {
            return Err(Rejected::Numbers("a redeem that discharges less than the one before"));
        }
        if redeem.redeemed > issued.total {
            return Err(Rejected::Numbers("a redeem of more than was promised"));
        }
        let head = Head { seq: redeem.seq, hash: signed.id(), total: redeem.redeemed };
        self.step(Lane::Redeem, Side::Theirs, key, head, signed, out);
        let delta = redeem.redeemed.saturating_sub(last.total);
        out.events.push((key.0, key.1, Event::RedeemArrived { id: signed.id(), delta }));
        Ok(())
    }
}
