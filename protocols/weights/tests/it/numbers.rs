//! Every number of every message at its ends. The numbers stand at fixed places, so each place takes each end in each width.

use std::time::Duration;

use quelea_weights::{Answer, Bitmap, MAX_BYTES, MAX_CHUNKS, MAX_OUTLINE, MAX_RUN, Question, Request};
use quelea_wire::ModelId;

use crate::{answer, request};

fn each(bytes: &[u8], mut f: impl FnMut(&[u8])) {
    let mut changed = bytes.to_vec();
    for width in [1, 2, 4, 8] {
        let max = u64::MAX >> (64 - 8 * width);
        for at in 0..(bytes.len() + 1).saturating_sub(width) {
            for end in [0, 1, max >> 1, (max >> 1) + 1, max - 1, max] {
                changed[at..at + width].copy_from_slice(&end.to_le_bytes()[..width]);
                f(&changed);
            }
            changed[at..at + width].copy_from_slice(&bytes[at..at + width]);
        }
    }
}

#[test]
fn what_is_asked() {
    let model = ModelId([7; 32]);
    let mut read = 0;
    for question in [Question::Outline { offset: 1 }, Question::Have, Question::Chunks { first: 1, count: 1 }] {
        each(&Request { model, question }.encode(), |changed| match request(changed) {
            Ok(Request { question: Question::Chunks { first, count }, .. }) => {
                read += 1;
                assert!((1..=MAX_RUN).contains(&count) && first + u32::from(count) <= MAX_CHUNKS);
                let full = Bitmap::full(9);
                assert!((first..first + u32::from(count)).all(|chunk| full.has(chunk) == (chunk < 9)));
            }
            Ok(_) => read += 1,
            Err(error) => {
                assert!([std::io::ErrorKind::InvalidData, std::io::ErrorKind::UnexpectedEof].contains(&error.kind()));
            }
        });
    }
    assert!(read > 100, "{read}");
}

#[test]
fn what_is_answered() {
    let answers = [
        Answer::Unknown,
        Answer::Busy { retry: Duration::from_millis(500) },
        Answer::Outline { total: 9, bytes: vec![1; 9] },
        Answer::Have(Bitmap::full(11)),
        Answer::Chunks(vec![1, 2, 3]),
        Answer::Missing,
    ];
    for given in answers {
        let bytes = given.encode().unwrap();
        each(&bytes, |changed| {
            let mut read = None;
            let taken = allocation_counter::measure(|| read = answer(changed).ok());
            assert!(taken.bytes_max <= 4 * bytes.len() as u64 + 2048, "{given:?} as {changed:?}: {}", taken.bytes_max);
            match read {
                Some(Answer::Busy { retry }) => assert!((50..=10_000).contains(&retry.as_millis())),
                Some(Answer::Outline { total, bytes }) => {
                    assert!((1..=MAX_OUTLINE).contains(&total) && bytes.len() <= MAX_BYTES as usize);
                }
                Some(Answer::Have(mut bitmap)) => {
                    assert!(bitmap.chunks() <= MAX_CHUNKS && bitmap.count() <= bitmap.chunks());
                    for chunk in [0, bitmap.chunks(), MAX_CHUNKS, u32::MAX] {
                        bitmap.set(chunk, true);
                        assert!(!bitmap.has(chunk) || chunk < bitmap.chunks());
                    }
                }
                _ => {}
            }
        });
    }
}
