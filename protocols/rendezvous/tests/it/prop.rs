//! What is written is read back, and no bytes at all make a reader panic.

use proptest::{collection::vec, option, prelude::*};
use quelea_rendezvous::{
    Answer, Listed, MAX_COOKIE_BYTES, MAX_NAMESPACE_BYTES, MAX_RECORD_BYTES, Record, Request, Status,
};

fn name() -> impl Strategy<Value = String> {
    "[a-zé/]{1,80}"
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..most)
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (name(), bytes(MAX_RECORD_BYTES), option::of(any::<u64>()))
            .prop_map(|(namespace, record, ttl)| Request::Register { namespace, record, ttl }),
        name().prop_map(|namespace| Request::Unregister { namespace }),
        (option::of(name()), option::of(bytes(MAX_COOKIE_BYTES)), option::of(any::<u64>()))
            .prop_map(|(namespace, cookie, limit)| Request::Discover { namespace, cookie, limit }),
    ]
}

fn status() -> impl Strategy<Value = Status> {
    prop::sample::select(vec![
        Status::InvalidNamespace,
        Status::InvalidRecord,
        Status::InvalidTtl,
        Status::InvalidCookie,
        Status::NotAuthorized,
        Status::Internal,
        Status::Unavailable,
    ])
}

fn answer() -> impl Strategy<Value = Answer> {
    let listed = (name(), bytes(MAX_RECORD_BYTES), any::<u64>()).prop_map(|(namespace, record, ttl)| Listed {
        namespace,
        record,
        ttl,
    });
    prop_oneof![
        any::<u64>().prop_map(|ttl| Answer::Register(Ok(ttl))),
        status().prop_map(|status| Answer::Register(Err(status))),
        (vec(listed, 0..8), bytes(MAX_COOKIE_BYTES)).prop_map(|all| Answer::Discover(Ok(all))),
        status().prop_map(|status| Answer::Discover(Err(status))),
    ]
}

/// What stands behind the length.
fn inner(framed: &[u8]) -> &[u8] {
    let head = framed.iter().position(|byte| byte & 0x80 == 0).unwrap();
    &framed[head + 1..]
}

proptest! {
    #[test]
    fn requests_are_read_as_written(request in request()) {
        prop_assert_eq!(Request::decode(inner(&request.encode())), Ok(request));
    }

    #[test]
    fn answers_are_read_as_written(answer in answer()) {
        prop_assert_eq!(Answer::decode(inner(&answer.encode())), Ok(answer));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..600)) {
        let _ = Answer::decode(&bytes);
        let _ = Record::verify(&bytes);
        if let Ok(Request::Register { namespace, record, .. }) = Request::decode(&bytes) {
            prop_assert!(namespace.len() <= MAX_NAMESPACE_BYTES && record.len() <= MAX_RECORD_BYTES);
        }
    }

    #[test]
    fn a_byte_that_is_off_is_no_other_record(at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
        let good = crate::said(&crate::key(1), 2);
        let mut raw = good.raw().to_vec();
        let at = at.index(raw.len());
        raw[at] ^= flip;
        if let Ok(read) = Record::verify(&raw) {
            prop_assert_eq!((read.peer(), read.addrs(), read.seq()), (good.peer(), good.addrs(), good.seq()));
        }
    }
}
