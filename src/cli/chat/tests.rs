use std::io::Cursor;

use serde_json::json;

use super::{
    command::{Slash, incomplete, parse, unquoted},
    talk::Talk,
    turn_of,
};

#[test]
fn slashes_are_commands_and_their_mistakes_are_named() {
    let slash = |text: &str| parse(text).unwrap();
    assert_eq!(slash("what is /system?"), None);
    assert_eq!(slash(" /help"), None);
    assert_eq!(slash("/help"), Some(Slash::Help));
    assert_eq!(slash("/system Be brief."), Some(Slash::System(Some("Be brief.".into()))));
    assert_eq!(slash("/system \"\""), Some(Slash::System(Some(String::new()))));
    assert_eq!(slash("/system"), Some(Slash::System(None)));
    let params = vec![("temperature".into(), json!(0.5)), ("seed".into(), json!(7))];
    assert_eq!(slash("/params temperature=0.5 seed=7"), Some(Slash::Params(params)));
    assert_eq!(slash("/quit "), Some(Slash::Quit));
    for (text, says) in [
        ("/regenrate", "did you mean /regenerate?"),
        ("/save", "/help"),
        ("/params temperatur=1", "/help"),
        ("/params temperature=hot", "/help"),
        ("/params seed=1.5", "/help"),
        ("/stats maybe", "/help"),
    ] {
        assert!(parse(text).unwrap_err().hint.unwrap().contains(says), "{text}");
    }
}

#[test]
fn several_lines_are_one_turn() {
    let mut pipe = Cursor::new("one\n\"\"\"two\nthree\"\"\"\nfour \\\nfive\n/quit\nlast without an end");
    let mut turns = Vec::new();
    while let Some(turn) = turn_of(&mut pipe).unwrap() {
        turns.push(unquoted(&turn));
    }
    assert_eq!(turns, ["one", "two\nthree", "four \nfive", "/quit", "last without an end"]);
    assert!(incomplete("\"\"\"open") && incomplete("more \\") && !incomplete("\"\"\"a \\\"\"\""));
}

#[test]
fn a_conversation_is_sent_whole_and_can_be_taken_back() {
    let mut talk = Talk::new("demo".into(), Some("Be brief.".into()));
    talk.set("seed", json!(7));
    talk.asked("one");
    talk.answered("1");
    talk.asked("two");
    let sent = talk.request();
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let all =
        [message("system", "Be brief."), message("user", "one"), message("assistant", "1"), message("user", "two")];
    assert_eq!((&sent["messages"], &sent["seed"], &sent["model"]), (&json!(all), &json!(7), &json!("demo")));
    // No answer came: asked again it is the same question.
    talk.unanswered();
    assert_eq!(talk.messages().len(), 2);
    assert_eq!(talk.take_last_question().as_deref(), Some("two"));
    // An answer is taken back with its question.
    assert_eq!(talk.take_last_question().as_deref(), Some("one"));
    assert_eq!(talk.take_last_question(), None);
}

#[test]
fn a_conversation_is_kept_by_its_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let mut talk = Talk::new("demo".into(), None);
    talk.asked("one");
    talk.answered("1");
    talk.save(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Talk::load(&file).unwrap(), talk);
    std::fs::write(&file, "{\"schema\": \"quelea.other/v1\", \"model\": \"demo\", \"messages\": []}").unwrap();
    assert!(Talk::load(&file).unwrap_err().message.contains("quelea.other/v1"));
    std::fs::write(&file, "{").unwrap();
    assert!(Talk::load(&file).is_err() && Talk::load(&dir.path().join("nowhere")).is_err());
}
