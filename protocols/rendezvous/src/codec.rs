//! The protocol as libp2p's request-response sees it.

use std::io;

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};

use crate::{
    message::{Answer, Listed, Request, Status},
    record::Record,
};

/// An answer whose records are believed.
#[derive(Debug, Clone)]
pub enum Response {
    /// For how many seconds the record is kept, or why not.
    Register(Result<u64, Status>),
    /// Records under the namespace that was asked for, how many others there were, and a cookie; or why not.
    Discover(Result<Page, Status>),
}

/// Some of the registrations of a point.
#[derive(Debug, Clone)]
pub struct Page {
    /// Under what, who, and for how many seconds. At most [`MAX_LISTED`](crate::MAX_LISTED).
    pub records: Vec<(String, Record, u64)>,
    /// Records that do not verify.
    pub invalid: usize,
    /// What the next request is to begin with.
    pub cookie: Vec<u8>,
}

/// Reads and writes. The signatures of an answer are checked here, on the connection's task and not on the swarm's loop;
/// that of a request is left to the behaviour, which first asks whether the peer may ask at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Codec;

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
        Ok(match Answer::read(io).await? {
            Answer::Register(result) => Response::Register(result),
            Answer::Discover(Err(status)) => Response::Discover(Err(status)),
            Answer::Discover(Ok((listed, cookie))) => {
                let (mut records, all) = (Vec::with_capacity(listed.len()), listed.len());
                for Listed { namespace, record, ttl } in listed {
                    if let Ok(record) = Record::verify(&record) {
                        records.push((namespace, record, ttl));
                    }
                }
                let invalid = all.saturating_sub(records.len());
                Response::Discover(Ok(Page { records, invalid, cookie }))
            }
        })
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
            Response::Register(result) => Answer::Register(result),
            Response::Discover(Err(status)) => Answer::Discover(Err(status)),
            Response::Discover(Ok(Page { records, cookie, .. })) => {
                let listed = |(namespace, record, ttl): (String, Record, u64)| Listed {
                    namespace,
                    record: record.raw().to_vec(),
                    ttl,
                };
                Answer::Discover(Ok((records.into_iter().map(listed).collect(), cookie)))
            }
        };
        io.write_all(&answer.encode()).await
    }
}
