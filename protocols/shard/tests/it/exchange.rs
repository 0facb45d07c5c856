//! Two swarms, over TCP and over QUIC.

use std::{sync::atomic::Ordering, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};
use quelea_shard::{
    frame::{Cancel, Closed, Frame, Open, StreamKind},
    link::{ControlLink, DataSender, Incoming, LinkEnd, Role, SendError, SenderConfig, receive},
    protocol,
    session::{Act, Event, Session},
};
use quelea_wire::ErrorCode;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

use crate::support::{
    Table, batch,
    frames::samples,
    nodes::{Node, Transport, config, stream},
    same, session, soon, to_channel, until,
};

const WIDTH: u32 = 2048;

/// Runs the same test on both transports.
macro_rules! on_both {
    ($($name:ident)+) => {
        mod tcp {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Transport::Tcp).await;
            })+
        }

        mod quic {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Transport::Quic).await;
            })+
        }
    };
}

on_both! {
    megabytes_both_ways_do_not_hold_up_single_rows
    a_slow_reader_slows_its_sender_and_no_other
    a_cancelled_session_is_closed_and_its_rows_dropped
    a_stream_that_is_reset_ends_its_link_only
    oversize_frames_and_garbage_end_their_stream_only
}

async fn pair(transport: Transport) -> (Node, Node) {
    let (mut a, mut b) = (Node::start(transport, config()).await, Node::start(transport, config()).await);
    a.connect(&mut b).await;
    (a, b)
}

fn table(sessions: impl IntoIterator<Item = (u8, u32)>) -> &'static Table {
    Box::leak(Box::new(Table::of(sessions)))
}

struct Link {
    sender: DataSender,
    batches: mpsc::Receiver<Incoming>,
    receiving: JoinHandle<LinkEnd>,
}

impl Link {
    /// A data stream from `a` to `b`.
    async fn new(a: &Node, b: &mut Node, kind: StreamKind, sessions: &'static Table) -> Self {
        let (opener, acceptor) = stream(a, b, kind).await;
        let (tx, batches) = mpsc::channel(256);
        let receiving = tokio::spawn(receive(acceptor, a.peer, sessions, to_channel(tx)));
        Self { sender: DataSender::spawn(opener, SenderConfig::default()), batches, receiving }
    }

    async fn next(&mut self) -> quelea_shard::link::Batch {
        match soon(self.batches.recv()).await {
            Some(Incoming::Batch(batch)) => batch,
            other => panic!("expected a batch: {other:?}"),
        }
    }

    /// Four full batches of session 1.
    async fn expect_prompts(&mut self) {
        for seq in 0..4 {
            assert!(same(&self.next().await, &batch(1, seq, seq * 128, 128, WIDTH)));
        }
    }
}

/// 4 MiB of prompt each way while single rows go one way, all on one connection.
async fn megabytes_both_ways_do_not_hold_up_single_rows(transport: Transport) {
    let (mut a, mut b) = pair(transport).await;
    let sessions = table([(1, WIDTH), (2, WIDTH)]);
    let mut there = Link::new(&a, &mut b, StreamKind::Bulk, sessions).await;
    let mut back = Link::new(&b, &mut a, StreamKind::Bulk, sessions).await;
    let mut decode = Link::new(&a, &mut b, StreamKind::Decode, sessions).await;
    for seq in 0..4 {
        for link in [&there, &back] {
            assert_eq!(link.sender.send(batch(1, seq, seq * 128, 128, WIDTH)), Ok(()));
        }
    }
    let singles = async {
        for seq in 0..32 {
            let row = batch(2, seq, seq, 1, WIDTH);
            assert_eq!(decode.sender.send(row.clone()), Ok(()));
            assert!(same(&decode.next().await, &row));
        }
    };
    tokio::join!(singles, there.expect_prompts(), back.expect_prompts());
    assert!(decode.sender.rtt().is_some_and(|r| r.samples >= 31 && r.mean < Duration::from_secs(1)));
    assert!(a.stats().await.inbound_open == 1 && b.stats().await.inbound_open == 2);
}

/// A peer that stops reading one stream fills that stream's window and our bounded queue, and is then dead to it; the
/// other streams go on.
async fn a_slow_reader_slows_its_sender_and_no_other(transport: Transport) {
    let (a, mut b) = pair(transport).await;
    let (opener, unread) = stream(&a, &mut b, StreamKind::Bulk).await;
    let config = SenderConfig { queue_batches: 4, silence: Duration::from_millis(300), ..SenderConfig::default() };
    let stuck = DataSender::spawn(opener, config);
    let mut sent = 0;
    let full = loop {
        match stuck.send(batch(1, sent, 0, 128, WIDTH)) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(full, SendError::Full);
    assert!(sent <= 6, "{sent} MiB were taken in");
    let mut decode = Link::new(&a, &mut b, StreamKind::Decode, table([(2, WIDTH)])).await;
    for seq in 0..8 {
        let row = batch(2, seq, seq, 1, WIDTH);
        assert_eq!(decode.sender.send(row.clone()), Ok(()));
        assert!(same(&decode.next().await, &row));
    }
    assert!(matches!(soon(stuck.ended()).await, LinkEnd::Silent));
    assert!(decode.sender.end().is_none());
    drop(unread);
}

/// A stage's session, driven over a real control stream.
async fn a_cancelled_session_is_closed_and_its_rows_dropped(transport: Transport) {
    let (a, mut b) = pair(transport).await;
    let (opener, acceptor) = stream(&a, &mut b, StreamKind::Control).await;
    let (to_stage, mut from_stage) = ControlLink::spawn(opener, Role::Coordinator);
    let (to_coordinator, mut from_coordinator) = ControlLink::spawn(acceptor, Role::Stage);
    let sessions = table([(1, WIDTH)]);
    let stage = tokio::spawn(async move {
        let mut live: Option<Session> = None;
        while let Some(frame) = from_coordinator.recv().await {
            let now = Instant::now();
            let step = match (frame, &mut live) {
                (Frame::Open(open), None) => {
                    live.insert(Session::new(open, now)).on(now, Event::Admitted { kv_pages_free: 5, kept_rows: 0 })
                }
                (Frame::Cancel(cancel), Some(session)) => session.on(now, Event::Cancel(cancel)),
                other => panic!("{other:?}"),
            };
            if step.act == Act::Release {
                sessions.close(&session(1));
            }
            to_coordinator.send(step.reply.expect("both are answered")).expect("room");
        }
    });
    let Frame::Open(open) = samples().remove(3).1 else { panic!("the fourth sample is Open") };
    to_stage.send(Open { session: session(1), epoch: 1, width: WIDTH, prev: a.peer, ..open }).expect("room");
    assert!(matches!(soon(from_stage.recv()).await, Some(Frame::Accept(accept)) if accept.session == session(1)));

    let mut bulk = Link::new(&a, &mut b, StreamKind::Bulk, sessions).await;
    assert_eq!(bulk.sender.send(batch(1, 0, 0, 128, WIDTH)), Ok(()));
    assert!(same(&bulk.next().await, &batch(1, 0, 0, 128, WIDTH)));
    to_stage.send(Cancel { session: session(1), epoch: 1, code: ErrorCode::Cancelled }).expect("room");
    match soon(from_stage.recv()).await {
        Some(Frame::Closed(Closed { code, .. })) => assert_eq!(code, Some(ErrorCode::Cancelled)),
        other => panic!("{other:?}"),
    }
    // Rows that are still under way are dropped, acknowledged, and harm nobody.
    assert_eq!(bulk.sender.send(batch(1, 1, 128, 128, WIDTH)), Ok(()));
    let fragments = 128 * u64::from(WIDTH) * 4 / (32 * 1024);
    until(|| bulk.sender.rtt().is_some_and(|r| r.samples == 2 * fragments)).await;
    assert_eq!(sessions.dropped.load(Ordering::Relaxed), fragments);
    assert!(bulk.sender.end().is_none() && bulk.batches.try_recv().is_err());
    drop(to_stage);
    soon(stage).await.expect("the stage ends with its control stream");
}

async fn a_stream_that_is_reset_ends_its_link_only(transport: Transport) {
    let (a, mut b) = pair(transport).await;
    let sessions = table([(1, WIDTH), (2, WIDTH)]);
    let mut kept = Link::new(&a, &mut b, StreamKind::Decode, sessions).await;

    // The acceptor goes: the sender hears of it without sending.
    let link = Link::new(&a, &mut b, StreamKind::Bulk, sessions).await;
    link.receiving.abort();
    let end = soon(link.sender.ended()).await;
    assert!(matches!(end, LinkEnd::Broken(_) | LinkEnd::PeerClosed), "{end}");

    // The opener goes in the middle of a frame.
    let opened = a.opening(b.peer).await;
    let mut half = soon(opened).await.expect("answered").expect("opened");
    let mut hello = Vec::new();
    samples().remove(0).1.encode(&mut hello);
    hello.extend([200, 0, 0, 0, 0x40, 0, 1, 2, 3]);
    half.write_all(&hello).await.expect("open");
    half.flush().await.expect("open");
    let greeted = protocol::accept(b.accept().await).await.expect("greeted");
    let receiving = tokio::spawn(receive(greeted, a.peer, sessions, |_| Ok(())));
    drop(half);
    assert!(matches!(soon(receiving).await, Ok(LinkEnd::Broken(_))));

    // The connection itself has not suffered.
    let row = batch(2, 0, 0, 1, WIDTH);
    assert_eq!(kept.sender.send(row.clone()), Ok(()));
    assert!(same(&kept.next().await, &row));
    assert!(!kept.receiving.is_finished());
}

async fn oversize_frames_and_garbage_end_their_stream_only(transport: Transport) {
    let (a, mut b) = pair(transport).await;
    let sessions = table([(1, WIDTH)]);
    let mut kept = Link::new(&a, &mut b, StreamKind::Decode, sessions).await;
    let mut noise = vec![0; 1 << 20];
    StdRng::seed_from_u64(1).fill_bytes(&mut noise);
    for greet_first in [true, false] {
        for bytes in [&[0xff; 16][..], &noise] {
            let opened = a.opening(b.peer).await;
            let mut raw = soon(opened).await.expect("answered").expect("opened");
            let accepted = b.accept();
            if greet_first {
                let mut hello = Vec::new();
                samples().remove(0).1.encode(&mut hello);
                raw.write_all(&hello).await.expect("open");
            }
            // Written while reading, as the other side answers, or closes, before it has read all.
            let (mut read, mut write) = raw.split();
            let writing = async {
                if write.write_all(bytes).await.is_ok() {
                    let _ = write.flush().await;
                }
                std::future::pending::<()>().await;
            };
            let told = async {
                let mut told = Vec::new();
                let _ = read.read_to_end(&mut told).await;
            };
            let attacking = async {
                tokio::select! {
                    () = writing => {}
                    () = told => {}
                }
            };
            let serving = async {
                match protocol::accept(accepted.await).await {
                    Ok(stream) => receive(stream, a.peer, sessions, |_| Ok(())).await.code(),
                    Err(protocol::HandshakeError::Codec(e)) => e.code(),
                    Err(other) => panic!("{other}"),
                }
            };
            let ((), code) = soon(async { tokio::join!(attacking, serving) }).await;
            assert!(matches!(code, Some(ErrorCode::FrameTooLarge | ErrorCode::BadFrame)), "{code:?}");
        }
    }
    let row = batch(1, 0, 0, 1, WIDTH);
    assert_eq!(kept.sender.send(row.clone()), Ok(()));
    assert!(same(&kept.next().await, &row));
    assert_eq!(b.stats().await.inbound_open, 1, "the bad streams have given their places back");
}
