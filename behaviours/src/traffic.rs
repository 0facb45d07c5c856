//! Bytes and streams of each peer, for people: what libp2p counts, it counts by transport.
//!
//! Every connection's muxer is wrapped once, above all transports; its figures live as long as it does, so that there are as
//! many as the connection limits allow. A circuit counts for the peer at its end and, as bytes, for the relay, too.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId,
    core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent, SubstreamBox},
};

/// What went over the connections that a peer has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Streams open.
    pub streams: u64,
    /// Bytes that streams sent, without what encryption and framing add.
    pub sent: u64,
    /// Bytes that streams got.
    pub received: u64,
}

/// A swarm's table of these. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    table: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: AtomicU64,
    lines: Mutex<HashMap<u64, (PeerId, Arc<Counts>)>>,
}

/// Of one connection.
#[derive(Debug, Default)]
struct Counts {
    streams: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Where figures go makes no difference to a configuration.
impl PartialEq for Traffic {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Traffic {
    /// By peer, of the connections that stand now.
    #[must_use]
    pub fn by_peer(&self) -> HashMap<PeerId, Sums> {
        let mut all = HashMap::<PeerId, Sums>::new();
        for (peer, counts) in self.table.lines.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let sums = all.entry(*peer).or_default();
            sums.streams = sums.streams.saturating_add(counts.streams.load(Ordering::Relaxed));
            sums.sent = sums.sent.saturating_add(counts.sent.load(Ordering::Relaxed));
            sums.received = sums.received.saturating_add(counts.received.load(Ordering::Relaxed));
        }
        all
    }

    /// Counts what goes over a connection to `peer`.
    pub(crate) fn counted(&self, peer: PeerId, inner: StreamMuxerBox) -> StreamMuxerBox {
        let counts = Arc::<Counts>::default();
        let id = self.table.next.fetch_add(1, Ordering::Relaxed);
        self.table.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (peer, Arc::clone(&counts)));
        StreamMuxerBox::new(Counted { inner, counts, id, table: Arc::clone(&self.table) })
    }
}

/// A muxer that counts.
struct Counted {
    inner: StreamMuxerBox,
    counts: Arc<Counts>,
    id: u64,
    table: Arc<Table>,
}

impl Counted {
    fn stream(&self, inner: SubstreamBox) -> Stream {
        self.counts.streams.fetch_add(1, Ordering::Relaxed);
        Stream { inner, counts: Arc::clone(&self.counts) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.table.lines.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl StreamMuxer for Counted {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_inbound(cx))?;
        Poll::Ready(Ok(self.stream(stream)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(self.stream(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// A stream that counts.
struct Stream {
    inner: SubstreamBox,
    counts: Arc<Counts>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.counts.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, bytes: usize) -> usize {
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
    bytes
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        read.map_ok(|bytes| add(&self.counts.received, bytes))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read_vectored(cx, bufs);
        read.map_ok(|bytes| add(&self.counts.received, bytes))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        written.map_ok(|bytes| add(&self.counts.sent, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        written.map_ok(|bytes| add(&self.counts.sent, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::poll_fn, io::Cursor};

    use super::*;

    /// Every stream is a buffer of its own.
    struct Buffers;

    impl StreamMuxer for Buffers {
        type Substream = Cursor<Vec<u8>>;
        type Error = io::Error;

        fn poll_inbound(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
            Poll::Ready(Ok(Cursor::new(vec![7; 100])))
        }

        fn poll_outbound(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
            Poll::Ready(Ok(Cursor::default()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn what_goes_over_a_peer_s_connections_is_summed_while_they_stand() {
        let (traffic, peer) = (Traffic::default(), PeerId::random());
        let mut first = traffic.counted(peer, StreamMuxerBox::new(Buffers));
        let second = traffic.counted(peer, StreamMuxerBox::new(Buffers));
        let mut inbound = poll_fn(|cx| Pin::new(&mut first).poll_inbound(cx)).await.unwrap();
        let mut outbound = poll_fn(|cx| Pin::new(&mut first).poll_outbound(cx)).await.unwrap();
        inbound.read_exact(&mut [0; 30]).await.unwrap();
        outbound.write_all(&[1; 5]).await.unwrap();
        assert_eq!(traffic.by_peer()[&peer], Sums { streams: 2, sent: 5, received: 30 });
        drop(inbound);
        assert_eq!(traffic.by_peer()[&peer], Sums { streams: 1, sent: 5, received: 30 });
        drop(first);
        assert_eq!(traffic.by_peer()[&peer], Sums::default(), "the second connection carried nothing");
        drop(second);
        assert!(traffic.by_peer().is_empty());
    }
}
