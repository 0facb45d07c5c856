//! A substream as the swarm hands it out.

use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId,
    swarm::{ConnectionId, Stream},
};

/// A place among the inbound streams; free again when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Vec<Arc<AtomicUsize>>);

impl Permit {
    /// Counts one more on each of `counters` of which none has reached its cap; `None` when one has.
    ///
    /// Only the behaviour takes permits, one at a time, so looking before counting is no race; permits are dropped
    /// anywhere, which only makes room.
    pub(crate) fn take(counters: [(&Arc<AtomicUsize>, usize); 2]) -> Option<Self> {
        if counters.iter().any(|(counter, cap)| counter.load(Ordering::Relaxed) >= *cap) {
            return None;
        }
        Some(Self(
            counters
                .into_iter()
                .map(|(counter, _)| {
                    counter.fetch_add(1, Ordering::Relaxed);
                    Arc::clone(counter)
                })
                .collect(),
        ))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for counter in &self.0 {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One substream of the shard protocol, not yet greeted on. While it lives, the connection stays open, and if the peer
/// opened it, it holds one of the places for inbound streams. Dropping it without closing resets it.
#[derive(Debug)]
pub struct ShardStream {
    stream: Stream,
    peer: PeerId,
    connection: ConnectionId,
    _permit: Option<Permit>,
}

impl ShardStream {
    pub(crate) fn new(stream: Stream, peer: PeerId, connection: ConnectionId, permit: Option<Permit>) -> Self {
        Self { stream, peer, connection, _permit: permit }
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
}

impl AsyncRead for ShardStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read_vectored(cx, bufs)
    }
}

impl AsyncWrite for ShardStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
