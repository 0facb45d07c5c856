//! A substream as the swarm hands it out.

use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, task::AtomicWaker};
use libp2p::{
    PeerId,
    swarm::{ConnectionId, Stream},
};

/// A place among the inbound streams. Free again when dropped, or when it is taken back, which ends its stream.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<AtomicUsize>,
    taken_back: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Place {
    /// Counts one more on `taken`.
    pub(crate) fn take(taken: &Arc<AtomicUsize>) -> Arc<Self> {
        taken.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            taken: Arc::clone(taken),
            taken_back: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        })
    }

    /// Frees the place at once. Whoever uses the stream finds it broken, and drops it.
    pub(crate) fn take_back(&self) {
        if !self.taken_back.swap(true, Ordering::AcqRel) {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            self.reader.wake();
            self.writer.wake();
        }
    }

    /// Whether the stream may go on; if not, `waker` will tell.
    fn check(&self, waker: &AtomicWaker, cx: &Context<'_>) -> io::Result<()> {
        // Registered before looking, so that nothing is missed in between.
        waker.register(cx.waker());
        if self.taken_back.load(Ordering::Acquire) {
            let why = "the stream's place was given to a peer that holds fewer";
            Err(io::Error::new(io::ErrorKind::ConnectionReset, why))
        } else {
            Ok(())
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !*self.taken_back.get_mut() {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One substream of the shard protocol, not yet greeted on. While it lives, the connection stays open, and if the peer
/// opened it, it holds one of the places for inbound streams, and breaks when that is taken back. Dropping it without
/// closing resets it.
#[derive(Debug)]
pub struct ShardStream {
    stream: Stream,
    peer: PeerId,
    connection: ConnectionId,
    place: Option<Arc<Place>>,
    /// Counts the streams of its connection by being held.
    _of: Option<Arc<()>>,
}

impl ShardStream {
    pub(crate) fn new(
        stream: Stream,
        peer: PeerId,
        connection: ConnectionId,
        place: Option<Arc<Place>>,
        of: Option<Arc<()>>,
    ) -> Self {
        Self { stream, peer, connection, place, _of: of }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The connection that the stream runs on.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    fn may_read(&self, cx: &Context<'_>) -> io::Result<()> {
        self.place.as_ref().map_or(Ok(()), |place| place.check(&place.reader, cx))
    }

    fn may_write(&self, cx: &Context<'_>) -> io::Result<()> {
        self.place.as_ref().map_or(Ok(()), |place| place.check(&place.writer, cx))
    }
}

impl AsyncRead for ShardStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.may_read(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_read(cx)?;
        Pin::new(&mut self.stream).poll_read_vectored(cx, bufs)
    }
}

impl AsyncWrite for ShardStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.may_write(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_write(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.may_write(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
