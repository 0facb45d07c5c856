//! Whatever is read is what would be written.

use proptest::{collection::vec, prelude::*};
use quelea_service::{Answer, Ask, Call, CallId, Fault, Name};
use quelea_wire::ErrorCode;

use crate::{answer, answered, ask, asked};

proptest! {
    #[test]
    fn what_is_read_is_what_would_be_written(kind in 1_u8..4, more in 16_u8..21, body in vec(any::<u8>(), 0..120)) {
        let len = u32::try_from(body.len()).unwrap().to_le_bytes();
        let question = [&len[..], &[kind], &body].concat();
        if let Ok(Some(read)) = ask(&question) {
            prop_assert_eq!(asked(&read), question);
        }
        let said = [&len[..], &[more], &body].concat();
        if let Ok(Some(read)) = answer(&said) {
            prop_assert_eq!(answered(&read), said);
        }
    }

    #[test]
    fn calls_come_back(
        id in any::<[u8; 16]>(), hold in any::<Option<[u8; 16]>>(), price in any::<u64>(), remaining_ms in any::<u32>(),
        version in any::<u16>(), name in "[a-z][a-z0-9_.-]{0,31}", input in vec(any::<u8>(), 0..300),
    ) {
        let hold = hold.filter(|hold| *hold != [0; 16]);
        let name: Name = name.parse().unwrap();
        let call = Ask::Call(Box::new(Call { id: CallId(id), hold, price, remaining_ms, version, name, input }));
        prop_assert_eq!(ask(&asked(&call)).unwrap(), Some(call));
    }

    #[test]
    fn messages_are_cut_at_a_character(message in "\\PC{0,400}", amount in any::<u64>()) {
        let fault = Fault { code: ErrorCode::ServiceFailed, amount, retry_ms: 0, message: message.clone() };
        let Ok(Some(Answer::Error(read))) = answer(&answered(&Answer::Error(fault))) else { panic!("it is read") };
        prop_assert!(message.starts_with(&read.message) && read.message.len() <= 512);
        prop_assert!(read.message.len() + 4 > message.len().min(512));
    }

    #[test]
    fn names_are_what_they_say(text in "\\PC{0,40}") {
        let fits = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c));
        prop_assert_eq!(text.parse::<Name>().is_ok(), fits);
    }
}
