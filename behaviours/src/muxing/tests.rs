use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::poll_fn, io::Cursor};

use super::*;
use crate::traffic::Sums;

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
    let (_, mut first) = Muxer::unmetered(Buffers).to(peer, &traffic);
    let (_, second) = Muxer::unmetered(Buffers).to(peer, &traffic);
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
