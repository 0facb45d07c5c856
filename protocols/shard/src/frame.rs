//! Frames: what is on a stream, as values and as bytes.
//!
//! The caps here are what a peer can make us hold at once; each is checked against the length prefix and the kind,
//! before memory is taken for the body. Encoding never fails: what is longer than its cap is cut (details) or left out
//! (addresses), as said at the field.

mod control;
mod cursor;
mod data;
mod ends;
mod failover;
mod hello;
mod open;
mod pay;
mod prefix;

use std::fmt;

use quelea_wire::{ErrorCode, Profile};

use self::cursor::Cursor;
pub use self::{
    control::{Accept, Cancel, Close, Closed, Fault, MAX_DETAIL, Phase, Probe, Refuse, State, Totals, Trim},
    data::{
        Ack, Form, Logits, MAX_BATCH_BYTES, MAX_BATCH_ROWS, MAX_DEADLINE_MS, MAX_FRAGMENT, Rows, Rows16, RowsHeader,
        Tokens, put_bf16, put_floats,
    },
    ends::{Ends, MAX_TOP_LOGITS, TopLogits},
    failover::{Commit, MAX_COMMITMENT, Reroute, Rerouted, Resume, Stalled},
    hello::{Hello, HelloAck, Reject, StreamKind},
    open::{MAX_ADDR, MAX_ADDRS, MAX_WIDTH, Open},
    pay::{MAX_SIGNED, Pay, Receipt, Voucher},
    prefix::{BLOCK_ROWS, BlockKey, Keep, MAX_KEYS, Prefix},
};
use crate::protocol;

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// Bytes of kind and flags, which the length prefix counts.
pub const KIND_AND_FLAGS: usize = 2;

/// Bytes before a frame's body.
pub const HEADER: usize = PREFIX + KIND_AND_FLAGS;

/// The largest body of any kind: a full fragment of rows. Unknown kinds may be as long, so that later versions have
/// room, and are skipped within the same buffer.
pub const MAX_BODY: usize = RowsHeader::LEN + MAX_FRAGMENT;

/// The largest frame with its prefix. A stream's read buffer never needs to hold more.
pub const MAX_FRAME: usize = HEADER + MAX_BODY;

/// Flag bit 0: who does not know this kind closes the stream instead of skipping the frame.
pub const CRITICAL: u8 = 1;

/// The name of a session, drawn at random by its coordinator. A session is (coordinator, this).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// Who may send a frame, on which kind of stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Part of the greeting, or the last word of a stream.
    Greeting,
    /// The coordinator, on control.
    Coordinator,
    /// The stage, on control.
    Stage,
    /// The predecessor, on decode and bulk.
    Predecessor,
    /// The successor, on decode and bulk.
    Successor,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $origin:ident, max $max:expr;)+) => {
        /// One frame. The table in the crate's documentation says what each kind is for.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Frame {
            $($(#[$doc])* $name($name),)+
        }

        impl Frame {
            /// The kind's number on the wire.
            #[must_use]
            pub fn kind(&self) -> u8 {
                match self {
                    $(Self::$name(_) => $number,)+
                }
            }

            /// Who sends frames of this kind.
            #[must_use]
            pub fn origin(&self) -> Origin {
                match self {
                    $(Self::$name(_) => Origin::$origin,)+
                }
            }

            fn put_body(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(f) => f.put(out),)+
                }
            }

            /// The frame of `kind` with these fields; `None` when this version does not know the kind.
            ///
            /// # Errors
            /// When the fields end early, are followed by more bytes, or hold what they may not.
            pub fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, DecodeError> {
                let mut cursor = Cursor::new(body);
                let frame = match kind {
                    $($number => Self::$name($name::take(&mut cursor)?),)+
                    _ => return Ok(None),
                };
                cursor.end()?;
                Ok(Some(frame))
            }
        }

        $(impl From<$name> for Frame {
            fn from(frame: $name) -> Self {
                Self::$name(frame)
            }
        })+

        /// The most bytes the body of a frame of `kind` may have.
        #[must_use]
        pub const fn max_body(kind: u8) -> usize {
            match kind {
                $($number => $max,)+
                _ => MAX_BODY,
            }
        }
    };
}

kinds! {
    /// The opener's greeting.
    Hello = 0x01, Greeting, max Hello::LEN;
    /// The acceptor's answer to it.
    HelloAck = 0x02, Greeting, max HelloAck::LEN;
    /// Why the sender closes the stream.
    Reject = 0x03, Greeting, max Reject::LEN;
    /// Open a session at a stage.
    Open = 0x10, Coordinator, max Open::MAX_LEN;
    /// The session is open.
    Accept = 0x11, Stage, max Accept::MAX_LEN;
    /// The session is not opened.
    Refuse = 0x12, Stage, max Refuse::MAX_LEN;
    /// Forget rows past a position.
    Trim = 0x13, Coordinator, max Trim::LEN;
    /// Ask for a session's state.
    Probe = 0x14, Coordinator, max Probe::LEN;
    /// A session's state.
    State = 0x15, Stage, max State::LEN;
    /// End a session at once.
    Cancel = 0x16, Coordinator, max Cancel::LEN;
    /// End a session once its rows are through.
    Close = 0x17, Coordinator, max Close::LEN;
    /// The session has ended as asked.
    Closed = 0x18, Stage, max Closed::LEN;
    /// The session has ended for a reason of the stage's.
    Fault = 0x19, Stage, max Fault::MAX_LEN;
    /// Names for more blocks of a session.
    Keep = 0x1a, Coordinator, max Keep::MAX_LEN;
    /// The next peer is lost to the stage; the session is kept.
    Stalled = 0x1b, Stage, max Stalled::MAX_LEN;
    /// Go on between other neighbours, in a higher epoch.
    Reroute = 0x1c, Coordinator, max Reroute::MAX_LEN;
    /// The stage is between them.
    Rerouted = 0x1d, Stage, max Rerouted::LEN;
    /// Hand rows on, from and up to a position.
    Resume = 0x1e, Coordinator, max Resume::LEN;
    /// What the stage took in and gave out, signed.
    Commit = 0x1f, Stage, max Commit::MAX_LEN;
    /// What the coordinator owes for the session by now, signed.
    Voucher = 0x20, Coordinator, max Voucher::MAX_LEN;
    /// What the stage has done for it, signed.
    Receipt = 0x21, Stage, max Receipt::MAX_LEN;
    /// A fragment of a batch of rows.
    Rows = 0x40, Predecessor, max MAX_BODY;
    /// A fragment has been received.
    Ack = 0x41, Successor, max Ack::LEN;
    /// A batch of token ids, for a first stage that embeds.
    Tokens = 0x42, Predecessor, max Tokens::MAX_LEN;
    /// A fragment of a batch of likeliest logits, of a last stage that has the head.
    Logits = 0x43, Predecessor, max MAX_BODY;
    /// A fragment of a batch of rows of bf16.
    Rows16 = 0x44, Predecessor, max MAX_BODY;
}

impl Frame {
    /// Appends the frame, prefix and all.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let at = begin(out, self.kind());
        self.put_body(out);
        finish(out, at);
    }

    /// The feature bits that both ends must know for this frame, as it is, to be sent.
    #[must_use]
    pub fn features(&self) -> u64 {
        let by_prefix = match self {
            Self::Open(open) => !open.prefix.keys.is_empty(),
            Self::Accept(accept) => accept.kept_rows > 0,
            Self::Keep(_) => true,
            _ => false,
        };
        let by_thin = match self {
            Self::Open(open) => open.ends != Ends::default(),
            Self::Tokens(_) | Self::Logits(_) => true,
            _ => false,
        };
        let by_bf16 = match self {
            Self::Open(open) => open.profile == Profile::ExactBf16,
            Self::Rows16(_) => true,
            _ => false,
        };
        let by_failover =
            matches!(self, Self::Stalled(_) | Self::Reroute(_) | Self::Rerouted(_) | Self::Resume(_) | Self::Commit(_));
        let by_pay = match self {
            Self::Open(open) => open.pay.is_some(),
            Self::Voucher(_) | Self::Receipt(_) => true,
            _ => false,
        };
        let by_trace = matches!(self, Self::Open(open) if open.trace.is_some());
        let bit = |needed: bool, bit: u64| if needed { bit } else { 0 };
        bit(by_prefix, protocol::PREFIX)
            | bit(by_failover, protocol::FAILOVER)
            | bit(by_thin, protocol::THIN)
            | bit(by_bf16, protocol::BF16)
            | bit(by_pay, protocol::PAY)
            | bit(by_trace, protocol::TRACE)
    }
}

/// Appends a header whose length is filled in by [`finish`]; returns where the frame begins.
pub(crate) fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, kind, 0]);
    at
}

/// Writes the length of the frame that begins at `at` and ends where `out` ends.
pub(crate) fn finish(out: &mut [u8], at: usize) {
    let length = out.len().saturating_sub(at.saturating_add(PREFIX));
    // Bodies are at most MAX_BODY, far below u32::MAX.
    let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    if let Some(slot) = out.get_mut(at..at.saturating_add(PREFIX)) {
        slot.copy_from_slice(&prefix);
    }
}

/// A frame in a buffer, its fields not yet read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a> {
    /// The kind, perhaps one this version does not know.
    pub kind: u8,
    /// Flag bits; see [`CRITICAL`].
    pub flags: u8,
    /// The kind's own fields.
    pub body: &'a [u8],
}

/// How many bytes the frame at the front of `bytes` has, prefix included; `None` while that cannot be told yet.
///
/// # Errors
/// When the length prefix is more than its kind may have, or less than any frame has. The kind is the fifth byte, so
/// a prefix alone can already be refused when no kind allows it.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    let kind = bytes.get(PREFIX).copied();
    let max = kind.map_or(MAX_BODY, max_body);
    match length.checked_sub(KIND_AND_FLAGS) {
        None => Err(DecodeError::Truncated),
        Some(body) if body > max => Err(DecodeError::TooLong { kind, length: body, max }),
        Some(_) if kind.is_none() => Ok(None),
        Some(_) => Ok(Some(length.saturating_add(PREFIX))),
    }
}

/// The frame at the front of `bytes` and how many bytes it takes; `None` while it is not complete.
///
/// # Errors
/// As [`frame_len`].
pub fn split(bytes: &[u8]) -> Result<Option<(Raw<'_>, usize)>, DecodeError> {
    let Some(len) = frame_len(bytes)? else { return Ok(None) };
    Ok(match bytes.get(PREFIX..len) {
        Some(&[kind, flags, ref body @ ..]) => Some((Raw { kind, flags, body }, len)),
        _ => None,
    })
}

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The length prefix is beyond the kind's cap.
    #[error("a frame body of {length} bytes where {max} are allowed (kind {kind:02x?})")]
    TooLong {
        /// The kind, when it had arrived.
        kind: Option<u8>,
        /// What the prefix says, in bytes.
        length: usize,
        /// The cap, in bytes.
        max: usize,
    },
    /// The body ends before its fields do.
    #[error("a frame ends in the middle of a field")]
    Truncated,
    /// The body goes on after its fields.
    #[error("a frame has bytes after its last field")]
    Trailing,
    /// A field holds what it may not.
    #[error("the field {0} of a frame holds an impossible value")]
    Field(&'static str),
}

impl DecodeError {
    /// The code that tells the peer.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLong { .. } => ErrorCode::FrameTooLarge,
            Self::Truncated | Self::Trailing | Self::Field(_) => ErrorCode::BadFrame,
        }
    }
}
