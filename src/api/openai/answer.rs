//! An answer's pieces: text that may be shown, and the log-probabilities that go with it.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::inference::{FinishReason, LikelyToken, Summary, TokenLogprobs};

/// What stands for minus infinity, which JSON does not have.
const IMPOSSIBLE: f32 = -9999.0;

/// One choice's answer as it comes. Tokens are told when their text is: what a stop string takes away was never there.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Bytes of text that were shown.
    shown: usize,
    /// Bytes of the tokens that were told.
    told: usize,
    waiting: VecDeque<TokenLogprobs>,
}

impl Pieces {
    /// More text; the tokens whose text is out.
    pub(super) fn push(&mut self, text: &str, token: Option<TokenLogprobs>) -> Vec<TokenLogprobs> {
        self.shown = self.shown.saturating_add(text.len());
        // A control token is no part of the text.
        self.waiting.extend(token.filter(|token| !token.chosen.bytes.is_empty()));
        let mut out = Vec::new();
        while let Some(next) = self.waiting.front() {
            let end = self.told.saturating_add(next.chosen.bytes.len());
            if end > self.shown {
                break;
            }
            self.told = end;
            out.extend(self.waiting.pop_front());
        }
        out
    }

    /// The tokens that are left when no more text comes: of one that a stop string cuts, what stands before it.
    pub(super) fn end(&mut self, stopped: bool) -> Vec<TokenLogprobs> {
        let mut out = Vec::new();
        while let Some(mut next) = self.waiting.pop_front() {
            let left = self.shown.saturating_sub(self.told);
            self.told = self.told.saturating_add(next.chosen.bytes.len());
            if stopped && next.chosen.bytes.len() > left {
                if left == 0 {
                    continue;
                }
                next.chosen.bytes.truncate(left);
                next.chosen.token = String::from_utf8_lossy(&next.chosen.bytes).into_owned();
            }
            out.push(next);
        }
        out
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}

fn likely(token: &LikelyToken) -> Value {
    json!({ "token": token.token, "logprob": finite(token.logprob), "bytes": token.bytes })
}

/// Log-probabilities as chats have them.
pub(super) fn chat_logprobs(tokens: &[TokenLogprobs]) -> Value {
    let each = tokens.iter().map(|token| {
        let mut one = likely(&token.chosen);
        one["top_logprobs"] = token.top_logprobs.iter().map(likely).collect();
        one
    });
    json!({ "content": each.collect::<Vec<_>>(), "refusal": null })
}

/// Log-probabilities as completions have them; `offset` is where the text of the first begins, in characters.
pub(super) fn text_logprobs(tokens: &[TokenLogprobs], offset: &mut usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(*offset);
        *offset += token.chosen.token.chars().count();
    }
    let top = |token: &TokenLogprobs| -> Map<String, Value> {
        token.top_logprobs.iter().map(|one| (one.token.clone(), json!(finite(one.logprob)))).collect()
    };
    json!({
        "tokens": tokens.iter().map(|token| &token.chosen.token).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| finite(token.chosen.logprob)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// Why an answer ended, in OpenAI's words.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// The tokens of a request: a prompt's once, however many choices it has, `n` after another.
pub(super) fn usage(summaries: &[Summary], n: usize) -> Value {
    let prompts = || summaries.iter().step_by(n.max(1));
    let prompt: usize = prompts().map(|summary| summary.prompt_ids.len()).sum();
    let cached: usize = prompts().map(|summary| summary.cached_tokens).sum();
    let completion: usize = summaries.iter().map(|summary| summary.ids.len()).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt.saturating_add(completion),
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

/// What a model and its version answer alike by.
pub(super) fn fingerprint(model: &str) -> String {
    let short: String = model.chars().take(12).collect();
    format!("fp_{short}_{}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &[u8]) -> TokenLogprobs {
        let token = String::from_utf8_lossy(bytes).into_owned();
        let chosen = LikelyToken { id: 1, token, bytes: bytes.into(), logprob: -0.5 };
        TokenLogprobs { chosen, top_logprobs: Vec::new() }
    }

    fn bytes(tokens: &[TokenLogprobs]) -> Vec<Vec<u8>> {
        tokens.iter().map(|token| token.chosen.bytes.clone()).collect()
    }

    #[test]
    fn tokens_are_told_with_their_text() {
        let mut pieces = Pieces::default();
        assert_eq!(bytes(&pieces.push("a", Some(token(b"a")))), [b"a"]);
        // A character in two tokens, and what may become a stop string, are held back.
        assert!(pieces.push("", Some(token(&[0xc3]))).is_empty());
        assert_eq!(bytes(&pieces.push("\u{e9}", Some(token(&[0xa9])))), [[0xc3], [0xa9]]);
        assert!(pieces.push("", Some(token(b"END"))).is_empty());
        assert_eq!(bytes(&pieces.push("EN", None)), Vec::<Vec<u8>>::new());
        assert_eq!(bytes(&pieces.end(false)), [b"END"]);
    }

    #[test]
    fn what_a_stop_string_takes_away_is_not_told() {
        let mut pieces = Pieces::default();
        assert!(pieces.push("", Some(token(b"one ST"))).is_empty());
        // "STOP" came: "one " is all that is shown.
        assert!(pieces.push("one ", Some(token(b"OP and"))).is_empty());
        assert_eq!(bytes(&pieces.end(true)), [b"one "]);
    }

    #[test]
    fn nothing_is_infinitely_unlikely() {
        let mut banned = token(b"x");
        banned.chosen.logprob = f32::NEG_INFINITY;
        let json = chat_logprobs(&[banned.clone()]);
        assert_eq!(json["content"][0]["logprob"], json!(IMPOSSIBLE));
        let mut offset = 3;
        let json = text_logprobs(&[banned, token("\u{e9}".as_bytes()), token(b"y")], &mut offset);
        assert_eq!((&json["text_offset"], offset), (&json!([3, 4, 5]), 6));
    }
}
