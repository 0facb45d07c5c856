//! The exchange as libp2p's request-response sees it.

use std::{collections::HashSet, io};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use quelea_wire::{NetworkId, time};

use crate::{
    message::{Answer, ENTRY_OVERHEAD, Entry, RawEntry, Request, Response},
    record::SignedRecord,
};

/// Reads and writes. The signatures of an answer are checked here, on the connection's task and not on the swarm's loop;
/// that of a request is left to the behaviour, which first asks whether the peer may ask at all.
#[derive(Debug, Clone)]
pub struct Codec {
    network: NetworkId,
}

impl Codec {
    pub(crate) fn new(network: NetworkId) -> Self {
        Self { network }
    }

    fn verify(&self, answer: Answer, now_ms: u64) -> Response {
        let Answer::Records(raw) = answer else { return Response::Busy };
        let (mut entries, mut stale, mut bytes) = (Vec::with_capacity(raw.len()), 0_usize, 2_usize);
        let mut seen = HashSet::with_capacity(raw.len());
        for RawEntry { ttl, raw } in raw {
            bytes = bytes.saturating_add(ENTRY_OVERHEAD).saturating_add(raw.len());
            match SignedRecord::verify(&raw, &self.network, now_ms) {
                Ok(record) if seen.insert(record.peer()) => entries.push(Entry { ttl, record }),
                Ok(_) => return Response::Repeated,
                Err(error) if error.is_honest() => stale = stale.saturating_add(1),
                Err(error) => return Response::Refused(error),
            }
        }
        Response::Records { entries, stale, bytes }
    }
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Response;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        Request::read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Response>
    where
        T: AsyncRead + Unpin + Send,
    {
        let answer = Answer::read(io).await?;
        Ok(self.verify(answer, time::unix_ms()))
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&request.encode()).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, response: Response) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let answer = match response {
            Response::Busy => Answer::Busy,
            Response::Records { entries, .. } => {
                let raw = |entry: Entry| RawEntry { ttl: entry.ttl, raw: entry.record.raw().to_vec() };
                Answer::Records(entries.into_iter().map(raw).collect())
            }
            Response::Refused(_) | Response::Repeated => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "what was refused is not passed on"));
            }
        };
        io.write_all(&answer.encode()).await
    }
}
