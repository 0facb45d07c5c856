use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::poll_fn, io::Cursor, task::noop_waker_ref};

use super::*;
use crate::traffic::Sums;

/// Reads as much as there is at once; a turn that ends is followed by the next.
fn read(metered: &mut Metered<Cursor<Vec<u8>>>) -> usize {
    let (mut all, mut ended) = (0, 0);
    let mut buf = vec![0; TURN];
    while ended < 2 {
        match Pin::new(&mut *metered).poll_read(&mut Context::from_waker(noop_waker_ref()), &mut buf) {
            Poll::Ready(read) => (all, ended) = (all + read.unwrap(), 0),
            Poll::Pending => ended += 1,
        }
    }
    all
}

fn stream(taken: &Arc<Taken>) -> Stream<()> {
    taken.counts.streams.fetch_add(1, Ordering::Relaxed);
    Stream { inner: (), taken: Arc::clone(taken) }
}

#[test]
fn what_no_stream_takes_is_read_up_to_a_bound() {
    let free = usize::try_from(FREE).unwrap();
    let (mut metered, taken) = Metered::new(Cursor::new(vec![7; 4 * free]));
    let first = read(&mut metered);
    // A reading more, and what is forgiven while this test runs.
    assert!((free..2 * free).contains(&first), "{first}");
    stream(&taken).took(free);
    let second = read(&mut metered);
    assert!((free / 2..2 * free).contains(&second), "{second}");
}

#[test]
fn time_forgives() {
    let (mut metered, _) = Metered::new(());
    let start = metered.forgiven_at;
    metered.came = FREE + FORGIVEN;
    let mut excess = |after: Duration| metered.excess(|| start + after);
    assert_eq!(excess(Duration::ZERO), FORGIVEN);
    assert_eq!(excess(Duration::from_millis(500)), FORGIVEN / 2);
    for micros in 0..1000 {
        excess(Duration::from_micros(500_000 + micros));
    }
    let left = excess(Duration::from_millis(501));
    assert!(left < FORGIVEN / 2 && left > FORGIVEN / 2 - 1024, "steps of less than a byte count, too: {left}");
    assert_eq!(excess(Duration::from_secs(100)), 0);
    assert_eq!(metered.came, 0, "no more than there is");
    metered.came = FREE;
    assert_eq!(metered.excess(|| panic!("the time is of no interest")), 0);
}

#[test]
fn a_turn_ends() {
    let (mut metered, _) = Metered::new(Cursor::new(vec![7; 1 << 20]));
    let mut buf = vec![0; TURN];
    let waker = noop_waker_ref();
    let mut poll = || Pin::new(&mut metered).poll_read(&mut Context::from_waker(waker), &mut buf[..TURN]);
    assert!(poll().is_ready());
    assert!(poll().is_pending());
    assert!(poll().is_ready());
}

#[test]
fn waits_are_neither_long_nor_for_a_frame_each() {
    assert_eq!(until_forgiven(0), Duration::from_micros(62_500));
    assert_eq!(until_forgiven(FORGIVEN / 8), Duration::from_micros(187_500));
    assert_eq!(until_forgiven(u64::MAX), WAIT);
}

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
