use proptest::prelude::*;

use super::*;

/// 2026-01-01, in Unix milliseconds.
const NOW: u64 = 1_767_225_600_000;

fn net() -> NetworkId {
    NetworkId::from_name("main")
}

fn key() -> Keypair {
    Keypair::ed25519_from_bytes([7; 32]).unwrap()
}

fn addr(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn signed(body: &[u8], kind: u8) -> Vec<u8> {
    Signed::seal(&key(), &net(), DOMAIN, kind, body).unwrap().raw().to_vec()
}

fn open(value: &[u8]) -> Result<PeerRecord, RecordError> {
    PeerRecord::open(&peer_key(&key().public().to_peer_id()), value, &net(), NOW)
}

fn body(seq: u64, expires: u64, rest: &[u8]) -> Vec<u8> {
    [&seq.to_le_bytes(), expires.to_le_bytes().as_slice(), rest].concat()
}

#[test]
fn vectors() {
    let addrs = [addr("/ip4/192.0.2.1/tcp/8468"), addr("/ip6/2001:db8::1/udp/8468/quic-v1")];
    let (record, value) = PeerRecord::sign(&key(), &net(), &addrs, 0, NOW, 3_600_000).unwrap();
    assert_eq!(peer_key(&record.peer), b"/quelea/peer/12D3KooWRawPbxPtP1eZaJpumGnyWX2DcUyd3RQnydr3eAto4Az7");
    let body = "00a8da769b010000809611779b010000020804c0000201062114172920010db800000000000000000000000191022114cd03";
    assert_eq!(hex::encode(record.body().unwrap()), body);
    let signature = "b531283d68e012dac712c79f619f3d1013c976f5e0f970677505ebfa7be4342f426fcfab83f78a2bd3fbdcb9e6d23dbb0ae0c65cd282113573c782ea8690e307";
    assert_eq!(hex::encode(&value[value.len() - 64..]), signature);
    assert_eq!(open(&value), Ok(record));
    assert!(value.len() <= MAX_BYTES);
}

#[test]
fn only_the_peer_itself_speaks_under_its_key() {
    let (record, value) = PeerRecord::sign(&key(), &net(), &[], 0, NOW, 1000).unwrap();
    let other = peer_key(&PeerId::random());
    assert_eq!(PeerRecord::open(&other, &value, &net(), NOW), Err(RecordError::Signer));
    assert_eq!(PeerRecord::open(b"/quelea/peer/x", &value, &net(), NOW), Err(RecordError::Key));
    let club = NetworkId::from_name("club");
    let elsewhere = PeerRecord::open(&peer_key(&record.peer), &value, &club, NOW);
    assert_eq!(elsewhere, Err(RecordError::Envelope(EnvelopeError::Signature)));
    assert_eq!(open(&signed(&record.body().unwrap(), 2)), Err(RecordError::Kind(2)));
}

#[test]
fn times_are_checked_at_their_ends() {
    let at = |seq: u64, expires: u64| open(&signed(&body(seq, expires, &[0]), KIND_PEER)).map(|record| record.seq);
    assert_eq!(at(NOW, NOW + 1), Ok(NOW));
    assert_eq!(at(NOW, NOW), Err(RecordError::Expired));
    assert_eq!(at(NOW + MAX_SKEW_MS, NOW + MAX_SKEW_MS + 1), Ok(NOW + MAX_SKEW_MS));
    assert_eq!(at(NOW + MAX_SKEW_MS + 1, NOW + MAX_SKEW_MS + 2), Err(RecordError::Times));
    assert_eq!(at(NOW, NOW + MAX_LIFETIME_MS + 1), Err(RecordError::Times));
    assert_eq!(at(NOW, NOW - 1), Err(RecordError::Times));
    for (seq, expires) in [(u64::MAX, u64::MAX), (0, u64::MAX), (u64::MAX, 0), (0, 0)] {
        assert!(at(seq, expires).is_err());
    }
    let last = PeerRecord::sign(&key(), &net(), &[], u64::MAX, NOW, u64::MAX).unwrap().0;
    assert_eq!((last.seq, last.expires_ms), (u64::MAX, u64::MAX), "saturates");
    let next = PeerRecord::sign(&key(), &net(), &[], NOW + 5, NOW, 1).unwrap().0;
    assert_eq!(next.seq, NOW + 6, "a clock that was set back does not make a record older");
}

#[test]
fn preallocate() {
    // A count or a length that promises more than there is fails before anything is kept for it.
    for rest in [&[255_u8][..], &[5], &[4], &[1, 255], &[1, 0], &[1, 129], &[1, 8, 4, 1, 2]] {
        assert_eq!(open(&signed(&body(NOW, NOW + 9, rest), KIND_PEER)), Err(RecordError::Body), "{rest:?}");
    }
    let too_many = vec![addr("/ip4/192.0.2.1/tcp/1"); MAX_ADDRS + 1];
    assert_eq!(PeerRecord::sign(&key(), &net(), &too_many, 0, NOW, 1).err(), Some(RecordError::Addresses));
    let too_long = [addr(&format!("/dns4/{}/tcp/1", "x".repeat(150)))];
    assert_eq!(PeerRecord::sign(&key(), &net(), &too_long, 0, NOW, 1).err(), Some(RecordError::Addresses));
    assert!(matches!(open(&[0; MAX_BYTES + 1]), Err(RecordError::Envelope(EnvelopeError::TooLarge { .. }))));
}

/// Every number of a record at its ends, seen by every clock.
#[test]
fn numbers_at_their_ends() {
    let ends = [0, 1, MAX_LIFETIME_MS, NOW, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];
    let key_of = peer_key(&key().public().to_peer_id());
    let mut believed = 0;
    for seq in ends {
        for expires in ends {
            for count in [0, 1, 127, 254, 255] {
                let value = signed(&body(seq, expires, &[count]), KIND_PEER);
                for now in ends {
                    let read = PeerRecord::open(&key_of, &value, &net(), now);
                    let lives = expires.checked_sub(seq).is_some_and(|lives| lives <= MAX_LIFETIME_MS);
                    let there = expires > now && seq <= now.saturating_add(MAX_SKEW_MS);
                    assert_eq!(read.is_ok(), count == 0 && lives && there, "{seq} {expires} {count} at {now}");
                    believed += u32::from(read.is_ok());
                }
            }
        }
        for (now, lifetime) in [(seq, u64::MAX), (u64::MAX, seq)] {
            let (record, _) = PeerRecord::sign(&key(), &net(), &[], seq, now, lifetime).unwrap();
            assert!(record.seq >= now && record.expires_ms >= record.seq);
        }
    }
    assert!(believed > 5, "{believed}");
}

proptest! {
    #[test]
    fn prop_there_is_one_form(rest in proptest::collection::vec(any::<u8>(), 0..80)) {
        let body = body(NOW, NOW + 9, &rest);
        if let Ok(record) = PeerRecord::decode(PeerId::random(), &body) {
            prop_assert_eq!(record.body().unwrap(), body);
        }
    }

    #[test]
    fn prop_what_is_signed_is_read(ports in proptest::collection::vec(any::<u16>(), 0..=MAX_ADDRS), lifetime in 1..MAX_LIFETIME_MS) {
        let addrs: Vec<Multiaddr> = ports.iter().map(|port| addr(&format!("/ip4/192.0.2.1/tcp/{port}"))).collect();
        let (record, value) = PeerRecord::sign(&key(), &net(), &addrs, 0, NOW, lifetime).unwrap();
        prop_assert_eq!(open(&value), Ok(record));
        prop_assert_eq!(peer_of_key(&peer_key(&key().public().to_peer_id())), Some(key().public().to_peer_id()));
    }
}
