//! Every number of every frame at its ends: read, and acted upon by whoever acts on it.
//!
//! The numbers of a frame stand at fixed places, so each place of each frame takes each end in each width: what is a number
//! is met, and what is none (an id, a text, a length) is met besides.

use quelea_shard::{
    frame::{self, Form, Frame, MAX_BATCH_BYTES, MAX_DEADLINE_MS, MAX_FRAME},
    reassembly::{Expect, Reassembly},
    session::{Arrived, Event, Session},
};
use tokio::time::Instant;

use crate::support::{frames::samples, peer};

/// What a reader may take besides twice the bytes that came: an error's text, a small list.
const SLACK: u64 = 2048;

/// The ends of a number of so many bytes, and those of the signed one.
fn ends(width: usize) -> [u64; 6] {
    let max = u64::MAX >> (64 - 8 * width);
    [0, 1, max >> 1, (max >> 1) + 1, max - 1, max]
}

/// A frame with each number at each place.
fn each(bytes: &[u8], mut f: impl FnMut(&[u8], usize, u64)) {
    let mut changed = bytes.to_vec();
    for width in [1, 2, 4, 8] {
        for at in 0..(bytes.len() + 1).saturating_sub(width) {
            for end in ends(width) {
                changed[at..at + width].copy_from_slice(&end.to_le_bytes()[..width]);
                f(&changed, at, end);
            }
            changed[at..at + width].copy_from_slice(&bytes[at..at + width]);
        }
    }
}

fn live(open: &frame::Open, now: Instant) -> Session {
    let mut session = Session::new(open.clone(), now).surviving();
    let _ = session.on(now, Event::Admitted { kv_pages_free: 3, kept_rows: 0 });
    session
}

/// What a stage does about a frame, in a session that has begun.
fn act(frame: Frame, open: &frame::Open) {
    let now = Instant::now();
    let mut session = live(open, now);
    let arrived = |epoch, seq, pos, rows, rewind, deadline| Event::Rows {
        from: peer(1),
        batch: Arrived { epoch, seq, pos, rows, rewind, deadline },
    };
    let _ = session.on(now, arrived(open.epoch, 0, 0, 2, false, now));
    let event = match frame {
        Frame::Open(hostile) => {
            // As the coordinator's first word, too.
            let mut other = live(&hostile, now);
            let _ = other.on(now, arrived(hostile.epoch, 0, 0, u16::MAX, true, now));
            let _ = (other.wake_at(), other.on(now, Event::Tick));
            assert!(other.pos() <= hostile.max_rows);
            Event::Open(Box::new(hostile))
        }
        Frame::Trim(f) => Event::Trim(f),
        Frame::Probe(f) => Event::Probe(f),
        Frame::Cancel(f) => Event::Cancel(f),
        Frame::Close(f) => Event::Close(f),
        Frame::Keep(f) => Event::Keep { epoch: f.epoch },
        Frame::Reroute(f) => Event::Reroute(Box::new(f)),
        Frame::Resume(f) => Event::Resume(f),
        Frame::Rows(frame::Rows { header: h, fragment })
        | Frame::Tokens(frame::Tokens { header: h, fragment })
        | Frame::Logits(frame::Logits { header: h, fragment })
        | Frame::Rows16(frame::Rows16 { header: h, fragment }) => {
            let shape = |width, max_rows| Expect { form: Form::Rows, width, max_rows };
            for expect in [shape(open.width, open.max_rows), shape(u32::MAX, u32::MAX), shape(3, 400)] {
                let mut batches = Reassembly::new();
                let far = now + std::time::Duration::from_millis(u64::from(MAX_DEADLINE_MS));
                if let Ok(whole) = batches.push(now, &h, &fragment, expect) {
                    assert!(h.total <= MAX_BATCH_BYTES && whole.is_none_or(|batch| batch.deadline <= far));
                }
                let _ = (batches.due(), batches.take_overdue(far + far.duration_since(now)));
            }
            arrived(h.epoch, h.seq, h.pos, h.rows, h.rewind, now)
        }
        _ => return,
    };
    let _ = session.on(now, event);
    let _ = (session.wake_at(), session.on(now, Event::Tick), session.totals());
    assert!(session.pos() <= session.open().max_rows.max(open.max_rows));
}

#[test]
fn every_number_of_every_frame() {
    let samples = samples();
    let open = samples.iter().find_map(|(_, frame)| match frame {
        Frame::Open(open) => Some(frame::Open { prev: peer(1), ..open.clone() }),
        _ => None,
    });
    let (open, mut read, mut refused) = (open.expect("a sample"), 0_u64, 0_u64);
    for (name, sample) in &samples {
        let mut bytes = Vec::new();
        sample.encode(&mut bytes);
        each(&bytes, |changed, at, end| {
            let mut frame = None;
            let taken = allocation_counter::measure(|| {
                frame = match frame::split(changed) {
                    Ok(Some((raw, len))) => {
                        assert!(len <= MAX_FRAME);
                        Some(Frame::decode(raw.kind, raw.body))
                    }
                    Ok(None) => None,
                    Err(error) => Some(Err(error)),
                };
            });
            let most = 2 * changed.len() as u64 + SLACK;
            assert!(taken.bytes_max <= most, "{name} with {end:#x} at {at}: {} bytes", taken.bytes_max);
            match frame {
                Some(Ok(Some(frame))) => {
                    read += 1;
                    act(frame, &open);
                }
                Some(Err(error)) => {
                    refused += 1;
                    // Each has a code that tells the peer.
                    assert_ne!(error.code().to_u16(), 0);
                }
                _ => {}
            }
        });
    }
    assert!(read > 10_000 && refused > 1_000, "{read} read, {refused} refused");
}
