//! Frames on a stream.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use quelea_wire::ErrorCode;

use crate::message::{Answer, Ask};

/// Why a frame cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Cut,
    /// The frame is longer than its kind may be.
    #[error("a frame of kind {kind} of {len} bytes is longer than allowed")]
    TooLarge {
        /// Which kind.
        kind: u8,
        /// Its bytes.
        len: usize,
    },
    /// No kind that this side of the stream sends.
    #[error("a frame of the unknown kind {0}")]
    Unknown(u8),
    /// A question of another version.
    #[error("a question of an unknown version")]
    Version,
    /// The body is not what its kind has.
    #[error("a malformed frame: {0}")]
    Malformed(&'static str),
}

impl FrameError {
    /// What the other side is told, if it is at fault and there is somebody to tell.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Io(_) | Self::Cut => None,
            Self::TooLarge { .. } => Some(ErrorCode::FrameTooLarge),
            Self::Version => Some(ErrorCode::VersionMismatch),
            Self::Unknown(_) | Self::Malformed(_) => Some(ErrorCode::BadFrame),
        }
    }
}

/// Reads frames of one direction.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
}

/// Writes frames of one direction.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// On a stream that stands before a frame.
    pub fn new(io: R) -> Self {
        Self { io }
    }

    /// What the caller says next; nothing when it has closed its direction.
    ///
    /// Not safe to drop in between: what was read of a frame is lost then.
    ///
    /// # Errors
    /// When the stream breaks, or what comes is nothing that a caller says.
    pub async fn ask(&mut self) -> Result<Option<Ask>, FrameError> {
        let Some((kind, body)) = self.frame(Ask::cap).await? else { return Ok(None) };
        Ask::parse(kind, &body).map(Some)
    }

    /// What the provider says next; nothing when it has closed its direction.
    ///
    /// Not safe to drop in between: what was read of a frame is lost then.
    ///
    /// # Errors
    /// When the stream breaks, or what comes is nothing that a provider says.
    pub async fn answer(&mut self) -> Result<Option<Answer>, FrameError> {
        let Some((kind, body)) = self.frame(Answer::cap).await? else { return Ok(None) };
        Answer::parse(kind, &body).map(Some)
    }

    /// Memory is taken for bytes that have come, not for those that are announced.
    async fn frame(&mut self, cap: fn(u8) -> Option<usize>) -> Result<Option<(u8, Vec<u8>)>, FrameError> {
        let mut first = [0; 1];
        if self.io.read(&mut first).await? == 0 {
            return Ok(None);
        }
        let [a] = first;
        let mut rest = [0; 4];
        self.exact(&mut rest).await?;
        let [b, c, d, kind] = rest;
        let len = u32::from_le_bytes([a, b, c, d]);
        let most = cap(kind).ok_or(FrameError::Unknown(kind))?;
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        if size > most {
            return Err(FrameError::TooLarge { kind, len: size });
        }
        let mut body = Vec::new();
        (&mut self.io).take(u64::from(len)).read_to_end(&mut body).await?;
        if body.len() == size { Ok(Some((kind, body))) } else { Err(FrameError::Cut) }
    }

    async fn exact(&mut self, into: &mut [u8]) -> Result<(), FrameError> {
        self.io.read_exact(into).await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::Cut,
            _ => error.into(),
        })
    }
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// On a stream that stands before a frame.
    pub fn new(io: W) -> Self {
        Self { io }
    }

    /// Says something as a caller.
    ///
    /// # Errors
    /// When it is longer than allowed, or the stream breaks.
    pub async fn ask(&mut self, ask: &Ask) -> Result<(), FrameError> {
        let body = ask.body()?;
        self.frame(ask.kind(), &body).await
    }

    /// Says something as a provider.
    ///
    /// # Errors
    /// When it is longer than allowed, or the stream breaks.
    pub async fn answer(&mut self, answer: &Answer) -> Result<(), FrameError> {
        let body = answer.body()?;
        self.frame(answer.kind(), &body).await
    }

    /// Ends this direction.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn close(&mut self) -> Result<(), FrameError> {
        Ok(self.io.close().await?)
    }

    async fn frame(&mut self, kind: u8, body: &[u8]) -> Result<(), FrameError> {
        let len = u32::try_from(body.len()).map_err(|_| FrameError::TooLarge { kind, len: body.len() })?;
        let mut head = [0; 5];
        let (length, of_kind) = head.split_at_mut(4);
        length.copy_from_slice(&len.to_le_bytes());
        of_kind.fill(kind);
        self.io.write_all(&head).await?;
        self.io.write_all(body).await?;
        Ok(self.io.flush().await?)
    }
}
