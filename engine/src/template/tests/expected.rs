//! The templates of real families, held against Python's jinja2: `tests/data/templates/render.py` made the texts.
//!
//! Other templates: `render.py FOLDER > FOLDER/expected.json`, and `QUELEA_TEMPLATES=FOLDER` for this test.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Expected {
    day: u64,
    snippets: Vec<Value>,
    templates: Map<String, Value>,
}

#[derive(Deserialize)]
struct Conversation {
    name: String,
    messages: Vec<Value>,
    add_generation_prompt: bool,
    #[serde(default)]
    extra: Map<String, Value>,
}

const EXPECTED: &str = include_str!("../../../tests/data/templates/expected.json");
const CONVERSATIONS: &str = include_str!("../../../tests/data/templates/conversations.json");

/// The day of `strftime_now`.
const DAY: u64 = 1_767_323_045;

/// 64-bit FNV-1a, as in `render.py`.
fn fnv1a(bytes: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// What differs from the expected texts: a line each, and how many texts were compared.
fn differences(folder: &Path, expected: &str) -> (Vec<String>, usize) {
    let expected: Expected = serde_json::from_str(expected).unwrap();
    assert_eq!(expected.day, DAY);
    let conversations: Vec<Conversation> = serde_json::from_str(CONVERSATIONS).unwrap();
    let mut compared = 0;
    let mut different = Vec::new();
    for (name, case) in &expected.templates {
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(fnv1a(source.as_bytes()), case["hash"], "{name} has changed: run render.py again");
        let template = ChatTemplate::with_clock(&source, "<s>", "</s>", || DAY);
        for Conversation { name: conversation, messages, add_generation_prompt, extra } in &conversations {
            let expected = case["cases"].get(conversation).expect("conversations have changed: run render.py again");
            let template = template.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
            let rendered = template.render_values(messages, *add_generation_prompt, extra);
            compared += 1;
            if !same(&rendered, expected) {
                different.push(format!("{name}, {conversation}:\n  expected {expected}\n  rendered {rendered:?}"));
            }
        }
    }
    (different, compared)
}

/// Whether it is what jinja2 gave.
fn same(rendered: &Result<String, TemplateError>, expected: &Value) -> bool {
    match rendered {
        Ok(text) => expected["text"] == *text,
        Err(TemplateError::Refused { message }) => expected["refused"] == *message,
        Err(_) => expected.is_null(),
    }
}

/// Small templates for what templates use of Python and of Jinja.
#[test]
fn the_snippets() {
    let expected: Expected = serde_json::from_str(EXPECTED).unwrap();
    let snippets: Vec<String> =
        serde_json::from_str(include_str!("../../../tests/data/templates/snippets.json")).unwrap();
    assert_eq!(snippets.len(), expected.snippets.len(), "snippets have changed: run render.py again");
    let conversations: Vec<Conversation> = serde_json::from_str(CONVERSATIONS).unwrap();
    let talk = conversations.iter().find(|c| c.name == "several turns").unwrap();
    let mut different = Vec::new();
    for (source, expected) in snippets.iter().zip(&expected.snippets) {
        let rendered = ChatTemplate::with_clock(source, "<s>", "</s>", || DAY)
            .and_then(|template| template.render_values(&talk.messages, talk.add_generation_prompt, &talk.extra));
        if !same(&rendered, expected) {
            different.push(format!("{source:?}\n  expected {expected}\n  rendered {rendered:?}"));
        }
    }
    assert!(different.is_empty(), "{} of {} differ\n{}", different.len(), snippets.len(), different.join("\n"));
}

#[test]
fn the_templates_of_the_fixtures() {
    let root = std::env::var_os("QUELEA_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures")), PathBuf::from);
    let folder = root.join("templates");
    if !folder.is_dir() {
        println!("skipped: no templates at {}", folder.display());
        return;
    }
    let (different, compared) = differences(&folder, EXPECTED);
    assert!(different.is_empty(), "{} of {compared} differ\n{}", different.len(), different.join("\n"));
    assert!(compared > 250, "only {compared} texts");
}

#[test]
fn the_templates_of_a_folder() {
    let Some(folder) = std::env::var_os("QUELEA_TEMPLATES").map(PathBuf::from) else { return };
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let (different, compared) = differences(&folder, &expected);
    assert!(different.is_empty(), "{} of {compared} differ\n{}", different.len(), different.join("\n"));
}
