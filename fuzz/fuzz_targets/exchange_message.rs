//! Bytes from a peer on an exchange stream: a request, an answer, a filter, a record.
//!
//! The first byte says as what the rest is read.

#![no_main]

use futures::{executor::block_on, io::Cursor};
use libfuzzer_sys::fuzz_target;
use libp2p::PeerId;
use quelea_exchange::{Answer, Filter, MAX_BITS, MAX_RECORDS, MAX_RESPONSE_BYTES, PeerRecord, Request, SignedRecord};
use quelea_wire::NetworkId;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(request) = block_on(Request::read(&mut Cursor::new(bytes))) {
                assert!((1..=MAX_RECORDS).contains(&request.want) && request.filter.bits() <= MAX_BITS);
                let again = request.encode();
                assert_eq!(again[..], bytes[..again.len()]);
            }
        }
        1 => {
            if let Ok(answer) = block_on(Answer::read(&mut Cursor::new(bytes))) {
                let again = answer.encode();
                assert!(again.len() <= MAX_RESPONSE_BYTES);
                assert_eq!(again[..], bytes[..again.len()]);
            }
        }
        2 => {
            if let Ok(filter) = Filter::decode(bytes) {
                let mut again = Vec::new();
                filter.encode(&mut again);
                assert_eq!(again, bytes);
            }
        }
        _ => {
            let network = NetworkId::from_name("main");
            let _ = SignedRecord::verify(bytes, &network, 1_800_000_000_000);
            // The smallest id there is: the identity hash of nothing.
            let Ok(signer) = PeerId::from_bytes(&[0, 0]) else { return };
            if let Ok(record) = PeerRecord::decode(signer, bytes) {
                assert_eq!(record.encode(), bytes);
            }
        }
    }
});
