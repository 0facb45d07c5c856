//! The greeting on a new stream, on both ends.

use std::{io, time::Duration};

use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite,
    io::{ReadHalf, WriteHalf},
};
use quelea_wire::ErrorCode;
use tokio::time::timeout;

use crate::{
    codec::{CodecError, FrameReader, FrameWriter},
    frame::{Frame, Hello, HelloAck, Reject, StreamKind},
};

/// The highest version of this build. 0 is no version.
pub const VERSION: u16 = 1;

/// Feature bit: beginnings of prompts have names, and stages keep them. Open and Accept have their last fields, and there
/// is Keep.
pub const PREFIX: u64 = 1;

/// Feature bit: rows may go back behind the last ones ([`RowsHeader::rewind`](crate::frame::RowsHeader::rewind)).
pub const REWIND: u64 = 2;

/// Feature bit: a session outlives the loss of a stage. A stage that loses the next peer keeps the session and says so;
/// Reroute, Resume and Commit are known, and a session that is opened in a later epoch than 1 hands nothing on before
/// Resume.
pub const FAILOVER: u64 = 4;

/// Feature bit: the first stage of a chain may take token ids, and the last give logits. Open has its last field, and there
/// are Tokens and Logits.
pub const THIN: u64 = 8;

/// Feature bit: sessions of the profile `exact-bf16`, whose rows are Rows16.
pub const BF16: u64 = 16;

/// Feature bit: stages are paid. Open has its last field, and there are Voucher and Receipt.
pub const PAY: u64 = 32;

/// Feature bit: Open may say which trace a session is part of, in its last field.
pub const TRACE: u64 = 64;

/// The feature bits of this build.
pub const FEATURES: u64 = PREFIX | REWIND | FAILOVER | THIN | BF16 | PAY | TRACE;

/// How long a greeting may take: several round trips through a slow relay.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a last word may take. The peer may not be reading.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// A stream on which both ends have agreed what it is for.
#[derive(Debug)]
pub struct Negotiated<S> {
    /// What the stream is for.
    pub kind: StreamKind,
    /// The version that both speak.
    pub version: u16,
    /// The feature bits that both know.
    pub features: u64,
    /// What the peer sends.
    pub reader: FrameReader<ReadHalf<S>>,
    /// What the peer gets.
    pub writer: FrameWriter<WriteHalf<S>>,
}

/// Why a greeting came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The peer did not answer, or did not greet, in [`GREETING_TIMEOUT`].
    #[error("the peer did not greet in time")]
    Timeout,
    /// The peer does not want the stream.
    #[error("the peer refused the stream: {code} ({})", code.meaning())]
    Rejected {
        /// Why, in its words.
        code: ErrorCode,
    },
    /// We do not want the stream, and have told the peer.
    #[error("the stream is refused: {code} ({})", code.meaning())]
    Refused {
        /// Why.
        code: ErrorCode,
    },
    /// The peer closed the stream instead.
    #[error("the peer closed the stream")]
    Closed,
    /// What came is not a greeting.
    #[error("the peer sent something else than a greeting")]
    Unexpected,
    /// What came cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<io::Error> for HandshakeError {
    fn from(e: io::Error) -> Self {
        Self::Codec(e.into())
    }
}

/// Greets on a stream that we opened for `kind`.
///
/// # Errors
/// When the peer refuses, stays silent for [`GREETING_TIMEOUT`], or answers something else.
pub async fn initiate<S>(stream: S, kind: StreamKind) -> Result<Negotiated<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = halves(stream);
    let greeting = async {
        writer.send(&Hello { version: VERSION, stream: kind, features: FEATURES }.into()).await?;
        match reader.next().await? {
            Some(Frame::HelloAck(ack)) if (1..=VERSION).contains(&ack.version) => Ok(ack),
            Some(Frame::HelloAck(_)) => Err(HandshakeError::Refused { code: ErrorCode::VersionMismatch }),
            Some(Frame::Reject(Reject { code })) => Err(HandshakeError::Rejected { code }),
            Some(_) => Err(HandshakeError::Unexpected),
            None => Err(HandshakeError::Closed),
        }
    };
    let ack = timeout(GREETING_TIMEOUT, greeting).await.unwrap_or(Err(HandshakeError::Timeout))?;
    Ok(Negotiated { kind, version: ack.version, features: ack.features & FEATURES, reader, writer })
}

/// Answers the greeting on a stream that the peer opened, whatever it is for.
///
/// # Errors
/// When the peer stays silent for [`GREETING_TIMEOUT`], speaks no version of ours, or sends something else. It has been
/// told why, unless it is gone.
pub async fn accept<S>(stream: S) -> Result<Negotiated<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    accept_if(stream, |_| Ok(())).await
}

/// As [`accept`], asking `admit` whether a stream of this kind is wanted; its code goes to the peer.
///
/// # Errors
/// As [`accept`], and when `admit` says no.
pub async fn accept_if<S>(
    stream: S,
    admit: impl FnOnce(StreamKind) -> Result<(), ErrorCode>,
) -> Result<Negotiated<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = halves(stream);
    let greeting = async {
        let hello = match reader.next().await? {
            Some(Frame::Hello(hello)) => hello,
            Some(_) => return Err(HandshakeError::Unexpected),
            None => return Err(HandshakeError::Closed),
        };
        if hello.version == 0 {
            return Err(HandshakeError::Refused { code: ErrorCode::VersionMismatch });
        }
        admit(hello.stream).map_err(|code| HandshakeError::Refused { code })?;
        let ack = HelloAck { version: hello.version.min(VERSION), features: hello.features & FEATURES };
        writer.send(&ack.into()).await?;
        Ok((hello.stream, ack))
    };
    let greeted = timeout(GREETING_TIMEOUT, greeting).await.unwrap_or(Err(HandshakeError::Timeout));
    let (kind, HelloAck { version, features }) = match greeted {
        Ok(greeted) => greeted,
        Err(e) => {
            let code = match &e {
                HandshakeError::Refused { code } => Some(*code),
                HandshakeError::Unexpected => Some(ErrorCode::BadFrame),
                HandshakeError::Codec(e) => e.code(),
                HandshakeError::Timeout | HandshakeError::Closed | HandshakeError::Rejected { .. } => None,
            };
            if let Some(code) = code {
                last_word(&mut writer, code).await;
            }
            return Err(e);
        }
    };
    Ok(Negotiated { kind, version, features, reader, writer })
}

/// Tells the peer why the stream ends, if it listens, and ends our direction.
pub(crate) async fn last_word<W: AsyncWrite + Unpin>(writer: &mut FrameWriter<W>, code: ErrorCode) {
    let word = async {
        writer.send(&Reject { code }.into()).await?;
        writer.close().await
    };
    // Whether the peer hears it changes nothing for us.
    match timeout(LAST_WORD_TIMEOUT, word).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::trace!("the last word was not sent: {e}"),
        Err(_) => tracing::trace!("the last word was not taken in time"),
    }
}

fn halves<S: AsyncRead + AsyncWrite>(stream: S) -> (FrameReader<ReadHalf<S>>, FrameWriter<WriteHalf<S>>) {
    let (read, write) = stream.split();
    (FrameReader::new(read), FrameWriter::new(write))
}
