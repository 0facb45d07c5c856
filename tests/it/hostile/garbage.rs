//! Bytes that are no frames, and frames that mean nothing.

use std::time::Duration;

use futures::{AsyncReadExt, future::join_all};
use libp2p::{PeerId, swarm::Stream};
use quelea_shard::frame::{
    Ack, BlockKey, Cancel, Close, Frame, Keep, MAX_KEYS, Open, Prefix, Probe, Rows, RowsHeader, SessionId, StreamKind,
    Trim,
};
use quelea_shard::link::SILENCE;
use quelea_wire::{ErrorCode, Profile};
use rand::RngCore;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{mpsc, oneshot},
};

use super::{
    attacker::{Attacker, write, write_raw},
    network,
    target::{CONTEXT, Target, WIDTH},
};

/// Random bytes in each round, in pieces that a stream may refuse one by one.
const BYTES: usize = 1_000_000;
const PIECE: usize = 16 * 1024;

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// A million random bytes; a stream that is reset is opened again.
async fn pour(attacker: &Attacker, greeting: Option<StreamKind>) {
    let mut left = BYTES;
    let mut refused = 0;
    while left > 0 && refused < 100 {
        let stream = match greeting {
            Some(kind) => attacker.greeted(&network(), kind).await,
            None => attacker.open(&quelea_shard::protocol_id(&network())).await,
        };
        let Some(mut stream) = stream else {
            refused += 1;
            continue;
        };
        while left > 0 && write_raw(&mut stream, &noise(PIECE)).await {
            left = left.saturating_sub(PIECE);
        }
        left = left.saturating_sub(PIECE);
    }
}

/// Random bytes behind the lengths and kinds of real frames. Fewer, as a stream ends with its first impossible frame.
async fn pour_framed(attacker: &Attacker, stream: StreamKind, kinds: &[u8]) {
    let mut left = BYTES / 20;
    while left > 0 {
        let Some(mut stream) = attacker.greeted(&network(), stream).await else { return };
        for kind in kinds.iter().cycle().take(64) {
            let body = noise(rand::random_range(0..200));
            let mut frame = u32::try_from(body.len() + 2).unwrap().to_le_bytes().to_vec();
            frame.extend([*kind, rand::random::<u8>() & 1]);
            frame.extend(&body);
            left = left.saturating_sub(frame.len());
            if !write_raw(&mut stream, &frame).await {
                break;
            }
        }
    }
}

/// A million random bytes on the port, before and in place of the handshake.
async fn pour_on_port(target: &Target) {
    let mut left = BYTES;
    while left > 0 {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", target.tcp_port())).await else { return };
        if rand::random() {
            let _ = stream.write_all(b"\x13/multistream/1.0.0\n\x07/noise\n").await;
        }
        while left > 0 && stream.write_all(&noise(PIECE)).await.is_ok() {
            left = left.saturating_sub(PIECE);
        }
        left = left.saturating_sub(PIECE);
    }
}

/// A million random bytes at every place where bytes are taken, again and again.
pub async fn random_bytes(target: Target, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(6).await;
    let [raw, control, decode, bulk, frames, rows] = &attackers[..] else { panic!("not let in") };
    let mut swing = Some(swing);
    loop {
        tokio::join!(
            pour_on_port(&target),
            pour(raw, None),
            pour(control, Some(StreamKind::Control)),
            pour(decode, Some(StreamKind::Decode)),
            pour(bulk, Some(StreamKind::Bulk)),
            pour_framed(frames, StreamKind::Control, &[0x10, 0x13, 0x14, 0x16, 0x17, 0x19, 0x2a, 0x01]),
            pour_framed(rows, StreamKind::Bulk, &[0x40, 0x41, 0x50, 0x03]),
        );
        if let Some(swing) = swing.take() {
            swing.send(()).unwrap();
        }
    }
}

fn rows(header: RowsHeader, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let fragment = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Frame::from(Rows { header, fragment }).encode(&mut bytes);
    bytes
}

fn header(session: SessionId, pos: u32, rows: u16) -> RowsHeader {
    let total = u32::from(rows) * WIDTH * 4;
    RowsHeader {
        session,
        epoch: 1,
        seq: pos,
        pos,
        rows,
        last_row_only: false,
        rewind: false,
        deadline_ms: u32::MAX,
        total,
        offset: 0,
    }
}

/// Names of blocks that nobody has.
fn prefix(keys: usize, reuse: u8) -> Prefix {
    Prefix { keys: (0..keys).map(|_| BlockKey(rand::random())).collect(), reuse }
}

/// Opens that should never be taken, or of which nothing follows.
fn impossible(target: &Target, me: PeerId, victim: PeerId) -> Vec<Open> {
    let stranger = PeerId::random();
    let plain = target.open(me, me);
    let junk = ["/ip4/127.0.0.1/tcp/22", "/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/udp/0/quic-v1", "/dns4/localhost/tcp/1"];
    vec![
        Open { epoch: u32::MAX, width: u32::MAX, max_rows: u32::MAX, ..plain.clone() },
        Open { max_rows: u32::MAX, ..plain.clone() },
        Open { max_rows: 0, ..plain.clone() },
        Open { width: WIDTH + 1, ..plain.clone() },
        Open { profile: Profile::Other(u16::MAX), ..plain.clone() },
        Open { span: "100..101".parse().unwrap(), ..plain.clone() },
        Open { span: "3..6".parse().unwrap(), ..plain.clone() },
        Open { prefix: prefix(MAX_KEYS, u8::MAX), max_rows: 1, ..plain.clone() },
        Open { next: victim, ..plain.clone() },
        Open { prev: victim, ..plain.clone() },
        Open { prev: victim, next: victim, ..plain.clone() },
        Open { prev: stranger, next: stranger, ..plain.clone() },
        Open { next: stranger, next_addrs: junk.map(|addr| addr.parse().unwrap()).into(), ..plain },
    ]
}

/// Real frames with numbers that no honest peer sends.
async fn numbers(target: &Target, attacker: &mut Attacker) {
    let victim = target.peer();
    let me = attacker.peer;
    let Some(mut control) = attacker.greeted(&network(), StreamKind::Control).await else { return };
    let Some(mut data) = attacker.greeted(&network(), StreamKind::Bulk).await else { return };
    for mut open in impossible(target, me, victim) {
        open.session = SessionId(rand::random());
        if !write(&mut control, &[open.into()]).await {
            // A frame that cannot be is the end of its stream.
            let Some(again) = attacker.greeted(&network(), StreamKind::Control).await else { return };
            control = again;
        }
    }
    let Some(mut control) = attacker.greeted(&network(), StreamKind::Control).await else { return };
    // One session opened ten thousand times, and storms of everything else.
    let open: Open = target.open(me, me);
    let session = open.session;
    let storm: Vec<Frame> = [
        open.clone().into(),
        Trim { session, epoch: 1, keep_rows: u32::MAX }.into(),
        Probe { session, epoch: u32::MAX }.into(),
        Cancel { session, epoch: 0, code: ErrorCode::from_u16(u16::MAX) }.into(),
        Close { session: SessionId([0xff; 16]), epoch: u32::MAX }.into(),
        Keep { session, epoch: 1, first: u8::MAX, keys: prefix(MAX_KEYS, 0).keys }.into(),
        Keep { session, epoch: 1, first: 0, keys: prefix(1, 0).keys }.into(),
        Probe { session, epoch: 1 }.into(),
    ]
    .into();
    for _ in 0..50 {
        let many: Vec<Frame> = storm.iter().cycle().take(200 * storm.len()).cloned().collect();
        // The answers are never read.
        if !write(&mut control, &many).await {
            break;
        }
    }
    // Rows for nobody, of the wrong shape, at the wrong place, of no numbers.
    let value = |rows: u16, value: f32| vec![value; usize::from(rows) * 192];
    for n in 0..20 {
        let open = Open { prefix: prefix(n, 1), ..target.open(me, me) };
        let session = open.session;
        let Some(mut control) = attacker.greeted(&network(), StreamKind::Control).await else { break };
        if !write(&mut control, &[open.into()]).await {
            break;
        }
        // The Accept, or whatever it is.
        let _ = control.read(&mut [0; 64]).await;
        let ok = header(session, 0, 4);
        let bad = match n % 10 {
            0 => rows(RowsHeader { session: SessionId(rand::random()), ..ok }, &value(4, 1.0)),
            1 => rows(RowsHeader { epoch: 0, ..ok }, &value(4, 1.0)),
            2 => rows(RowsHeader { epoch: u32::MAX, seq: u32::MAX, pos: u32::MAX, ..ok }, &value(4, 1.0)),
            3 => rows(RowsHeader { pos: CONTEXT, ..ok }, &value(4, 1.0)),
            4 => rows(RowsHeader { pos: 7, ..ok }, &value(4, 1.0)),
            5 => rows(ok, &value(4, f32::NAN)),
            6 => rows(RowsHeader { rows: 3, ..ok }, &value(4, 1.0)),
            7 => rows(RowsHeader { deadline_ms: 0, ..ok }, &value(4, 1.0)),
            8 => rows(RowsHeader { total: ok.total * 2, offset: 4, ..ok }, &value(4, 1.0)),
            _ => rows(RowsHeader { rows: u16::MAX, total: u32::MAX, offset: u32::MAX, ..ok }, &value(4, f32::MAX)),
        };
        let acks: Vec<Frame> = vec![Ack { session, epoch: u32::MAX, seq: u32::MAX, received: u32::MAX }.into()];
        if !write_raw(&mut data, &bad).await || !write(&mut data, &acks).await {
            let Some(again) = attacker.greeted(&network(), StreamKind::Bulk).await else { break };
            data = again;
        }
    }
}

/// Real frames with impossible numbers, from several identities at once, again and again.
pub async fn hostile_numbers(target: Target, swing: oneshot::Sender<()>) {
    let mut attackers = target.attackers(6).await;
    let mut swing = Some(swing);
    loop {
        join_all(attackers.iter_mut().map(|attacker| numbers(&target, attacker))).await;
        if let Some(swing) = swing.take() {
            swing.send(()).unwrap();
        }
    }
}

/// Sessions whose next peer takes rows and does not say so, or says so as slowly as it may; and batches that are begun and
/// never finished.
pub async fn never_acknowledged(target: Target, swing: oneshot::Sender<()>) {
    // Few: what they have computed slows everybody down, as any work does, and is not what this is about.
    let attackers = target.attackers(4).await;
    let attacks = attackers.into_iter().enumerate().map(|(n, mut attacker)| {
        let target = target.clone();
        async move {
            let (_, silent) = mpsc::channel(1);
            let inbound = std::mem::replace(&mut attacker.inbound, silent);
            let hogging = async {
                loop {
                    hog(&target, &attacker).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::join!(hogging, acknowledge_slowly(inbound, n % 2 == 0))
        }
    });
    let full_swing = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        swing.send(()).unwrap();
    };
    tokio::join!(join_all(attacks), full_swing);
}

/// Takes the victim's streams, and greets on them; then acknowledges a fragment now and then, or nothing.
async fn acknowledge_slowly(mut inbound: mpsc::Receiver<Stream>, at_all: bool) {
    while let Some(stream) = inbound.recv().await {
        tokio::spawn(async move {
            let Ok(mut greeted) = quelea_shard::protocol::accept(stream).await else { return };
            while let Ok(Some(frame)) = greeted.reader.next().await {
                // Just before the victim gives the link up.
                tokio::time::sleep(if at_all { SILENCE * 4 / 5 } else { SILENCE * 20 }).await;
                if let Frame::Rows(Rows { header: RowsHeader { session, epoch, seq, offset, .. }, fragment }) = frame {
                    let received = offset + u32::try_from(fragment.len()).unwrap();
                    let ack = Ack { session, epoch, seq, received };
                    if greeted.writer.send(&ack.into()).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
}

/// Rows of four sessions, an answer's length each, that the victim must hand on; half of a batch for each of sixteen more.
async fn hog(target: &Target, attacker: &Attacker) {
    let me = attacker.peer;
    let Some(mut control) = attacker.greeted(&network(), StreamKind::Control).await else { return };
    let Some(mut data) = attacker.greeted(&network(), StreamKind::Bulk).await else { return };
    let opens: Vec<Open> = (0..20).map(|_| target.open(me, me)).collect();
    let frames: Vec<Frame> = opens.iter().cloned().map(Frame::from).collect();
    if !write(&mut control, &frames).await {
        return;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let values = vec![0.5; 128 * 192];
    for open in &opens[..16] {
        for (offset, piece) in [(0, &values[..8192]), (32768, &values[..8192])] {
            write_raw(&mut data, &rows(RowsHeader { offset, ..header(open.session, 0, 128) }, piece)).await;
        }
    }
    for pos in 0..CONTEXT / 32 {
        for open in &opens[16..] {
            write_raw(&mut data, &rows(header(open.session, pos * 32, 32), &values[..32 * 192])).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
}
