//! Arbitrary frames come back; arbitrary bytes do no harm.

use futures::{executor::block_on, io::Cursor};
use proptest::{collection::vec, prelude::*};
use quelea_shard::{
    codec::{CodecError, FrameReader},
    frame::{
        self, BlockKey, CRITICAL, DecodeError, Ends, Fault, Frame, Keep, MAX_ADDRS, MAX_BODY, MAX_DETAIL, MAX_KEYS,
        MAX_TOP_LOGITS, Open, Prefix, TopLogits,
    },
    protocol,
};
use quelea_wire::{ErrorCode, TraceParent};

use crate::support::{
    frames::{any_frame, samples},
    peer, session,
};

/// What a reader may take besides four times what it was given: its first buffer, twice over while it grows.
const SLACK: u64 = 4096;

/// Reads all frames of `bytes`; what came, and how it ended.
fn read_all(bytes: &[u8]) -> (Vec<Frame>, Result<(), CodecError>) {
    block_on(async {
        let mut reader = FrameReader::new(Cursor::new(bytes));
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, Ok(())),
                Err(e) => return (frames, Err(e)),
            }
        }
    })
}

/// Reads all of `bytes` and drops the frames; panics when memory beyond four times the input was held.
fn read_frugally(bytes: &[u8]) {
    let taken = allocation_counter::measure(|| {
        block_on(async {
            let mut reader = FrameReader::new(Cursor::new(bytes));
            while let Ok(Some(_)) = reader.next().await {}
        });
    });
    let allowed = 4 * bytes.len() as u64 + SLACK;
    assert!(taken.bytes_max <= allowed, "{} bytes for {} of input", taken.bytes_max, bytes.len());
}

fn encode(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|f| f.encode(&mut bytes));
    bytes
}

proptest! {
    #[test]
    fn frames_come_back(frames in vec(any_frame(), 0..8)) {
        let (read, end) = read_all(&encode(&frames));
        prop_assert!(end.is_ok());
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn a_cut_stream_is_noticed(frames in vec(any_frame(), 1..4), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&frames);
        let cut = cut.index(bytes.len());
        let (read, end) = read_all(&bytes[..cut]);
        let whole = encode(&read).len();
        prop_assert_eq!(end.is_ok(), whole == cut);
        prop_assert_eq!(&frames[..read.len()], &read[..]);
    }

    #[test]
    fn likeliest_logits_come_back(
        sum in any::<u64>(),
        logits in proptest::collection::btree_map(0..200_000_u32, -1e30_f32..1e30, 1..64),
    ) {
        let mut top: Vec<_> = logits.into_iter().collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let sent = TopLogits { sum, top };
        let mut values = Vec::new();
        sent.put(&mut values);
        let width = TopLogits::width(u16::try_from(sent.top.len()).expect("few"));
        prop_assert_eq!(u32::try_from(values.len()), Ok(width));
        prop_assert!(values.iter().all(|value| value.is_finite()));
        prop_assert_eq!(TopLogits::take(&values, 200_000), Ok(sent));
    }

    #[test]
    fn values_that_are_no_logits_do_no_harm(words in vec(any::<u32>(), 0..64), vocab in 0..1_000_usize) {
        let values: Vec<f32> = words.into_iter().map(f32::from_bits).collect();
        if let Ok(top) = TopLogits::take(&values, vocab) {
            prop_assert!(top.top.iter().all(|(id, logit)| (*id as usize) < vocab && logit.is_finite()));
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..4096)) {
        read_frugally(&bytes);
    }

    #[test]
    fn nearly_right_bytes_do_no_harm(
        frames in vec(any_frame(), 1..6),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode(&frames);
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        read_frugally(&bytes);
    }

    #[test]
    fn random_bodies_do_no_harm(kind in any::<u8>(), body in vec(any::<u8>(), 0..700)) {
        if let Ok(Some(frame)) = Frame::decode(kind, &body) {
            prop_assert_eq!(frame.kind(), kind);
        }
    }
}

#[test]
fn what_is_beyond_its_cap_is_cut_or_left_out() {
    let (_, open) = samples().remove(3);
    let Frame::Open(open) = open else { panic!("the fourth sample is Open") };
    let long = format!("/dns4/{}/tcp/1", "a".repeat(300));
    let next_addrs: Vec<_> = std::iter::once(long.parse().expect("a multiaddr"))
        .chain((1..=9).map(|n| format!("/ip4/192.0.2.{n}/tcp/1").parse().expect("a multiaddr")))
        .collect();
    let detail = "ü".repeat(MAX_DETAIL);
    let fault = Fault { session: session(1), epoch: 0, code: ErrorCode::Internal, about: Some(peer(1)), detail };
    let keys: Vec<_> = (0..=u8::MAX).map(|n| BlockKey([n; 16])).collect();
    let prefix = Prefix { keys: keys.clone(), reuse: 200 };
    let keep = Keep { session: session(1), epoch: 0, first: 0, keys: keys.clone() };
    let open = Open { next_addrs: next_addrs.clone(), prefix, ..open };
    let (read, end) = read_all(&encode(&[open.into(), fault.into(), keep.into()]));
    assert!(end.is_ok());
    match &read[..] {
        [Frame::Open(open), Frame::Fault(fault), Frame::Keep(keep)] => {
            assert_eq!((&open.prefix.keys[..], open.prefix.reuse), (&keys[..MAX_KEYS], 128));
            assert_eq!(keep.keys, keys[..MAX_KEYS]);
            assert_eq!(open.next_addrs, next_addrs[1..=MAX_ADDRS]);
            assert_eq!(fault.detail, "ü".repeat(MAX_DETAIL / 2));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_kinds_are_skipped_unless_critical() {
    let probe = samples().remove(7).1;
    let unknown = |flags: u8, len: u32| {
        let mut bytes = (len + 2).to_le_bytes().to_vec();
        bytes.extend([0x7f, flags]);
        bytes.resize(bytes.len() + len as usize, 0xee);
        bytes
    };
    let longest = u32::try_from(MAX_BODY).expect("small");
    let bytes = [unknown(0, 3), unknown(0x80, longest), encode(std::slice::from_ref(&probe))].concat();
    let (read, end) = read_all(&bytes);
    assert_eq!((read, end.is_ok()), (vec![probe.clone()], true));

    let bytes = [unknown(CRITICAL, 0), encode(std::slice::from_ref(&probe))].concat();
    assert!(matches!(read_all(&bytes), (read, Err(CodecError::UnknownCritical(0x7f))) if read.is_empty()));
    let bytes = unknown(0, longest + 1);
    assert!(matches!(read_all(&bytes).1, Err(CodecError::Decode(DecodeError::TooLong { .. }))));

    // Known kinds may carry the flag.
    let mut bytes = encode(std::slice::from_ref(&probe));
    bytes[5] = CRITICAL;
    assert_eq!(read_all(&bytes).0, vec![probe]);
}

#[test]
fn impossible_fields_are_refused() {
    let encoded = |name: &str| {
        let (_, frame) = samples().into_iter().find(|(n, _)| *n == name).expect("a sample");
        encode(&[frame])
    };
    // (frame, offset in the body, new byte, field)
    let cases: [(&str, usize, u8, &str); 17] = [
        ("hello", 2, 9, "stream kind"),
        ("open", 54, 16, "span"),
        ("open", 60, 0xff, "width"),
        ("open", 74, 65, "prev"),
        ("open", 152, 5, "next_addrs"),
        ("refuse", 23, 2, "detail"),
        ("state", 20, 0, "phase"),
        ("fault", 22, 65, "about"),
        ("rows", 28, 0, "rows"),
        ("rows", 35, 0, "total"),
        ("rows", 39, 12, "offset"),
        ("rows", 39, 6, "offset"),
        ("open_tokens", 189, 2, "takes_tokens"),
        ("open_prefix", 188, 129, "keys"),
        ("open_prefix", 237, 4, "reuse"),
        ("accept_kept", 24, 0, "kept_rows"),
        ("keep", 21, 0, "keys"),
    ];
    for (name, at, byte, field) in cases {
        let mut bytes = encoded(name);
        bytes[frame::HEADER + at] = byte;
        match read_all(&bytes).1 {
            Err(CodecError::Decode(DecodeError::Field(found))) => assert_eq!(found, field, "{name} at {at}"),
            other => panic!("{name} at {at}: {other:?}"),
        }
    }
    for (name, frame) in samples() {
        let mut body = encode(&[frame]).split_off(frame::HEADER);
        let kind = encoded(name)[4];
        assert!(Frame::decode(kind, &body[..body.len() - 1]).is_err(), "{name} cut");
        body.push(0);
        assert!(Frame::decode(kind, &body).is_err(), "{name} with a byte more");
    }
}

#[test]
fn logits_that_lie_are_refused() {
    let values = |sum: [u32; 3], top: &[(u32, f32)]| {
        let sum = sum.map(f32::from_bits).to_vec();
        [sum, top.iter().flat_map(|(id, logit)| [f32::from_bits(*id), *logit]).collect()].concat()
    };
    let take = |sum, top: &[(u32, f32)]| TopLogits::take(&values(sum, top), 10);
    assert!(take([1, 0, 0], &[(3, 2.0), (4, 2.0), (1, -1.0)]).is_ok());
    for top in [
        &[][..],
        &[(10, 1.0)],
        &[(3, 1.0), (3, 0.5)],
        // Out of order, by the logit and by the id.
        &[(3, 1.0), (4, 2.0)],
        &[(4, 1.0), (3, 1.0)],
    ] {
        assert_eq!(take([1, 0, 0], top), Err(ErrorCode::BadShape), "{top:?}");
    }
    for logit in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(take([1, 0, 0], &[(3, logit)]), Err(ErrorCode::NotFinite));
    }
    // More bits than the sum has.
    for sum in [[1 << 22, 0, 0], [0, 1 << 22, 0], [0, 0, 1 << 20]] {
        assert_eq!(take(sum, &[(3, 1.0)]), Err(ErrorCode::BadShape));
    }
    assert_eq!(take([u32::MAX >> 10, u32::MAX >> 10, u32::MAX >> 12], &[(3, 1.0)]).map(|t| t.sum), Ok(u64::MAX));
    let many = vec![(0, 1.0); usize::from(MAX_TOP_LOGITS) + 1];
    assert_eq!(take([1, 0, 0], &many), Err(ErrorCode::BadShape));
    assert_eq!(TopLogits::take(&[0.0; 2], 10), Err(ErrorCode::BadShape));
    assert_eq!(TopLogits::take(&[0.0; 4], 10), Err(ErrorCode::BadShape));
}

#[test]
fn an_open_without_ends_says_nothing_of_them() {
    let (_, frame) = samples().into_iter().find(|(name, _)| *name == "open_tokens").expect("a sample");
    let Frame::Open(thin) = frame else { panic!("an Open") };
    let body = |open: Open| encode(&[open.into()])[frame::HEADER..].to_vec();
    let (with, plain) = (body(thin.clone()), body(Open { ends: Ends::default(), ..thin }));
    assert_eq!(with, [&plain[..], &[0, 1, 0, 0]].concat());
    // A count of 0 keys that nothing follows, ends that are nothing, more logits than there may be, a flag that is none.
    for (tail, field) in [
        (&[0][..], "keys"),
        (&[0, 0, 0, 0], "gives_logits"),
        (&[0, 0, 1, 4], "gives_logits"),
        (&[0, 2, 0, 0], "takes_tokens"),
    ] {
        let bytes = [&plain[..], tail].concat();
        assert_eq!(Frame::decode(0x10, &bytes), Err(DecodeError::Field(field)));
    }
}

#[test]
fn an_open_that_pays_nothing_says_nothing_of_it() {
    let (_, frame) = samples().into_iter().find(|(name, _)| *name == "open_pay").expect("a sample");
    let Frame::Open(paid) = frame else { panic!("an Open") };
    let body = |open: Open| encode(&[open.into()])[frame::HEADER..].to_vec();
    let (with, plain) = (body(paid.clone()), body(Open { pay: None, ..paid }));
    // No keys, no ends, and then what is paid by.
    assert_eq!(with[..plain.len() + 4], [&plain[..], &[0; 4]].concat());
    assert_eq!(with.len(), plain.len() + 4 + 32);
    let mut nameless = with.clone();
    nameless[plain.len() + 4..plain.len() + 20].fill(0);
    assert_eq!(Frame::decode(0x10, &nameless), Err(DecodeError::Field("hold")));
    for cut in 1..32 {
        assert_eq!(Frame::decode(0x10, &with[..with.len() - cut]), Err(DecodeError::Truncated));
    }
    // What goes on is a trace.
    assert_eq!(Frame::decode(0x10, &[&with[..], &[0]].concat()), Err(DecodeError::Truncated));
}

#[test]
fn an_open_that_is_not_traced_says_nothing_of_it() {
    let (_, frame) = samples().into_iter().find(|(name, _)| *name == "open_trace").expect("a sample");
    let Frame::Open(traced) = frame else { panic!("an Open") };
    assert_eq!(Frame::from(traced.clone()).features(), protocol::TRACE);
    let body = |open: Open| encode(&[open.into()])[frame::HEADER..].to_vec();
    let (with, plain) = (body(traced.clone()), body(Open { trace: None, ..traced }));
    // No keys, no ends, nothing that pays, and then 55 bytes of text.
    let before = [&plain[..], &[0; 36]].concat();
    assert_eq!(with[..before.len()], before);
    let text = &with[before.len()..];
    assert_eq!(text, format!("00-{}-{}-01", "4b".repeat(16), "b7".repeat(8)).as_bytes());
    assert_eq!(Frame::decode(0x10, &before), Err(DecodeError::Field("hold")), "zeros that nothing follows");
    for cut in 1..TraceParent::LEN {
        assert_eq!(Frame::decode(0x10, &with[..with.len() - cut]), Err(DecodeError::Truncated));
    }
    assert_eq!(Frame::decode(0x10, &[&with[..], b"-"].concat()), Err(DecodeError::Trailing));
    let mut price = before.clone();
    *price.last_mut().expect("zeros") = 1;
    assert_eq!(Frame::decode(0x10, &[&price[..], text].concat()), Err(DecodeError::Field("hold")));
    // Any byte of it changed is another trace of the same length, or no frame at all.
    for at in 0..TraceParent::LEN {
        for byte in 0..=u8::MAX {
            let mut changed = with.clone();
            changed[before.len() + at] = byte;
            match Frame::decode(0x10, &changed) {
                Ok(Some(Frame::Open(open))) => assert!(open.trace.is_some()),
                other => assert_eq!(other, Err(DecodeError::Field("trace")), "{byte} at {at}"),
            }
        }
    }
}
