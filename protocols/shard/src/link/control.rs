//! Both sides of a control stream.

use futures::{
    AsyncRead, AsyncWrite,
    io::{ReadHalf, WriteHalf},
};
use quelea_wire::ErrorCode;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{Ending, LinkEnd, SendError};
use crate::{
    codec::{FrameReader, FrameWriter},
    frame::{Frame, Origin, Reject},
    protocol::{GREETING_TIMEOUT, Negotiated, last_word},
};

/// Control frames that may wait to be sent: every session of a coordinator may have one and more under way.
pub const CONTROL_QUEUE: usize = 256;

/// Control frames that may wait to be taken: then reading stops. An Open may have 3 KiB, so a peer that opens streams and
/// fills them makes us hold 200 KiB for each.
pub const CONTROL_INBOUND: usize = 64;

/// Which side of a control stream we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We opened it.
    Coordinator,
    /// The coordinator opened it.
    Stage,
}

impl Role {
    fn origin(self) -> Origin {
        match self {
            Self::Coordinator => Origin::Coordinator,
            Self::Stage => Origin::Stage,
        }
    }

    fn peer(self) -> Self {
        match self {
            Self::Coordinator => Self::Stage,
            Self::Stage => Self::Coordinator,
        }
    }
}

/// Starts the task of a control stream.
#[derive(Debug, Clone, Copy)]
pub struct ControlLink;

impl ControlLink {
    /// Serves `stream` as `role` until the peer ends it, or every clone of the sender is dropped.
    pub fn spawn<S>(stream: Negotiated<S>, role: Role) -> (ControlSender, ControlReceiver)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (out, to_write) = mpsc::channel(CONTROL_QUEUE);
        let (read, frames) = mpsc::channel(CONTROL_INBOUND);
        let features = stream.features;
        let (end, ending) = watch::channel(None);
        let ending = Ending(ending);
        tokio::spawn(async move {
            let why = serve(stream, role, to_write, read).await;
            tracing::debug!(?role, "control link ended: {why}");
            end.send_replace(Some(why));
        });
        (ControlSender { out, role, features, ending: ending.clone() }, ControlReceiver { frames, ending })
    }
}

/// Sends control frames. When the last clone is dropped, what is queued is still sent, and the stream closed.
#[derive(Debug, Clone)]
pub struct ControlSender {
    out: mpsc::Sender<Frame>,
    role: Role,
    features: u64,
    ending: Ending,
}

impl ControlSender {
    /// Queues a frame; never waits.
    ///
    /// # Errors
    /// When the queue is full, which means that the peer does not read; when the link has ended; or when the frame is
    /// not this side's to send, or needs a feature that the peer does not have.
    pub fn send(&self, frame: impl Into<Frame>) -> Result<(), SendError> {
        let frame = frame.into();
        if frame.origin() != self.role.origin() || frame.features() & !self.features != 0 {
            return Err(SendError::Invalid);
        }
        self.out.try_send(frame).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::Ended,
        })
    }

    /// The feature bits that both ends know.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Why the link has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<LinkEnd> {
        self.ending.now()
    }

    /// Waits for the link's end. Does not keep the link open.
    pub fn ended(&self) -> impl Future<Output = LinkEnd> + Send + use<> {
        self.ending.clone().wait()
    }
}

/// Receives control frames: only such as the peer's side may send.
#[derive(Debug)]
pub struct ControlReceiver {
    frames: mpsc::Receiver<Frame>,
    ending: Ending,
}

impl ControlReceiver {
    /// The next frame; `None` once the link has ended. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Frame> {
        self.frames.recv().await
    }

    /// Waits for the link's end, and why. Ends at once when [`Self::recv`] gave `None`.
    pub fn ended(&self) -> impl Future<Output = LinkEnd> + Send + use<> {
        self.ending.clone().wait()
    }
}

async fn serve<S>(
    stream: Negotiated<S>,
    role: Role,
    to_write: mpsc::Receiver<Frame>,
    read: mpsc::Sender<Frame>,
) -> LinkEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Negotiated { mut reader, mut writer, features, .. } = stream;
    let why = tokio::select! {
        why = read_frames(&mut reader, role.peer().origin(), features, read) => why,
        why = write_frames(&mut writer, to_write) => why,
    };
    if let LinkEnd::Violation(code) = why {
        last_word(&mut writer, code).await;
    }
    why
}

async fn read_frames<S: AsyncRead + Unpin>(
    reader: &mut FrameReader<ReadHalf<S>>,
    peer: Origin,
    features: u64,
    read: mpsc::Sender<Frame>,
) -> LinkEnd {
    loop {
        match reader.next().await {
            Ok(Some(Frame::Reject(Reject { code }))) => return LinkEnd::Rejected(code),
            Ok(Some(frame)) if frame.origin() == peer && frame.features() & !features == 0 => {
                // Waiting here is what slows the peer down; writing goes on beside it.
                if read.send(frame).await.is_err() {
                    return LinkEnd::Done;
                }
            }
            Ok(Some(_)) => return LinkEnd::Violation(ErrorCode::BadFrame),
            Ok(None) => return LinkEnd::PeerClosed,
            Err(e) => return e.into(),
        }
    }
}

async fn write_frames<S: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<WriteHalf<S>>,
    mut frames: mpsc::Receiver<Frame>,
) -> LinkEnd {
    while let Some(frame) = frames.recv().await {
        writer.queue(&frame);
        while let Ok(frame) = frames.try_recv() {
            writer.queue(&frame);
        }
        match timeout(GREETING_TIMEOUT, writer.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return e.into(),
            Err(_) => return LinkEnd::Silent,
        }
    }
    match timeout(GREETING_TIMEOUT, writer.close()).await {
        Ok(Ok(())) => LinkEnd::Done,
        Ok(Err(e)) => e.into(),
        Err(_) => LinkEnd::Silent,
    }
}
