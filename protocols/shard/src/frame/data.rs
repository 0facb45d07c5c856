//! Rows and their acknowledgement.

use quelea_wire::Profile;

use super::{
    DecodeError, SessionId, begin,
    cursor::{Cursor, put_session},
    finish,
};

/// The most bytes of rows in one frame: small enough that a decode row waits for at most one of them on a shared
/// connection (about 3 ms at 100 Mbit/s), large enough that headers cost 0.2 %.
pub const MAX_FRAGMENT: usize = 32 * 1024;

/// The most rows of one batch: the largest chunk of a prompt that the stage loop takes in one tick.
pub const MAX_BATCH_ROWS: u16 = 128;

/// The most bytes of one batch: 128 rows of a width of 32,768, twice the widest published model.
pub const MAX_BATCH_BYTES: u32 = 16 * 1024 * 1024;

/// The longest deadline that is believed, one hour; longer ones are cut to it.
pub const MAX_DEADLINE_MS: u32 = 60 * 60 * 1000;

const FLOAT: usize = size_of::<f32>();

/// What the values of a batch are. Each form has a kind of frame, whose fields are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Form {
    /// Rows of the residual stream.
    #[default]
    Rows,
    /// Token ids, one a row, as the bits of the values.
    Tokens,
    /// The likeliest logits after each row; see [`TopLogits`](super::TopLogits).
    Logits,
    /// Rows of the residual stream of the profile `exact-bf16`: two bytes a value, the upper half of an f32 whose lower half is
    /// zero.
    Rows16,
}

impl Form {
    /// The form of rows of the residual stream in sessions of a profile.
    #[must_use]
    pub fn of_rows(profile: Profile) -> Self {
        if profile == Profile::ExactBf16 { Self::Rows16 } else { Self::Rows }
    }

    /// The kind of frame.
    #[must_use]
    pub fn kind(self) -> u8 {
        match self {
            Self::Rows => 0x40,
            Self::Tokens => 0x42,
            Self::Logits => 0x43,
            Self::Rows16 => 0x44,
        }
    }

    /// Bytes of a value.
    #[must_use]
    pub const fn value_bytes(self) -> usize {
        match self {
            Self::Rows16 => FLOAT / 2,
            _ => FLOAT,
        }
    }

    /// The form that frames of `kind` have, if they are part of a batch.
    #[must_use]
    pub fn of(kind: u8) -> Option<Self> {
        [Self::Rows, Self::Tokens, Self::Logits, Self::Rows16].into_iter().find(|form| form.kind() == kind)
    }
}

const LAST_ROW_ONLY: u8 = 1;
const REWIND: u8 = 2;

/// The fields of [`Rows`] before the fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsHeader {
    /// The session.
    pub session: SessionId,
    /// Its epoch as the sender knows it.
    pub epoch: u32,
    /// Counts the batches of this hop and epoch, from 0: every sender numbers its own.
    pub seq: u32,
    /// Position of the first row in the sequence.
    pub pos: u32,
    /// Rows in the batch, 1 to [`MAX_BATCH_ROWS`].
    pub rows: u16,
    /// Whether only the batch's last row is wanted at the end of the chain.
    pub last_row_only: bool,
    /// Whether the rows may begin before the end of those sent so far: what the session holds from [`Self::pos`] on is
    /// forgotten first. Only where both ends have the feature [`REWIND`](crate::protocol::REWIND).
    pub rewind: bool,
    /// Milliseconds that remain until the result is worthless.
    pub deadline_ms: u32,
    /// Bytes of the whole batch: rows × width × 4 (2 of [`Form::Rows16`]), at most [`MAX_BATCH_BYTES`]; a multiple of 4.
    pub total: u32,
    /// Where in the batch the fragment begins, in bytes; a multiple of 4.
    pub offset: u32,
}

impl RowsHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 16 + 4 + 4 + 4 + 2 + 1 + 4 + 4 + 4;

    /// Splits the body of a Rows frame into its header and its fragment, checking all that can be checked without
    /// knowing the session.
    ///
    /// # Errors
    /// When a count or length is impossible, or the fragment is empty, not whole floats or outside its batch.
    pub fn split(body: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut c = Cursor::new(body);
        let header = Self::take(&mut c)?;
        let fragment = c.remaining();
        header.check(fragment.len())?;
        Ok((header, fragment))
    }

    /// Bytes of the batch that have been sent when a fragment of `len` bytes follows this header.
    #[must_use]
    pub fn end(&self, len: usize) -> u32 {
        self.offset.saturating_add(u32::try_from(len).unwrap_or(u32::MAX))
    }

    fn check(&self, fragment: usize) -> Result<(), DecodeError> {
        let aligned = |n: u32| usize::try_from(n).is_ok_and(|n| n.is_multiple_of(FLOAT));
        if self.rows == 0 || self.rows > MAX_BATCH_ROWS {
            Err(DecodeError::Field("rows"))
        } else if self.total == 0 || self.total > MAX_BATCH_BYTES || !aligned(self.total) {
            Err(DecodeError::Field("total"))
        } else if fragment == 0 || fragment > MAX_FRAGMENT || !fragment.is_multiple_of(FLOAT) {
            Err(DecodeError::Field("fragment"))
        } else if !aligned(self.offset) || self.end(fragment) > self.total {
            Err(DecodeError::Field("offset"))
        } else {
            Ok(())
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.pos.to_le_bytes());
        out.extend_from_slice(&self.rows.to_le_bytes());
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(flag(self.last_row_only, LAST_ROW_ONLY) | flag(self.rewind, REWIND));
        out.extend_from_slice(&self.deadline_ms.to_le_bytes());
        out.extend_from_slice(&self.total.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
    }

    fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let (seq, pos, rows, flags) = (c.u32()?, c.u32()?, c.u16()?, c.u8()?);
        Ok(Self {
            session,
            epoch,
            seq,
            pos,
            rows,
            last_row_only: flags & LAST_ROW_ONLY != 0,
            rewind: flags & REWIND != 0,
            deadline_ms: c.u32()?,
            total: c.u32()?,
            offset: c.u32()?,
        })
    }

    /// Appends a whole frame of this form with `values` as its fragment, converting them straight into `out`.
    pub(crate) fn encode_with(&self, form: Form, values: &[f32], out: &mut Vec<u8>) {
        let at = begin(out, form.kind());
        self.put(out);
        match form {
            Form::Rows16 => put_bf16(values, out),
            _ => put_floats(values, out),
        }
        finish(out, at);
    }
}

/// Appends `values` as little-endian bytes. A plain copy on little-endian machines, once the optimiser is done with it.
pub fn put_floats(values: &[f32], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at.saturating_add(values.len().saturating_mul(FLOAT)), 0);
    let (slots, _) = out.get_mut(at..).unwrap_or_default().as_chunks_mut::<FLOAT>();
    for (slot, value) in slots.iter_mut().zip(values) {
        *slot = value.to_le_bytes();
    }
}

/// Appends the upper halves of `values`, whose lower halves are zero, as little-endian bytes.
pub fn put_bf16(values: &[f32], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at.saturating_add(values.len().saturating_mul(size_of::<u16>())), 0);
    let (slots, _) = out.get_mut(at..).unwrap_or_default().as_chunks_mut::<{ size_of::<u16>() }>();
    for (slot, value) in slots.iter_mut().zip(values) {
        let [_, _, low, high] = value.to_le_bytes();
        *slot = [low, high];
    }
}

/// A fragment of a batch of rows. A batch is (session, epoch, seq); its fragments follow each other without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Where the fragment belongs.
    pub header: RowsHeader,
    /// f32 values, little-endian; at most [`MAX_FRAGMENT`] bytes.
    pub fragment: Vec<u8>,
}

impl Rows {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.header.put(out);
        out.extend_from_slice(&self.fragment);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (header, fragment) = RowsHeader::split(c.remaining())?;
        Ok(Self { header, fragment: fragment.to_vec() })
    }
}

/// A batch of token ids: u32, one for each row, all in one fragment. What is no token of the model the stage refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Where the batch belongs; its `total` is the fragment's length, 4 bytes a row.
    pub header: RowsHeader,
    /// The ids, little-endian.
    pub fragment: Vec<u8>,
}

impl Tokens {
    pub(super) const MAX_LEN: usize = RowsHeader::LEN + MAX_BATCH_ROWS as usize * FLOAT;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.header.put(out);
        out.extend_from_slice(&self.fragment);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (header, fragment) = RowsHeader::split(c.remaining())?;
        let whole = usize::from(header.rows).saturating_mul(FLOAT);
        if fragment.len() != whole || usize::try_from(header.total) != Ok(whole) {
            return Err(DecodeError::Field("tokens"));
        }
        Ok(Self { header, fragment: fragment.to_vec() })
    }
}

/// A fragment of a batch of rows of bf16: as [`Rows`], of two bytes a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows16 {
    /// Where the fragment belongs.
    pub header: RowsHeader,
    /// bf16 values, little-endian; at most [`MAX_FRAGMENT`] bytes.
    pub fragment: Vec<u8>,
}

impl Rows16 {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.header.put(out);
        out.extend_from_slice(&self.fragment);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (header, fragment) = RowsHeader::split(c.remaining())?;
        Ok(Self { header, fragment: fragment.to_vec() })
    }
}

/// A fragment of a batch of likeliest logits: as [`Rows`], of values that are put together as
/// [`TopLogits`](super::TopLogits) says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logits {
    /// Where the fragment belongs.
    pub header: RowsHeader,
    /// The values; at most [`MAX_FRAGMENT`] bytes.
    pub fragment: Vec<u8>,
}

impl Logits {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.header.put(out);
        out.extend_from_slice(&self.fragment);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (header, fragment) = RowsHeader::split(c.remaining())?;
        Ok(Self { header, fragment: fragment.to_vec() })
    }
}

/// A fragment has been received. Sent at once for each, whatever becomes of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The fragment's session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// Its batch.
    pub seq: u32,
    /// Where in the batch the fragment ended, in bytes.
    pub received: u32,
}

impl Ack {
    pub(super) const LEN: usize = 16 + 4 + 4 + 4;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.received.to_le_bytes());
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        Ok(Self { session, epoch, seq: c.u32()?, received: c.u32()? })
    }
}
