//! What goes into a language model's service, and what comes out.
//!
//! Plain text is a prompt, and is answered with plain text. A JSON object says more, and is answered with one:
//! `{"prompt", "system", "max_tokens", "temperature"}` gives `{"schema", "model", "text", "tokens"}`.

use quelea_service::Fault;
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::json;

use crate::services::service::{Done, fault};

/// Bytes of a prompt.
pub(super) const INPUT: u32 = 64 << 10;

/// Bytes of an answer.
pub(super) const OUTPUT: u32 = 256 << 10;

/// Tokens of an answer at most.
const TOKENS: u32 = 4096;

/// Tokens of an answer unless said otherwise.
const USUAL_TOKENS: u32 = 256;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Prompt {
    pub(super) prompt: String,
    #[serde(default)]
    pub(super) system: Option<String>,
    #[serde(default = "usual_tokens")]
    pub(super) max_tokens: u32,
    #[serde(default)]
    pub(super) temperature: f32,
    /// Whether it came as plain text, and is answered so.
    #[serde(skip)]
    pub(super) plain: bool,
}

fn usual_tokens() -> u32 {
    USUAL_TOKENS
}

impl Prompt {
    pub(super) fn parse(input: &[u8]) -> Result<Self, Fault> {
        let wrong = |why: String| fault(ErrorCode::ServiceInput, why);
        let text = std::str::from_utf8(input).map_err(|_| wrong("a prompt is UTF-8 text".into()))?;
        let prompt = if text.trim_start().starts_with('{') {
            let prompt: Self = serde_json::from_str(text)
                .map_err(|e| wrong(format!("{e}; a prompt that begins with a brace goes into {{\"prompt\": …}}")))?;
            prompt
        } else {
            Self { prompt: text.to_owned(), system: None, max_tokens: USUAL_TOKENS, temperature: 0.0, plain: true }
        };
        if prompt.prompt.trim().is_empty() {
            return Err(wrong("the prompt is empty".into()));
        }
        if !(1..=TOKENS).contains(&prompt.max_tokens) {
            return Err(wrong(format!("max_tokens is between 1 and {TOKENS}, not {}", prompt.max_tokens)));
        }
        if !(0.0..=2.0).contains(&prompt.temperature) {
            return Err(wrong(format!("temperature is between 0 and 2, not {}", prompt.temperature)));
        }
        Ok(prompt)
    }

    /// The answer, in the form of the question.
    pub(super) fn answer(&self, model: &str, text: &str, tokens: Option<u64>) -> Done {
        if self.plain {
            return text.as_bytes().to_vec().into();
        }
        let answer = json!({ "schema": "quelea.llm/v1", "model": model, "text": text, "tokens": tokens });
        answer.to_string().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_a_prompt_and_an_object_says_more() {
        let plain = Prompt::parse(b"What is a relay?").unwrap();
        assert!(plain.plain && plain.prompt == "What is a relay?" && plain.max_tokens == 256);
        assert_eq!(plain.answer("m", "Hop.", None).output, b"Hop.");
        let said = Prompt::parse(br#" {"prompt":"hi","system":"short","max_tokens":7,"temperature":0.5}"#).unwrap();
        assert!(!said.plain && said.system.as_deref() == Some("short") && said.max_tokens == 7);
        let answer: serde_json::Value = serde_json::from_slice(&said.answer("m", "Hop.", Some(2)).output).unwrap();
        assert_eq!((&answer["text"], &answer["tokens"]), (&"Hop.".into(), &2.into()));
        for wrong in [
            &b""[..],
            b"  ",
            b"\xff",
            b"{",
            br#"{"prompt":"hi","max_tokens":0}"#,
            br#"{"prompt":"hi","max_tokens":5000}"#,
            br#"{"prompt":"hi","temperature":3}"#,
            br#"{"prompt":"hi","else":3}"#,
            br#"{"system":"hi"}"#,
        ] {
            assert_eq!(Prompt::parse(wrong).unwrap_err().code, ErrorCode::ServiceInput, "{wrong:?}");
        }
    }
}
