//! No number that a peer sends makes us take memory for what it has not sent.

use std::io::ErrorKind;

use proptest::prelude::*;
use quelea_weights::{Answer, MAX_BYTES, MAX_CHUNKS, MAX_OUTLINE};

use crate::{answer, request};

/// What a reader may take besides the bytes that came: buffers that grow by doubling, an error's text.
const SLACK: u64 = 1024;

proptest! {
    #[test]
    fn claims_take_nothing(status in 0_u8..7, a in any::<u32>(), b in any::<u32>(), rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&[status][..], &a.to_le_bytes(), &b.to_le_bytes(), &rest].concat();
        let taken = allocation_counter::measure(|| drop((answer(&bytes), request(&bytes)))).bytes_max;
        prop_assert!(taken <= 4 * bytes.len() as u64 + SLACK, "{taken} bytes for {}", bytes.len());
    }
}

#[test]
fn every_length_has_a_cap() {
    let with = |status: u8, numbers: &[u32]| -> ErrorKind {
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        answer(&[&[status][..], &numbers].concat()).unwrap_err().kind()
    };
    for len in [0, MAX_BYTES + 1, u32::MAX] {
        assert_eq!(with(4, &[len]), ErrorKind::InvalidData);
        assert_eq!(with(2, &[1, len]), ErrorKind::InvalidData);
    }
    assert_eq!(with(4, &[MAX_BYTES]), ErrorKind::UnexpectedEof);
    for total in [0, MAX_OUTLINE + 1] {
        assert_eq!(with(2, &[total, 1]), ErrorKind::InvalidData);
    }
    assert_eq!(with(3, &[MAX_CHUNKS + 1]), ErrorKind::InvalidData);
    assert_eq!(answer(&[3, 1, 0, 0, 0, 2]).unwrap_err().kind(), ErrorKind::InvalidData, "a spare bit");
    assert_eq!(answer(&[6]).unwrap_err().kind(), ErrorKind::InvalidData);
    assert!(Answer::Chunks(Vec::new()).encode().is_err());
    assert!(Answer::Chunks(vec![0; MAX_BYTES as usize + 1]).encode().is_err());

    let chunks = |first: u32, count: u16| {
        let bytes = [&[1, 3][..], &[0; 32], &first.to_le_bytes(), &count.to_le_bytes()].concat();
        request(&bytes)
    };
    assert!(chunks(0, 1).is_ok() && chunks(MAX_CHUNKS - 256, 256).is_ok());
    for (first, count) in [(0, 0), (0, 257), (MAX_CHUNKS, 1), (u32::MAX, 2)] {
        assert_eq!(chunks(first, count).unwrap_err().kind(), ErrorKind::InvalidData);
    }
    assert!(request(&[&[2, 2][..], &[0; 32]].concat()).is_err() && request(&[&[1, 4][..], &[0; 32]].concat()).is_err());
}
