//! How packets and answers stand on a stream: frozen, strict, and without memory for what has not come.

use std::io::{self, ErrorKind};

use futures::{executor::block_on, io::Cursor};
use proptest::prelude::*;
use quelea_ledger::{
    DecodeError, Nonce, Raw,
    codec::{Answer, Request},
    packet::{Content, MAX_PACKET, Packet},
};

use crate::nodes::packet;

/// What a reader may take besides the bytes that came: buffers that grow by doubling, an error's text.
const SLACK: u64 = 1024;

fn request(bytes: &[u8]) -> io::Result<Request> {
    block_on(Request::read(&mut Cursor::new(bytes)))
}

fn answer(bytes: &[u8]) -> io::Result<Answer> {
    block_on(Answer::read(&mut Cursor::new(bytes)))
}

#[test]
fn the_bytes_are_what_they_were() {
    let content = Content::Signed(Raw(vec![0xaa, 0xbb, 0xcc]));
    let packet = Packet { from: Nonce([1; 16]), to: Nonce([2; 16]), content }.encode();
    let frozen = format!("270001{}{}010300aabbcc", "01".repeat(16), "02".repeat(16));
    let given = Request::Packet(packet);
    assert_eq!(hex::encode(given.encode().unwrap()), frozen);
    assert_eq!(request(&hex::decode(frozen).unwrap()).unwrap(), given);
    for (given, frozen) in [
        (Answer::Taken, "00"),
        (Answer::Busy { retry_ms: 500 }, "01f4010000"),
        (Answer::Busy { retry_ms: 0x0403_0201 }, "0101020304"),
        (Answer::Refused, "02"),
    ] {
        assert_eq!(hex::encode(given.encode()), frozen);
        assert_eq!(answer(&hex::decode(frozen).unwrap()).unwrap(), given);
    }
}

#[test]
fn every_end_of_every_number() {
    for length in [0_u16, 1, 33, 34] {
        let bytes = [&length.to_le_bytes()[..], &packet(1)].concat();
        assert!(matches!(request(&bytes).unwrap(), Request::Malformed(_)), "{length}");
    }
    for length in [MAX_PACKET as u16 + 1, 0x7fff, 0x8000, u16::MAX] {
        assert_eq!(request(&length.to_le_bytes()).unwrap(), Request::Malformed(DecodeError::Long), "nothing is read");
    }
    assert_eq!(request(&(MAX_PACKET as u16).to_le_bytes()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    for retry_ms in [0, 1, u32::MAX >> 1, u32::MAX - 1, u32::MAX] {
        let given = Answer::Busy { retry_ms };
        assert_eq!(answer(&given.encode()).unwrap(), given);
    }
    for status in 3..=u8::MAX {
        assert_eq!(answer(&[status, 0, 0, 0, 0]).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}

#[test]
fn parts_are_nothing_and_no_packet_is_passed_on() {
    let whole = Request::Packet(packet(1)).encode().unwrap();
    for end in 0..whole.len() {
        assert_eq!(request(&whole[..end]).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{end}");
    }
    assert_eq!(answer(&[1, 0, 0, 0]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(answer(&[]).is_err());
    assert!(Request::Malformed(DecodeError::Short).encode().is_err());
    assert!(Request::Packet(vec![0; MAX_PACKET + 1]).encode().is_err());
}

proptest! {
    #[test]
    fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..300), as_packet: bool) {
        let bytes = if as_packet { [&[39, 0, 1][..], &[3; 32], &[1, 3, 0], &bytes].concat() } else { bytes };
        if let Ok(given @ Request::Packet(_)) = request(&bytes) {
            prop_assert!(bytes.starts_with(&given.encode().unwrap()));
        }
        if let Ok(given) = answer(&bytes) {
            prop_assert!(bytes.starts_with(&given.encode()));
        }
    }

    #[test]
    fn claims_take_nothing(length in any::<u16>(), rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&length.to_le_bytes()[..], &rest].concat();
        let taken = allocation_counter::measure(|| drop((request(&bytes), answer(&bytes)))).bytes_max;
        prop_assert!(taken <= 4 * bytes.len() as u64 + SLACK, "{taken} bytes for {}", bytes.len());
    }
}
