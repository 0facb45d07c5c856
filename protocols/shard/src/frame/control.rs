//! Frames of the control stream, but for Open.

use std::num::NonZeroU32;

use libp2p::PeerId;
use quelea_wire::ErrorCode;

use super::{
    DecodeError, SessionId,
    cursor::{Cursor, MAX_PEER, put_code, put_peer, put_session, put_text},
};

/// The longest explanation, in bytes.
pub const MAX_DETAIL: usize = 256;

/// Session and epoch, which every control frame begins with.
pub(super) const SESSION: usize = 16 + 4;

/// The session is open: rows may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// The session.
    pub session: SessionId,
    /// The epoch that was opened.
    pub epoch: u32,
    /// KV pages that are left after this session's.
    pub kv_pages_free: u32,
    /// Rows that were taken over: whole blocks, as many as Open's prefix allows at most. The first batch begins here, unless
    /// the coordinator trims. Only with [`PREFIX`](crate::protocol::PREFIX); 0 takes no byte.
    pub kept_rows: u32,
}

impl Accept {
    pub(super) const MAX_LEN: usize = SESSION + 4 + 4;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.extend_from_slice(&self.kv_pages_free.to_le_bytes());
        if self.kept_rows != 0 {
            out.extend_from_slice(&self.kept_rows.to_le_bytes());
        }
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let kv_pages_free = c.u32()?;
        let kept_rows =
            if c.is_empty() { 0 } else { NonZeroU32::new(c.u32()?).ok_or(DecodeError::Field("kept_rows"))?.get() };
        Ok(Self { session, epoch, kv_pages_free, kept_rows })
    }
}

/// The session is not opened, and nothing is kept of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The session.
    pub session: SessionId,
    /// The epoch that was asked for.
    pub epoch: u32,
    /// Why.
    pub code: ErrorCode,
    /// More about it for people; cut to [`MAX_DETAIL`] bytes.
    pub detail: String,
    /// When there may be room, in milliseconds. 0 is unknown, or never, and takes no byte.
    pub retry_after_ms: u32,
}

impl Refuse {
    pub(super) const MAX_LEN: usize = SESSION + 2 + 2 + MAX_DETAIL + 4;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        put_code(out, self.code);
        put_text(out, &self.detail, MAX_DETAIL);
        if self.retry_after_ms != 0 {
            out.extend_from_slice(&self.retry_after_ms.to_le_bytes());
        }
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let (code, detail) = (c.code()?, c.text(MAX_DETAIL, "detail")?);
        let retry_after_ms =
            if c.is_empty() { 0 } else { NonZeroU32::new(c.u32()?).ok_or(DecodeError::Field("retry_after_ms"))?.get() };
        Ok(Self { session, epoch, code, detail, retry_after_ms })
    }
}

/// Forget all rows from a position on. Answered by [`State`]; rows that follow begin at `keep_rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trim {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// How many rows stay.
    pub keep_rows: u32,
}

impl Trim {
    pub(super) const LEN: usize = SESSION + 4;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.extend_from_slice(&self.keep_rows.to_le_bytes());
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        Ok(Self { session, epoch, keep_rows: c.u32()? })
    }
}

/// Where a session stands at a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Being admitted.
    Opening,
    /// Takes rows.
    Live,
    /// Takes no more rows and finishes those it has.
    Draining,
    /// Gone.
    Closed,
}

impl Phase {
    fn to_u8(self) -> u8 {
        match self {
            Self::Opening => 1,
            Self::Live => 2,
            Self::Draining => 3,
            Self::Closed => 4,
        }
    }

    fn from_u8(n: u8) -> Result<Self, DecodeError> {
        match n {
            1 => Ok(Self::Opening),
            2 => Ok(Self::Live),
            3 => Ok(Self::Draining),
            4 => Ok(Self::Closed),
            _ => Err(DecodeError::Field("phase")),
        }
    }
}

/// What a stage has done for a session so far. Times are sums in microseconds of the stage's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Rows taken in.
    pub rows_in: u64,
    /// Rows computed and handed on.
    pub rows_out: u64,
    /// Spent computing.
    pub compute_us: u64,
    /// Spent waiting for the stage loop.
    pub queue_us: u64,
    /// One way to the next peer, not a sum: half of the mean round trip of acknowledgements.
    pub hop_us: u64,
}

impl Totals {
    const LEN: usize = 5 * 8;

    fn put(&self, out: &mut Vec<u8>) {
        for n in [self.rows_in, self.rows_out, self.compute_us, self.queue_us, self.hop_us] {
            out.extend_from_slice(&n.to_le_bytes());
        }
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self { rows_in: c.u64()?, rows_out: c.u64()?, compute_us: c.u64()?, queue_us: c.u64()?, hop_us: c.u64()? })
    }
}

/// The answer to [`Probe`] and to [`Trim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// The session.
    pub session: SessionId,
    /// Its epoch at the stage.
    pub epoch: u32,
    /// Where it stands.
    pub phase: Phase,
    /// The position that the next row must have.
    pub pos: u32,
    /// What was done.
    pub totals: Totals,
}

impl State {
    pub(super) const LEN: usize = SESSION + 1 + 4 + Totals::LEN;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.push(self.phase.to_u8());
        out.extend_from_slice(&self.pos.to_le_bytes());
        self.totals.put(out);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        Ok(Self { session, epoch, phase: Phase::from_u8(c.u8()?)?, pos: c.u32()?, totals: Totals::take(c)? })
    }
}

/// End the session at once and forget its rows. Answered by [`Closed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// Why.
    pub code: ErrorCode,
}

impl Cancel {
    pub(super) const LEN: usize = SESSION + 2;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        put_code(out, self.code);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        Ok(Self { session, epoch, code: c.code()? })
    }
}

/// The session has ended and nothing is kept of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// The session.
    pub session: SessionId,
    /// Its last epoch.
    pub epoch: u32,
    /// `None` after Close; the code of [`Cancel`] after that.
    pub code: Option<ErrorCode>,
    /// What was done.
    pub totals: Totals,
}

impl Closed {
    pub(super) const LEN: usize = SESSION + 2 + Totals::LEN;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.extend_from_slice(&self.code.map_or(0, ErrorCode::to_u16).to_le_bytes());
        self.totals.put(out);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let code = match c.u16()? {
            0 => None,
            n => Some(ErrorCode::from_u16(n)),
        };
        Ok(Self { session, epoch, code, totals: Totals::take(c)? })
    }
}

/// The session has ended for a reason that the coordinator did not give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The session.
    pub session: SessionId,
    /// Its epoch at the stage.
    pub epoch: u32,
    /// What happened.
    pub code: ErrorCode,
    /// The peer it is about, such as a next one that does not answer.
    pub about: Option<PeerId>,
    /// More about it for people; cut to [`MAX_DETAIL`] bytes.
    pub detail: String,
}

impl Fault {
    pub(super) const MAX_LEN: usize = SESSION + 2 + 1 + MAX_PEER + 2 + MAX_DETAIL;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        put_code(out, self.code);
        put_peer(out, self.about.as_ref());
        put_text(out, &self.detail, MAX_DETAIL);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        Ok(Self { session, epoch, code: c.code()?, about: c.peer("about")?, detail: c.text(MAX_DETAIL, "detail")? })
    }
}

macro_rules! empty_request {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            /// The session.
            pub session: SessionId,
            /// Its epoch.
            pub epoch: u32,
        }

        impl $name {
            pub(super) const LEN: usize = SESSION;

            pub(super) fn put(&self, out: &mut Vec<u8>) {
                put_session(out, self.session, self.epoch);
            }

            pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
                let (session, epoch) = c.session()?;
                Ok(Self { session, epoch })
            }
        }
    };
}

empty_request! {
    /// Asks how a session stands. Answered by [`State`].
    Probe
}

empty_request! {
    /// End the session once the rows it has are through. Answered by [`Closed`].
    Close
}
