//! One of each frame, and arbitrary ones.

use libp2p::{Multiaddr, PeerId};
use proptest::{collection::vec, option, prelude::*};
use quelea_shard::{frame::*, link::Batch};
use quelea_wire::{ErrorCode, ModelId, Profile, SpanRange, TraceParent};

use super::{peer, session};

/// One of each kind, by name.
pub fn samples() -> Vec<(&'static str, Frame)> {
    let (s, epoch) = (session(0xa5), 7);
    let totals = Totals { rows_in: 1, rows_out: 2, compute_us: 3, queue_us: 4, hop_us: 0x0102_0304_0506_0708 };
    let header = RowsHeader {
        session: s,
        epoch,
        seq: 9,
        pos: 300,
        rows: 2,
        last_row_only: true,
        rewind: false,
        deadline_ms: 1500,
        total: 24,
        offset: 8,
    };
    let open = Open {
        session: s,
        epoch,
        model: ModelId([0x3c; 32]),
        profile: Profile::from_u16(1),
        span: SpanRange::new(8, 16).expect("not empty"),
        width: 2048,
        max_rows: 4096,
        step_deadline_ms: 5000,
        idle_ms: 60_000,
        prev: peer(1),
        next: peer(2),
        next_addrs: vec![addr("/ip4/192.0.2.1/udp/8468/quic-v1"), addr("/ip6/2001:db8::1/tcp/8468")],
        prefix: Prefix::default(),
        ends: Ends::default(),
        pay: None,
        trace: None,
    };
    let trace = TraceParent::new([0x4b; 16], [0xb7; 8], true);
    let pay = Pay { hold: [0x77; 16], price_decode: 1200, price_prefill: 0x0102_0304_0506_0708 };
    let keys = vec![BlockKey([0x11; 16]), BlockKey([0x22; 16]), BlockKey([0x33; 16])];
    let mut fragment = Vec::new();
    put_floats(&[1.0, -2.5, f32::MIN_POSITIVE, 0.0], &mut fragment);
    let (mut ids, mut top, mut values) = (Vec::new(), Vec::new(), Vec::new());
    put_floats(&Batch::of_tokens(&[5, 128_000]), &mut ids);
    TopLogits { sum: 0x0123_4567_89ab_cdef, top: vec![(7, 2.5), (128_000, -1.0)] }.put(&mut values);
    put_floats(&values, &mut top);
    let detail = "voll: größer".into();
    let refuse = Refuse { session: s, epoch, code: ErrorCode::NoKvPages, detail, retry_after_ms: 0 };
    let mut half = Vec::new();
    put_bf16(&[1.0, -2.5, 0.0, 3.140_625], &mut half);
    vec![
        ("hello", Hello { version: 1, stream: StreamKind::Bulk, features: 0x8000_0000_0000_0001 }.into()),
        ("hello_ack", HelloAck { version: 1, features: 2 }.into()),
        ("reject", Reject { code: ErrorCode::FrameTooLarge }.into()),
        ("open", open.clone().into()),
        ("accept", Accept { session: s, epoch, kv_pages_free: 12, kept_rows: 0 }.into()),
        ("refuse", refuse.clone().into()),
        ("refuse_for_now", Refuse { retry_after_ms: 0x0403_0201, ..refuse }.into()),
        ("trim", Trim { session: s, epoch, keep_rows: 32 }.into()),
        ("probe", Probe { session: s, epoch }.into()),
        ("state", State { session: s, epoch, phase: Phase::Draining, pos: 33, totals }.into()),
        ("cancel", Cancel { session: s, epoch, code: ErrorCode::Cancelled }.into()),
        ("close", Close { session: s, epoch }.into()),
        ("closed", Closed { session: s, epoch, code: None, totals }.into()),
        (
            "fault",
            Fault { session: s, epoch, code: ErrorCode::NextSilent, about: Some(peer(2)), detail: "1 s".into() }.into(),
        ),
        ("rows", Rows { header, fragment: fragment.clone() }.into()),
        ("rows_rewind", Rows { header: RowsHeader { last_row_only: false, rewind: true, ..header }, fragment }.into()),
        ("ack", Ack { session: s, epoch, seq: 9, received: 24 }.into()),
        ("open_prefix", Open { prefix: Prefix { keys: keys.clone(), reuse: 2 }, ..open.clone() }.into()),
        ("open_tokens", Open { ends: Ends { takes_tokens: true, gives_logits: 0 }, ..open.clone() }.into()),
        (
            "open_logits_prefix",
            Open {
                prefix: Prefix { keys: keys.clone(), reuse: 2 },
                ends: Ends { takes_tokens: false, gives_logits: 40 },
                ..open.clone()
            }
            .into(),
        ),
        ("open_pay", Open { pay: Some(pay), ..open.clone() }.into()),
        (
            "open_prefix_pay",
            Open { prefix: Prefix { keys: keys.clone(), reuse: 1 }, pay: Some(pay), ..open.clone() }.into(),
        ),
        (
            "open_logits_pay",
            Open { ends: Ends { takes_tokens: false, gives_logits: 40 }, pay: Some(pay), ..open.clone() }.into(),
        ),
        ("open_trace", Open { trace, ..open.clone() }.into()),
        (
            "open_prefix_pay_trace",
            Open { prefix: Prefix { keys: keys.clone(), reuse: 1 }, pay: Some(pay), trace, ..open }.into(),
        ),
        ("voucher", Voucher { session: s, epoch, envelope: vec![0x55; 6] }.into()),
        ("receipt", Receipt { session: s, epoch, envelope: vec![0x66; 7] }.into()),
        ("tokens", Tokens { header: RowsHeader { total: 8, offset: 0, ..header }, fragment: ids }.into()),
        ("rows16", Rows16 { header: RowsHeader { total: 12, offset: 4, ..header }, fragment: half }.into()),
        ("logits", Logits { header: RowsHeader { rows: 1, total: 28, offset: 0, ..header }, fragment: top }.into()),
        ("accept_kept", Accept { session: s, epoch, kv_pages_free: 12, kept_rows: 64 }.into()),
        ("keep", Keep { session: s, epoch, first: 3, keys }.into()),
        ("stalled", Stalled { session: s, epoch, code: ErrorCode::NextSilent, about: peer(2) }.into()),
        (
            "reroute",
            Reroute {
                session: s,
                epoch,
                prev: peer(1),
                next: peer(3),
                next_addrs: vec![addr("/ip4/192.0.2.1/udp/8468/quic-v1")],
            }
            .into(),
        ),
        ("rerouted", Rerouted { session: s, epoch, pos: 300, log_from: 64 }.into()),
        ("resume", Resume { session: s, epoch, from: 64, until: u32::MAX, roots_from: 32 }.into()),
        ("commit", Commit { session: s, epoch, envelope: vec![0x44; 5] }.into()),
    ]
}

fn addr(s: &str) -> Multiaddr {
    s.parse().expect("a multiaddr")
}

fn any_session() -> impl Strategy<Value = (SessionId, u32)> {
    (any::<[u8; 16]>().prop_map(SessionId), any::<u32>())
}

fn any_code() -> impl Strategy<Value = ErrorCode> {
    any::<u16>().prop_map(ErrorCode::from_u16)
}

fn any_peer() -> impl Strategy<Value = PeerId> {
    any::<u8>().prop_map(peer)
}

/// Text of at most [`MAX_DETAIL`] bytes: 64 characters of at most four.
fn any_detail() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..=MAX_DETAIL / 4).prop_map(String::from_iter)
}

fn any_totals() -> impl Strategy<Value = Totals> {
    any::<[u64; 5]>().prop_map(|[rows_in, rows_out, compute_us, queue_us, hop_us]| Totals {
        rows_in,
        rows_out,
        compute_us,
        queue_us,
        hop_us,
    })
}

fn any_keys(least: usize) -> impl Strategy<Value = Vec<BlockKey>> {
    vec(any::<[u8; 16]>().prop_map(BlockKey), least..=MAX_KEYS)
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (any_keys(0), any::<prop::sample::Index>()).prop_map(|(keys, reuse)| {
        let reuse = u8::try_from(reuse.index(keys.len() + 1)).expect("at most 128");
        Prefix { keys, reuse }
    })
}

fn any_ends() -> impl Strategy<Value = Ends> {
    (any::<bool>(), 0..=MAX_TOP_LOGITS).prop_map(|(takes_tokens, gives_logits)| Ends { takes_tokens, gives_logits })
}

fn any_tokens() -> impl Strategy<Value = Frame> {
    (any_session(), any::<[u32; 3]>(), vec(any::<[u8; 4]>(), 1..=usize::from(MAX_BATCH_ROWS))).prop_map(
        |((session, epoch), [seq, pos, deadline_ms], ids)| {
            let rows = u16::try_from(ids.len()).expect("few");
            let (last_row_only, rewind, offset) = (false, false, 0);
            let total = u32::from(rows) * 4;
            let header =
                RowsHeader { session, epoch, seq, pos, rows, last_row_only, rewind, deadline_ms, total, offset };
            Tokens { header, fragment: ids.concat() }.into()
        },
    )
}

fn any_pay() -> impl Strategy<Value = Option<Pay>> {
    option::of(any::<([u8; 16], u64, u64)>().prop_map(|(mut hold, price_decode, price_prefill)| {
        // All zeros are no name.
        hold[0] |= 1;
        Pay { hold, price_decode, price_prefill }
    }))
}

fn any_trace() -> impl Strategy<Value = Option<TraceParent>> {
    any::<Option<([u8; 16], [u8; 8], bool)>>().prop_map(|of| {
        let (trace, span, sampled) = of?;
        TraceParent::new(trace, span, sampled)
    })
}

fn any_signed() -> impl Strategy<Value = Frame> {
    (any_session(), vec(any::<u8>(), 1..=MAX_SIGNED), any::<bool>()).prop_map(
        |((session, epoch), envelope, voucher)| {
            if voucher {
                Voucher { session, epoch, envelope }.into()
            } else {
                Receipt { session, epoch, envelope }.into()
            }
        },
    )
}

fn any_open() -> impl Strategy<Value = Frame> {
    let addr = (any::<[u8; 4]>(), any::<u16>())
        .prop_map(|(ip, port)| addr(&format!("/ip4/{}/udp/{port}/quic-v1", std::net::Ipv4Addr::from(ip))));
    (
        any_session(),
        any::<[u8; 32]>(),
        any::<u16>(),
        (0..4000_u16, 1..96_u16),
        1..=MAX_WIDTH,
        [1..=u32::MAX, 1..=u32::MAX, 1..=u32::MAX],
        [any_peer(), any_peer()],
        (vec(addr, 0..=MAX_ADDRS), any_prefix(), any_ends(), any_pay(), any_trace()),
    )
        .prop_map(
            |(
                (session, epoch),
                model,
                profile,
                (start, layers),
                width,
                numbers,
                [prev, next],
                (next_addrs, prefix, ends, pay, trace),
            )| {
                let [max_rows, step_deadline_ms, idle_ms] = numbers;
                let span = SpanRange::new(start, start + layers).expect("within the longest model");
                let (model, profile) = (ModelId(model), Profile::from_u16(profile));
                Open {
                    session,
                    epoch,
                    model,
                    profile,
                    span,
                    width,
                    max_rows,
                    step_deadline_ms,
                    idle_ms,
                    prev,
                    next,
                    next_addrs,
                    prefix,
                    ends,
                    pay,
                    trace,
                }
                .into()
            },
        )
}

fn any_rows() -> impl Strategy<Value = Frame> {
    (
        any_session(),
        any::<[u32; 3]>(),
        (1..=MAX_BATCH_ROWS, any::<[bool; 2]>()),
        vec(any::<[u8; 4]>(), 1..64),
        (0..1000_u32, 0..1000_u32),
    )
        .prop_map(
            |((session, epoch), [seq, pos, deadline_ms], (rows, [last_row_only, rewind]), words, (before, after))| {
                let fragment = words.concat();
                let offset = before * 4;
                let total = offset + u32::try_from(fragment.len()).expect("small") + after * 4;
                let header =
                    RowsHeader { session, epoch, seq, pos, rows, last_row_only, rewind, deadline_ms, total, offset };
                Rows { header, fragment }.into()
            },
        )
}

fn any_failover() -> impl Strategy<Value = Frame> {
    let ordered = any::<[u32; 2]>().prop_map(|[a, b]| (a.min(b), a.max(b)));
    prop_oneof![
        (any_session(), any_code(), any_peer()).prop_map(|((session, epoch), code, about)| Stalled {
            session,
            epoch,
            code,
            about
        }
        .into()),
        (any_session(), any_peer(), any_peer(), vec(any::<u16>(), 0..=MAX_ADDRS)).prop_map(
            |((session, epoch), prev, next, ports)| {
                let next_addrs = ports.iter().map(|port| addr(&format!("/ip4/192.0.2.7/tcp/{port}"))).collect();
                Reroute { session, epoch, prev, next, next_addrs }.into()
            }
        ),
        (any_session(), ordered.clone()).prop_map(|((session, epoch), (log_from, pos))| Rerouted {
            session,
            epoch,
            pos,
            log_from
        }
        .into()),
        (any_session(), ordered, any::<u32>()).prop_map(|((session, epoch), (from, until), roots_from)| {
            Resume { session, epoch, from, until, roots_from }.into()
        }),
        (any_session(), vec(any::<u8>(), 1..=MAX_COMMITMENT)).prop_map(|((session, epoch), envelope)| Commit {
            session,
            epoch,
            envelope
        }
        .into()),
    ]
}

/// Any frame that keeps to the caps.
pub fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = prop_oneof![Just(StreamKind::Control), Just(StreamKind::Decode), Just(StreamKind::Bulk)];
    let phase = prop_oneof![Just(Phase::Opening), Just(Phase::Live), Just(Phase::Draining), Just(Phase::Closed)];
    // 0 on the wire is no code.
    let closed_code = option::of((1..=u16::MAX).prop_map(ErrorCode::from_u16));
    prop_oneof![
        (any::<u16>(), stream, any::<u64>()).prop_map(|(version, stream, features)| Hello {
            version,
            stream,
            features
        }
        .into()),
        any::<(u16, u64)>().prop_map(|(version, features)| HelloAck { version, features }.into()),
        any_code().prop_map(|code| Reject { code }.into()),
        any_open(),
        (any_session(), any::<[u32; 2]>()).prop_map(|((session, epoch), [kv_pages_free, kept_rows])| Accept {
            session,
            epoch,
            kv_pages_free,
            kept_rows
        }
        .into()),
        (any_session(), any::<u8>(), any_keys(1)).prop_map(|((session, epoch), first, keys)| Keep {
            session,
            epoch,
            first,
            keys
        }
        .into()),
        (any_session(), any_code(), any_detail(), any::<u32>()).prop_map(|(of, code, detail, retry_after_ms)| Refuse {
            session: of.0,
            epoch: of.1,
            code,
            detail,
            retry_after_ms
        }
        .into()),
        (any_session(), any::<u32>())
            .prop_map(|((session, epoch), keep_rows)| Trim { session, epoch, keep_rows }.into()),
        any_session().prop_map(|(session, epoch)| Probe { session, epoch }.into()),
        (any_session(), phase, any::<u32>(), any_totals()).prop_map(|((session, epoch), phase, pos, totals)| State {
            session,
            epoch,
            phase,
            pos,
            totals
        }
        .into()),
        (any_session(), any_code()).prop_map(|((session, epoch), code)| Cancel { session, epoch, code }.into()),
        any_session().prop_map(|(session, epoch)| Close { session, epoch }.into()),
        (any_session(), closed_code, any_totals()).prop_map(|((session, epoch), code, totals)| Closed {
            session,
            epoch,
            code,
            totals
        }
        .into()),
        (any_session(), any_code(), option::of(any_peer()), any_detail())
            .prop_map(|((session, epoch), code, about, detail)| Fault { session, epoch, code, about, detail }.into()),
        any_rows(),
        any_rows().prop_map(|frame| match frame {
            Frame::Rows(Rows { header, fragment }) => Logits { header, fragment }.into(),
            other => other,
        }),
        any_rows().prop_map(|frame| match frame {
            Frame::Rows(Rows { header, fragment }) => Rows16 { header, fragment }.into(),
            other => other,
        }),
        any_tokens(),
        any_failover(),
        any_signed(),
        (any_session(), any::<[u32; 2]>()).prop_map(|((session, epoch), [seq, received])| Ack {
            session,
            epoch,
            seq,
            received
        }
        .into()),
    ]
}
