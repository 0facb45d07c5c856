//! What steps are made of: finding an account or a hold, signing, and moving a counter or a hold on.

use libp2p::PeerId;

use super::{Body, Book, Key, Lane, Outcome, Pair, Refusal, Send, Side, Write, row::HoldRow};
use crate::{
    fields::{HoldId, Unit, encode, is_ed25519},
    message::{Message, SignedMessage},
    packet::Head,
};

impl Book {
    pub(super) fn live(&self, key: (PeerId, Unit)) -> Result<&Pair, Refusal> {
        if key.0 == self.local || !is_ed25519(&key.0) {
            return Err(Refusal::NoAccount);
        }
        let pair = self.pairs.get(&key).ok_or(Refusal::NotLive)?;
        if pair.row.frozen != 0 {
            return Err(Refusal::Frozen);
        }
        #[cfg(test)]
        if self.ablation.no_gate {
            return Ok(pair);
        }
        if pair.session.live { Ok(pair) } else { Err(Refusal::NotLive) }
    }

    pub(super) fn sign(&self, message: impl Into<Message>) -> Result<SignedMessage, Refusal> {
        Ok(SignedMessage::sign(&self.keypair, &self.network, message)?)
    }

    pub(super) fn send(pair: &Pair, body: Body) -> Send {
        Send { to: pair.row.peer, nonces: (pair.session.mine, pair.session.theirs), body }
    }

    pub(super) fn to(&self, key: (PeerId, Unit), body: Body) -> Result<Send, Refusal> {
        self.pairs.get(&key).map(|pair| Self::send(pair, body)).ok_or(Refusal::NotLive)
    }

    /// A hold, whatever its unit is.
    pub(super) fn find(&self, side: Side, peer: PeerId, hold: HoldId) -> Result<((PeerId, Unit), HoldRow), Refusal> {
        let of_peer = self.pairs.range((peer, Unit(0))..=(peer, Unit(u32::MAX)));
        let mut found = of_peer.filter_map(|(key, pair)| {
            let holds = if side == Side::Mine { &pair.outgoing } else { &pair.incoming };
            holds.get(&hold).map(|row| (*key, row.clone()))
        });
        found.next().ok_or(Refusal::NotOpen)
    }

    pub(super) fn put_hold(&mut self, side: Side, row: HoldRow, out: &mut Outcome) {
        let (peer, unit, hold) = (row.peer, row.unit, row.hold);
        out.writes.push(Write::Put(Key::Hold(side, peer, hold), encode(&row)));
        self.timers.insert((row.next_at(), side, peer, unit, hold));
        self.changing((peer, unit), |pair| {
            let holds = if side == Side::Mine { &mut pair.outgoing } else { &mut pair.incoming };
            holds.insert(row);
        });
    }

    pub(super) fn put_pair(&self, key: (PeerId, Unit), out: &mut Outcome) {
        if let Some(pair) = self.pairs.get(&key) {
            out.writes.push(Write::Put(Key::Pair(key.0, key.1), encode(&pair.row)));
        }
    }

    /// Moves a counter to a new step.
    pub(super) fn step(
        &mut self,
        lane: Lane,
        side: Side,
        key: (PeerId, Unit),
        head: Head,
        signed: &SignedMessage,
        out: &mut Outcome,
    ) {
        let (peer, unit) = key;
        out.writes.push(Write::Put(Key::Step(lane, side, peer, unit, head.seq), signed.raw().0));
        out.writes.push(Write::Prune(lane, side, peer, unit));
        self.changing(key, |pair| {
            let row = &mut pair.row;
            let slot = match (lane, side) {
                (Lane::Redeem, Side::Mine) => &mut row.redeemed,
                (Lane::Redeem, Side::Theirs) => &mut row.discharged,
                (_, Side::Mine) => &mut row.issued,
                (_, Side::Theirs) => &mut row.received,
            };
            *slot = head;
        });
        self.put_pair(key, out);
    }
}
