//! No number that a peer sends makes us take memory for what it has not sent.

use futures::{executor::block_on, io::Cursor};
use proptest::prelude::*;
use quelea_shard::{
    codec::FrameReader,
    frame::{self, DecodeError, Form, Frame, MAX_BATCH_BYTES, MAX_FRAGMENT, RowsHeader, max_body, put_floats},
    reassembly::{Expect, MAX_PARTIAL_BATCHES, MAX_PARTIAL_BYTES, Reassembly},
};
use quelea_wire::ErrorCode;
use tokio::time::Instant;

use crate::support::{frames::samples, session};

fn header(n: u8, rows: u16, total: u32, offset: u32) -> RowsHeader {
    RowsHeader {
        session: session(n),
        epoch: 1,
        seq: 0,
        pos: 0,
        rows,
        last_row_only: false,
        rewind: false,
        deadline_ms: 1000,
        total,
        offset,
    }
}

proptest! {
    #[test]
    fn a_length_prefix_alone_takes_nothing(kind in any::<u8>(), length in any::<u32>(), sent in 0..64_usize) {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([kind, 0]);
        bytes.resize(bytes.len() + sent, 0);
        let taken = allocation_counter::measure(|| {
            block_on(async {
                let mut reader = FrameReader::new(Cursor::new(&bytes));
                let _ = reader.next().await;
            });
        });
        prop_assert!(taken.bytes_max <= 4096, "{} bytes", taken.bytes_max);
    }

    #[test]
    fn a_batch_takes_what_has_arrived(
        pieces in proptest::collection::vec(1..=MAX_FRAGMENT / 4, 1..40),
    ) {
        let mut reassembly = Reassembly::new();
        let expect = Expect { form: Form::Rows, width: MAX_BATCH_BYTES / 4 / 128, max_rows: 128 };
        let mut sent = 0;
        for floats in pieces {
            let fragment = vec![0; floats * 4];
            let offset = u32::try_from(sent).expect("small");
            let done = reassembly.push(Instant::now(), &header(1, 128, MAX_BATCH_BYTES, offset), &fragment, expect);
            prop_assert_eq!(done, Ok(None));
            sent += fragment.len();
            prop_assert_eq!(reassembly.received_bytes(), sent);
            prop_assert!(reassembly.capacity_bytes() <= 2 * sent + MAX_FRAGMENT);
        }
    }
}

#[test]
fn a_count_of_keys_takes_nothing() {
    for name in ["open_prefix", "keep"] {
        let (_, frame) = samples().into_iter().find(|(n, _)| *n == name).expect("a sample");
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let keys = bytes.windows(17).position(|w| w == [&[3][..], &[0x11; 16]].concat()).expect("three keys");
        bytes[keys] = 128;
        let addrs = allocation_counter::measure(|| drop(Frame::decode(bytes[4], &bytes[frame::HEADER..keys])));
        let mut refused = None;
        let taken = allocation_counter::measure(|| refused = Frame::decode(bytes[4], &bytes[frame::HEADER..]).err());
        assert_eq!(refused, Some(DecodeError::Truncated), "{name}");
        assert!(taken.bytes_max <= addrs.bytes_max, "{name}: {} bytes", taken.bytes_max);
    }
}

#[test]
fn token_ids_take_what_has_arrived() {
    let (_, frame) = samples().into_iter().find(|(n, _)| *n == "tokens").expect("a sample");
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    let body = &mut bytes[frame::HEADER..];
    // A count of rows and a total that are far beyond what is there.
    body[28..30].copy_from_slice(&128_u16.to_le_bytes());
    let at = RowsHeader::LEN - 8;
    body[at..at + 4].copy_from_slice(&512_u32.to_le_bytes());
    let mut refused = None;
    let taken = allocation_counter::measure(|| refused = Frame::decode(0x42, body).err());
    assert_eq!(refused, Some(DecodeError::Field("tokens")));
    assert!(taken.bytes_max <= 64, "{} bytes", taken.bytes_max);
}

#[test]
fn every_known_kind_has_a_cap_of_its_own() {
    for kind in 0..=u8::MAX {
        let max = u32::try_from(max_body(kind) + frame::KIND_AND_FLAGS).expect("small");
        let prefix = |length: u32| [&length.to_le_bytes()[..], &[kind, 0]].concat();
        assert!(frame::frame_len(&prefix(max)).is_ok());
        assert!(frame::frame_len(&prefix(max + 1)).is_err(), "kind {kind:#04x}");
        assert!(frame::frame_len(&prefix(1)).is_err());
    }
    // Without the kind, what no kind allows is refused already.
    assert!(frame::frame_len(&u32::MAX.to_le_bytes()).is_err());
}

#[test]
fn a_stream_holds_so_many_unfinished_batches_and_no_more() {
    let mut reassembly = Reassembly::new();
    let expect = Expect { form: Form::Rows, width: MAX_BATCH_BYTES / 4 / 128, max_rows: 128 };
    let fragment = vec![0; MAX_FRAGMENT];
    let now = Instant::now();
    for n in 0..MAX_PARTIAL_BATCHES {
        let n = u8::try_from(n).expect("few");
        assert_eq!(reassembly.push(now, &header(n, 128, MAX_BATCH_BYTES, 0), &fragment, expect), Ok(None));
    }
    assert!(reassembly.is_full());
    let refused = reassembly.push(now, &header(99, 128, MAX_BATCH_BYTES, 0), &fragment, expect);
    assert_eq!(refused, Err(ErrorCode::Overloaded));
    // Those that were begun go on, until together they are as large as one batch may be.
    let mut offset = MAX_FRAGMENT;
    let refused = 'full: loop {
        for n in 0..MAX_PARTIAL_BATCHES {
            let header =
                header(u8::try_from(n).expect("few"), 128, MAX_BATCH_BYTES, u32::try_from(offset).expect("small"));
            if let Err(code) = reassembly.push(now, &header, &fragment, expect) {
                break 'full code;
            }
        }
        offset += MAX_FRAGMENT;
    };
    assert_eq!(refused, ErrorCode::Overloaded);
    assert!(reassembly.received_bytes() <= MAX_PARTIAL_BYTES);
    assert!(reassembly.capacity_bytes() <= 2 * MAX_PARTIAL_BYTES);
    reassembly.retain(|s, _| *s == session(3));
    assert!(!reassembly.is_full());
    reassembly.forget(&session(3));
    assert_eq!((reassembly.received_bytes(), reassembly.capacity_bytes()), (0, 0));
}

#[test]
fn a_batch_that_is_not_the_sessions_is_refused() {
    let expect = Expect { form: Form::Rows, width: 4, max_rows: 10 };
    let now = Instant::now();
    let floats = |values: &[f32]| {
        let mut bytes = Vec::new();
        put_floats(values, &mut bytes);
        bytes
    };
    let good = floats(&[1.0; 8]);
    let push = |h: RowsHeader, f: &[u8]| Reassembly::new().push(now, &h, f, expect).map(|b| b.is_some());
    assert_eq!(push(header(1, 2, 32, 0), &good), Ok(true));
    assert_eq!(push(header(1, 3, 32, 0), &good), Err(ErrorCode::BadShape));
    assert_eq!(push(header(1, 2, 36, 0), &good), Err(ErrorCode::BadShape));
    assert_eq!(push(RowsHeader { pos: 9, ..header(1, 2, 32, 0) }, &good), Err(ErrorCode::ContextFull));
    assert_eq!(push(RowsHeader { pos: u32::MAX, ..header(1, 2, 32, 0) }, &good), Err(ErrorCode::ContextFull));
    assert_eq!(push(header(1, 2, 32, 16), &good[16..]), Err(ErrorCode::BadPosition));
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(push(header(1, 2, 32, 0), &floats(&[1., 2., 3., bad, 5., 6., 7., 8.])), Err(ErrorCode::NotFinite));
    }
    let extremes = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0, f32::from_bits(1), 0.0, 1.0, -1.0];
    let batch = Reassembly::new().push(now, &header(1, 2, 32, 0), &floats(&extremes), expect);
    let data = batch.expect("fine").expect("whole").data;
    assert!(data.iter().map(|v| v.to_bits()).eq(extremes.iter().map(|v| v.to_bits())));
}

#[test]
fn fragments_of_a_batch_must_follow_each_other() {
    let expect = Expect { form: Form::Rows, width: 4, max_rows: 10 };
    let now = Instant::now();
    let part = [0; 16];
    let begun = || {
        let mut reassembly = Reassembly::new();
        assert_eq!(reassembly.push(now, &header(1, 2, 32, 0), &part, expect), Ok(None));
        reassembly
    };
    let second = header(1, 2, 32, 16);
    let later = RowsHeader { deadline_ms: 1, ..second };
    assert!(matches!(begun().push(now, &later, &part, expect), Ok(Some(_))), "less time remains than at first");
    for wrong in [
        RowsHeader { offset: 12, ..second },
        RowsHeader { seq: 1, ..second },
        RowsHeader { epoch: 2, ..second },
        RowsHeader { pos: 1, ..second },
        RowsHeader { last_row_only: true, ..second },
    ] {
        let mut reassembly = begun();
        assert_eq!(reassembly.push(now, &wrong, &part, expect), Err(ErrorCode::BadPosition), "{wrong:?}");
        assert_eq!(reassembly.received_bytes(), 0, "what was begun is gone");
    }
    // Of a session that was opened anew in between, under the same name: half of it is of another kind than the rest.
    for other in [
        Expect { form: Form::Rows16, width: 8, ..expect },
        Expect { form: Form::Tokens, ..expect },
        Expect { width: 8, ..expect },
        Expect { max_rows: 2, ..expect },
    ] {
        let mut reassembly = begun();
        assert_eq!(reassembly.push(now, &second, &part, other), Err(ErrorCode::BadShape), "{other:?}");
        assert_eq!(reassembly.received_bytes(), 0, "what was begun is gone");
    }
    // A batch begun again takes the place of the one before.
    let mut reassembly = begun();
    assert_eq!(reassembly.push(now, &header(1, 2, 32, 0), &part, expect), Ok(None));
    assert_eq!(reassembly.received_bytes(), 16);
}
