//! Reading and writing of fields. Readers never take memory for more than the bytes that are there.

use libp2p::PeerId;
use quelea_wire::ErrorCode;

use super::{DecodeError, SessionId};

/// The longest peer id: a multihash of a 42-byte key takes 44 bytes; 64 leaves room for longer hashes.
pub(super) const MAX_PEER: usize = 64;

/// What is left of a frame's body.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn remaining(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[b]| b)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn session(&mut self) -> Result<(SessionId, u32), DecodeError> {
        Ok((SessionId(self.array()?), self.u32()?))
    }

    pub(super) fn code(&mut self) -> Result<ErrorCode, DecodeError> {
        self.u16().map(ErrorCode::from_u16)
    }

    pub(super) fn peer(&mut self, field: &'static str) -> Result<Option<PeerId>, DecodeError> {
        match usize::from(self.u8()?) {
            0 => Ok(None),
            n if n > MAX_PEER => Err(DecodeError::Field(field)),
            n => PeerId::from_bytes(self.bytes(n)?).map(Some).map_err(|_| DecodeError::Field(field)),
        }
    }

    /// Text of at most `max` bytes.
    pub(super) fn text(&mut self, max: usize, field: &'static str) -> Result<String, DecodeError> {
        match usize::from(self.u16()?) {
            n if n > max => Err(DecodeError::Field(field)),
            n => std::str::from_utf8(self.bytes(n)?).map(str::to_owned).map_err(|_| DecodeError::Field(field)),
        }
    }
}

pub(super) fn put_session(out: &mut Vec<u8>, session: SessionId, epoch: u32) {
    out.extend_from_slice(&session.0);
    out.extend_from_slice(&epoch.to_le_bytes());
}

pub(super) fn put_code(out: &mut Vec<u8>, code: ErrorCode) {
    out.extend_from_slice(&code.to_u16().to_le_bytes());
}

pub(super) fn put_peer(out: &mut Vec<u8>, peer: Option<&PeerId>) {
    let bytes = peer.map(|p| p.to_bytes()).unwrap_or_default();
    // A PeerId holds a multihash of at most 64 bytes of digest, and identity or SHA-256 ones at most 44 in all.
    out.push(u8::try_from(bytes.len()).unwrap_or(0));
    out.extend_from_slice(&bytes);
}

/// Writes `text` cut to `max` bytes at a character's border.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let cut = text.get(..text.floor_char_boundary(max)).unwrap_or_default();
    out.extend_from_slice(&u16::try_from(cut.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(cut.as_bytes());
}
