//! Bytes that must never change.

use std::time::Duration;

use quelea_weights::{Answer, Bitmap, Question, Request, weights_key};
use quelea_wire::ModelId;

use crate::{answer, request};

#[test]
fn requests_are_frozen() {
    let model = ModelId([0x21; 32]);
    let id = "21".repeat(32);
    for (question, hex) in [
        (Question::Outline { offset: 0x0102_0304 }, format!("0101{id}04030201")),
        (Question::Have, format!("0102{id}")),
        (Question::Chunks { first: 7, count: 256 }, format!("0103{id}070000000001")),
    ] {
        let wanted = Request { model, question };
        assert_eq!(hex::encode(wanted.encode()), hex);
        assert_eq!(request(&hex::decode(hex).unwrap()).unwrap(), wanted);
    }
    assert_eq!(weights_key(&model), [b"/quelea/weights/".as_slice(), &[0x21; 32]].concat());
}

#[test]
fn answers_are_frozen() {
    let mut bitmap = Bitmap::new(11);
    bitmap.set(0, true);
    bitmap.set(9, true);
    for (given, hex) in [
        (Answer::Unknown, "00"),
        (Answer::Busy { retry: Duration::from_millis(500) }, "01f4010000"),
        (Answer::Outline { total: 9, bytes: vec![0xaa, 0xbb] }, "020900000002000000aabb"),
        (Answer::Have(bitmap), "030b0000000102"),
        (Answer::Chunks(vec![1, 2, 3]), "0403000000010203"),
        (Answer::Missing, "05"),
    ] {
        assert_eq!(hex::encode(given.encode().unwrap()), hex);
        assert_eq!(answer(&hex::decode(hex).unwrap()).unwrap(), given);
    }
}
