//! One exchange on one stream.
//!
//! ```text
//! request: length u16 LE (at most 4,096) | packet
//! answer:  status u8 (0 = taken, 1 = busy, 2 = refused)
//!          status 1: milliseconds to wait u32 LE
//! ```
//!
//! What follows is not read.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};

use crate::{
    fields::DecodeError,
    packet::{MAX_PACKET, Packet},
};

const TAKEN: u8 = 0;
const BUSY: u8 = 1;
const REFUSED: u8 = 2;

/// What a peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The bytes of a [`Packet`], as they came; what they say is for the book.
    Packet(Vec<u8>),
    /// Bytes that are no packet. Never written.
    Malformed(DecodeError),
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has reached whoever keeps the ledger. That something is on disk is told by the ledger's own messages.
    Taken,
    /// There is no place for it now.
    Busy {
        /// How long to wait before it is sent again, in milliseconds. Whoever waits clamps it.
        retry_ms: u32,
    },
    /// It is no packet.
    Refused,
}

impl Request {
    /// Reads a request. Memory is taken for what has come and not for what is announced; after a length past [`MAX_PACKET`]
    /// nothing is read.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        let mut length = [0; 2];
        io.read_exact(&mut length).await?;
        let length = u16::from_le_bytes(length);
        if usize::from(length) > MAX_PACKET {
            return Ok(Self::Malformed(DecodeError::Long));
        }
        let mut packet = Vec::new();
        if io.take(length.into()).read_to_end(&mut packet).await? < length.into() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Here, on the connection's task, and not on the swarm's.
        Ok(match Packet::decode(&packet) {
            Ok(_) => Self::Packet(packet),
            Err(error) => Self::Malformed(error),
        })
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// When it is no packet, or one longer than [`MAX_PACKET`].
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let Self::Packet(packet) = self else { return Err(invalid("what is no packet is not passed on")) };
        if packet.len() > MAX_PACKET {
            return Err(invalid("a packet longer than 4,096 bytes"));
        }
        let length = u16::try_from(packet.len()).map_err(|_| invalid("a packet longer than 4,096 bytes"))?;
        let mut out = Vec::with_capacity(packet.len().saturating_add(2));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(packet);
        Ok(out)
    }
}

impl Answer {
    /// Reads an answer.
    ///
    /// # Errors
    /// When the stream breaks, or its bytes are no answer.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        let mut status = [0; 1];
        io.read_exact(&mut status).await?;
        match status {
            [TAKEN] => Ok(Self::Taken),
            [BUSY] => {
                let mut retry = [0; 4];
                io.read_exact(&mut retry).await?;
                Ok(Self::Busy { retry_ms: u32::from_le_bytes(retry) })
            }
            [REFUSED] => Ok(Self::Refused),
            _ => Err(invalid("an answer of an unknown status")),
        }
    }

    /// The bytes that travel.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Taken => vec![TAKEN],
            Self::Busy { retry_ms } => [&[BUSY][..], &retry_ms.to_le_bytes()].concat(),
            Self::Refused => vec![REFUSED],
        }
    }
}

/// Reads and writes the exchange.
#[derive(Debug, Clone, Copy)]
pub struct Codec;

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        Request::read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        Answer::read(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&request.encode()?).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: Answer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&answer.encode()).await
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
