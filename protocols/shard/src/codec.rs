//! Frames on a stream.
//!
//! Reader and writer keep their buffers between calls and lose nothing when a call's future is dropped, so both can
//! stand in a `select!`.

use std::{future::poll_fn, io, pin::Pin};

use futures::{AsyncRead, AsyncWrite};
use quelea_wire::ErrorCode;

use crate::frame::{self, CRITICAL, DecodeError, Form, Frame, MAX_FRAME, Raw, RowsHeader};

/// The read buffer's first size. Control frames and acknowledgements fit; 1,000 idle streams take 1 MiB.
const FIRST_BUFFER: usize = 1024;

/// The read buffer's last size: two full frames, so that the tail of one rarely has to be moved for the next.
const LAST_BUFFER: usize = 2 * MAX_FRAME;

/// What the write buffer keeps between frames: one full frame.
const KEPT_WRITE_BUFFER: usize = MAX_FRAME;

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    /// The stream ended within a frame.
    #[error("the stream ended in the middle of a frame")]
    UnexpectedEnd,
    /// The peer sent what is not a frame.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The peer sent a frame that must not be skipped, of a kind that this version does not know.
    #[error("a critical frame of the unknown kind {0:#04x}")]
    UnknownCritical(u8),
}

impl CodecError {
    /// The code that tells the peer, when it is to blame.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Io(_) | Self::UnexpectedEnd => None,
            Self::Decode(e) => Some(e.code()),
            Self::UnknownCritical(_) => Some(ErrorCode::UnknownCritical),
        }
    }
}

/// Cuts a stream into frames. Holds at most [`MAX_FRAME`] × 2 bytes, and no more than twice what has arrived beyond the
/// first KiB.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    /// Always initialised to its length; `start..end` is what has arrived and not been taken.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    skipped: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `io`.
    pub fn new(io: R) -> Self {
        Self { io, buffer: Vec::new(), start: 0, end: 0, skipped: 0 }
    }

    /// The next frame of a known kind; `None` when the stream has ended between frames. Cancel-safe.
    ///
    /// # Errors
    /// When the stream breaks, or the peer sends what is no frame or must not be skipped. The stream is useless then.
    pub async fn next(&mut self) -> Result<Option<Frame>, CodecError> {
        loop {
            let Some(raw) = self.next_raw().await? else { return Ok(None) };
            if let Some(frame) = Frame::decode(raw.kind, raw.body)? {
                return Ok(Some(frame));
            }
            let Raw { kind, flags, .. } = raw;
            self.skip(kind, flags)?;
        }
    }

    /// The next frame, its fields unread; `None` when the stream has ended between frames. Cancel-safe. Frames of
    /// unknown kinds are the caller's: see [`Self::skip`].
    ///
    /// # Errors
    /// When the stream breaks, or a length is beyond its kind's cap.
    pub async fn next_raw(&mut self) -> Result<Option<Raw<'_>>, CodecError> {
        // A peer that keeps the buffer full must not keep this thread.
        tokio::task::coop::consume_budget().await;
        let (kind, flags, body) = loop {
            let arrived = self.arrived();
            if let Some((raw, len)) = frame::split(arrived)? {
                let body_at = self.start.saturating_add(frame::HEADER);
                let found = (raw.kind, raw.flags, body_at..body_at.saturating_add(raw.body.len()));
                self.start = self.start.saturating_add(len);
                break found;
            }
            if self.fill().await? == 0 {
                return if self.arrived().is_empty() { Ok(None) } else { Err(CodecError::UnexpectedEnd) };
            }
        };
        Ok(Some(Raw { kind, flags, body: self.buffer.get(body).unwrap_or_default() }))
    }

    /// Passes over a frame of an unknown kind.
    ///
    /// # Errors
    /// When the frame must not be skipped.
    pub fn skip(&mut self, kind: u8, flags: u8) -> Result<(), CodecError> {
        if flags & CRITICAL != 0 {
            return Err(CodecError::UnknownCritical(kind));
        }
        self.skipped = self.skipped.saturating_add(1);
        Ok(())
    }

    /// How many frames of unknown kinds were passed over.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Whether the next frame has already arrived in full (or is already known to be bad), so that taking it waits for
    /// nobody.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !matches!(frame::split(self.arrived()), Ok(None))
    }

    /// Bytes of memory that the reader holds.
    #[must_use]
    pub fn buffered_capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn arrived(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads once, into the buffer's free end; 0 at the end of the stream.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.buffer.len() {
            self.make_room();
        }
        let Self { io, buffer, end, .. } = self;
        let free = buffer.get_mut(*end..).unwrap_or_default();
        let n = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, free)).await?;
        *end = end.saturating_add(n);
        Ok(n)
    }

    /// Moves what is left to the front; when nothing was in front of it, doubles the buffer. As only a full buffer
    /// grows, the peer has sent at least half of what it makes us hold.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        } else {
            let size = self.buffer.len().saturating_mul(2).clamp(FIRST_BUFFER, LAST_BUFFER);
            self.buffer.reserve_exact(size.saturating_sub(self.buffer.len()));
            self.buffer.resize(size, 0);
        }
    }
}

/// Writes frames to a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
    buffer: Vec<u8>,
    /// How much of the buffer has been written.
    written: usize,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `io`.
    pub fn new(io: W) -> Self {
        Self { io, buffer: Vec::new(), written: 0 }
    }

    /// Sends one frame, and what was queued before it.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.queue(frame);
        self.flush().await
    }

    /// Puts a frame behind those not yet flushed, in memory.
    pub fn queue(&mut self, frame: &Frame) {
        frame.encode(&mut self.buffer);
    }

    /// Puts a frame of a batch of this form with `values` as its fragment behind those not yet flushed: header and floats
    /// go into one buffer, to be one write.
    pub fn queue_rows(&mut self, form: Form, header: &RowsHeader, values: &[f32]) {
        header.encode_with(form, values, &mut self.buffer);
    }

    /// Bytes that are queued and not yet taken by the stream.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.buffer.len().saturating_sub(self.written)
    }

    /// Writes all that is queued. Cancel-safe: a later call goes on where this one stopped.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.buffer.get(self.written..).filter(|rest| !rest.is_empty()) {
            let io = &mut self.io;
            let n = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, rest)).await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.written = self.written.saturating_add(n);
        }
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_WRITE_BUFFER);
        self.written = 0;
        poll_fn(|cx| Pin::new(&mut self.io).poll_flush(cx)).await
    }

    /// Flushes, then ends this direction of the stream.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn close(&mut self) -> io::Result<()> {
        self.flush().await?;
        poll_fn(|cx| Pin::new(&mut self.io).poll_close(cx)).await
    }
}
