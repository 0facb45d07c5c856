//! What callers and providers say to each other.

use std::fmt;

use quelea_wire::ErrorCode;

use crate::{
    codec::FrameError,
    cursor::{Cursor, cut, put_text},
    name::{MAX_NAME, Name},
};

/// Bytes that may go into a call.
pub const MAX_INPUT: usize = 1 << 20;

/// Bytes that may come out of one.
pub const MAX_OUTPUT: usize = 1 << 20;

/// Bytes of one piece of progress: some hundred tokens.
pub const MAX_PROGRESS: usize = 16 << 10;

/// Bytes of an error's message.
pub const MAX_MESSAGE: usize = 512;

/// Services in one list.
pub const MAX_LISTED: usize = 64;

/// Bytes of the sentence about a service.
pub const MAX_ABOUT: usize = 160;

/// The version of *call* and *list*.
const VERSION: u8 = 1;

const CALL: u8 = 1;
const LIST: u8 = 2;
const CANCEL: u8 = 3;
const ACCEPTED: u8 = 16;
const PROGRESS: u8 = 17;
const RESULT: u8 = 18;
const ERROR: u8 = 19;
const LISTED: u8 = 20;

/// Bytes of a call before its name and input: version, id, hold, price, remaining time, service version, the name's length.
const CALL_HEAD: usize = 1 + 16 + 16 + 8 + 4 + 2 + 1;

/// Bytes of a listed service without its texts.
const LISTED_HEAD: usize = 1 + 2 + 8 + 4 + 4 + 4 + 2 + 2 + 2 + 4 + 1;

/// Names a call. Its caller draws it at random, once for all tries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub [u8; 16]);

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallId({self})")
    }
}

/// A piece of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub id: CallId,
    /// The hold that pays for it, in the ledger between the two; none where it is free.
    pub hold: Option<[u8; 16]>,
    /// The price that the caller was told, in micro-credits. A provider that asks more by now says so instead.
    pub price: u64,
    /// How long the caller waits.
    pub remaining_ms: u32,
    /// The version of the service that is wanted; 0 for any.
    pub version: u16,
    /// Which service.
    pub name: Name,
    /// What goes in: at most [`MAX_INPUT`].
    pub input: Vec<u8>,
}

/// What a caller says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Do this.
    Call(Box<Call>),
    /// What do you offer? All, or what is known of one.
    List(Option<Name>),
    /// The answer is not wanted any more.
    Cancel,
}

/// A service, as its provider describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// Its version; callers may insist on one.
    pub version: u16,
    /// What a call costs, in micro-credits: the most where it is counted by use.
    pub price: u64,
    /// Bytes that may go in.
    pub input_max: u32,
    /// Bytes that may come out.
    pub output_max: u32,
    /// How long a call may take.
    pub deadline_ms: u32,
    /// Calls that are worked on at once.
    pub at_once: u16,
    /// Calls that are worked on now.
    pub running: u16,
    /// Calls that wait.
    pub waiting: u16,
    /// How long calls took lately; 0 where nobody has called.
    pub took_ms: u32,
    /// What it does, in a sentence: at most [`MAX_ABOUT`] bytes.
    pub about: String,
}

/// Why a call brought no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong.
    pub code: ErrorCode,
    /// What is asked for it all the same, in micro-credits; 0 for nothing.
    pub amount: u64,
    /// When to try again, where that is known; 0 where not.
    pub retry_ms: u32,
    /// In words: at most [`MAX_MESSAGE`] bytes.
    pub message: String,
}

/// What a provider says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The call is taken.
    Accepted {
        /// The version of the service that does it.
        version: u16,
        /// The most that it will cost, in micro-credits.
        price: u64,
    },
    /// Something of the result, or about how far it is: at most [`MAX_PROGRESS`] bytes.
    Progress(Vec<u8>),
    /// It is done. The last word.
    Result {
        /// What is asked for it, in micro-credits. 0 where it is paid already.
        amount: u64,
        /// What came out: at most [`MAX_OUTPUT`].
        output: Vec<u8>,
    },
    /// It is not done. The last word.
    Error(Fault),
    /// What is offered: at most [`MAX_LISTED`].
    Listed(Vec<Listed>),
}

impl Ask {
    /// The longest body of a kind; nothing for kinds that callers do not send.
    pub(crate) fn cap(kind: u8) -> Option<usize> {
        match kind {
            CALL => Some(CALL_HEAD.saturating_add(MAX_NAME).saturating_add(MAX_INPUT)),
            LIST => Some(MAX_NAME.saturating_add(2)),
            CANCEL => Some(0),
            _ => None,
        }
    }

    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Call(_) => CALL,
            Self::List(_) => LIST,
            Self::Cancel => CANCEL,
        }
    }

    pub(crate) fn body(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::new();
        match self {
            Self::Call(call) => {
                if call.input.len() > MAX_INPUT {
                    return Err(FrameError::TooLarge { kind: CALL, len: call.input.len() });
                }
                out.reserve(CALL_HEAD.saturating_add(MAX_NAME).saturating_add(call.input.len()));
                out.push(VERSION);
                out.extend(call.id.0);
                out.extend(call.hold.unwrap_or_default());
                out.extend(call.price.to_le_bytes());
                out.extend(call.remaining_ms.to_le_bytes());
                out.extend(call.version.to_le_bytes());
                put_text(&mut out, call.name.as_str(), MAX_NAME);
                out.extend_from_slice(&call.input);
            }
            Self::List(name) => {
                out.push(VERSION);
                put_text(&mut out, name.as_ref().map_or("", Name::as_str), MAX_NAME);
            }
            Self::Cancel => {}
        }
        Ok(out)
    }

    pub(crate) fn parse(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        let mut from = Cursor::new(body);
        if kind == CANCEL {
            from.end()?;
            return Ok(Self::Cancel);
        }
        if from.u8()? != VERSION {
            return Err(FrameError::Version);
        }
        match kind {
            CALL => {
                let id = CallId(from.array()?);
                let hold = Some(from.array()?).filter(|hold| *hold != [0; 16]);
                let (price, remaining_ms, version) = (from.u64()?, from.u32()?, from.u16()?);
                let name = name(from.text()?)?;
                let input = from.rest(MAX_INPUT)?.to_vec();
                Ok(Self::Call(Box::new(Call { id, hold, price, remaining_ms, version, name, input })))
            }
            LIST => {
                let text = from.text()?;
                from.end()?;
                Ok(Self::List(if text.is_empty() { None } else { Some(name(text)?) }))
            }
            other => Err(FrameError::Unknown(other)),
        }
    }
}

impl Answer {
    /// The longest body of a kind; nothing for kinds that providers do not send.
    pub(crate) fn cap(kind: u8) -> Option<usize> {
        match kind {
            ACCEPTED => Some(10),
            PROGRESS => Some(MAX_PROGRESS),
            RESULT => Some(MAX_OUTPUT.saturating_add(8)),
            ERROR => Some(MAX_MESSAGE.saturating_add(14)),
            LISTED => {
                let each = LISTED_HEAD.saturating_add(MAX_NAME).saturating_add(MAX_ABOUT);
                Some(each.saturating_mul(MAX_LISTED).saturating_add(1))
            }
            _ => None,
        }
    }

    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Accepted { .. } => ACCEPTED,
            Self::Progress(_) => PROGRESS,
            Self::Result { .. } => RESULT,
            Self::Error(_) => ERROR,
            Self::Listed(_) => LISTED,
        }
    }

    pub(crate) fn body(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::new();
        match self {
            Self::Accepted { version, price } => {
                out.extend(version.to_le_bytes());
                out.extend(price.to_le_bytes());
            }
            Self::Progress(bytes) => {
                if bytes.len() > MAX_PROGRESS {
                    return Err(FrameError::TooLarge { kind: PROGRESS, len: bytes.len() });
                }
                out.extend_from_slice(bytes);
            }
            Self::Result { amount, output } => {
                if output.len() > MAX_OUTPUT {
                    return Err(FrameError::TooLarge { kind: RESULT, len: output.len() });
                }
                out.reserve(output.len().saturating_add(8));
                out.extend(amount.to_le_bytes());
                out.extend_from_slice(output);
            }
            Self::Error(Fault { code, amount, retry_ms, message }) => {
                out.extend(code.to_u16().to_le_bytes());
                out.extend(amount.to_le_bytes());
                out.extend(retry_ms.to_le_bytes());
                out.extend_from_slice(cut(message, MAX_MESSAGE).as_bytes());
            }
            Self::Listed(all) => {
                let count = all.len().min(MAX_LISTED);
                out.push(u8::try_from(count).unwrap_or(u8::MAX));
                all.iter().take(count).for_each(|listed| listed.put(&mut out));
            }
        }
        Ok(out)
    }

    pub(crate) fn parse(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        let mut from = Cursor::new(body);
        match kind {
            ACCEPTED => {
                let (version, price) = (from.u16()?, from.u64()?);
                from.end()?;
                Ok(Self::Accepted { version, price })
            }
            PROGRESS => Ok(Self::Progress(from.rest(MAX_PROGRESS)?.to_vec())),
            RESULT => {
                let amount = from.u64()?;
                Ok(Self::Result { amount, output: from.rest(MAX_OUTPUT)?.to_vec() })
            }
            ERROR => {
                let (code, amount, retry_ms) = (ErrorCode::from_u16(from.u16()?), from.u64()?, from.u32()?);
                let message = std::str::from_utf8(from.rest(MAX_MESSAGE)?)
                    .map_err(|_| FrameError::Malformed("text that is not UTF-8"))?;
                Ok(Self::Error(Fault { code, amount, retry_ms, message: message.to_owned() }))
            }
            LISTED => {
                let count = usize::from(from.u8()?);
                if count > MAX_LISTED {
                    return Err(FrameError::Malformed("more services than a list has"));
                }
                // Grows with what is read: a count is no reason to take memory.
                let mut all = Vec::new();
                for _ in 0..count {
                    all.push(Listed::parse(&mut from)?);
                }
                from.end()?;
                Ok(Self::Listed(all))
            }
            other => Err(FrameError::Unknown(other)),
        }
    }
}

impl Listed {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, self.name.as_str(), MAX_NAME);
        out.extend(self.version.to_le_bytes());
        out.extend(self.price.to_le_bytes());
        out.extend(self.input_max.to_le_bytes());
        out.extend(self.output_max.to_le_bytes());
        out.extend(self.deadline_ms.to_le_bytes());
        out.extend(self.at_once.to_le_bytes());
        out.extend(self.running.to_le_bytes());
        out.extend(self.waiting.to_le_bytes());
        out.extend(self.took_ms.to_le_bytes());
        put_text(out, &self.about, MAX_ABOUT);
    }

    fn parse(from: &mut Cursor<'_>) -> Result<Self, FrameError> {
        let listed = Self {
            name: name(from.text()?)?,
            version: from.u16()?,
            price: from.u64()?,
            input_max: from.u32()?,
            output_max: from.u32()?,
            deadline_ms: from.u32()?,
            at_once: from.u16()?,
            running: from.u16()?,
            waiting: from.u16()?,
            took_ms: from.u32()?,
            about: from.text()?.to_owned(),
        };
        if listed.about.len() > MAX_ABOUT {
            return Err(FrameError::Malformed("a sentence that is too long"));
        }
        Ok(listed)
    }
}

fn name(text: &str) -> Result<Name, FrameError> {
    text.parse().map_err(|_| FrameError::Malformed("a name that no service has"))
}
