//! Yamux, read no faster than its streams are.
//!
//! Yamux itself bounds what waits in each stream, by its window. It reads on for streams that nobody reads, and for frames of
//! streams that have ended or never were, which have no window at all: a peer that sends those makes us decrypt as fast as its
//! line is. Here what came in and what streams have taken is held against each other. When [`FREE`] bytes more came in, the
//! connection is read on as its streams are, and [`FORGIVEN`] bytes a second. What is not read fills TCP's window, and then the
//! sender waits.
//!
//! A connection that is read gives way after [`TURN`] bytes: many that send at once take turns with those that send little.

use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
    core::{
        muxing::{StreamMuxer, StreamMuxerEvent},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
    },
    yamux,
};

/// Bytes that may wait in a connection's streams, or have been for none: two of Yamux's windows. The receivers of bulk
/// fragments acknowledge them, so that honest senders are far below.
pub(crate) const FREE: u64 = 512 << 10;
/// Bytes a second beyond those that streams take: headers (12 bytes a frame), and what was on its way when a stream was closed.
/// A hundred connections that send nothing else cost 25 MiB a second, 3 % of a core.
pub(crate) const FORGIVEN: u64 = 256 << 10;
/// Bytes read of a connection before others have their turn: a tenth of a millisecond's decryption.
const TURN: usize = 64 << 10;
/// Of so many bytes read from a stream one is a header's: 12 for a frame of 16 KiB at most.
const HEADERS: u64 = 1024;
/// The longest wait before looking again.
const WAIT: Duration = Duration::from_millis(250);

/// What the streams of a connection have taken.
#[derive(Debug, Default)]
struct Taken {
    bytes: AtomicU64,
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
        future::ready(inner.unwrap_or_else(unready).map(|inner| Muxer { inner, taken }))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Config {
    type Output = Muxer<yamux::Muxer<Metered<C>>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, io: C, info: Self::Info) -> Self::Future {
        let (io, taken) = Metered::new(io);
        let inner = self.0.upgrade_outbound(io, info).now_or_never();
        future::ready(inner.unwrap_or_else(unready).map(|inner| Muxer { inner, taken }))
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
}

impl<C> Metered<C> {
    fn new(inner: C) -> (Self, Arc<Taken>) {
        let taken = Arc::new(Taken::default());
        let wait = Delay::new(Duration::ZERO);
        let metered = Self { inner, taken: Arc::clone(&taken), came: 0, turn: 0, forgiven_at: Instant::now(), wait };
        (metered, taken)
    }

    /// Bytes past [`FREE`] at `now`.
    fn excess(&mut self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.forgiven_at);
        let taken = self.taken.bytes.load(Ordering::Acquire);
        let surplus = self.came.saturating_sub(taken);
        let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
        let forgiven = micros.saturating_mul(FORGIVEN) / 1_000_000;
        // Less than a byte is not lost: time goes on from where the last one was forgiven.
        if forgiven > 0 || surplus == 0 {
            self.forgiven_at = now;
            self.came = self.came.saturating_sub(forgiven.min(surplus));
        }
        surplus.saturating_sub(forgiven).saturating_sub(FREE)
    }
}

/// How long so many bytes take to be forgiven.
fn until_forgiven(excess: u64) -> Duration {
    Duration::from_micros(excess.saturating_mul(1_000_000) / FORGIVEN).clamp(Duration::from_millis(1), WAIT)
}

impl<C: AsyncRead + Unpin> AsyncRead for Metered<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.turn >= TURN {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let now = Instant::now();
        if this.excess(now) > 0 {
            // Looked at once more, so that a stream that is read meanwhile is not missed.
            this.taken.reader.register(cx.waker());
        }
        let excess = this.excess(now);
        if excess > 0 {
            this.wait.reset(until_forgiven(excess));
            if this.wait.poll_unpin(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
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

/// Yamux whose streams tell what they take.
pub(crate) struct Muxer<M> {
    inner: M,
    taken: Arc<Taken>,
}

impl<M: StreamMuxer + Unpin> Muxer<M> {
    fn metered(&self, stream: M::Substream) -> Stream<M::Substream> {
        Stream { inner: stream, taken: Arc::clone(&self.taken) }
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
        Poll::Ready(Ok(self.metered(stream)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(self.metered(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// A stream that tells what it takes.
pub(crate) struct Stream<S> {
    inner: S,
    taken: Arc<Taken>,
}

impl<S> Stream<S> {
    fn took(&self, read: usize) {
        let read = read as u64;
        let bytes = read.saturating_add(read / HEADERS);
        if bytes > 0 {
            self.taken.bytes.fetch_add(bytes, Ordering::AcqRel);
            self.taken.reader.wake();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.took(read);
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.inner).poll_read_vectored(cx, bufs))?;
        this.took(read);
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
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

#[cfg(test)]
mod tests {
    use futures::{io::Cursor, task::noop_waker_ref};

    use super::*;

    /// Reads as much as there is at once; a turn that ends is followed by the next.
    fn read(metered: &mut Metered<Cursor<Vec<u8>>>, most: usize) -> usize {
        let (mut all, mut ended) = (0, 0);
        let mut buf = vec![0; 16 << 10];
        while all < most && ended < 2 {
            match Pin::new(&mut *metered).poll_read(&mut Context::from_waker(noop_waker_ref()), &mut buf) {
                Poll::Ready(read) => (all, ended) = (all + read.unwrap(), 0),
                Poll::Pending => ended += 1,
            }
        }
        all
    }

    #[test]
    fn what_no_stream_takes_is_read_up_to_a_bound() {
        let free = usize::try_from(FREE).unwrap();
        let (mut metered, taken) = Metered::new(Cursor::new(vec![7; 4 * free]));
        let first = read(&mut metered, usize::MAX);
        // A reading more, and what is forgiven while this test runs.
        assert!((free..2 * free).contains(&first), "{first}");
        let stream = Stream { inner: (), taken };
        stream.took(free);
        let second = read(&mut metered, usize::MAX);
        assert!((free / 2..2 * free).contains(&second), "{second}");
    }

    #[test]
    fn time_forgives() {
        let (mut metered, _) = Metered::new(());
        let start = metered.forgiven_at;
        metered.came = FREE + FORGIVEN;
        assert_eq!(metered.excess(start), FORGIVEN);
        assert_eq!(metered.excess(start + Duration::from_millis(500)), FORGIVEN / 2);
        for micros in 0..1000 {
            metered.excess(start + Duration::from_micros(500_000 + micros));
        }
        let left = metered.excess(start + Duration::from_millis(501));
        assert!(left < FORGIVEN / 2 && left > FORGIVEN / 2 - 1024, "steps of less than a byte count, too: {left}");
        assert_eq!(metered.excess(start + Duration::from_secs(2)), 0);
        metered.excess(start + Duration::from_secs(100));
        assert_eq!(metered.came, 0, "no more than there is");
    }

    #[test]
    fn a_turn_ends() {
        let (mut metered, _) = Metered::new(Cursor::new(vec![7; 1 << 20]));
        let mut buf = vec![0; 1 << 20];
        let waker = noop_waker_ref();
        let mut poll = || Pin::new(&mut metered).poll_read(&mut Context::from_waker(waker), &mut buf[..TURN]);
        assert!(poll().is_ready());
        assert!(poll().is_pending());
        assert!(poll().is_ready());
    }

    #[test]
    fn waits_are_short() {
        assert_eq!(until_forgiven(1), Duration::from_millis(1));
        assert_eq!(until_forgiven(FORGIVEN / 8), Duration::from_millis(125));
        assert_eq!(until_forgiven(u64::MAX), WAIT);
    }
}
