//! A substream as the swarm hands it out.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, swarm::Stream};

/// One substream of the service protocol. While it lives, the connection stays open, and if the peer opened it, it holds one of
/// the places for inbound streams. Dropping it without closing resets it.
#[derive(Debug)]
pub struct ServiceStream {
    stream: Stream,
    peer: PeerId,
    /// Counts the streams of its connection, and the inbound ones of its peer, by being held.
    _held: (Arc<()>, Option<Arc<()>>),
}

impl ServiceStream {
    pub(crate) fn new(stream: Stream, peer: PeerId, connection: Arc<()>, inbound: Option<Arc<()>>) -> Self {
        Self { stream, peer, _held: (connection, inbound) }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }
}

impl AsyncRead for ServiceStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ServiceStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
