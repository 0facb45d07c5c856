//! What every connection's streams go through: they are counted, and with Yamux read no faster than they are taken.
//!
//! Yamux itself bounds what waits in each stream, by its window. It reads on for streams that nobody reads, and for frames of
//! streams that have ended or never were, which have no window at all: a peer that sends those makes us decrypt as fast as its
//! line is. Here what came in and what streams have taken is held against each other. When [`FREE`] bytes more came in, the
//! connection is read on as its streams are, and [`FORGIVEN`] bytes a second. What is not read fills TCP's window, and then the
//! sender waits.
//!
//! A connection that is read gives way after [`TURN`] bytes: many that send at once take turns with those that send little.
//!
//! QUIC bounds all of that by itself, and is only counted.

use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt,
    future::{self, Ready},
    task::AtomicWaker,
};
use futures_timer::Delay;
use libp2p::{
    PeerId,
    core::{
        muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
    },
    yamux,
};

use crate::traffic::{Counts, Line, Traffic};

/// Bytes that may wait in a connection's streams, or have been for none: two of Yamux's windows. The receivers of bulk fragments
/// acknowledge them, so that honest senders are far below.
const FREE: u64 = 512 << 10;
/// Bytes a second beyond those that streams take: headers (12 bytes a frame), and what was on its way when a stream was closed.
/// A hundred connections that send nothing else cost 25 MiB a second, 3 % of a core.
const FORGIVEN: u64 = 256 << 10;
/// Bytes read of a connection before others have their turn: a tenth of a millisecond's decryption.
const TURN: usize = 64 << 10;
/// Of so many bytes read from a stream one is a header's: 12 for a frame of 16 KiB at most.
const HEADERS: u64 = 1024;
/// What is forgiven at least before a connection that has to wait is looked at again. A hundred of them that were looked at for
/// each frame of 2 KiB cost a quarter of a core in timers and switches between threads.
const PORTION: u64 = 16 << 10;
/// Bytes written to a stream at once. With the headers of Yamux (12), Noise (18) and WebSocket (8) they fit one record of TLS
/// (16 KiB); a little more, and each frame of a masked line would be two records.
const FRAME: usize = (16 << 10) - 64;
/// The longest wait before looking again.
const WAIT: Duration = Duration::from_millis(250);

/// What is counted of a connection, and who waits for its streams to take something.
#[derive(Debug, Default)]
struct Taken {
    counts: Arc<Counts>,
    reader: AtomicWaker,
}

/// Yamux's configuration; an upgrade in its place.
#[derive(Debug, Clone)]
pub(crate) struct Config(yamux::Config);

impl Config {
    /// So many streams at once.
    pub(crate) fn new(streams: usize) -> Self {
        let mut inner = yamux::Config::default();
        inner.set_max_num_streams(streams);
        Self(inner)
    }
}

impl UpgradeInfo for Config {
    type Info = <yamux::Config as UpgradeInfo>::Info;
    type InfoIter = <yamux::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Config {
    type Output = Muxer<yamux::Muxer<Metered<C>>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_inbound(self, io: C, info: Self::Info) -> Self::Future {
        let (io, taken) = Metered::new(io);
        let inner = self.0.upgrade_inbound(io, info).now_or_never();
        future::ready(inner.unwrap_or_else(unready).map(|inner| Muxer::new(inner, taken)))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Config {
    type Output = Muxer<yamux::Muxer<Metered<C>>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, io: C, info: Self::Info) -> Self::Future {
        let (io, taken) = Metered::new(io);
        let inner = self.0.upgrade_outbound(io, info).now_or_never();
        future::ready(inner.unwrap_or_else(unready).map(|inner| Muxer::new(inner, taken)))
    }
}

/// Yamux says nothing before its first stream: its upgrade is done at once.
fn unready<T>() -> io::Result<T> {
    Err(io::Error::other("yamux has to be asked twice"))
}

/// The bytes beneath Yamux.
pub(crate) struct Metered<C> {
    inner: C,
    taken: Arc<Taken>,
    /// Bytes that came in, less those forgiven.
    came: u64,
    /// Bytes of this turn.
    turn: usize,
    forgiven_at: Instant,
    wait: Delay,
    /// Whether that is for something.
    waits: bool,
}

impl<C> Metered<C> {
    fn new(inner: C) -> (Self, Arc<Taken>) {
        let taken = Arc::new(Taken::default());
        let wait = Delay::new(Duration::ZERO);
        let metered = Self {
            inner,
            taken: Arc::clone(&taken),
            came: 0,
            turn: 0,
            forgiven_at: Instant::now(),
            wait,
            waits: false,
        };
        (metered, taken)
    }

    /// Bytes past [`FREE`]. Asks for the time only when there may be some.
    fn excess(&mut self, now: impl FnOnce() -> Instant) -> u64 {
        let received = self.taken.counts.received.load(Ordering::Acquire);
        let surplus = self.came.saturating_sub(received.saturating_add(received / HEADERS));
        if surplus <= FREE {
            return 0;
        }
        let now = now();
        let passed = now.saturating_duration_since(self.forgiven_at);
        let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
        let forgiven = micros.saturating_mul(FORGIVEN) / 1_000_000;
        // Less than a byte is not lost: time goes on from where the last one was forgiven.
        if forgiven > 0 {
            self.forgiven_at = now;
            self.came = self.came.saturating_sub(forgiven.min(surplus));
        }
        surplus.saturating_sub(forgiven).saturating_sub(FREE)
    }
}

/// How long so many bytes, and a [`PORTION`] besides, take to be forgiven.
fn until_forgiven(excess: u64) -> Duration {
    Duration::from_micros(excess.saturating_add(PORTION).saturating_mul(1_000_000) / FORGIVEN).min(WAIT)
}

impl<C: AsyncRead + Unpin> AsyncRead for Metered<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.turn >= TURN {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.excess(Instant::now) > 0 {
            // Looked at once more, so that a stream that is read meanwhile is not missed.
            this.taken.reader.register(cx.waker());
            let excess = this.excess(Instant::now);
            if excess > 0 {
                this.turn = 0;
                // Once for each wait, however often the connection is polled meanwhile: it wakes the timers' thread.
                if !this.waits {
                    this.waits = true;
                    this.wait.reset(until_forgiven(excess));
                }
                if this.wait.poll_unpin(cx).is_ready() {
                    this.waits = false;
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        }
        let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buf)? else {
            this.turn = 0;
            return Poll::Pending;
        };
        this.turn = this.turn.saturating_add(read);
        this.came = this.came.saturating_add(read as u64);
        Poll::Ready(Ok(read))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Metered<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}

/// A muxer whose streams are counted.
pub(crate) struct Muxer<M> {
    inner: M,
    taken: Arc<Taken>,
    /// Its place in the table of traffic.
    line: Option<Line>,
}

impl<M> Muxer<M> {
    fn new(inner: M, taken: Arc<Taken>) -> Self {
        Self { inner, taken, line: None }
    }

    /// One whose bytes are none of our business.
    pub(crate) fn unmetered(inner: M) -> Self {
        Self::new(inner, Arc::default())
    }

    fn counted(&self, inner: M::Substream) -> Stream<M::Substream>
    where
        M: StreamMuxer,
    {
        self.taken.counts.streams.fetch_add(1, Ordering::Relaxed);
        Stream { inner, taken: Arc::clone(&self.taken) }
    }
}

impl<M> Muxer<M>
where
    M: StreamMuxer + Send + Unpin + 'static,
    M::Substream: Send + Unpin + 'static,
    M::Error: Send + Sync + 'static,
{
    /// Of a connection to `peer`, which `traffic` shows.
    pub(crate) fn to(mut self, peer: PeerId, traffic: &Traffic) -> (PeerId, StreamMuxerBox) {
        self.line = Some(traffic.line(peer, Arc::clone(&self.taken.counts)));
        (peer, StreamMuxerBox::new(self))
    }
}

impl<M> StreamMuxer for Muxer<M>
where
    M: StreamMuxer + Unpin,
    M::Substream: Unpin,
{
    type Substream = Stream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_inbound(cx))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// A stream that is counted.
pub(crate) struct Stream<S> {
    inner: S,
    taken: Arc<Taken>,
}

impl<S> Stream<S> {
    fn took(&self, read: usize) -> usize {
        if read > 0 {
            self.taken.counts.received.fetch_add(read as u64, Ordering::AcqRel);
            self.taken.reader.wake();
        }
        read
    }

    fn sent(&self, written: usize) -> usize {
        self.taken.counts.sent.fetch_add(written as u64, Ordering::Relaxed);
        written
    }
}

impl<S> Drop for Stream<S> {
    fn drop(&mut self) {
        self.taken.counts.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        read.map_ok(|bytes| self.took(bytes))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read_vectored(cx, bufs);
        read.map_ok(|bytes| self.took(bytes))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let frame = buf.get(..FRAME).unwrap_or(buf);
        let written = Pin::new(&mut self.inner).poll_write(cx, frame);
        written.map_ok(|bytes| self.sent(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
