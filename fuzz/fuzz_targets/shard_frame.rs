//! Bytes from a peer on a shard stream.
//!
//! The first byte says in pieces of which size the rest arrives.

#![no_main]

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{AsyncRead, executor::block_on};
use libfuzzer_sys::fuzz_target;
use quelea_shard::{
    codec::FrameReader,
    frame::{self, CRITICAL, Form, Frame, Logits, MAX_FRAGMENT, MAX_FRAME, Rows, Rows16, Tokens, TopLogits},
    reassembly::{Expect, MAX_PARTIAL_BYTES, Reassembly},
};
use tokio::time::Instant;

/// Gives at most `piece` bytes at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let n = self.piece.min(buf.len()).min(self.rest.len());
        let (now, later) = self.rest.split_at(n);
        buf[..n].copy_from_slice(now);
        self.rest = later;
        Poll::Ready(Ok(n))
    }
}

/// All frames of a whole buffer, and whether it ended well.
fn by_slices(mut bytes: &[u8]) -> (Vec<Frame>, bool) {
    let mut frames = Vec::new();
    loop {
        match frame::split(bytes) {
            Ok(Some((raw, len))) => {
                match Frame::decode(raw.kind, raw.body) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) if raw.flags & CRITICAL == 0 => {}
                    Ok(None) | Err(_) => return (frames, false),
                }
                bytes = &bytes[len..];
            }
            Ok(None) => return (frames, bytes.is_empty()),
            Err(_) => return (frames, false),
        }
    }
}

/// The same by a reader, in pieces.
fn by_pieces(bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut reader = FrameReader::new(Pieces { rest: bytes, piece });
    let mut frames = Vec::new();
    loop {
        let next = block_on(reader.next());
        assert!(reader.buffered_capacity() <= (2 * bytes.len() + 1024).min(2 * MAX_FRAME));
        match next {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, true),
            Err(_) => return (frames, false),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let (frames, whole) = by_slices(bytes);
    assert_eq!(by_pieces(bytes, usize::from(piece) + 1), (frames.clone(), whole));

    let mut reassembly = Reassembly::new();
    let mut arrived = 0;
    for frame in frames {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(by_slices(&again), (vec![frame.clone()], true));
        let part = match frame {
            Frame::Rows(Rows { header, fragment }) => Some((Form::Rows, header, fragment)),
            Frame::Tokens(Tokens { header, fragment }) => Some((Form::Tokens, header, fragment)),
            Frame::Logits(Logits { header, fragment }) => Some((Form::Logits, header, fragment)),
            Frame::Rows16(Rows16 { header, fragment }) => Some((Form::Rows16, header, fragment)),
            _ => None,
        };
        if let Some((form, header, fragment)) = part {
            arrived += fragment.len();
            let width = header.total / form.value_bytes() as u32 / u32::from(header.rows);
            let expect = Expect { form, width, max_rows: u32::MAX };
            if let Ok(Some(batch)) = reassembly.push(Instant::now(), &header, &fragment, expect) {
                assert_eq!(batch.data.len(), usize::from(header.rows) * width as usize);
                assert!(batch.form == form && batch.data.iter().all(|v| v.is_finite()));
                for row in batch.data.chunks(width as usize) {
                    if let Ok(top) = TopLogits::take(row, 1 << 20) {
                        let mut again = Vec::new();
                        top.put(&mut again);
                        assert!(again.iter().map(|v| v.to_bits()).eq(row.iter().map(|v| v.to_bits())));
                    }
                }
            }
            assert!(reassembly.received_bytes() <= arrived.min(MAX_PARTIAL_BYTES));
            assert!(reassembly.capacity_bytes() <= 4 * arrived + 2 * MAX_FRAGMENT);
        }
    }
});
