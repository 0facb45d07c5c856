//! Bytes from a peer on a stream for services: what a caller says, or a provider.
//!
//! The first byte says as what the rest is read.

#![no_main]

use futures::{executor::block_on, io::Cursor};
use libfuzzer_sys::fuzz_target;
use quelea_service::{FrameReader, FrameWriter};

fuzz_target!(|data: &[u8]| {
    let Some((&side, bytes)) = data.split_first() else { return };
    let mut reader = FrameReader::new(Cursor::new(bytes));
    let mut again = Vec::new();
    if side % 2 == 0 {
        while let Ok(Some(ask)) = block_on(reader.ask()) {
            block_on(FrameWriter::new(&mut again).ask(&ask)).expect("what was read can be written");
        }
    } else {
        while let Ok(Some(answer)) = block_on(reader.answer()) {
            block_on(FrameWriter::new(&mut again).answer(&answer)).expect("what was read can be written");
        }
    }
    assert!(bytes.starts_with(&again));
});
