//! Reading fields off a frame's body.

use crate::codec::FrameError;

/// What is left of a body.
pub(crate) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(FrameError::Malformed("it ends too soon"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FrameError> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length of one byte, and so many bytes of text.
    pub(crate) fn text(&mut self) -> Result<&'a str, FrameError> {
        let len = usize::from(self.u8()?);
        let (head, rest) = self.0.split_at_checked(len).ok_or(FrameError::Malformed("it ends too soon"))?;
        self.0 = rest;
        std::str::from_utf8(head).map_err(|_| FrameError::Malformed("text that is not UTF-8"))
    }

    /// Everything else, if it is no more than this.
    pub(crate) fn rest(self, most: usize) -> Result<&'a [u8], FrameError> {
        if self.0.len() <= most { Ok(self.0) } else { Err(FrameError::Malformed("more than its cap")) }
    }

    /// There is nothing else.
    pub(crate) fn end(self) -> Result<(), FrameError> {
        if self.0.is_empty() { Ok(()) } else { Err(FrameError::Malformed("bytes behind its end")) }
    }
}

/// Text with a length of one byte before it; what does not fit is cut off at a character.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str, most: usize) {
    let text = cut(text, most.min(usize::from(u8::MAX)));
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
}

/// The longest beginning of `text` of at most so many bytes.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let mut at = text.len().min(most);
    while !text.is_char_boundary(at) {
        at = at.saturating_sub(1);
    }
    text.get(..at).unwrap_or_default()
}
