//! What runs on one greeted stream: [`DataSender`] and [`receive`] on decode and bulk, [`ControlLink`] on control.
//!
//! | queue | bound | when full |
//! |---|---|---|
//! | batches to a [`DataSender`] | [`SenderConfig::queue_batches`], `queue_bytes` | [`SendError::Full`] |
//! | bytes of all those queues together | a [`Budget`] they share | [`SendError::Full`] for those that hold most |
//! | fragments in flight | [`SenderConfig::window_bytes`], `window_fragments` | the sender waits for acknowledgements |
//! | unfinished batches of all streams together | [`Sessions::budget`] | the batch's session ends |
//! | batches from [`receive`] | the caller's sink, which never waits | the sink decides: end the session, or the stream |
//! | control frames out | [`CONTROL_QUEUE`] | [`SendError::Full`]: the peer does not read, give it up |
//! | control frames in | [`CONTROL_INBOUND`] | reading stops, and so the peer's writing |

mod budget;
mod control;
mod rate;
mod receiver;
mod sender;

use std::{io, sync::Arc};

use quelea_wire::ErrorCode;
use tokio::{sync::watch, time::Instant};

pub use self::{
    budget::Budget,
    control::{CONTROL_INBOUND, CONTROL_QUEUE, ControlLink, ControlReceiver, ControlSender, Role},
    receiver::{Dropped, Incoming, Sessions, SinkClosed, receive},
    sender::{DataSender, Rtt, SILENCE, SenderConfig},
};
use crate::{
    codec::CodecError,
    frame::{Form, MAX_BATCH_BYTES, MAX_BATCH_ROWS, SessionId},
};

/// A batch of rows: what one stage hands to the next in one step of one session.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// Counts the batches of this hop and epoch: every sender numbers its own.
    pub seq: u32,
    /// Position of the first row.
    pub pos: u32,
    /// Rows, 1 to [`MAX_BATCH_ROWS`].
    pub rows: u16,
    /// Whether only the last row is wanted at the end of the chain.
    pub last_row_only: bool,
    /// Whether it may begin before the end of the rows before; see [`RowsHeader::rewind`](crate::frame::RowsHeader::rewind).
    pub rewind: bool,
    /// When the result is worthless, on this machine's clock.
    pub deadline: Instant,
    /// What the values are.
    pub form: Form,
    /// Row after row, `rows` × width values, all finite.
    pub data: Vec<f32>,
}

impl Batch {
    /// The values of a batch of [`Form::Tokens`].
    #[must_use]
    pub fn of_tokens(ids: &[u32]) -> Vec<f32> {
        ids.iter().copied().map(f32::from_bits).collect()
    }

    /// The token ids of such a batch.
    #[must_use]
    pub fn tokens(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Bytes of [`Self::data`] on the wire; `None` when the protocol has no room for the batch.
    #[must_use]
    pub fn wire_bytes(&self) -> Option<u32> {
        let rows = usize::from(self.rows);
        let bytes = self.data.len().checked_mul(self.form.value_bytes()).and_then(|n| u32::try_from(n).ok())?;
        let fits = (1..=MAX_BATCH_ROWS).contains(&self.rows)
            && self.data.len().checked_rem(rows) == Some(0)
            && (1..=MAX_BATCH_BYTES).contains(&bytes)
            && bytes.is_multiple_of(4);
        fits.then_some(bytes)
    }
}

/// Why something was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The queue is full: the peer is slower than we are.
    #[error("the queue to the peer is full")]
    Full,
    /// The link has ended.
    #[error("the link has ended")]
    Ended,
    /// The protocol has no room for such a batch, or the frame is not ours to send.
    #[error("the batch's shape, or the frame, is not one the protocol allows")]
    Invalid,
}

/// Why a link ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LinkEnd {
    /// We were done with it.
    Done,
    /// The peer closed it, with all frames whole.
    PeerClosed,
    /// The peer said why it closes it.
    Rejected(ErrorCode),
    /// The peer broke the protocol, and has been told.
    Violation(ErrorCode),
    /// Nothing was acknowledged, or taken, for [`SILENCE`].
    Silent,
    /// The stream was reset or the connection broke.
    Broken(Arc<io::Error>),
}

impl LinkEnd {
    /// The code of the error registry; `None` when the end was in order.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Done | Self::PeerClosed => None,
            Self::Rejected(code) | Self::Violation(code) => Some(*code),
            Self::Silent => Some(ErrorCode::HopSilent),
            Self::Broken(_) => Some(ErrorCode::HopLost),
        }
    }
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::PeerClosed => f.write_str("closed by the peer"),
            Self::Rejected(code) => write!(f, "closed by the peer: {code} ({})", code.meaning()),
            Self::Violation(code) => write!(f, "the peer broke the protocol: {code} ({})", code.meaning()),
            Self::Silent => f.write_str("the peer does not acknowledge"),
            Self::Broken(e) => write!(f, "broken: {e}"),
        }
    }
}

impl From<io::Error> for LinkEnd {
    fn from(e: io::Error) -> Self {
        Self::Broken(Arc::new(e))
    }
}

impl From<CodecError> for LinkEnd {
    fn from(e: CodecError) -> Self {
        match (e.code(), e) {
            (Some(code), _) => Self::Violation(code),
            (None, CodecError::Io(e)) => e.into(),
            (None, _) => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
        }
    }
}

/// The end of a link, for whoever waits for it.
#[derive(Debug, Clone)]
struct Ending(watch::Receiver<Option<LinkEnd>>);

impl Ending {
    fn now(&self) -> Option<LinkEnd> {
        self.0.borrow().clone()
    }

    async fn wait(mut self) -> LinkEnd {
        match self.0.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(LinkEnd::Done),
            // The task is gone without a word: its runtime is shutting down.
            Err(_) => LinkEnd::Done,
        }
    }
}
