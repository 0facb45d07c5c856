//! One exchange on one stream, as bytes.
//!
//! ```text
//! request:  version u8 = 1 | want u8 (records, 1 to 64) | own length u16 LE (0 = none) | own signed record | filter
//! answer:   status u8 = 0 | count u8 (at most 64) | count x (ttl u8 (0 to 3) | length u16 LE | signed record)
//!           status u8 = 1: ask later
//! ```
//!
//! Every length is checked before a byte is allocated for it. What is read here is not verified yet.

use std::io;

use futures::{AsyncRead, AsyncReadExt};

use crate::{
    filter::{Filter, HEADER},
    record::{MAX_RECORD_BYTES, SignedRecord, VerifyError},
    records::MAX_TTL,
};

const VERSION: u8 = 1;
const RECORDS: u8 = 0;
const BUSY: u8 = 1;

/// Records in one answer: 64 signatures take 3 ms to check.
pub const MAX_RECORDS: u8 = 64;
/// Bytes of one answer: 64 records of 500 bytes each.
pub const MAX_RESPONSE_BYTES: usize = 32 * 1024;
/// Bytes around a record in an answer.
pub(crate) const ENTRY_OVERHEAD: usize = 1 + 2;

/// Asks for records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How many at most; 1 to [`MAX_RECORDS`].
    pub want: u8,
    /// The asker's own signed record as it came; not verified.
    pub own: Option<Vec<u8>>,
    /// Whom the asker knows.
    pub filter: Filter,
}

/// A record as it came; not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// How many more times it may be passed on.
    pub ttl: u8,
    /// The signed bytes.
    pub raw: Vec<u8>,
}

/// What comes back, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Records, best first; at most [`MAX_RECORDS`] in [`MAX_RESPONSE_BYTES`].
    Records(Vec<RawEntry>),
    /// Asked too often.
    Busy,
}

/// A record that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How many more times it may be passed on.
    pub ttl: u8,
    /// The record.
    pub record: SignedRecord,
}

/// What comes back, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// Records, best first, each of another peer.
    Records {
        /// What can be believed.
        entries: Vec<Entry>,
        /// Records too old, or from a clock too far ahead: an honest peer may send those.
        stale: usize,
        /// Bytes of the whole answer.
        bytes: usize,
    },
    /// Asked too often.
    Busy,
    /// At least one record that no honest peer passes on. Never written.
    Refused(VerifyError),
    /// Two records of one peer. Never written.
    Repeated,
}

impl Request {
    /// The bytes on the wire. An own record over [`MAX_RECORD_BYTES`] is left out: nobody would read it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let own = self.own.as_deref().filter(|own| own.len() <= MAX_RECORD_BYTES).unwrap_or_default();
        let mut out = Vec::with_capacity(self.filter.wire_len().saturating_add(own.len()).saturating_add(4));
        out.extend_from_slice(&[VERSION, self.want]);
        out.extend_from_slice(&length(own));
        out.extend_from_slice(own);
        self.filter.encode(&mut out);
        out
    }

    /// Reads one request.
    ///
    /// # Errors
    /// When the stream ends early, or the bytes are no request of this version.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        let mut head = [0; 4];
        io.read_exact(&mut head).await?;
        let [version, want, l0, l1] = head;
        if version != VERSION {
            return Err(invalid("a request of an unknown version"));
        }
        if !(1..=MAX_RECORDS).contains(&want) {
            return Err(invalid("a request for no records, or for more than 64"));
        }
        let own = record(io, [l0, l1]).await?;
        let mut header = [0; HEADER];
        io.read_exact(&mut header).await?;
        let bytes = Filter::bytes_after(&header).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let bits = take(io, bytes).await?;
        let filter = Filter::from_parts(&header, bits).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(Self { want, own: Some(own).filter(|own| !own.is_empty()), filter })
    }
}

impl Answer {
    /// The bytes on the wire. What no reader would take is left out: records past the caps, or overlong.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self::Records(entries) = self else { return vec![BUSY] };
        let (mut out, mut count) = (vec![RECORDS, 0], 0_u8);
        for entry in entries {
            let after = out.len().saturating_add(ENTRY_OVERHEAD).saturating_add(entry.raw.len());
            if count >= MAX_RECORDS || after > MAX_RESPONSE_BYTES || entry.raw.len() > MAX_RECORD_BYTES {
                continue;
            }
            out.push(entry.ttl.min(MAX_TTL));
            out.extend_from_slice(&length(&entry.raw));
            out.extend_from_slice(&entry.raw);
            count = count.saturating_add(1);
        }
        if let Some(place) = out.get_mut(1) {
            *place = count;
        }
        out
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// When the stream ends early, or the bytes are no answer.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        let mut status = [0; 1];
        io.read_exact(&mut status).await?;
        match status {
            [BUSY] => return Ok(Self::Busy),
            [RECORDS] => {}
            _ => return Err(invalid("an answer of an unknown status")),
        }
        let mut count = [0; 1];
        io.read_exact(&mut count).await?;
        let [count] = count;
        if count > MAX_RECORDS {
            return Err(invalid("an answer of more than 64 records"));
        }
        let (mut entries, mut total) = (Vec::new(), 2_usize);
        for _ in 0..count {
            let mut head = [0; ENTRY_OVERHEAD];
            io.read_exact(&mut head).await?;
            let [ttl, l0, l1] = head;
            if ttl > MAX_TTL {
                return Err(invalid("a record that is passed on for ever"));
            }
            total = total.saturating_add(ENTRY_OVERHEAD).saturating_add(usize::from(u16::from_le_bytes([l0, l1])));
            if total > MAX_RESPONSE_BYTES {
                return Err(invalid("an answer of more than 32 KiB"));
            }
            let raw = record(io, [l0, l1]).await?;
            if raw.is_empty() {
                return Err(invalid("an empty record"));
            }
            entries.push(RawEntry { ttl, raw });
        }
        Ok(Self::Records(entries))
    }
}

async fn record<T: AsyncRead + Unpin>(io: &mut T, length: [u8; 2]) -> io::Result<Vec<u8>> {
    let length = usize::from(u16::from_le_bytes(length));
    if length > MAX_RECORD_BYTES {
        return Err(invalid("a record longer than 1,024 bytes"));
    }
    take(io, length).await
}

/// So many bytes. Memory grows with what has come, not with what was claimed.
async fn take<T: AsyncRead + Unpin>(io: &mut T, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut bytes).await?;
    if bytes.len() == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The caller has checked that it fits.
fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes()
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
