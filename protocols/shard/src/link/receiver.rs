//! The successor's side of a decode or bulk stream.

use futures::{
    AsyncRead, AsyncWrite,
    io::{ReadHalf, WriteHalf},
};
use libp2p::PeerId;
use quelea_wire::ErrorCode;
use tokio::time::{Instant, timeout_at};

use super::{
    Batch, LinkEnd,
    budget::{Budget, Lease},
};
use crate::{
    codec::{CodecError, FrameReader, FrameWriter},
    frame::{Ack, Form, Frame, Raw, Reject, RowsHeader, SessionId},
    protocol::{Negotiated, last_word},
    reassembly::{Expect, Reassembly},
};

/// Acknowledgements that may gather before they are sent, in bytes, when fragments arrive faster than one at a time:
/// some hundred.
const ACKS_TOGETHER: usize = 4096;

/// Why rows were dropped without a word to anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// No session of that name takes rows of that epoch from that peer: it ended, or was raised to a newer epoch.
    NotExpected,
}

/// What a stage knows of its sessions, asked for every fragment.
pub trait Sessions {
    /// The shape of the rows that `session` takes in `epoch` from `from`; `None` when it takes none: no such session,
    /// another predecessor, or another epoch.
    fn expect(&self, from: &PeerId, session: &SessionId, epoch: u32) -> Option<Expect>;

    /// A fragment was dropped; for counters.
    fn dropped(&self, from: &PeerId, why: Dropped);

    /// What unfinished batches count against, if several streams share it.
    fn budget(&self) -> Option<&Budget> {
        None
    }
}

/// What came on a data stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// A whole batch, of the shape the session expects, all values finite.
    Batch(Batch),
    /// A session's batch was dropped because of what is in it. The session cannot go on: its rows now have a gap.
    Bad {
        /// The session.
        session: SessionId,
        /// Its epoch.
        epoch: u32,
        /// Why.
        code: ErrorCode,
    },
}

/// The sink takes nothing more: the node is shutting down, or gives the peer up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkClosed(
    /// What the peer is told.
    pub ErrorCode,
);

/// Reads batches from `peer` until the stream ends, and hands each to `sink`.
///
/// Every fragment is acknowledged at once, also when its rows are dropped, so that one session's end does not stall the
/// others. `sink` runs on this task and must not wait: it passes on with `try_send`, and when that is full ends the
/// session or, by [`SinkClosed`], the stream. A batch with bad contents ends its session only; bytes that are no frame
/// end the stream, with a word to the peer.
pub async fn receive<S, T, F>(stream: Negotiated<S>, peer: PeerId, sessions: &T, mut sink: F) -> LinkEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: Sessions + ?Sized,
    F: FnMut(Incoming) -> Result<(), SinkClosed>,
{
    let Negotiated { mut reader, mut writer, .. } = stream;
    let why = read_rows(&mut reader, &mut writer, peer, sessions, &mut sink).await;
    match why {
        Stop::End(LinkEnd::Violation(code)) | Stop::Sink(SinkClosed(code)) => last_word(&mut writer, code).await,
        Stop::End(_) => {}
    }
    let why = match why {
        Stop::End(why) => why,
        Stop::Sink(_) => LinkEnd::Done,
    };
    tracing::debug!(%peer, "data link ended: {why}");
    why
}

enum Stop {
    End(LinkEnd),
    Sink(SinkClosed),
}

impl<E: Into<LinkEnd>> From<E> for Stop {
    fn from(e: E) -> Self {
        Self::End(e.into())
    }
}

async fn read_rows<S, T, F>(
    reader: &mut FrameReader<ReadHalf<S>>,
    writer: &mut FrameWriter<WriteHalf<S>>,
    peer: PeerId,
    sessions: &T,
    sink: &mut F,
) -> Stop
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: Sessions + ?Sized,
    F: FnMut(Incoming) -> Result<(), SinkClosed>,
{
    let mut reassembly = Reassembly::new();
    let mut lease = sessions.budget().and_then(|budget| budget.take(0, 0));
    loop {
        if writer.queued() > 0
            && (writer.queued() >= ACKS_TOGETHER || !reader.is_ready())
            && let Err(e) = writer.flush().await
        {
            return e.into();
        }
        let raw = match reassembly.due() {
            None => Ok(reader.next_raw().await),
            Some(due) if due <= Instant::now() => Err(()),
            Some(due) => timeout_at(due, reader.next_raw()).await.map_err(drop),
        };
        let Ok(raw) = raw else {
            for (session, epoch) in reassembly.take_overdue(Instant::now()) {
                if let Err(closed) = sink(Incoming::Bad { session, epoch, code: ErrorCode::DeadlineExceeded }) {
                    return Stop::Sink(closed);
                }
            }
            continue;
        };
        let raw = match raw {
            Ok(Some(raw)) => raw,
            Ok(None) => return LinkEnd::PeerClosed.into(),
            Err(e) => return e.into(),
        };
        let Some(form) = Form::of(raw.kind) else {
            let Raw { kind, flags, .. } = raw;
            match other(raw) {
                Ok(()) => match reader.skip(kind, flags) {
                    Ok(()) => continue,
                    Err(e) => return e.into(),
                },
                Err(end) => return end.into(),
            }
        };
        let (header, fragment) = match RowsHeader::split(raw.body) {
            Ok(rows) => rows,
            Err(e) => return CodecError::from(e).into(),
        };
        let RowsHeader { session, epoch, seq, .. } = header;
        let ack = Ack { session, epoch, seq, received: header.end(fragment.len()) };
        // The batch goes on before the acknowledgement: the sink does not wait, and rows are in more of a hurry.
        if let Some(incoming) = take(&mut reassembly, &mut lease, &peer, sessions, form, &header, fragment)
            && let Err(closed) = sink(incoming)
        {
            return Stop::Sink(closed);
        }
        writer.queue(&ack.into());
    }
}

/// What a frame other than Rows does to the stream; `Ok` for kinds that this version does not know.
fn other(raw: Raw<'_>) -> Result<(), LinkEnd> {
    match Frame::decode(raw.kind, raw.body) {
        Ok(None) => Ok(()),
        Ok(Some(Frame::Reject(Reject { code }))) => Err(LinkEnd::Rejected(code)),
        Ok(Some(_)) => Err(LinkEnd::Violation(ErrorCode::BadFrame)),
        Err(e) => Err(CodecError::from(e).into()),
    }
}

fn take<T: Sessions + ?Sized>(
    reassembly: &mut Reassembly,
    lease: &mut Option<Lease>,
    peer: &PeerId,
    sessions: &T,
    form: Form,
    header: &RowsHeader,
    fragment: &[u8],
) -> Option<Incoming> {
    let RowsHeader { session, epoch, .. } = *header;
    let Some(expect) = sessions.expect(peer, &session, epoch) else {
        reassembly.forget(&session);
        sessions.dropped(peer, Dropped::NotExpected);
        return None;
    };
    if expect.form != form {
        reassembly.forget(&session);
        return Some(Incoming::Bad { session, epoch, code: ErrorCode::BadShape });
    }
    if reassembly.is_full() {
        reassembly.retain(|session, epoch| sessions.expect(peer, session, epoch).is_some());
    }
    let pushed = reassembly.push(Instant::now(), header, fragment, expect);
    let fits = lease.as_mut().is_none_or(|lease| lease.resize(reassembly.capacity_bytes()));
    match pushed {
        Ok(None) if !fits => {
            reassembly.forget(&session);
            Some(Incoming::Bad { session, epoch, code: ErrorCode::Overloaded })
        }
        Ok(batch) => batch.map(Incoming::Batch),
        Err(code) => Some(Incoming::Bad { session, epoch, code }),
    }
}
