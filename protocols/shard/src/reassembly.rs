//! Batches from fragments.
//!
//! What a peer can make us hold per stream: [`MAX_PARTIAL_BATCHES`] batches begun and not finished, of
//! [`MAX_PARTIAL_BYTES`] received bytes together. Memory is taken as bytes arrive, at most twice of them (four times of
//! bf16, which is held as f32), and never more than the batch's stated size, which must be what the session's shape says.

use std::time::Duration;

use tokio::time::Instant;

use quelea_wire::ErrorCode;

use crate::{
    frame::{Form, MAX_BATCH_BYTES, MAX_DEADLINE_MS, RowsHeader, SessionId},
    link::Batch,
};

/// Batches of different sessions that may be under way on one stream. Our sender finishes one before it begins the next.
pub const MAX_PARTIAL_BATCHES: usize = 16;

/// Received bytes of unfinished batches that one stream may hold: one batch of the largest size.
pub const MAX_PARTIAL_BYTES: usize = MAX_BATCH_BYTES as usize;

/// How long the fragments of one batch may take. The largest batch takes 1.4 s at 100 Mbit/s; a sender that stops half way
/// must not have us hold the half.
pub const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

const FLOAT: usize = size_of::<f32>();

/// The exponent bits of an f32. All set means NaN or infinity.
const EXPONENT: u32 = 0x7f80_0000;

/// What the rows of a session must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// What its values are: whoever reads a stream drops other forms.
    pub form: Form,
    /// Values per row.
    pub width: u32,
    /// The most rows that the session may hold; no batch may end past it.
    pub max_rows: u32,
}

/// A batch of which fragments are still to come.
#[derive(Debug)]
struct Partial {
    header: RowsHeader,
    deadline: Instant,
    /// When the rest must have come.
    due: Instant,
    /// What its session looked like when it began.
    expect: Expect,
    data: Vec<f32>,
}

impl Partial {
    fn received(&self) -> usize {
        self.data.len().saturating_mul(self.expect.form.value_bytes())
    }
}

/// The unfinished batches of one stream.
#[derive(Debug, Default)]
pub struct Reassembly {
    partial: Vec<Partial>,
}

impl Reassembly {
    /// Nothing under way.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a fragment that arrived at `now`; the batch, when this was its last.
    ///
    /// A fragment at offset 0 begins a batch, and drops what its session had begun before.
    ///
    /// # Errors
    /// With the reason why the session's batch is dropped: its shape is not the session's, values are not finite,
    /// a fragment is missing, or the stream holds too much already. Other sessions are not touched.
    pub fn push(
        &mut self,
        now: Instant,
        header: &RowsHeader,
        fragment: &[u8],
        expect: Expect,
    ) -> Result<Option<Batch>, ErrorCode> {
        let begun = self.partial.iter().position(|p| p.header.session == header.session);
        let begun = begun.map(|at| self.partial.swap_remove(at));
        let mut partial = match begun {
            Some(partial) if header.offset != 0 => follows(&partial, header, expect).map(|()| partial)?,
            _ => begin(now, header, expect)?,
        };
        let have = self.received_bytes().saturating_add(partial.received()).saturating_add(fragment.len());
        if have > MAX_PARTIAL_BYTES || self.partial.len() >= MAX_PARTIAL_BATCHES {
            return Err(ErrorCode::Overloaded);
        }
        let whole = usize::try_from(header.total).unwrap_or(usize::MAX);
        let whole = whole.checked_div(expect.form.value_bytes()).unwrap_or(whole);
        match expect.form {
            Form::Rows16 => append16(&mut partial.data, fragment, whole)?,
            _ => append(&mut partial.data, fragment, whole)?,
        }
        if header.end(fragment.len()) < header.total {
            self.partial.push(partial);
            return Ok(None);
        }
        let Partial {
            header: RowsHeader { session, epoch, seq, pos, rows, last_row_only, rewind, .. },
            deadline,
            data,
            ..
        } = partial;
        Ok(Some(Batch { session, epoch, seq, pos, rows, last_row_only, rewind, deadline, form: expect.form, data }))
    }

    /// When the first of the unfinished batches must be whole; `None` without any.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.partial.iter().map(|p| p.due).min()
    }

    /// Drops batches that were not finished in time; their sessions and epochs.
    pub fn take_overdue(&mut self, now: Instant) -> Vec<(SessionId, u32)> {
        let overdue = self.partial.extract_if(.., |p| p.due <= now);
        overdue.map(|p| (p.header.session, p.header.epoch)).collect()
    }

    /// Drops what was begun of `session`.
    pub fn forget(&mut self, session: &SessionId) {
        self.partial.retain(|p| p.header.session != *session);
    }

    /// Keeps only sessions of which `wanted` says yes to (session, epoch).
    pub fn retain(&mut self, wanted: impl Fn(&SessionId, u32) -> bool) {
        self.partial.retain(|p| wanted(&p.header.session, p.header.epoch));
    }

    /// Whether one more batch could not be begun.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.partial.len() >= MAX_PARTIAL_BATCHES
    }

    /// Bytes received of unfinished batches.
    #[must_use]
    pub fn received_bytes(&self) -> usize {
        self.partial.iter().map(Partial::received).fold(0, usize::saturating_add)
    }

    /// Bytes of memory taken for unfinished batches.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.partial.iter().map(|p| p.data.capacity().saturating_mul(FLOAT)).fold(0, usize::saturating_add)
    }
}

fn begin(now: Instant, header: &RowsHeader, expect: Expect) -> Result<Partial, ErrorCode> {
    let values = u64::from(header.rows).checked_mul(u64::from(expect.width));
    let size = values.and_then(|n| n.checked_mul(u64::try_from(expect.form.value_bytes()).ok()?));
    if size != Some(u64::from(header.total)) {
        return Err(ErrorCode::BadShape);
    }
    if header.pos.checked_add(u32::from(header.rows)).is_none_or(|end| end > expect.max_rows) {
        return Err(ErrorCode::ContextFull);
    }
    if header.offset != 0 {
        return Err(ErrorCode::BadPosition);
    }
    let due = now.checked_add(BATCH_TIMEOUT).unwrap_or(now);
    Ok(Partial { header: *header, deadline: deadline(now, header.deadline_ms), due, expect, data: Vec::new() })
}

/// Whether `header` goes on where `partial` stands. The deadline may differ: it is what remains. The session may not: a
/// coordinator can close it and open it again under its name, with rows of another form or width.
fn follows(partial: &Partial, header: &RowsHeader, expect: Expect) -> Result<(), ErrorCode> {
    if partial.expect != expect {
        return Err(ErrorCode::BadShape);
    }
    let expected = RowsHeader {
        deadline_ms: header.deadline_ms,
        offset: u32::try_from(partial.received()).unwrap_or(u32::MAX),
        ..partial.header
    };
    if expected == *header { Ok(()) } else { Err(ErrorCode::BadPosition) }
}

/// Makes room for `more` values of a batch of `whole`: doubles, so that a batch is copied once at most on average, but not
/// past what the batch will hold.
fn make_room(data: &mut Vec<f32>, more: usize, whole: usize) {
    if data.capacity().saturating_sub(data.len()) < more {
        let needed = data.len().saturating_add(more);
        let wanted = data.len().saturating_mul(2).min(whole).max(needed);
        data.reserve_exact(wanted.saturating_sub(data.len()));
    }
}

/// Appends the floats of `fragment`; whole floats, as [`RowsHeader::split`] has checked.
fn append(data: &mut Vec<f32>, fragment: &[u8], whole: usize) -> Result<(), ErrorCode> {
    let (floats, _) = fragment.as_chunks::<FLOAT>();
    make_room(data, floats.len(), whole);
    // No early exit: a loop without one is vectorised.
    let bad = floats.iter().fold(false, |bad, &bytes| bad | (u32::from_le_bytes(bytes) & EXPONENT == EXPONENT));
    if bad {
        return Err(ErrorCode::NotFinite);
    }
    data.extend(floats.iter().map(|&bytes| f32::from_le_bytes(bytes)));
    Ok(())
}

/// Appends the values of a `fragment` of bf16. They take twice the memory that they took on the wire.
fn append16(data: &mut Vec<f32>, fragment: &[u8], whole: usize) -> Result<(), ErrorCode> {
    const UPPER: u32 = EXPONENT >> 16;
    let (halves, _) = fragment.as_chunks::<{ size_of::<u16>() }>();
    make_room(data, halves.len(), whole);
    let bits = |bytes: [u8; 2]| u32::from(u16::from_le_bytes(bytes));
    if halves.iter().fold(false, |bad, &bytes| bad | (bits(bytes) & UPPER == UPPER)) {
        return Err(ErrorCode::NotFinite);
    }
    data.extend(halves.iter().map(|&bytes| f32::from_bits(bits(bytes) << 16)));
    Ok(())
}

/// The instant `ms` from `now`, at most an hour.
fn deadline(now: Instant, ms: u32) -> Instant {
    let remaining = std::time::Duration::from_millis(u64::from(ms.min(MAX_DEADLINE_MS)));
    now.checked_add(remaining).unwrap_or(now)
}
