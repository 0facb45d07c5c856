//! Whatever comes, only what was signed is believed, and what is read is what would be written.

use futures::{executor::block_on, io::Cursor};
use libp2p::PeerId;
use proptest::prelude::*;
use quelea_exchange::{
    Answer, Filter, MAX_AGENT_BYTES, MAX_RECORD_BYTES, MAX_RESPONSE_BYTES, PeerRecord, RawEntry, Request, SignError,
    SignedRecord, VerifyError,
};
use quelea_wire::envelope::Signed;

use crate::{key, net, said};

const NOW: u64 = 1_800_000_000_000;

fn read_request(bytes: &[u8]) -> std::io::Result<Request> {
    block_on(Request::read(&mut Cursor::new(bytes)))
}

fn read_answer(bytes: &[u8]) -> std::io::Result<Answer> {
    block_on(Answer::read(&mut Cursor::new(bytes)))
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_what_is_read_is_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        if let Ok(filter) = Filter::decode(&bytes) {
            let mut again = Vec::new();
            filter.encode(&mut again);
            prop_assert_eq!(&again, &bytes);
        }
        if let Ok(request) = read_request(&bytes) {
            let again = request.encode();
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
        }
        if let Ok(answer) = read_answer(&bytes) {
            let again = answer.encode();
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
        }
        prop_assert!(SignedRecord::verify(&bytes, &net(), NOW).is_err());
    }

    #[test]
    fn any_flipped_bit_of_a_record_is_refused(at in any::<prop::sample::Index>(), bit in 0_u8..8, addrs in 0_u16..8) {
        let mut raw = said(&key(3), 1, NOW, addrs).raw().to_vec();
        let i = at.index(raw.len());
        raw[i] ^= 1 << bit;
        prop_assert!(!SignedRecord::verify(&raw, &net(), NOW).unwrap_err().is_honest());
    }

    #[test]
    fn whoever_was_put_in_is_there(ids in proptest::collection::vec(any::<[u8; 32]>(), 0..60), room in 0_usize..80, seed in any::<u64>()) {
        let peers: Vec<PeerId> = ids.iter().map(|id| key_of(*id)).collect();
        let mut filter = Filter::new(room, seed);
        peers.iter().for_each(|peer| filter.insert(peer));
        let mut bytes = Vec::new();
        filter.encode(&mut bytes);
        let read = Filter::decode(&bytes).unwrap();
        prop_assert!(peers.iter().all(|peer| read.contains(peer)));
    }

    #[test]
    fn bodies_of_random_bytes_are_no_records(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let raw = Signed::seal(&key(5), &net(), quelea_exchange::DOMAIN, 1, &body).unwrap();
        let read = SignedRecord::verify(raw.raw(), &net(), NOW);
        // A body that happens to be a record is the only one that may pass.
        if let Ok(read) = read {
            prop_assert_eq!(read.record().encode(), body);
        }
    }
}

fn key_of(id: [u8; 32]) -> PeerId {
    libp2p::identity::Keypair::ed25519_from_bytes(id).unwrap().public().to_peer_id()
}

#[test]
fn what_is_over_a_limit_is_neither_signed_nor_written() {
    let mut record = said(&key(1), 1, NOW, 1).record().clone();
    record.agent = "x".repeat(MAX_AGENT_BYTES + 1);
    assert!(matches!(SignedRecord::sign(&key(1), &net(), record.clone()), Err(SignError::Content(_))));
    record.agent = "a\u{1b}[2J".into();
    assert!(matches!(SignedRecord::sign(&key(1), &net(), record), Err(SignError::Content(_))));
    let stranger = said(&key(2), 1, NOW, 1).record().clone();
    assert!(matches!(SignedRecord::sign(&key(1), &net(), stranger), Err(SignError::WrongKey(_))));

    let long = |n: usize| format!("/dns4/{}/tcp/{n}", "x".repeat(110)).parse().unwrap();
    let full = PeerRecord { addrs: (1..=8).map(long).collect(), ..said(&key(1), 1, NOW, 0).record().clone() };
    let signed = SignedRecord::sign(&key(1), &net(), full).unwrap();
    assert!(signed.raw().len() <= MAX_RECORD_BYTES && signed.record().addrs.len() == 7);

    let many = Answer::Records(vec![RawEntry { ttl: 9, raw: vec![7; MAX_RECORD_BYTES] }; 200]);
    let bytes = many.encode();
    assert!(bytes.len() <= MAX_RESPONSE_BYTES);
    let Answer::Records(read) = read_answer(&bytes).unwrap() else { panic!("busy") };
    assert_eq!((read.len(), read[0].ttl), (31, 3));
}

#[test]
fn one_encoding_only() {
    let record = said(&key(1), 5, NOW, 1);
    // The sequence number 5 in two bytes instead of one.
    let body = record.record().encode();
    let wide = [&body[..1], &[0x18, 5], &body[2..]].concat();
    for (body, what) in [(wide, "a wide integer"), ([&body[..], &[0]].concat(), "something behind it")] {
        let raw = Signed::seal(&key(1), &net(), quelea_exchange::DOMAIN, 1, &body).unwrap();
        assert!(matches!(SignedRecord::verify(raw.raw(), &net(), NOW), Err(VerifyError::Content(_))), "{what}");
    }
    let twice = PeerRecord { addrs: vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap(); 2], ..record.record().clone() };
    let raw = Signed::seal(&key(1), &net(), quelea_exchange::DOMAIN, 1, &twice.encode()).unwrap();
    assert!(matches!(SignedRecord::verify(raw.raw(), &net(), NOW), Err(VerifyError::Content(_))));
    let kind = Signed::seal(&key(1), &net(), quelea_exchange::DOMAIN, 2, &record.record().encode()).unwrap();
    assert_eq!(SignedRecord::verify(kind.raw(), &net(), NOW), Err(VerifyError::Kind(2)));
}
