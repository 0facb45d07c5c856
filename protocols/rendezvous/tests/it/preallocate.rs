//! No number that a peer sends makes us take memory for what it has not sent.

use futures::{executor::block_on, io::Cursor};
use proptest::prelude::*;
use quelea_rendezvous::{Answer, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Request};

/// What a reader may take besides the bytes that came: a message's buffer, up to the cap of a request; an error's text.
const SLACK: u64 = MAX_REQUEST_BYTES as u64 + 1024;

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn most_taken(read: impl AsyncFnOnce()) -> u64 {
    allocation_counter::measure(|| block_on(read())).bytes_max
}

proptest! {
    #[test]
    fn claims_inside_take_nothing(kind in 0_u8..5, field in 0_u64..80, claimed: u64, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let part = [varint(field), varint(claimed), rest].concat();
        let message = [vec![8, kind, (kind + 2) << 3 | 2], varint(part.len() as u64), part].concat();
        let taken = most_taken(async || {
            let _ = Request::decode(&message);
            let _ = Answer::decode(&message);
        });
        prop_assert!(taken <= 4 * message.len() as u64 + 1024, "{taken} bytes for {}", message.len());
    }

    #[test]
    fn a_length_past_the_cap_takes_nothing(claimed in MAX_RESPONSE_BYTES as u64 + 1..) {
        let bytes = [varint(claimed), vec![0; 64]].concat();
        let taken = most_taken(async || {
            assert!(Request::read(&mut Cursor::new(&bytes)).await.is_err());
            assert!(Answer::read(&mut Cursor::new(&bytes)).await.is_err());
        });
        prop_assert!(taken <= SLACK, "{taken}");
    }
}

#[test]
fn the_longest_that_is_read_is_the_cap() {
    for (claimed, kind) in [
        (MAX_REQUEST_BYTES, std::io::ErrorKind::UnexpectedEof),
        (MAX_REQUEST_BYTES + 1, std::io::ErrorKind::InvalidData),
    ] {
        let read = block_on(Request::read(&mut Cursor::new(varint(claimed as u64))));
        assert_eq!(read.unwrap_err().kind(), kind);
    }
    for endless in [vec![0x80; 64], vec![0xff; 64]] {
        assert_eq!(
            block_on(Request::read(&mut Cursor::new(endless))).unwrap_err().kind(),
            std::io::ErrorKind::InvalidData
        );
    }
}
