//! Opening a session: both show what they hold of the other's, and nothing is signed before.

use libp2p::PeerId;

use super::{Body, Book, Event, FrozenWhy, HoldState, Key, Lane, Outcome, Send, Session, Shown, Side};
use crate::{
    fields::{Nonce, Unit, is_ed25519},
    message::{Message, SignedMessage},
    packet::{Head, MAX_HOLDS, MAX_VOUCHERS, Sync},
};

impl Book {
    /// The peer is there: begins a session with it.
    pub fn connected(&mut self, peer: PeerId, unit: Unit) -> Outcome {
        let mut out = Outcome::default();
        if peer == self.local || !is_ed25519(&peer) {
            return out;
        }
        let mine = self.nonce();
        let key = (peer, unit);
        self.changing(key, |pair| pair.session = Session { mine, ..Session::default() });
        out.sends.extend(self.show(key));
        out
    }

    /// The peer is gone. An account in which nothing has ever happened is forgotten.
    pub fn disconnected(&mut self, peer: PeerId) {
        self.signers.remove(&peer);
        let of_peer = (peer, Unit(0))..=(peer, Unit(u32::MAX));
        let keys: Vec<_> = self.pairs.range(of_peer).map(|(key, _)| *key).collect();
        for key in keys {
            self.changing(key, |pair| {
                pair.session = Session::default();
                pair.overtaken.clear();
                pair.unnamed.clear();
            });
            let empty = self.pairs.get(&key).is_some_and(|pair| pair.is_empty());
            if empty {
                self.pairs.remove(&key);
            }
        }
    }

    /// Whether a packet belongs to the session that both have synced.
    pub(super) fn is_current(&self, key: (PeerId, Unit), from: Nonce, to: Nonce) -> bool {
        #[cfg(test)]
        if self.ablation.no_binding {
            return true;
        }
        let session = self.pairs.get(&key).map(|pair| pair.session).unwrap_or_default();
        session.live && session.theirs == from && session.mine == to
    }

    /// Where this node stands with a peer.
    fn show(&self, key: (PeerId, Unit)) -> Option<Send> {
        let (peer, unit) = key;
        let pair = self.pairs.get(&key)?;
        let row = &pair.row;
        let stored = |lane, head: Head| (head.seq > 0).then_some(Key::Step(lane, Side::Theirs, peer, unit, head.seq));
        let open = || pair.incoming.open();
        let shown = Shown {
            unit,
            notes: row.issued,
            redeems: row.redeemed,
            your_note: stored(Lane::Note, row.received),
            your_redeem: stored(Lane::Redeem, row.discharged),
            holds: open().map(|hold| hold.hold).take(MAX_HOLDS).collect(),
            vouchers: open()
                .filter(|hold| hold.voucher > 0)
                .map(|hold| Key::Voucher(Side::Theirs, peer, hold.hold))
                .take(MAX_VOUCHERS)
                .collect(),
        };
        Some(Self::send(pair, Body::Sync(Box::new(shown))))
    }

    /// A sync came. `from` is the peer's nonce, `to` what it has last heard of ours.
    pub(super) fn synced(&mut self, key: (PeerId, Unit), from: Nonce, to: Nonce, sync: &Sync, out: &mut Outcome) {
        let session = self.changing(key, |pair| pair.session);
        let begun = session.mine != Nonce::default();
        if !begun || to != session.mine {
            // The peer begins a session, or this is of one that is over. Only what begins one ends ours, and only if it is
            // new. Everything else changes nothing, and is answered once, by whoever does not know the nonce: were it
            // answered always, or were both to begin anew at every old packet, old packets could keep them at it for ever.
            let begins = to == Nonce::default();
            let known = session.theirs == from;
            if known && !begins {
                return;
            }
            if !begun || begins && !known && session.live {
                let mine = self.nonce();
                self.changing(key, |pair| pair.session = Session { mine, theirs: from, live: false });
            } else if begins && !session.live {
                self.changing(key, |pair| pair.session.theirs = from);
            }
            let mut answer = self.show(key);
            if let Some(send) = &mut answer {
                send.nonces.1 = from;
            }
            out.sends.extend(answer);
            return;
        }
        let again = session.live && session.theirs == from;
        self.adopt(key, Lane::Note, sync.your_note.as_ref().map(|raw| raw.0.as_slice()), out);
        self.adopt(key, Lane::Redeem, sync.your_redeem.as_ref().map(|raw| raw.0.as_slice()), out);
        self.changing(key, |pair| pair.session = Session { mine: session.mine, theirs: from, live: true });
        if !again {
            self.forget_unlisted(key, sync, out);
            self.own_vouchers(key, sync, out);
            // The peer may not know yet that we have heard it.
            out.sends.extend(self.show(key));
            out.events.push((key.0, key.1, Event::Live));
        }
        self.resend_heads(key, sync, out);
    }

    /// A step of ours that the peer shows. If it is newer than what we remember, we have lost something, and go on from
    /// exactly this one: its total stands even where an older memory has a larger one.
    fn adopt(&mut self, key: (PeerId, Unit), lane: Lane, shown: Option<&[u8]>, out: &mut Outcome) {
        let Some(Ok(signed)) = shown.map(|raw| SignedMessage::open(raw, &self.network)) else { return };
        if signed.signer != self.local {
            return;
        }
        let (about, head) = match (&signed.message, lane) {
            (Message::Note(m), Lane::Note) => {
                ((m.creditor, m.unit), Head { seq: m.seq, hash: signed.id(), total: m.issued })
            }
            (Message::Redeem(m), Lane::Redeem) => {
                ((m.debtor, m.unit), Head { seq: m.seq, hash: signed.id(), total: m.redeemed })
            }
            _ => return,
        };
        if about != key {
            return;
        }
        let known = self.changing(key, |pair| if lane == Lane::Note { pair.row.issued } else { pair.row.redeemed });
        if head.seq == known.seq && head.hash != known.hash {
            self.freeze_into(key, FrozenWhy::OwnContradiction, out);
        } else if head.seq > known.seq {
            self.step(lane, Side::Mine, key, head, &signed, out);
            if let Message::Note(note) = &signed.message {
                self.close_mine(key, note.hold, HoldState::Settled, out);
            }
            out.events.push((key.0, key.1, Event::SelfRecovered));
        }
    }

    /// Holds that the creditor does not know any more reserve nothing, and are not paid.
    fn forget_unlisted(&mut self, key: (PeerId, Unit), sync: &Sync, out: &mut Outcome) {
        let Some(pair) = self.pairs.get(&key) else { return };
        let unlisted = pair.outgoing.open().filter(|row| !sync.holds.contains(&row.hold));
        let unlisted: Vec<_> = unlisted.map(|row| row.hold).collect();
        for hold in unlisted {
            self.close_mine(key, hold, HoldState::Void, out);
        }
    }

    pub(super) fn close_mine(
        &mut self,
        key: (PeerId, Unit),
        hold: crate::fields::HoldId,
        state: HoldState,
        out: &mut Outcome,
    ) {
        let row = self.pairs.get(&key).and_then(|pair| pair.outgoing.get(&hold)).filter(|row| row.is_open()).cloned();
        if let Some(mut row) = row {
            row.end(state);
            self.put_hold(Side::Mine, row, out);
            out.events.push((key.0, key.1, Event::HoldEnded { side: Side::Mine, hold, state }));
        }
    }

    /// Vouchers of ours. Those for holds that are open say what is owed for them, also where this node has forgotten that it
    /// signed them; those for holds that we have lost are for people to decide, because we cannot tell whether we have paid.
    fn own_vouchers(&mut self, key: (PeerId, Unit), sync: &Sync, out: &mut Outcome) {
        let mut shown = Vec::new();
        for raw in &sync.vouchers {
            let Ok(signed) = SignedMessage::open(&raw.0, &self.network) else { continue };
            let Message::Voucher(voucher) = signed.message else { continue };
            if signed.signer != self.local {
                continue;
            }
            let (hold, cumulative) = (voucher.hold, voucher.cumulative);
            let known = self.pairs.get(&key).and_then(|pair| pair.outgoing.get(&hold)).cloned();
            match known {
                None => out.events.push((key.0, key.1, Event::UnknownVoucher { hold, cumulative })),
                Some(mut row) if row.is_open() && cumulative <= row.max => {
                    if cumulative > row.voucher {
                        row.voucher = cumulative;
                        self.put_hold(Side::Mine, row, out);
                    }
                    shown.push((hold, cumulative));
                }
                Some(_) => {}
            }
        }
        out.events.push((key.0, key.1, Event::OwnVouchers { shown, all: sync.vouchers.len() < MAX_VOUCHERS }));
    }

    /// What the peer has not got of ours, byte for byte as it was.
    fn resend_heads(&self, key: (PeerId, Unit), sync: &Sync, out: &mut Outcome) {
        let Some(pair) = self.pairs.get(&key) else { return };
        let seq_of = |raw: &Option<crate::fields::Raw>| {
            let opened = raw.as_ref().and_then(|raw| SignedMessage::open(&raw.0, &self.network).ok());
            opened.map_or(0, |signed| match signed.message {
                Message::Note(m) => m.seq,
                Message::Redeem(m) => m.seq,
                _ => 0,
            })
        };
        let (peer, unit) = key;
        for (lane, head, shown) in
            [(Lane::Note, pair.row.issued, &sync.your_note), (Lane::Redeem, pair.row.redeemed, &sync.your_redeem)]
        {
            if head.seq > seq_of(shown) {
                out.sends.push(Self::send(pair, Body::Stored(Key::Step(lane, Side::Mine, peer, unit, head.seq))));
            }
        }
        for row in pair.incoming.open().filter(|row| row.price.is_some()) {
            out.sends.push(Self::send(pair, Body::Stored(Key::Result(Side::Theirs, peer, row.hold))));
        }
    }
}
