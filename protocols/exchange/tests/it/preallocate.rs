//! No number that a peer sends makes us take memory for what it has not sent.

use futures::{executor::block_on, io::Cursor};
use proptest::prelude::*;
use quelea_exchange::{Answer, Filter, MAX_BITS, MAX_RECORD_BYTES, Request};

/// What a reader may take besides the bytes that came: buffers that grow by doubling, an error's text.
const SLACK: u64 = 1024;

fn most_taken(bytes: &[u8]) -> u64 {
    let taken = allocation_counter::measure(|| {
        block_on(async {
            let _ = Request::read(&mut Cursor::new(bytes)).await;
            let _ = Answer::read(&mut Cursor::new(bytes)).await;
            let _ = Filter::decode(bytes);
        });
    });
    taken.bytes_max
}

proptest! {
    #[test]
    fn claims_take_nothing(want in any::<u8>(), own in any::<u16>(), bits in any::<u32>(), rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let request = [&[1, want][..], &own.to_le_bytes(), &rest].concat();
        let answer = [&[0, want, 3][..], &own.to_le_bytes(), &rest].concat();
        let filter = [&[1, 64, 0, 0][..], &bits.to_le_bytes(), &[7], &rest].concat();
        for bytes in [request, answer, filter] {
            let taken = most_taken(&bytes);
            prop_assert!(taken <= 4 * bytes.len() as u64 + SLACK, "{taken} bytes for {}", bytes.len());
        }
    }
}

#[test]
fn every_length_has_a_cap() {
    let read = |bytes: &[u8]| block_on(Request::read(&mut Cursor::new(bytes))).unwrap_err().kind();
    let invalid = std::io::ErrorKind::InvalidData;
    let own = u16::try_from(MAX_RECORD_BYTES + 1).unwrap().to_le_bytes();
    assert_eq!(read(&[1, 64, own[0], own[1]]), invalid);
    assert_eq!(read(&[1, 0, 0, 0]), invalid);
    assert_eq!(read(&[1, 65, 0, 0]), invalid);
    assert_eq!(read(&[2, 64, 0, 0]), invalid);
    for bits in [0, 8, 63, 65, MAX_BITS + 8, u32::MAX] {
        assert_eq!(read(&[&[1, 64, 0, 0][..], &bits.to_le_bytes(), &[7; 9]].concat()), invalid, "{bits}");
    }
    for hashes in [0, 17] {
        assert_eq!(read(&[&[1, 64, 0, 0][..], &64_u32.to_le_bytes(), &[hashes], &[0; 8]].concat()), invalid);
    }
    let read = |bytes: &[u8]| block_on(Answer::read(&mut Cursor::new(bytes))).unwrap_err().kind();
    assert_eq!(read(&[0, 65]), invalid);
    assert_eq!(read(&[0, 1, 4, 1, 0]), invalid);
    assert_eq!(read(&[0, 1, 0, 0, 0]), invalid);
    assert_eq!(read(&[0, 1, 0, own[0], own[1]]), invalid);
    assert_eq!(read(&[2]), invalid);
}
