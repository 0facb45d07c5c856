//! The greeting that every stream begins with, and the word it may end with.

use quelea_wire::ErrorCode;

use super::{
    DecodeError,
    cursor::{Cursor, put_code},
};

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Coordinator to stage: the sessions' opening, steering and closing.
    Control,
    /// Predecessor to successor: rows of single tokens.
    Decode,
    /// Predecessor to successor: rows of prompts and replays.
    Bulk,
}

impl StreamKind {
    fn to_u8(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Decode => 2,
            Self::Bulk => 3,
        }
    }

    fn from_u8(n: u8) -> Result<Self, DecodeError> {
        match n {
            1 => Ok(Self::Control),
            2 => Ok(Self::Decode),
            3 => Ok(Self::Bulk),
            _ => Err(DecodeError::Field("stream kind")),
        }
    }
}

/// The opener's greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The highest version that the opener speaks.
    pub version: u16,
    /// What the stream is for.
    pub stream: StreamKind,
    /// Feature bits that the opener knows.
    pub features: u64,
}

impl Hello {
    pub(super) const LEN: usize = 2 + 1 + 8;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_le_bytes());
        out.push(self.stream.to_u8());
        out.extend_from_slice(&self.features.to_le_bytes());
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self { version: c.u16()?, stream: StreamKind::from_u8(c.u8()?)?, features: c.u64()? })
    }
}

/// The acceptor's answer: what both will use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloAck {
    /// The version both speak, at most the opener's.
    pub version: u16,
    /// The feature bits both know, a subset of the opener's.
    pub features: u64,
}

impl HelloAck {
    pub(super) const LEN: usize = 2 + 8;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self { version: c.u16()?, features: c.u64()? })
    }
}

/// The last frame of a stream: why its sender closes it. Either side may send it at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub code: ErrorCode,
}

impl Reject {
    pub(super) const LEN: usize = 2;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_code(out, self.code);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self { code: c.code()? })
    }
}
