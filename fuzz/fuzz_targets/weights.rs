//! Bytes from a peer on a weights stream: a request, an answer, an outline.
//!
//! The first byte says as what the rest is read.

#![no_main]

use futures::{executor::block_on, io::Cursor};
use libfuzzer_sys::fuzz_target;
use quelea_engine::Outline;
use quelea_weights::{Answer, Request};

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind % 3 {
        0 => {
            if let Ok(request) = block_on(Request::read(&mut Cursor::new(bytes))) {
                let again = request.encode();
                assert_eq!(again[..], bytes[..again.len()]);
            }
        }
        1 => {
            if let Ok(answer) = block_on(Answer::read(&mut Cursor::new(bytes))) {
                let again = answer.encode().expect("what was read can be written");
                assert!(matches!(answer, Answer::Busy { .. }) || bytes.starts_with(&again));
            }
        }
        _ => {
            if let Ok(outline) = Outline::decode(bytes) {
                assert_eq!(outline.encode(), bytes);
                let _ = outline.manifest();
                let _ = outline.file(bytes);
                let last = outline.chunks().saturating_sub(1);
                assert!(outline.chunks() == 0 || outline.chunk_len(last) > 0);
                assert!(!outline.check(outline.chunks(), bytes));
            }
        }
    }
});
