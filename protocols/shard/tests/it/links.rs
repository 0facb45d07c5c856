//! Data streams without a swarm; on paused time.

use std::{sync::atomic::Ordering, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};
use quelea_shard::{
    codec::FrameReader,
    frame::{Ack, Form, Frame, Hello, Probe, Reject, Rows, RowsHeader, StreamKind, put_floats},
    link::{Budget, DataSender, Incoming, LinkEnd, SILENCE, SendError, SenderConfig, receive},
    protocol::{self, Negotiated, VERSION},
    reassembly::BATCH_TIMEOUT,
};
use quelea_wire::ErrorCode;
use tokio::{io::DuplexStream, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_util::compat::Compat;

use crate::support::{Table, batch, greeted, peer, pipe, same, session, soon, to_channel, until};

const WIDTH: u32 = 512;

/// A sender and a receiver on a pipe that holds `buffer` bytes.
async fn linked(
    buffer: usize,
    config: SenderConfig,
    sessions: &'static Table,
) -> (DataSender, mpsc::Receiver<Incoming>, JoinHandle<LinkEnd>) {
    let (a, b) = greeted(StreamKind::Bulk, buffer).await;
    let (tx, rx) = mpsc::channel(256);
    let receiving = tokio::spawn(receive(b, peer(1), sessions, to_channel(tx)));
    (DataSender::spawn(a, config), rx, receiving)
}

fn table(sessions: impl IntoIterator<Item = (u8, u32)>) -> &'static Table {
    Box::leak(Box::new(Table::of(sessions)))
}

async fn next_batch(rx: &mut mpsc::Receiver<Incoming>) -> quelea_shard::link::Batch {
    match soon(rx.recv()).await {
        Some(Incoming::Batch(batch)) => batch,
        other => panic!("expected a batch: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn batches_of_many_sessions_arrive_whole_and_in_order() {
    let (sender, mut rx, receiving) = linked(5000, SenderConfig::default(), table([(1, WIDTH), (2, 7)])).await;
    let mut sent = Vec::new();
    let mut pos = 0;
    for seq in 0..8 {
        // 128 rows are eight fragments, one row is one.
        let rows = if seq % 2 == 0 { 128 } else { 1 };
        sent.push(batch(1, seq, pos, rows, WIDTH));
        sent.push(batch(2, seq, pos, rows, 7));
        pos += u32::from(rows);
    }
    for b in &sent {
        assert_eq!(sender.send(b.clone()), Ok(()));
    }
    for b in &sent {
        assert!(same(&next_batch(&mut rx).await, b));
    }
    let ended = sender.ended();
    drop(sender);
    assert!(matches!(soon(ended).await, LinkEnd::Done));
    assert!(matches!(soon(receiving).await, Ok(LinkEnd::PeerClosed)));
}

#[tokio::test(start_paused = true)]
async fn round_trips_are_measured_and_deadlines_travel_as_what_remains() {
    let (a, b) = greeted(StreamKind::Decode, 1 << 16).await;
    let sender = DataSender::spawn(a, SenderConfig::default());
    assert_eq!(sender.rtt(), None);
    let (mut reader, mut writer) = (b.reader, b.writer);
    let mut expected = Vec::new();
    for (seq, ms) in [(0, 80), (1, 240)] {
        let mut b = batch(1, seq, seq, 1, 4);
        b.deadline = Instant::now() + Duration::from_millis(1234);
        assert_eq!(sender.send(b), Ok(()));
        let Some(Frame::Rows(Rows { header, .. })) = reader.next().await.expect("whole") else { panic!("no rows") };
        assert_eq!((header.seq, header.deadline_ms), (seq, 1234));
        tokio::time::advance(Duration::from_millis(ms)).await;
        let ack = Ack { session: session(1), epoch: 1, seq, received: 16 };
        writer.send(&ack.into()).await.expect("open");
        let samples = u64::from(seq) + 1;
        until(|| sender.rtt().is_some_and(|r| r.samples == samples)).await;
        expected.push(sender.rtt().expect("measured"));
    }
    let ms = Duration::from_millis;
    assert_eq!((expected[0].last, expected[0].mean), (ms(80), ms(80)));
    assert_eq!((expected[1].last, expected[1].mean), (ms(240), ms(100)));
}

#[tokio::test(start_paused = true)]
async fn a_hop_that_does_not_acknowledge_is_dead_after_a_second() {
    let (a, b) = greeted(StreamKind::Decode, 1 << 16).await;
    let sender = DataSender::spawn(a, SenderConfig::default());
    // An idle link is not dead.
    tokio::time::advance(10 * SILENCE).await;
    assert!(sender.end().is_none());
    let start = Instant::now();
    assert_eq!(sender.send(batch(1, 0, 0, 1, 4)), Ok(()));
    assert!(matches!(soon(sender.ended()).await, LinkEnd::Silent));
    assert_eq!(start.elapsed(), SILENCE);
    assert_eq!(sender.send(batch(1, 1, 1, 1, 4)), Err(SendError::Ended));
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn a_hop_that_does_not_read_is_dead_after_a_second_and_costs_a_bounded_queue() {
    let config = SenderConfig { queue_batches: 4, queue_bytes: 1 << 20, ..SenderConfig::default() };
    let (a, b) = greeted(StreamKind::Bulk, 1000).await;
    let sender = DataSender::spawn(a, config);
    // 64 KiB each: one is being written, four wait.
    let mut taken = 0;
    while sender.send(batch(1, taken, 0, 8, 2048)).is_ok() {
        taken += 1;
        tokio::task::yield_now().await;
    }
    assert!((4..=5).contains(&taken), "{taken}");
    assert_eq!(sender.send(batch(1, 0, 0, 1, 1)), Err(SendError::Full));
    assert!(matches!(soon(sender.ended()).await, LinkEnd::Silent));
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn queued_bytes_are_bounded_too() {
    let config = SenderConfig { queue_bytes: 100_000, ..SenderConfig::default() };
    let (a, _b) = greeted(StreamKind::Bulk, 1000).await;
    let sender = DataSender::spawn(a, config);
    assert_eq!(sender.send(batch(1, 0, 0, 8, 2048)), Ok(()));
    assert_eq!(sender.send(batch(1, 1, 8, 8, 2048)), Err(SendError::Full));
    assert_eq!(sender.send(batch(1, 1, 8, 1, 2048)), Ok(()));
}

/// Of what all links together may hold queued, one that nobody reads takes half, and leaves the rest to others.
#[tokio::test(start_paused = true)]
async fn links_share_a_budget() {
    let budget = Budget::new(1 << 20);
    let greedy = greeted(StreamKind::Bulk, 1000).await;
    let sender = DataSender::spawn_within(greedy.0, SenderConfig::default(), budget.clone());
    // 64 KiB each.
    let taken = (0..).take_while(|seq| sender.send(batch(1, *seq, 0, 8, 2048)).is_ok()).count();
    assert_eq!((taken, budget.taken()), (8, 512 * 1024));
    let other = greeted(StreamKind::Bulk, 1000).await;
    let second = DataSender::spawn_within(other.0, SenderConfig::default(), budget.clone());
    assert_eq!(second.send(batch(1, 0, 0, 8, 2048)), Ok(()));
    drop((greedy.1, other.1, sender, second));
    until(|| budget.taken() == 0).await;
}

/// Batches that are begun and not finished count against a budget, and their time runs out.
#[tokio::test(start_paused = true)]
async fn unfinished_batches_end_their_sessions() {
    let sessions: &'static Table = Box::leak(Box::new(Table::of([(1, WIDTH), (2, WIDTH), (3, WIDTH)]).within(100_000)));
    let (a, b) = greeted(StreamKind::Bulk, 1 << 20).await;
    let (tx, mut rx) = mpsc::channel(16);
    tokio::spawn(receive(b, peer(1), sessions, to_channel(tx)));
    let mut writer = a.writer;
    // 128 rows of 2 KiB, of which a fragment comes.
    let begin = |n: u8| RowsHeader {
        session: session(n),
        epoch: 1,
        seq: 0,
        pos: 0,
        rows: 128,
        last_row_only: true,
        rewind: false,
        deadline_ms: 60_000,
        total: 128 * WIDTH * 4,
        offset: 0,
    };
    let start = Instant::now();
    for n in 1..=2 {
        writer.queue_rows(Form::Rows, &begin(n), &[1.0; 8192]);
    }
    writer.flush().await.expect("open");
    let over = soon(rx.recv()).await;
    assert_eq!(over, Some(Incoming::Bad { session: session(2), epoch: 1, code: ErrorCode::Overloaded }));
    assert_eq!(start.elapsed(), Duration::ZERO);
    let late = tokio::time::timeout(2 * BATCH_TIMEOUT, rx.recv()).await.expect("in time");
    assert_eq!(late, Some(Incoming::Bad { session: session(1), epoch: 1, code: ErrorCode::DeadlineExceeded }));
    assert_eq!(start.elapsed(), BATCH_TIMEOUT);
    // The stream goes on, with all of its share.
    let whole = batch(3, 0, 0, 1, WIDTH);
    writer.queue_rows(Form::Rows, &RowsHeader { rows: 1, total: WIDTH * 4, ..begin(3) }, &whole.data);
    writer.queue_rows(Form::Rows, &begin(1), &[1.0; 8192]);
    writer.flush().await.expect("open");
    assert!(same(&next_batch(&mut rx).await, &whole));
    until(|| sessions.taken() == 32 * 1024).await;
}

#[tokio::test(start_paused = true)]
async fn rows_of_bf16_arrive_as_they_are_in_half_the_bytes() {
    let sessions = Box::leak(Box::new(Table::of([(1, WIDTH)]).of_form(Form::Rows16)));
    let (sender, mut rx, ..) = linked(1 << 16, SenderConfig::default(), sessions).await;
    let full = batch(1, 0, 0, 128, WIDTH);
    let upper = |value: &f32| f32::from_bits(value.to_bits() & 0xffff_0000);
    let half =
        quelea_shard::link::Batch { form: Form::Rows16, data: full.data.iter().map(upper).collect(), ..full.clone() };
    assert_eq!(half.wire_bytes().map(|bytes| 2 * bytes), full.wire_bytes());
    sender.send(half.clone()).expect("room");
    assert!(same(&next_batch(&mut rx).await, &half));
    // NaN and infinity in half the bits.
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut data = half.data[..WIDTH as usize].to_vec();
        data[7] = bad;
        sender.send(quelea_shard::link::Batch { seq: 1, pos: 128, rows: 1, data, ..half.clone() }).expect("room");
        let refused = soon(rx.recv()).await;
        assert_eq!(refused, Some(Incoming::Bad { session: session(1), epoch: 1, code: ErrorCode::NotFinite }));
    }
    // An odd number of values does not fill words.
    let odd = quelea_shard::link::Batch { rows: 1, data: vec![1.0; 3], ..half };
    assert_eq!(sender.send(odd), Err(SendError::Invalid));
}

#[tokio::test(start_paused = true)]
async fn token_ids_are_not_rows() {
    let (sender, mut rx, ..) = linked(1 << 16, SenderConfig::default(), table([(1, 4), (2, 1)])).await;
    let ids = quelea_shard::link::Batch {
        form: Form::Tokens,
        data: quelea_shard::link::Batch::of_tokens(&[5, 6, 7, 8]),
        ..batch(2, 0, 0, 4, 1)
    };
    sender.send(ids).expect("room");
    let refused = soon(rx.recv()).await;
    assert_eq!(refused, Some(Incoming::Bad { session: session(2), epoch: 1, code: ErrorCode::BadShape }));
    // The others of the stream go on.
    let rows = batch(1, 0, 0, 2, 4);
    sender.send(rows.clone()).expect("room");
    assert!(same(&next_batch(&mut rx).await, &rows));
}

#[tokio::test(start_paused = true)]
async fn batches_that_the_protocol_has_no_room_for_are_not_sent() {
    let (sender, ..) = linked(1 << 16, SenderConfig::default(), table([])).await;
    let good = batch(1, 0, 0, 2, 4);
    for bad in [
        quelea_shard::link::Batch { rows: 0, ..good.clone() },
        quelea_shard::link::Batch { rows: 129, ..good.clone() },
        quelea_shard::link::Batch { rows: 3, ..good.clone() },
        quelea_shard::link::Batch { data: Vec::new(), ..good.clone() },
    ] {
        assert_eq!(sender.send(bad), Err(SendError::Invalid));
    }
    assert_eq!(sender.send(good), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn one_sessions_bad_rows_leave_the_others_alone() {
    let sessions = table([(1, 4), (2, 4)]);
    let (sender, mut rx, _receiving) = linked(1 << 16, SenderConfig::default(), sessions).await;
    let mut poisoned = batch(1, 0, 0, 2, 4);
    poisoned.data[5] = f32::NAN;
    for b in [poisoned, batch(2, 0, 0, 3, 5), batch(3, 0, 0, 1, 4), batch(2, 0, 0, 1, 4)] {
        assert_eq!(sender.send(b), Ok(()));
    }
    let bad = |n, code| Some(Incoming::Bad { session: session(n), epoch: 1, code });
    assert_eq!(soon(rx.recv()).await, bad(1, ErrorCode::NotFinite));
    assert_eq!(soon(rx.recv()).await, bad(2, ErrorCode::BadShape));
    assert!(same(&next_batch(&mut rx).await, &batch(2, 0, 0, 1, 4)));
    assert_eq!(sessions.dropped.load(Ordering::Relaxed), 1, "nobody expects session 3");
    // All four were acknowledged all the same.
    until(|| sender.rtt().is_some_and(|r| r.samples == 4)).await;
    assert!(sender.end().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_in_mid_batch_is_dropped_and_still_acknowledged() {
    let sessions = table([(1, WIDTH), (2, WIDTH)]);
    let (a, b) = greeted(StreamKind::Bulk, 1 << 16).await;
    let (tx, mut rx) = mpsc::channel(16);
    tokio::spawn(receive(b, peer(1), sessions, to_channel(tx)));
    let (mut reader, mut writer) = (a.reader, a.writer);
    let header = RowsHeader {
        session: session(1),
        epoch: 1,
        seq: 0,
        pos: 0,
        rows: 64,
        last_row_only: false,
        rewind: false,
        deadline_ms: 1000,
        total: 64 * WIDTH * 4,
        offset: 0,
    };
    // Four fragments; the session ends after the second.
    let values = vec![0.5; (16 * WIDTH) as usize];
    for fragment in 0..4 {
        let offset = fragment * 16 * WIDTH * 4;
        writer.queue_rows(Form::Rows, &RowsHeader { offset, ..header }, &values);
        writer.flush().await.expect("open");
        let ack = Ack { session: session(1), epoch: 1, seq: 0, received: offset + 16 * WIDTH * 4 };
        assert!(matches!(soon(reader.next()).await, Ok(Some(Frame::Ack(a))) if a == ack));
        if fragment == 1 {
            sessions.close(&session(1));
        }
    }
    assert_eq!(sessions.dropped.load(Ordering::Relaxed), 2);
    let other = batch(2, 0, 0, 1, WIDTH);
    let header = RowsHeader { session: session(2), rows: 1, total: WIDTH * 4, last_row_only: true, ..header };
    writer.queue_rows(Form::Rows, &header, &other.data);
    writer.flush().await.expect("open");
    assert!(same(&next_batch(&mut rx).await, &other));
}

#[tokio::test(start_paused = true)]
async fn a_full_sink_ends_the_stream_with_its_reason() {
    let (a, b) = greeted(StreamKind::Decode, 1 << 16).await;
    let (tx, _rx) = mpsc::channel(1);
    let receiving = tokio::spawn(receive(b, peer(1), table([(1, 4)]), to_channel(tx)));
    let sender = DataSender::spawn(a, SenderConfig::default());
    for seq in 0..2 {
        assert_eq!(sender.send(batch(1, seq, seq, 1, 4)), Ok(()));
    }
    assert!(matches!(soon(sender.ended()).await, LinkEnd::Rejected(ErrorCode::Overloaded)));
    assert!(matches!(soon(receiving).await, Ok(LinkEnd::Done)));
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_of_nothing_end_the_link() {
    let wrong = Ack { session: session(1), epoch: 1, seq: 0, received: 12 };
    for answers in [vec![wrong], vec![Ack { received: 16, ..wrong }, Ack { received: 16, ..wrong }]] {
        let (a, b) = greeted(StreamKind::Decode, 1 << 16).await;
        let sender = DataSender::spawn(a, SenderConfig::default());
        let (mut reader, mut writer) = (b.reader, b.writer);
        assert_eq!(sender.send(batch(1, 0, 0, 1, 4)), Ok(()));
        assert!(matches!(soon(reader.next()).await, Ok(Some(Frame::Rows(_)))));
        for ack in answers {
            writer.send(&ack.into()).await.expect("open");
        }
        assert!(matches!(soon(sender.ended()).await, LinkEnd::Violation(ErrorCode::BadFrame)));
        assert!(matches!(soon(reader.next()).await, Ok(Some(Frame::Reject(_)))));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_frame_end_the_stream_with_a_word() {
    let control = Frame::from(Probe { session: session(1), epoch: 1 });
    let mut wrong_stream = Vec::new();
    control.encode(&mut wrong_stream);
    let cases: [(Vec<u8>, ErrorCode); 5] = [
        (vec![0xff; 64], ErrorCode::FrameTooLarge),
        (vec![0; 64], ErrorCode::BadFrame),
        ([&[2, 0, 0, 0, 0x40, 0][..], &[0; 8]].concat(), ErrorCode::BadFrame),
        (vec![2, 0, 0, 0, 0x7f, 1], ErrorCode::UnknownCritical),
        (wrong_stream, ErrorCode::BadFrame),
    ];
    for (bytes, code) in cases {
        let (mut a, b) = by_hand(StreamKind::Decode).await;
        let receiving = tokio::spawn(receive(b, peer(1), table([]), |_| Ok(())));
        a.write_all(&bytes).await.expect("open");
        match soon(receiving).await {
            Ok(LinkEnd::Violation(found)) => assert_eq!(found, code, "{bytes:02x?}"),
            other => panic!("{bytes:02x?}: {other:?}"),
        }
        let mut reader = FrameReader::new(a);
        match soon(reader.next()).await {
            Ok(Some(Frame::Reject(Reject { code: told }))) => assert_eq!(told, code),
            other => panic!("{bytes:02x?}: {other:?}"),
        }
        assert!(matches!(soon(reader.next()).await, Ok(None)));
    }
}

/// Greets by hand on a pipe, so that any bytes can follow.
async fn by_hand(kind: StreamKind) -> (Compat<DuplexStream>, Negotiated<Compat<DuplexStream>>) {
    let (mut a, b) = pipe(1 << 16);
    let accepted = tokio::spawn(protocol::accept(b));
    let mut hello = Vec::new();
    Frame::from(Hello { version: VERSION, stream: kind, features: 0 }).encode(&mut hello);
    a.write_all(&hello).await.expect("open");
    let b = soon(accepted).await.expect("runs").expect("greeted");
    // The answer is 16 bytes; what follows is the test's.
    let mut ack = [0; 16];
    a.read_exact(&mut ack).await.expect("an answer");
    (a, b)
}

#[tokio::test(start_paused = true)]
async fn unknown_kinds_pass_between_rows() {
    let (mut a, b) = by_hand(StreamKind::Decode).await;
    let (tx, mut rx) = mpsc::channel(16);
    tokio::spawn(receive(b, peer(1), table([(1, 4)]), to_channel(tx)));
    let sent = batch(1, 0, 0, 1, 4);
    let mut fragment = Vec::new();
    put_floats(&sent.data, &mut fragment);
    let header = RowsHeader {
        session: session(1),
        epoch: 1,
        seq: 0,
        pos: 0,
        rows: 1,
        last_row_only: true,
        rewind: false,
        deadline_ms: 1,
        total: 16,
        offset: 0,
    };
    let mut bytes = vec![5, 0, 0, 0, 0x7e, 0, 1, 2, 3];
    Frame::from(Rows { header, fragment }).encode(&mut bytes);
    a.write_all(&bytes).await.expect("open");
    assert!(same(&next_batch(&mut rx).await, &sent));
    assert!(matches!(soon(FrameReader::new(a).next()).await, Ok(Some(Frame::Ack(_)))));
}
