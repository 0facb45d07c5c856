//! No number that a peer sends makes us take memory for what it has not sent, and every length has its cap.

use proptest::prelude::*;
use quelea_service::{Answer, Ask, FrameError, MAX_INPUT, MAX_OUTPUT, MAX_PROGRESS};

use crate::{answer, answered, ask, asked, call, listed};

/// What a reader may take besides the bytes that came: buffers that grow by doubling, an error's text.
const SLACK: u64 = 1024;

proptest! {
    #[test]
    fn claims_take_nothing(len in any::<u32>(), kind in 0_u8..24, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&len.to_le_bytes()[..], &[kind], &rest].concat();
        let taken = allocation_counter::measure(|| drop((ask(&bytes), answer(&bytes)))).bytes_max;
        prop_assert!(taken <= 4 * bytes.len() as u64 + SLACK, "{taken} bytes for {}", bytes.len());
    }

    #[test]
    fn a_count_takes_nothing(count in any::<u8>(), rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let len = u32::try_from(rest.len() + 1).unwrap();
        let bytes = [&len.to_le_bytes()[..], &[20, count], &rest].concat();
        let taken = allocation_counter::measure(|| drop(answer(&bytes))).bytes_max;
        prop_assert!(taken <= 8 * bytes.len() as u64 + SLACK, "{taken} bytes for {}", bytes.len());
    }
}

#[test]
fn every_kind_has_its_cap_and_its_side() {
    let with = |len: u32, kind: u8| [&len.to_le_bytes()[..], &[kind]].concat();
    for (kind, most) in [(1, 48 + 32 + MAX_INPUT), (2, 34), (3, 0)] {
        let most = u32::try_from(most).unwrap();
        assert!(matches!(ask(&with(most + 1, kind)), Err(FrameError::TooLarge { .. })), "{kind}");
        assert!(!matches!(ask(&with(most, kind)), Err(FrameError::TooLarge { .. })), "{kind}");
        assert!(matches!(answer(&with(0, kind)), Err(FrameError::Unknown(_))), "{kind}");
    }
    for (kind, most) in [(16, 10), (17, MAX_PROGRESS), (18, MAX_OUTPUT + 8), (19, 512 + 14), (20, 1 + 64 * (34 + 192))]
    {
        let most = u32::try_from(most).unwrap();
        assert!(matches!(answer(&with(most + 1, kind)), Err(FrameError::TooLarge { .. })), "{kind}");
        assert!(!matches!(answer(&with(most, kind)), Err(FrameError::TooLarge { .. })), "{kind}");
        assert!(matches!(ask(&with(0, kind)), Err(FrameError::Unknown(_))), "{kind}");
    }
    assert!(matches!(ask(&with(1, 1)), Err(FrameError::Cut)), "a frame that ends too soon");
    assert!(ask(&[]).unwrap().is_none() && answer(&[]).unwrap().is_none(), "the end between two frames is one");
}

/// Every number at its ends: the numbers stand at fixed places, so each place takes each end in each width.
#[test]
fn numbers_at_their_ends_are_read_or_refused() {
    let questions = [Ask::Call(Box::new(call(b"hi"))), Ask::List(Some("echo".parse().unwrap()))].map(|a| asked(&a));
    let answers = [Answer::Accepted { version: 1, price: 2 }, Answer::Listed(vec![listed("echo"), listed("a")])];
    for bytes in questions.into_iter().chain(answers.map(|a| answered(&a))) {
        for width in [1, 2, 4, 8] {
            let max = u64::MAX >> (64 - 8 * width);
            for at in 0..(bytes.len() + 1).saturating_sub(width) {
                for end in [0, 1, max >> 1, (max >> 1) + 1, max - 1, max] {
                    let mut changed = bytes.clone();
                    changed[at..at + width].copy_from_slice(&end.to_le_bytes()[..width]);
                    if let Ok(Some(read)) = ask(&changed) {
                        assert!(changed.starts_with(&asked(&read)), "{changed:?}");
                    }
                    if let Ok(Some(read)) = answer(&changed) {
                        assert!(changed.starts_with(&answered(&read)), "{changed:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_as_it_must_be_is_refused() {
    let framed =
        |kind: u8, body: &[u8]| [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], &[kind], body].concat();
    for (kind, body) in [(2, &[2, 0][..]), (2, &[1, 0, 0]), (2, &[1, 1, b'A']), (2, &[1, 2, b'a', 0xff]), (1, &[1; 20])]
    {
        assert!(ask(&framed(kind, body)).is_err(), "{kind} {body:?}");
    }
    for (kind, body) in [(16, &[0; 9][..]), (18, &[0; 7]), (19, &[0; 13]), (20, &[65]), (20, &[0, 0]), (20, &[1, 0])] {
        assert!(answer(&framed(kind, body)).is_err(), "{kind} {body:?}");
    }
    let not_text = [&[0; 14][..], &[0xff]].concat();
    assert!(answer(&framed(19, &not_text)).is_err());
}
