//! One exchange on one stream.
//!
//! ```text
//! request: version u8 = 1
//! answer:  status u8 (0 = nothing announced, 1 = announcement follows, 2 = ask later)
//!          status 1: length u16 LE (at most 1,024) | signed announcement
//! ```

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use quelea_wire::{NetworkId, time};

use crate::signed::{MAX_BYTES, SignedAnnouncement, VerifyError};

const VERSION: u8 = 1;
const NONE: u8 = 0;
const SOME: u8 = 1;
const BUSY: u8 = 2;

/// Asks for the current announcement. It has no parameters: a peer has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The peer announces nothing.
    None,
    /// The peer's announcement, checked when read.
    Some(Box<SignedAnnouncement>),
    /// Asked too often.
    Busy,
    /// Something that is not to be believed. Never written.
    Refused(VerifyError),
}

/// Reads and writes the exchange. Signatures are checked here, on the connection's task and not on the swarm's loop.
#[derive(Debug, Clone)]
pub struct Codec {
    network: NetworkId,
}

impl Codec {
    pub(crate) fn new(network: NetworkId) -> Self {
        Self { network }
    }
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut version = [0; 1];
        io.read_exact(&mut version).await?;
        if version == [VERSION] { Ok(Request) } else { Err(invalid("a request of an unknown version")) }
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut status = [0; 1];
        io.read_exact(&mut status).await?;
        match status {
            [NONE] => Ok(Answer::None),
            [BUSY] => Ok(Answer::Busy),
            [SOME] => {
                let mut length = [0; 2];
                io.read_exact(&mut length).await?;
                let length = usize::from(u16::from_le_bytes(length));
                if length > MAX_BYTES {
                    return Err(invalid("an announcement longer than 1,024 bytes"));
                }
                let mut raw = vec![0; length];
                io.read_exact(&mut raw).await?;
                Ok(match SignedAnnouncement::verify(&raw, &self.network, time::unix_ms()) {
                    Ok(announcement) => Answer::Some(Box::new(announcement)),
                    Err(error) => Answer::Refused(error),
                })
            }
            _ => Err(invalid("an answer of an unknown status")),
        }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, _: Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&[VERSION]).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: Answer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match answer {
            Answer::None => io.write_all(&[NONE]).await,
            Answer::Busy => io.write_all(&[BUSY]).await,
            Answer::Some(announcement) => {
                let raw = announcement.raw();
                let length =
                    u16::try_from(raw.len()).map_err(|_| invalid("an announcement longer than 1,024 bytes"))?;
                let mut out = Vec::with_capacity(raw.len().saturating_add(3));
                out.push(SOME);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(raw);
                io.write_all(&out).await
            }
            Answer::Refused(_) => Err(invalid("a refused announcement is not passed on")),
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};
    use libp2p::{identity::Keypair, request_response::Codec as _};
    use proptest::prelude::*;

    use super::*;
    use crate::Announcement;

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test");

    fn codec() -> Codec {
        Codec::new(NetworkId::from_name("main"))
    }

    fn read(bytes: &[u8]) -> io::Result<Answer> {
        block_on(codec().read_response(&PROTOCOL, &mut Cursor::new(bytes)))
    }

    #[test]
    fn every_answer_comes_back_as_it_was() {
        let key = Keypair::generate_ed25519();
        let announcement = Announcement::new(key.public().to_peer_id(), 1, time::unix_ms());
        let signed = SignedAnnouncement::sign(&key, &NetworkId::from_name("main"), announcement).unwrap();
        for answer in [Answer::None, Answer::Busy, Answer::Some(Box::new(signed))] {
            let mut bytes = Vec::new();
            block_on(codec().write_response(&PROTOCOL, &mut bytes, answer.clone())).unwrap();
            assert_eq!(read(&bytes).unwrap(), answer);
            assert!(read(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn a_length_is_checked_before_its_bytes_are_awaited() {
        let error = read(&[SOME, 0xff, 0xff]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&[7]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_request_is_one_versioned_byte() {
        let mut bytes = Vec::new();
        block_on(codec().write_request(&PROTOCOL, &mut bytes, Request)).unwrap();
        assert_eq!(bytes, [1]);
        assert_eq!(block_on(codec().read_request(&PROTOCOL, &mut Cursor::new([1]))).unwrap(), Request);
        assert!(block_on(codec().read_request(&PROTOCOL, &mut Cursor::new([2]))).is_err());
    }

    proptest! {
        #[test]
        fn random_answers_never_panic_and_are_never_believed(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            prop_assert!(!matches!(read(&bytes), Ok(Answer::Some(_))));
        }
    }
}
