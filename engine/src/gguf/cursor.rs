//! Reading little-endian fields from a slice, with every length checked before it is believed.

use super::GgufError;

/// A position in (a part of) a file.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    /// Offset of `rest` in the file.
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor over `bytes`, which stand at `offset` in the file.
    pub(super) fn at(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: bytes, offset }
    }

    /// Bytes from the start of the file.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes left.
    pub(super) fn left(&self) -> u64 {
        self.rest.len() as u64
    }

    /// The bytes between this position and a later one of the same slice.
    pub(super) fn until(&self, later: &Self) -> &'a [u8] {
        let len = self.rest.len().saturating_sub(later.rest.len());
        self.rest.get(..len).unwrap_or_default()
    }

    /// The next `len` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, len: u64, what: impl FnOnce() -> String) -> Result<&'a [u8], GgufError> {
        match usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len)) {
            Some((taken, rest)) => {
                self.rest = rest;
                self.offset = self.offset.saturating_add(taken.len());
                Ok(taken)
            }
            None => Err(GgufError::Truncated { what: what(), offset: self.offset, needed: len, left: self.left() }),
        }
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let offset = self.offset;
        let left = self.left();
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| GgufError::Truncated {
            what: what.to_owned(),
            offset,
            needed: N as u64,
            left,
        })?;
        self.rest = rest;
        self.offset = self.offset.saturating_add(N);
        Ok(*head)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length-prefixed string's bytes.
    pub(super) fn raw_string(&mut self, what: &str) -> Result<&'a [u8], GgufError> {
        let len = self.u64(what)?;
        self.take(len, || format!("{what}, a string of {len} bytes"))
    }

    /// A length-prefixed UTF-8 string.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, GgufError> {
        let offset = self.offset;
        let raw = self.raw_string(what)?;
        std::str::from_utf8(raw).map_err(|error| GgufError::Invalid {
            what: what.to_owned(),
            offset,
            found: format!("bytes that are not UTF-8 ({error})"),
            expected: "a UTF-8 string".to_owned(),
        })
    }
}
