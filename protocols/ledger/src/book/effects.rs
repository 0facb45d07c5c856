//! What a step asks of the book's owner.

use libp2p::PeerId;

use super::{FrozenWhy, HoldState, NotTaken};
use crate::{
    fields::{Hash, HoldId, Nonce, Raw, Unit},
    packet::{Content, Head, Packet, Sync},
};

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// This node's.
    Mine,
    /// The peer's.
    Theirs,
}

/// A kind of numbered steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Notes.
    Note,
    /// Redeems.
    Redeem,
    /// Acknowledgements of notes: [`Side`] is the note's.
    Ack,
}

/// The name of a stored row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An account's counters.
    Pair(PeerId, Unit),
    /// A hold that one side has taken out.
    Hold(Side, PeerId, HoldId),
    /// The envelope of a step, by its number.
    Step(Lane, Side, PeerId, Unit, u64),
    /// The envelope of a hold.
    HoldMessage(Side, PeerId, HoldId),
    /// The envelope of its result.
    Result(Side, PeerId, HoldId),
    /// The envelope of its largest voucher.
    Voucher(Side, PeerId, HoldId),
    /// Two envelopes of a peer that contradict each other, by the hash of the pair.
    Evidence(Hash),
}

/// A change of what is stored. All of one step belong into one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A row gets this value.
    Put(Key, Vec<u8>),
    /// A row is gone.
    Delete(Key),
    /// Of these steps only the newest [`super::KEPT_STEPS`] stay.
    Prune(Lane, Side, PeerId, Unit),
}

/// What a packet is to contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// An envelope that is not stored, because losing it costs nothing.
    Raw(Raw),
    /// A stored envelope, byte for byte.
    Stored(Key),
    /// A sync.
    Sync(Box<Shown>),
}

/// What a sync shows: numbers as they are now, and stored envelopes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Of which account.
    pub unit: Unit,
    /// The own newest note.
    pub notes: Head,
    /// The own newest redeem.
    pub redeems: Head,
    /// The peer's newest note.
    pub your_note: Option<Key>,
    /// The peer's newest redeem.
    pub your_redeem: Option<Key>,
    /// The peer's open holds.
    pub holds: Vec<HoldId>,
    /// The peer's vouchers for them.
    pub vouchers: Vec<Key>,
}

/// A packet to send once the step's writes are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// To whom.
    pub to: PeerId,
    pub(super) nonces: (Nonce, Nonce),
    pub(super) body: Body,
}

impl Send {
    /// The packet's bytes, with what is stored; `None` when a stored envelope has been pruned meanwhile.
    #[must_use]
    pub fn render(&self, read: impl Fn(&Key) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let show = |key: &Option<Key>| key.as_ref().and_then(|key| read(key).map(Raw));
        let content = match &self.body {
            Body::Raw(raw) => Content::Signed(raw.clone()),
            Body::Stored(key) => Content::Signed(Raw(read(key)?)),
            Body::Sync(shown) => Content::Sync(Box::new(Sync {
                unit: shown.unit,
                notes: shown.notes,
                redeems: shown.redeems,
                your_note: show(&shown.your_note),
                your_redeem: show(&shown.your_redeem),
                holds: shown.holds.clone(),
                vouchers: shown.vouchers.iter().filter_map(|key| read(key).map(Raw)).collect(),
            })),
        };
        Some(Packet { from: self.nonces.0, to: self.nonces.1, content }.encode())
    }

    /// The stored envelopes that [`Send::render`] reads.
    #[must_use]
    pub fn stored(&self) -> Vec<Key> {
        match &self.body {
            Body::Raw(_) => Vec::new(),
            Body::Stored(key) => vec![*key],
            Body::Sync(shown) => {
                shown.your_note.iter().chain(&shown.your_redeem).chain(&shown.vouchers).copied().collect()
            }
        }
    }

    /// What it contains.
    #[must_use]
    pub fn body(&self) -> &Body {
        &self.body
    }
}

/// Something that its owner may want to know or act on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Both have synced: signing is possible.
    Live,
    /// This node had lost its newest steps; the peer had them.
    SelfRecovered,
    /// The peer says how much this node may owe it.
    Granted {
        /// Micro-credits.
        limit: u64,
        /// Until when.
        not_after: u64,
    },
    /// A hold of the peer is taken: work.
    HoldOpened {
        /// Its name.
        hold: HoldId,
        /// The most that it may cost.
        max: u64,
        /// What is to be done.
        job_hash: Hash,
    },
    /// A hold of the peer is not taken.
    HoldRefused {
        /// Its name.
        hold: HoldId,
        /// Why.
        why: NotTaken,
    },
    /// The peer has done the work of this node's hold: check it, and pay.
    ResultArrived {
        /// Which hold.
        hold: HoldId,
        /// What it costs.
        price: u64,
        /// What came out.
        result_hash: Hash,
    },
    /// More of the peer's hold is spent.
    VoucherArrived {
        /// Which hold.
        hold: HoldId,
        /// How much by now.
        cumulative: u64,
    },
    /// The peer has promised more.
    NoteArrived {
        /// The note's name; what follows from it is done once for each.
        id: Hash,
        /// By how much.
        delta: u64,
        /// How much of that is this note's own; the rest is of notes that did not come.
        own: u64,
        /// The hold that it settles.
        hold: HoldId,
        /// When it is due.
        due_at: u64,
    },
    /// A note came after those that follow it. What it promises was counted with them.
    NoteOvertaken {
        /// The hold that it settles.
        hold: HoldId,
        /// By how much it moved the counter.
        delta: u64,
    },
    /// The peer has this node's note.
    Acknowledged {
        /// The note's number.
        seq: u64,
    },
    /// The peer has discharged more of what this node owes.
    RedeemArrived {
        /// The redeem's name.
        id: Hash,
        /// By how much.
        delta: u64,
    },
    /// The peer would like to be paid.
    RedeemRequested {
        /// Micro-credits.
        amount: u64,
        /// Until when.
        deadline: u64,
    },
    /// A hold has ended.
    HoldEnded {
        /// Whose.
        side: Side,
        /// Which.
        hold: HoldId,
        /// How.
        state: HoldState,
    },
    /// What the peer shows of this node's vouchers for holds that are open here, once for each session and before
    /// [`Live`](Self::Live).
    OwnVouchers {
        /// The holds, each with how much of it is spent.
        shown: Vec<(HoldId, u64)>,
        /// Whether the peer has no others.
        all: bool,
    },
    /// The peer shows a voucher for a hold that this node does not know.
    UnknownVoucher {
        /// Which hold.
        hold: HoldId,
        /// How much.
        cumulative: u64,
    },
    /// Nothing is signed for the peer any more.
    Frozen(FrozenWhy),
    /// A proof against somebody.
    Proven {
        /// Against whom.
        offender: PeerId,
        /// The stored proof.
        evidence: Key,
    },
    /// The peer claims that somebody does not pay. An opinion.
    DefaultClaimed {
        /// Of whom.
        debtor: PeerId,
        /// Micro-credits.
        overdue: u64,
    },
}

/// An older step to compare with the one that is stored: two different ones under one number are a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Where the stored one is, if it still is.
    pub stored: Key,
    /// What came.
    pub received: Raw,
}

/// What a step asks of the book's owner, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Outcome {
    /// To be made durable together.
    pub writes: Vec<Write>,
    /// To be sent after that. Losing any of them costs nothing.
    pub sends: Vec<Send>,
    /// What happened, with whom and in which unit.
    pub events: Vec<(PeerId, Unit, Event)>,
    /// To be looked up; see [`super::Book::compare`].
    pub compares: Vec<Compare>,
}
