//! Bytes from a peer on a rendezvous stream: a request, an answer, a record.
//!
//! The first byte says as what the rest is read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quelea_rendezvous::{Answer, MAX_ADDRS, MAX_LISTED, MAX_NAMESPACE_BYTES, MAX_RECORD_BYTES, Record, Request};

/// What stands behind the length.
fn inner(framed: &[u8]) -> &[u8] {
    let head = framed.iter().position(|byte| byte & 0x80 == 0).unwrap_or(0);
    &framed[head + 1..]
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind % 3 {
        0 => {
            if let Ok(request) = Request::decode(bytes) {
                if let Request::Register { namespace, record, .. } = &request {
                    assert!(namespace.len() <= MAX_NAMESPACE_BYTES && record.len() <= MAX_RECORD_BYTES);
                }
                assert_eq!(Request::decode(inner(&request.encode())), Ok(request));
            }
        }
        1 => {
            if let Ok(answer) = Answer::decode(bytes) {
                assert!(!matches!(&answer, Answer::Discover(Ok((listed, _))) if listed.len() > MAX_LISTED));
                assert_eq!(Answer::decode(inner(&answer.encode())), Ok(answer));
            }
        }
        _ => {
            if let Ok(record) = Record::verify(bytes) {
                assert!((1..=MAX_ADDRS).contains(&record.addrs().len()) && record.raw() == bytes);
            }
        }
    }
});
