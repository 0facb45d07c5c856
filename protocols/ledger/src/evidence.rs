//! Proofs against third peers: two envelopes of one signer that cannot both be honest.
//!
//! Only what needs no witness counts. That somebody does not pay, or works badly, cannot be proven and is an opinion.

use libp2p::PeerId;
use quelea_wire::NetworkId;

use crate::{
    fields::Unit,
    message::{Message, MessageError, Note, Redeem, SignedMessage},
};

/// What is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Two different steps of one counter under one number.
    Equivocation,
    /// A later step of a counter with a smaller total. The first time it may be a restored backup; shown the later one,
    /// nobody honest signs another.
    Rollback,
    /// A step that says to follow another and does not add up with it.
    Misstep,
}

/// A proof's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offence {
    /// Who signed both.
    pub signer: PeerId,
    /// To whom both were addressed.
    pub other: PeerId,
    /// In what.
    pub unit: Unit,
    /// What they prove.
    pub kind: Kind,
}

/// Why two envelopes prove nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoEvidence {
    /// One of them is not valid.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Not two steps of one counter.
    #[error("these are not two steps of one counter")]
    Unrelated,
    /// Both can be honest.
    #[error("these two do not contradict each other")]
    Consistent,
}

#[derive(PartialEq, Eq)]
struct Step {
    lane: u8,
    other: PeerId,
    unit: Unit,
}

/// Checks two envelopes, in any order.
///
/// # Errors
/// When they prove nothing.
pub fn check(a: &[u8], b: &[u8], network: &NetworkId) -> Result<Offence, NoEvidence> {
    let (a, b) = (SignedMessage::open(a, network)?, SignedMessage::open(b, network)?);
    let ((step, a_numbers), (other, b_numbers)) = (step_of(&a)?, step_of(&b)?);
    if a.signer != b.signer || step != other {
        return Err(NoEvidence::Unrelated);
    }
    let offence = |kind| Offence { signer: a.signer, other: step.other, unit: step.unit, kind };
    if a.id() == b.id() {
        return Err(NoEvidence::Consistent);
    }
    let (older, newer, older_id) =
        if a_numbers.seq <= b_numbers.seq { (a_numbers, b_numbers, a.id()) } else { (b_numbers, a_numbers, b.id()) };
    if older.seq == newer.seq {
        Ok(offence(Kind::Equivocation))
    } else if newer.prev == older_id && older.total.checked_add(newer.delta) != Some(newer.total) {
        Ok(offence(Kind::Misstep))
    } else if newer.total < older.total {
        Ok(offence(Kind::Rollback))
    } else {
        Err(NoEvidence::Consistent)
    }
}

struct Numbers {
    seq: u64,
    prev: crate::fields::Hash,
    total: u64,
    delta: u64,
}

fn step_of(signed: &SignedMessage) -> Result<(Step, Numbers), NoEvidence> {
    match &signed.message {
        Message::Note(Note { creditor, unit, seq, prev, issued, delta, .. }) => Ok((
            Step { lane: 0, other: *creditor, unit: *unit },
            Numbers { seq: *seq, prev: *prev, total: *issued, delta: *delta },
        )),
        Message::Redeem(Redeem { debtor, unit, seq, prev, redeemed, delta, .. }) => Ok((
            Step { lane: 1, other: *debtor, unit: *unit },
            Numbers { seq: *seq, prev: *prev, total: *redeemed, delta: *delta },
        )),
        _ => Err(NoEvidence::Unrelated),
    }
}
