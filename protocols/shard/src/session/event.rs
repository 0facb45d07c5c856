//! What happens to a session, and what its owner does about it.

use libp2p::PeerId;
use quelea_wire::ErrorCode;
use tokio::time::Instant;

use crate::{
    frame::{Cancel, Close, Frame, Open, Probe, Reroute, Resume, Trim},
    link::Batch,
};

/// What happens to a session.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The stage has room for it.
    Admitted {
        /// KV pages that are left.
        kv_pages_free: u32,
        /// Rows that it has from before.
        kept_rows: u32,
    },
    /// The stage does not take it.
    NotAdmitted {
        /// Why.
        code: ErrorCode,
        /// More for people.
        detail: String,
        /// When there may be room; 0 is unknown.
        retry_after_ms: u32,
    },
    /// The coordinator opened it again.
    Open(Box<Open>),
    /// A batch arrived whole.
    Rows {
        /// From whom.
        from: PeerId,
        /// Its header; see [`Arrived::of`].
        batch: Arrived,
    },
    /// A batch was computed, and handed to the next peer's queue or kept for it.
    Computed {
        /// The batch's epoch.
        epoch: u32,
        /// The batch.
        seq: u32,
        /// How long it took.
        compute_us: u64,
        /// How long it had waited.
        queue_us: u64,
        /// The mean one-way time to the next peer now.
        hop_us: u64,
    },
    /// The next peer cannot be handed anything.
    NextLost {
        /// The epoch in which it was the next one.
        epoch: u32,
        /// Why.
        code: ErrorCode,
        /// More for people.
        detail: String,
    },
    /// The coordinator gives it other neighbours.
    Reroute(Box<Reroute>),
    /// The new next peer is reached.
    Linked {
        /// The epoch in which it is the next one.
        epoch: u32,
    },
    /// The coordinator has rows handed on.
    Resume(Resume),
    /// What was handed on before a position is not kept any more.
    Forgot {
        /// The first row that is.
        log_from: u32,
    },
    /// The coordinator trims it.
    Trim(Trim),
    /// The coordinator names more of its blocks.
    Keep {
        /// The session's epoch; the names are the owner's.
        epoch: u32,
    },
    /// The coordinator asks how it stands.
    Probe(Probe),
    /// The coordinator ends it at once.
    Cancel(Cancel),
    /// The coordinator ends it in order.
    Close(Close),
    /// Something failed at the stage, in its rows, or on the way to the next peer.
    Failed {
        /// What.
        code: ErrorCode,
        /// The peer it is about.
        about: Option<PeerId>,
        /// More for people.
        detail: String,
    },
    /// The control stream has ended: nobody can be told anything.
    Gone,
    /// Time has passed; see [`Session::wake_at`](super::Session::wake_at).
    Tick,
}

/// The header of a batch that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// The batch's epoch.
    pub epoch: u32,
    /// Its number.
    pub seq: u32,
    /// Position of its first row.
    pub pos: u32,
    /// Its rows.
    pub rows: u16,
    /// Whether it may begin before the session's end.
    pub rewind: bool,
    /// When its result is worthless.
    pub deadline: Instant,
}

impl Arrived {
    /// The header of `batch`.
    #[must_use]
    pub fn of(batch: &Batch) -> Self {
        let Batch { epoch, seq, pos, rows, rewind, deadline, .. } = *batch;
        Self { epoch, seq, pos, rows, rewind, deadline }
    }
}

/// What the owner does next: first [`Self::act`], then send [`Self::reply`] on the control stream.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Step {
    /// A frame for the coordinator.
    pub reply: Option<Frame>,
    /// Work for the owner.
    pub act: Act,
}

/// Work for a session's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// None.
    Nothing,
    /// Forget all rows, then decide whether the session (as [`Session::open`](super::Session::open) has it now) is taken.
    Admit,
    /// Compute the batch that arrived.
    Compute,
    /// Forget rows from this position on.
    Trim {
        /// How many stay.
        keep_rows: u32,
    },
    /// Forget the links to the next peer of before, reach the one that [`Session::open`](super::Session::open) names now,
    /// and hand nothing on.
    Reroute,
    /// Hand rows on.
    Resume {
        /// Where handing on begins, unless it has begun.
        from: u32,
        /// Where it stops.
        until: u32,
        /// The row that commitments begin with.
        roots_from: u32,
    },
    /// Keep the blocks that were named.
    Keep,
    /// Forget the session: it is closed.
    Release,
    /// Drop the event, and the batch with it, and count it.
    Ignore(Ignored),
}

/// Why an event was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ignored {
    /// Of an epoch that is over.
    StaleEpoch,
    /// Of an epoch that has not been opened here; only Open and Reroute raise it.
    UnopenedEpoch,
    /// Rows from a peer that is not the predecessor.
    WrongPredecessor,
    /// Nothing that this phase takes.
    WrongPhase,
    /// The session is closed.
    Closed,
}
