//! Requests and answers as bytes: libp2p's `rendezvous.proto`, each behind its length.
//!
//! Whatever claims to be longer than it may is refused by its length, before anything is read. An unknown field is skipped.

use std::io;

use futures::{AsyncRead, AsyncReadExt};

use crate::{
    pb::{Fields, PbError, Value, put_bytes, put_number, read_number, write_number},
    record::MAX_RECORD_BYTES,
};

/// Bytes of a namespace, as the specification has it.
pub const MAX_NAMESPACE_BYTES: usize = 255;
/// Bytes of a cookie: ours have eight and the namespace; those of other points stay with us until the next request.
pub const MAX_COOKIE_BYTES: usize = 512;
/// Bytes of a request: a record and a namespace, and what is around them.
pub const MAX_REQUEST_BYTES: usize = 2048;
/// Registrations in an answer.
pub const MAX_LISTED: usize = 64;
/// Bytes of an answer: [`MAX_LISTED`] records with their namespaces, and room for other points' fields.
pub const MAX_RESPONSE_BYTES: usize = 96 << 10;

const REGISTER: u64 = 0;
const REGISTER_RESPONSE: u64 = 1;
const UNREGISTER: u64 = 2;
const DISCOVER: u64 = 3;
const DISCOVER_RESPONSE: u64 = 4;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// A message that claims to be longer than it may.
    #[error("a message of {claimed} bytes; at most {most} are read")]
    TooLong {
        /// What it says.
        claimed: u64,
        /// What is allowed.
        most: usize,
    },
    /// The bytes are no protobuf.
    #[error("no protobuf: {0}")]
    Protobuf(&'static str),
    /// Not of a kind that belongs here, or a part is missing or has the wrong type.
    #[error("no such message, or a part of it is missing")]
    Incomplete,
    /// A namespace that is empty, overlong or no text.
    #[error("a namespace that is empty, no text, or longer than {MAX_NAMESPACE_BYTES} bytes")]
    Namespace,
    /// An overlong record, cookie, or list.
    #[error("an overlong record, cookie or list")]
    Part,
}

impl From<PbError> for MessageError {
    fn from(error: PbError) -> Self {
        Self::Protobuf(match error {
            PbError::Number => "a number is cut off or too large",
            PbError::Length => "a field is longer than what is there",
            PbError::Key => "a field that cannot be",
        })
    }
}

impl From<MessageError> for io::Error {
    fn from(error: MessageError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What a point says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Done.
    Ok,
    /// Not a namespace of this point.
    InvalidNamespace,
    /// The record is not believed.
    InvalidRecord,
    /// Not a time for which this point keeps something.
    InvalidTtl,
    /// Not a cookie of this point, or of another namespace.
    InvalidCookie,
    /// The record speaks for somebody else.
    NotAuthorized,
    /// The point's own fault.
    Internal,
    /// No room, or asked too often.
    Unavailable,
}

impl Status {
    fn to_number(self) -> u64 {
        match self {
            Self::Ok => 0,
            Self::InvalidNamespace => 100,
            Self::InvalidRecord => 101,
            Self::InvalidTtl => 102,
            Self::InvalidCookie => 103,
            Self::NotAuthorized => 200,
            Self::Internal => 300,
            Self::Unavailable => 400,
        }
    }

    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Ok,
            100 => Self::InvalidNamespace,
            101 => Self::InvalidRecord,
            102 => Self::InvalidTtl,
            103 => Self::InvalidCookie,
            200 => Self::NotAuthorized,
            400 => Self::Unavailable,
            // What later versions may add says no as well.
            _ => Self::Internal,
        }
    }
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Keep this record.
    Register {
        /// Under what.
        namespace: String,
        /// In its envelope, not looked at yet; at most [`MAX_RECORD_BYTES`].
        record: Vec<u8>,
        /// For so many seconds; two hours when not said.
        ttl: Option<u64>,
    },
    /// Forget the asker's record. There is no answer.
    Unregister {
        /// Under what it is.
        namespace: String,
    },
    /// Tell records.
    Discover {
        /// Under what; everything when not said.
        namespace: Option<String>,
        /// What an earlier answer ended with: tell only what came since.
        cookie: Option<Vec<u8>>,
        /// At most so many.
        limit: Option<u64>,
    },
}

/// One registration of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Under what.
    pub namespace: String,
    /// In its envelope, at most [`MAX_RECORD_BYTES`]; not looked at yet where it was read.
    pub record: Vec<u8>,
    /// For how many seconds it was registered.
    pub ttl: u64,
}

/// What a point answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Register`]: for how many seconds it keeps the record, or why not.
    Register(Result<u64, Status>),
    /// To [`Request::Discover`]: registrations and a cookie, or why not.
    Discover(Result<(Vec<Listed>, Vec<u8>), Status>),
}

impl Request {
    /// With its length in front.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut part = Vec::new();
        let kind = match self {
            Self::Register { namespace, record, ttl } => {
                put_bytes(&mut part, 1, namespace.as_bytes());
                put_bytes(&mut part, 2, record);
                ttl.iter().for_each(|ttl| put_number(&mut part, 3, *ttl));
                REGISTER
            }
            Self::Unregister { namespace } => {
                put_bytes(&mut part, 1, namespace.as_bytes());
                UNREGISTER
            }
            Self::Discover { namespace, cookie, limit } => {
                namespace.iter().for_each(|namespace| put_bytes(&mut part, 1, namespace.as_bytes()));
                limit.iter().for_each(|limit| put_number(&mut part, 2, *limit));
                cookie.iter().for_each(|cookie| put_bytes(&mut part, 3, cookie));
                DISCOVER
            }
        };
        framed(kind, &part)
    }

    /// Reads what stands behind the length.
    ///
    /// # Errors
    /// Says why it is no request.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (kind, part) = typed(bytes)?;
        let [one, two, three] = fields(part)?;
        Ok(match kind {
            REGISTER => Self::Register {
                namespace: one.map(named).transpose()?.ok_or(MessageError::Incomplete)?,
                record: at_most(two.ok_or(MessageError::Incomplete)?, MAX_RECORD_BYTES)?,
                ttl: three.map(number).transpose()?,
            },
            UNREGISTER => Self::Unregister { namespace: one.map(named).transpose()?.ok_or(MessageError::Incomplete)? },
            DISCOVER => Self::Discover {
                // An empty one means every namespace, like none.
                namespace: one.filter(|one| *one != Value::Bytes(b"")).map(named).transpose()?,
                limit: two.map(number).transpose()?,
                cookie: three.map(|cookie| at_most(cookie, MAX_COOKIE_BYTES)).transpose()?,
            },
            _ => return Err(MessageError::Incomplete),
        })
    }

    /// Reads one from a stream.
    ///
    /// # Errors
    /// When the stream breaks, or the bytes are no request.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        Ok(Self::decode(&framed_bytes(io, MAX_REQUEST_BYTES).await?)?)
    }
}

impl Answer {
    /// With its length in front.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut part = Vec::new();
        let kind = match self {
            Self::Register(result) => {
                put_number(&mut part, 1, result.as_ref().err().map_or(0, |status| status.to_number()));
                result.iter().for_each(|ttl| put_number(&mut part, 3, *ttl));
                REGISTER_RESPONSE
            }
            Self::Discover(Ok((listed, cookie))) => {
                for one in listed {
                    let mut inner = Vec::new();
                    put_bytes(&mut inner, 1, one.namespace.as_bytes());
                    put_bytes(&mut inner, 2, &one.record);
                    put_number(&mut inner, 3, one.ttl);
                    put_bytes(&mut part, 1, &inner);
                }
                put_bytes(&mut part, 2, cookie);
                put_number(&mut part, 3, 0);
                DISCOVER_RESPONSE
            }
            Self::Discover(Err(status)) => {
                put_number(&mut part, 3, status.to_number());
                DISCOVER_RESPONSE
            }
        };
        framed(kind, &part)
    }

    /// Reads what stands behind the length.
    ///
    /// # Errors
    /// Says why it is no answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (kind, part) = typed(bytes)?;
        match kind {
            REGISTER_RESPONSE => {
                let [status, _, ttl] = fields(part)?;
                Ok(Self::Register(match Status::from_number(number(status.ok_or(MessageError::Incomplete)?)?) {
                    Status::Ok => Ok(number(ttl.ok_or(MessageError::Incomplete)?)?),
                    status => Err(status),
                }))
            }
            DISCOVER_RESPONSE => discovered(part).map(Self::Discover),
            _ => Err(MessageError::Incomplete),
        }
    }

    /// Reads one from a stream.
    ///
    /// # Errors
    /// When the stream breaks, or the bytes are no answer.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        Ok(Self::decode(&framed_bytes(io, MAX_RESPONSE_BYTES).await?)?)
    }
}

type Discovered = Result<(Vec<Listed>, Vec<u8>), Status>;

fn discovered(part: &[u8]) -> Result<Discovered, MessageError> {
    let (mut listed, mut cookie, mut status) = (Vec::new(), None, None);
    let mut all = Fields::of(part);
    while let Some((field, value)) = all.next()? {
        match (field, value) {
            (1, Value::Bytes(_)) if listed.len() >= MAX_LISTED => return Err(MessageError::Part),
            (1, Value::Bytes(one)) => {
                let [namespace, record, ttl] = fields(one)?;
                listed.push(Listed {
                    namespace: namespace.map(named).transpose()?.ok_or(MessageError::Incomplete)?,
                    record: at_most(record.ok_or(MessageError::Incomplete)?, MAX_RECORD_BYTES)?,
                    ttl: number(ttl.ok_or(MessageError::Incomplete)?)?,
                });
            }
            (2, value) => cookie = Some(at_most(value, MAX_COOKIE_BYTES)?),
            (3, value) => status = Some(number(value)?),
            (1, _) => return Err(MessageError::Incomplete),
            _ => {}
        }
    }
    Ok(match Status::from_number(status.ok_or(MessageError::Incomplete)?) {
        Status::Ok => Ok((listed, cookie.ok_or(MessageError::Incomplete)?)),
        status => Err(status),
    })
}

fn framed(kind: u64, part: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    put_number(&mut message, 1, kind);
    // Each kind's part has the number after the kind's.
    put_bytes(&mut message, u8::try_from(kind).unwrap_or_default().saturating_add(2), part);
    let mut framed = Vec::new();
    write_number(&mut framed, u64::try_from(message.len()).unwrap_or(u64::MAX));
    framed.extend(message);
    framed
}

/// The kind of a message, and the part that belongs to it.
fn typed(bytes: &[u8]) -> Result<(u64, &[u8]), MessageError> {
    let (mut kind, mut parts) = (None, [None; 5]);
    let mut all = Fields::of(bytes);
    while let Some((field, value)) = all.next()? {
        match (field, value) {
            (1, value) => kind = Some(number(value)?),
            (2..=6, Value::Bytes(part)) => {
                let at = usize::try_from(field).ok().and_then(|field| field.checked_sub(2));
                if let Some(place) = at.and_then(|at| parts.get_mut(at)) {
                    *place = Some(part);
                }
            }
            (2..=6, _) => return Err(MessageError::Incomplete),
            _ => {}
        }
    }
    let kind = kind.ok_or(MessageError::Incomplete)?;
    let part = usize::try_from(kind).ok().and_then(|at| parts.get(at).copied().flatten());
    Ok((kind, part.ok_or(MessageError::Incomplete)?))
}

/// The first three fields of a part.
fn fields(part: &[u8]) -> Result<[Option<Value<'_>>; 3], MessageError> {
    let [mut one, mut two, mut three] = [None; 3];
    let mut all = Fields::of(part);
    while let Some((field, value)) = all.next()? {
        match field {
            1 => one = Some(value),
            2 => two = Some(value),
            3 => three = Some(value),
            _ => {}
        }
    }
    Ok([one, two, three])
}

fn number(value: Value<'_>) -> Result<u64, MessageError> {
    let Value::Number(number) = value else { return Err(MessageError::Incomplete) };
    Ok(number)
}

fn at_most(value: Value<'_>, most: usize) -> Result<Vec<u8>, MessageError> {
    let Value::Bytes(bytes) = value else { return Err(MessageError::Incomplete) };
    if bytes.len() > most { Err(MessageError::Part) } else { Ok(bytes.to_vec()) }
}

fn named(value: Value<'_>) -> Result<String, MessageError> {
    let Value::Bytes(bytes) = value else { return Err(MessageError::Incomplete) };
    if bytes.is_empty() || bytes.len() > MAX_NAMESPACE_BYTES {
        return Err(MessageError::Namespace);
    }
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| MessageError::Namespace)
}

/// Reads a length and so many bytes, at most `most`.
async fn framed_bytes<T: AsyncRead + Unpin>(io: &mut T, most: usize) -> io::Result<Vec<u8>> {
    let (mut head, mut len) = ([0_u8; 10], 0_usize);
    let claimed = loop {
        let Some(byte) = head.get_mut(len..=len) else { return Err(MessageError::from(PbError::Number).into()) };
        io.read_exact(byte).await?;
        len = len.saturating_add(1);
        let so_far = head.get(..len).unwrap_or_default();
        if so_far.last().is_some_and(|byte| byte & 0x80 == 0) {
            break read_number(so_far).ok_or(MessageError::from(PbError::Number))?.0;
        }
    };
    let bytes = usize::try_from(claimed).ok().filter(|len| *len <= most);
    let mut message = vec![0; bytes.ok_or(MessageError::TooLong { claimed, most })?];
    io.read_exact(&mut message).await?;
    Ok(message)
}
