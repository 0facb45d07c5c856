//! Frozen bytes: what one version wrote, every later one reads and writes alike.

use futures::{executor::block_on, io::Cursor};
use quelea_exchange::{Answer, Filter, MAX_AGE_MS, PeerRecord, RawEntry, Request, SignedRecord, VerifyError};
use quelea_wire::time::MAX_SKEW_MS;

use crate::{key, net, said};

const SIGNED: u64 = 1_800_000_000_000;
const RECORD: &str = "0101197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d614200841b000001a3185c50071b000001a3185c5000824804c0000207062114572920010db800000000000000000000000791022114cd036c7175656c65612f302e312e30e19bee7191a2932bb329bb647b36ac38fb63b1b033b155a26880c6256469caa10661b02b3ecffae0e63a9f0f704dca1947fb24b633d012e9c241758ca6a04f0d";
const REQUEST: &str = "014086000101197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d61220084011b000001a3185c5000814804c00002010621146c7175656c65612f302e312e30ba6b744b0763d6ae896444f9040f27e2bfd42463ffa6b2027436005d8bcf8b99d7a4cdef3569ddb8549714906cc63d7e978c6603d2a7fcaf2989ecb1d4c1c80740000000078877665544332211c004811c02092782";
const ANSWER: &str = "000203860001018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c220084011b000001a3185c5000814804c00002010621146c7175656c65612f302e312e30926d7a546a3157328463c8d2df208980265d0e5ac42d3251602270c24d875975e530dc34536a9873b27fc481a3353a0242b12d6d2664ba67011f7b4984b1440a00860001018139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394220084011b000001a3185c5000814804c00002010621146c7175656c65612f302e312e30dd2207a8c7b67b79316dd6cf8a432ce4217b8fd8c7eda71b99cddbf08cfe1bff0b0df24f74df53952d39c6dccb4a4047adab7935212228d80d7a0b5c4d71130c";

fn record() -> SignedRecord {
    let record = PeerRecord {
        peer: key(42).public().to_peer_id(),
        seq: SIGNED + 7,
        signed_ms: SIGNED,
        addrs: vec!["/ip4/192.0.2.7/tcp/8468".parse().unwrap(), "/ip6/2001:db8::7/udp/8468/quic-v1".parse().unwrap()],
        agent: "quelea/0.1.0".into(),
    };
    SignedRecord::sign(&key(42), &net(), record).unwrap()
}

#[test]
fn a_record_is_frozen() {
    assert_eq!(hex::encode(record().raw()), RECORD);
    let read = SignedRecord::verify(&hex::decode(RECORD).unwrap(), &net(), SIGNED).unwrap();
    assert_eq!(read, record());
}

#[test]
fn a_request_is_frozen() {
    let mut filter = Filter::new(3, 0x1122_3344_5566_7788);
    (1..=3).for_each(|n| filter.insert(&key(n).public().to_peer_id()));
    let request = Request { want: 64, own: Some(said(&key(42), 1, SIGNED, 1).raw().to_vec()), filter };
    assert_eq!(hex::encode(request.encode()), REQUEST);
    let bytes = hex::decode(REQUEST).unwrap();
    let read = block_on(Request::read(&mut Cursor::new(bytes))).unwrap();
    assert_eq!(read, request);
    assert!((1..=3).all(|n| read.filter.contains(&key(n).public().to_peer_id())));
}

#[test]
fn an_answer_is_frozen() {
    let entry = |ttl, n| RawEntry { ttl, raw: said(&key(n), 1, SIGNED, 1).raw().to_vec() };
    let answer = Answer::Records(vec![entry(3, 1), entry(0, 2)]);
    assert_eq!(hex::encode(answer.encode()), ANSWER);
    assert_eq!(block_on(Answer::read(&mut Cursor::new(hex::decode(ANSWER).unwrap()))).unwrap(), answer);
    assert_eq!(Answer::Busy.encode(), [1]);
}

#[test]
fn a_record_is_believed_for_an_hour() {
    let verify = |now| SignedRecord::verify(record().raw(), &net(), now);
    assert!(verify(SIGNED - MAX_SKEW_MS).is_ok() && verify(SIGNED + MAX_AGE_MS).is_ok());
    assert_eq!(verify(SIGNED - MAX_SKEW_MS - 1), Err(VerifyError::Future(MAX_SKEW_MS + 1)));
    assert_eq!(verify(SIGNED + MAX_AGE_MS + 1), Err(VerifyError::Old(MAX_AGE_MS + 1)));
    assert!(verify(0).unwrap_err().is_honest() && verify(u64::MAX).unwrap_err().is_honest());
}
