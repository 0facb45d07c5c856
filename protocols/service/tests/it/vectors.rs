//! Bytes that must never change.

use quelea_service::{Answer, Ask, Call, CallId, Fault, job_hash, service_key};
use quelea_wire::ErrorCode;

use crate::{answer, answered, ask, asked, call, listed};

#[test]
fn questions_are_frozen() {
    let (id, hold) = ("01".repeat(16), "02".repeat(16));
    for (given, hex) in [
        (
            Ask::Call(Box::new(call(b"hi"))),
            format!("3600000001 01{id}{hold} e803000000000000 30750000 0100 04 6563686f 6869"),
        ),
        (
            Ask::Call(Box::new(Call { hold: None, version: 0, ..call(b"") })),
            format!("3400000001 01{id}{} e803000000000000 30750000 0000 04 6563686f", "00".repeat(16)),
        ),
        (Ask::List(None), "0200000002 01 00".into()),
        (Ask::List(Some("echo".parse().unwrap())), "0600000002 01 04 6563686f".into()),
        (Ask::Cancel, "0000000003".into()),
    ] {
        let hex = hex.replace(' ', "");
        assert_eq!(hex::encode(asked(&given)), hex, "{given:?}");
        assert_eq!(ask(&hex::decode(hex).unwrap()).unwrap(), Some(given));
    }
    assert_eq!(service_key(&"echo".parse().unwrap()), b"/quelea/service/echo");
    let job = job_hash(&CallId([1; 16]), &"echo".parse().unwrap(), b"hi");
    assert_eq!(hex::encode(job), "97b646607f6675cf374716ed41cd054eaef477f34498f1651e0253b65654bc5e");
}

#[test]
fn answers_are_frozen() {
    let fault = Fault { code: ErrorCode::ServiceInput, amount: 7, retry_ms: 500, message: "no".into() };
    for (given, hex) in [
        (Answer::Accepted { version: 1, price: 1000 }, "0a00000010 0100 e803000000000000"),
        (Answer::Progress(vec![0xaa, 0xbb]), "0200000011 aabb"),
        (Answer::Result { amount: 1000, output: vec![0xcc] }, "0900000012 e803000000000000 cc"),
        (Answer::Error(fault), "1000000013 421f 0700000000000000 f4010000 6e6f"),
        (
            Answer::Listed(vec![listed("echo")]),
            "3100000014 01 04 6563686f 0100 e803000000000000 00000100 00000100 10270000 4000 0100 0200 03000000 \
             0a 4769766573206261636b",
        ),
        (Answer::Listed(Vec::new()), "0100000014 00"),
    ] {
        let hex = hex.replace(' ', "");
        assert_eq!(hex::encode(answered(&given)), hex, "{given:?}");
        assert_eq!(answer(&hex::decode(hex).unwrap()).unwrap(), Some(given));
    }
}
