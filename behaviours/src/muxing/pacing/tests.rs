use std::sync::atomic::Ordering;

use futures::{future::poll_fn, io::Cursor, task::noop_waker_ref};

use super::*;

fn metered(bytes: usize) -> (Metered<Cursor<Vec<u8>>>, Arc<Taken>) {
    Metered::new(Cursor::new(vec![7; bytes]), Arc::default())
}

/// Reads as much as there is at once; a turn that ends is followed by the next.
fn read(metered: &mut Metered<Cursor<Vec<u8>>>) -> u64 {
    let (mut all, mut ended) = (0, 0);
    let mut buf = vec![0; TURN];
    while ended < 2 {
        match Pin::new(&mut *metered).poll_read(&mut Context::from_waker(noop_waker_ref()), &mut buf) {
            Poll::Ready(read) => (all, ended) = (all + read.unwrap() as u64, 0),
            Poll::Pending => ended += 1,
        }
    }
    all
}

fn take(taken: &Taken, bytes: u64) {
    taken.counts.received.fetch_add(bytes, Ordering::AcqRel);
    taken.reader.wake();
}

/// Reads so many bytes, or a turn more.
async fn read_for(metered: &mut Metered<Cursor<Vec<u8>>>, bytes: u64) {
    let mut buf = vec![0; TURN];
    let mut all = 0;
    while all < bytes {
        all += poll_fn(|cx| Pin::new(&mut *metered).poll_read(cx, &mut buf)).await.unwrap() as u64;
    }
}

#[test]
fn what_no_stream_takes_is_read_up_to_a_bound() {
    let (mut metered, taken) = metered(4 << 20);
    let first = read(&mut metered);
    // A turn more, and some when this test is slow.
    assert!((FIRST..FREE).contains(&first), "{first}");
    take(&taken, OWN);
    let second = read(&mut metered);
    assert!((OWN / 2..FREE).contains(&second), "{second}");
}

#[tokio::test]
async fn more_than_that_comes_in_turns_and_then_as_it_is_forgiven() {
    let (mut metered, taken) = metered(8 << 20);
    let started = Instant::now();
    read_for(&mut metered, FREE).await;
    // One portion for nothing, and then one in each gap.
    let turns = u32::try_from((FREE - FIRST) / PORTION - 1).unwrap();
    assert!(started.elapsed() >= GAP * (turns - 1), "{:?}", started.elapsed());
    // A quarter of a second's, of which the last portion is granted at once.
    read_for(&mut metered, FORGIVEN / 4).await;
    assert!(started.elapsed() >= Duration::from_millis(180), "{:?}", started.elapsed());
    take(&taken, 2 * FREE);
    assert!(read(&mut metered) > FREE / 2, "what is taken is read on at once");
}

#[test]
fn who_is_read_may_be_further_ahead() {
    let (mut metered, taken) = metered(1 << 20);
    for (received, own) in [(0, FIRST), (16 << 10, FIRST + 1024), (1 << 20, FIRST + (64 << 10)), (1 << 30, OWN)] {
        taken.counts.received.store(received, Ordering::Release);
        for (ahead, little) in [(own, true), (own + 1, false)] {
            metered.came = received + received / HEADERS + ahead;
            assert_eq!(metered.is_ahead_a_little(), little, "{ahead} of {received}");
        }
    }
}

#[test]
fn turns_are_apart_however_many_ask_at_once() {
    let turns = Turns::default();
    let now = Instant::now();
    assert_eq!(turns.take(now), Duration::ZERO);
    for place in 1..=100 {
        assert_eq!(turns.take(now), GAP * place);
    }
    assert_eq!(turns.take(now + GAP * 50), GAP * 51, "who comes later is behind those who wait");
    assert_eq!(turns.take(now + GAP * 1000), Duration::ZERO, "nobody waits for turns nobody has");
}

#[test]
fn time_forgives() {
    let (mut metered, _) = Metered::new((), Arc::default());
    let start = metered.forgiven_at;
    metered.came = FREE + FORGIVEN;
    let mut excess = |after: Duration| metered.excess(start + after);
    assert_eq!(excess(Duration::ZERO), FORGIVEN);
    assert_eq!(excess(Duration::from_millis(500)), FORGIVEN / 2);
    for micros in 0..1000 {
        excess(Duration::from_micros(500_000 + micros));
    }
    let left = excess(Duration::from_millis(501));
    assert!(left < FORGIVEN / 2 && left > FORGIVEN / 2 - 1024, "steps of less than a byte count, too: {left}");
    assert_eq!(excess(Duration::from_secs(100)), 0);
    assert_eq!(metered.came, 0, "no more than there is");
}

#[test]
fn a_turn_ends() {
    let (mut metered, _) = metered(1 << 20);
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
