//! What of an account is kept on disk.

use libp2p::PeerId;

use super::{GRACE_MS, Key};
use crate::{
    fields::{DecodeError, Hash, HoldId, Unit, decode, is_ed25519, record},
    message::{self, MAX_ENVELOPE},
    packet::Head,
};

/// Why nothing is signed for a peer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrozenWhy {
    /// It signed two things that contradict each other.
    Evidence,
    /// It does not pay.
    Default,
    /// The operator wants it so.
    Operator,
    /// It shows something that this node has signed and that contradicts what it remembers.
    OwnContradiction,
}

impl FrozenWhy {
    pub(super) fn of(code: u8) -> Option<Self> {
        match code {
            0 => None,
            2 => Some(Self::Default),
            3 => Some(Self::Operator),
            4 => Some(Self::OwnContradiction),
            // A code of a later version freezes as well.
            _ => Some(Self::Evidence),
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Evidence => 1,
            Self::Default => 2,
            Self::Operator => 3,
            Self::OwnContradiction => 4,
        }
    }
}

/// How a hold stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HoldState {
    /// It reserves its maximum.
    Open,
    /// A note has settled it.
    Settled,
    /// It was taken back, not accepted, or forgotten by the other side.
    Void,
    /// Its time is over.
    Expired,
}

record! {
    /// The four counters of an account.
    pub(super) struct PairRow {
        pub(super) peer: PeerId,
        pub(super) unit: Unit,
        /// This node's notes.
        pub(super) issued: Head,
        /// The peer's notes.
        pub(super) received: Head,
        /// This node's redeems, of the peer's notes.
        pub(super) redeemed: Head,
        /// The peer's redeems, of this node's notes.
        pub(super) discharged: Head,
        pub(super) frozen: u8,
    }

    /// A hold, at either side.
    pub(super) struct HoldRow {
        pub(super) peer: PeerId,
        pub(super) unit: Unit,
        pub(super) hold: HoldId,
        pub(super) max: u64,
        pub(super) job_hash: Hash,
        pub(super) expires_at: u64,
        pub(super) due_days: u16,
        pub(super) state: u8,
        /// What the result says that it costs.
        pub(super) price: Option<u64>,
        /// The largest voucher for it.
        pub(super) voucher: u64,
    }
}

impl HoldRow {
    pub(super) fn state(&self) -> HoldState {
        match self.state {
            0 => HoldState::Open,
            1 => HoldState::Settled,
            2 => HoldState::Void,
            _ => HoldState::Expired,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == 0
    }

    pub(super) fn end(&mut self, state: HoldState) {
        self.state = match state {
            HoldState::Open => 0,
            HoldState::Settled => 1,
            HoldState::Void => 2,
            HoldState::Expired => 3,
        };
    }

    /// When something is to be done about it: it expires; or, once it has ended, it can be forgotten, because no copy of
    /// the hold would be taken any more.
    pub(super) fn next_at(&self) -> u64 {
        let graces = if self.is_open() { 1_u64 } else { 2 };
        self.expires_at.saturating_add(graces.saturating_mul(GRACE_MS))
    }
}

impl Key {
    /// Whether a row of this name can have this value: what is checked before it is written, and again when it is read.
    ///
    /// Counters, holds and evidence are read to their last byte and belong to their key; of an envelope only the length is
    /// looked at, because whoever shows it checks the signature anyway.
    ///
    /// # Errors
    /// When it cannot, or when the peer in the key has no account.
    pub fn check(&self, value: &[u8]) -> Result<(), DecodeError> {
        let belongs = |same, what| if same { Ok(()) } else { Err(DecodeError::Field(what)) };
        let envelope =
            |peer: &PeerId| belongs(is_ed25519(peer) && (1..=MAX_ENVELOPE).contains(&value.len()), "envelope");
        match self {
            Self::Pair(peer, unit) => {
                let row: PairRow = decode(value)?;
                belongs((row.peer, row.unit) == (*peer, *unit), "pair")
            }
            Self::Hold(_, peer, hold) => {
                let row: HoldRow = decode(value)?;
                belongs((row.peer, row.hold) == (*peer, *hold), "hold")
            }
            Self::Evidence(hash) => {
                decode::<message::Evidence>(value)?;
                belongs(blake3::hash(value).as_bytes() == &hash.0, "evidence")
            }
            Self::Step(_, _, peer, _, _)
            | Self::HoldMessage(_, peer, _)
            | Self::Result(_, peer, _)
            | Self::Voucher(_, peer, _) => envelope(peer),
        }
    }
}
