//! What every connection's streams go through: they are counted, and with Yamux read no faster than they are taken.
//!
//! QUIC bounds what waits in streams by itself, and is only counted. How Yamux is paced stands in [`pacing`].

mod pacing;

use std::{
    io::{self, IoSliceMut},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt as _,
    future::{self, Ready},
    task::AtomicWaker,
};
use libp2p::{
    PeerId,
    core::{
        muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
    },
    yamux,
};

use self::pacing::{Metered, Turns};
use crate::traffic::{Counts, Line, Traffic};

/// Bytes written to a stream at once. With the headers of Yamux (12), Noise (18) and WebSocket (8) they fit one record of TLS
/// (16 KiB); a little more, and each frame of a masked line would be two records.
const FRAME: usize = (16 << 10) - 64;
/// What is counted of a connection, and who waits for its streams to take something.
#[derive(Debug, Default)]
struct Taken {
    counts: Arc<Counts>,
    reader: AtomicWaker,
}

/// Yamux's configuration; an upgrade in its place.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    inner: yamux::Config,
    /// Of all connections that are made with this.
    turns: Arc<Turns>,
}

impl Config {
    /// So many streams at once.
    pub(crate) fn new(streams: usize) -> Self {
        let mut inner = yamux::Config::default();
        inner.set_max_num_streams(streams);
        Self { inner, turns: Arc::default() }
    }
}

impl UpgradeInfo for Config {
    type Info = <yamux::Config as UpgradeInfo>::Info;
    type InfoIter = <yamux::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.inner.protocol_info()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Config {
    type Output = Muxer<yamux::Muxer<Metered<C>>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_inbound(self, io: C, info: Self::Info) -> Self::Future {
        let (io, taken) = Metered::new(io, self.turns);
        let inner = self.inner.upgrade_inbound(io, info).now_or_never();
        future::ready(inner.unwrap_or_else(unready).map(|inner| Muxer::new(inner, taken)))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Config {
    type Output = Muxer<yamux::Muxer<Metered<C>>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, io: C, info: Self::Info) -> Self::Future {
        let (io, taken) = Metered::new(io, self.turns);
        let inner = self.inner.upgrade_outbound(io, info).now_or_never();
        future::ready(inner.unwrap_or_else(unready).map(|inner| Muxer::new(inner, taken)))
    }
}

/// Yamux says nothing before its first stream: its upgrade is done at once.
fn unready<T>() -> io::Result<T> {
    Err(io::Error::other("yamux has to be asked twice"))
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
