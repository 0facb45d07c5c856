//! Requests and answers as OpenAI writes them. What is asked for and cannot be done is refused, never left out in silence.

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use either::Either;
use indexmap::IndexMap;
use mistralrs_core::MessageContent;
use serde::Deserialize;
use serde_json::{Value, json};

/// Strings that may end an answer.
const STOPS: usize = 8;

/// Bytes of each.
const STOP_BYTES: usize = 256;

/// Messages of a chat.
const MESSAGES: usize = 1024;

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// The body of an error, in a response or in the middle of a stream.
    pub(crate) fn document(&self) -> Value {
        let kind = if self.status.is_client_error() { "invalid_request_error" } else { "server_error" };
        json!({ "error": { "message": self.message, "type": kind, "param": null, "code": self.code } })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Body::from(self.document().to_string());
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

/// What a client sends. Fields that it may send and that change nothing here, like `user`, are passed over.
#[derive(Debug, Deserialize)]
struct Sent {
    model: Option<String>,
    messages: Vec<SentMessage>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<i64>,
    stop: Option<SentStop>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    n: Option<u32>,
    logprobs: Option<bool>,
    tools: Option<Vec<Value>>,
    response_format: Option<Value>,
    chat_template_kwargs: Option<TemplateOptions>,
}

#[derive(Debug, Deserialize)]
struct SentMessage {
    role: String,
    content: Option<SentContent>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SentContent {
    Text(String),
    Parts(Vec<SentPart>),
}

#[derive(Debug, Deserialize)]
struct SentPart {
    r#type: String,
    #[serde(default)]
    text: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SentStop {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct TemplateOptions {
    enable_thinking: Option<bool>,
}

/// One message, as the engine takes it.
pub(crate) type Message = IndexMap<String, MessageContent>;

/// A request that can be answered.
#[derive(Debug, Clone)]
pub(crate) struct Chat {
    pub(crate) messages: Vec<Message>,
    /// The most that the answer may have; what there is room for, without.
    pub(crate) max_tokens: Option<u32>,
    /// 0 for always the likeliest token.
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<String>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) enable_thinking: Option<bool>,
    pub(crate) stream: bool,
    /// Whether the stream ends with what was used.
    pub(crate) usage: bool,
}

impl Chat {
    /// Reads a request for the model of this name.
    pub(crate) fn parse(body: &[u8], name: &str) -> Result<Self, Refusal> {
        let sent: Sent =
            serde_json::from_slice(body).map_err(|e| Refusal::wrong(format!("the request is not understood: {e}")))?;
        if let Some(model) = sent.model.as_deref().filter(|model| *model != name) {
            let message = format!("there is no model '{}' here; it is '{name}'", model.escape_debug());
            return Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message));
        }
        let unless = |cannot: bool, what: &str| if cannot { Err(Refusal::wrong(what)) } else { Ok(()) };
        unless(sent.messages.is_empty(), "messages is empty")?;
        unless(sent.messages.len() > MESSAGES, "there are more than 1024 messages")?;
        unless(sent.n.is_some_and(|n| n != 1), "n is 1 here: ask again for another answer")?;
        unless(sent.tools.is_some_and(|tools| !tools.is_empty()), "tools are not supported here")?;
        unless(sent.logprobs == Some(true), "logprobs are not supported here")?;
        let format = sent.response_format.as_ref().filter(|format| !format.is_null());
        unless(format.is_some_and(|format| format["type"] != "text"), "response_format is 'text' here")?;
        let temperature = sent.temperature.unwrap_or(1.0);
        unless(!(0.0..=2.0).contains(&temperature), "temperature is between 0 and 2")?;
        let top_p = sent.top_p.unwrap_or(1.0);
        unless(!(top_p > 0.0 && top_p <= 1.0), "top_p is above 0, and at most 1")?;
        let penalty = |given: Option<f32>| given.is_some_and(|given| !(-2.0..=2.0).contains(&given));
        unless(penalty(sent.frequency_penalty), "frequency_penalty is between -2 and 2")?;
        unless(penalty(sent.presence_penalty), "presence_penalty is between -2 and 2")?;
        let max_tokens = sent.max_completion_tokens.or(sent.max_tokens);
        unless(max_tokens == Some(0), "max_tokens is at least 1")?;
        let stop = match sent.stop {
            None => Vec::new(),
            Some(SentStop::One(stop)) => vec![stop],
            Some(SentStop::Several(stop)) => stop,
        };
        unless(stop.len() > STOPS, "there are more than 8 stops")?;
        unless(stop.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES), "a stop has 1 to 256 bytes")?;
        Ok(Self {
            messages: sent.messages.into_iter().map(message).collect::<Result<_, _>>()?,
            max_tokens,
            temperature,
            top_p,
            seed: sent.seed.map(i64::cast_unsigned),
            stop,
            frequency_penalty: sent.frequency_penalty.filter(|penalty| *penalty != 0.0),
            presence_penalty: sent.presence_penalty.filter(|penalty| *penalty != 0.0),
            enable_thinking: sent.chat_template_kwargs.and_then(|options| options.enable_thinking),
            stream: sent.stream,
            usage: sent.stream_options.is_some_and(|options| options.include_usage),
        })
    }
}

fn message(sent: SentMessage) -> Result<Message, Refusal> {
    if !matches!(sent.role.as_str(), "system" | "developer" | "user" | "assistant") {
        return Err(Refusal::wrong(format!("a message is of nobody called '{}'", sent.role.escape_debug())));
    }
    // What OpenAI calls a developer is a system's message to models that know only that.
    let role = if sent.role == "developer" { "system".into() } else { sent.role };
    let text = match sent.content {
        None => return Err(Refusal::wrong("a message has no content")),
        Some(SentContent::Text(text)) => text,
        Some(SentContent::Parts(parts)) => match parts.iter().find(|part| part.r#type != "text") {
            Some(other) => {
                let message = format!("a message has a part '{}'; only text is read here", other.r#type.escape_debug());
                return Err(Refusal::wrong(message));
            }
            None => parts.into_iter().map(|part| part.text).collect(),
        },
    };
    Ok([("role".to_owned(), Either::Left(role)), ("content".to_owned(), Either::Left(text))].into_iter().collect())
}

/// Tokens that went into an answer, and came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The model ended it, or a stop.
    Stop,
    /// There were to be no more tokens.
    Length,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl Usage {
    fn document(self) -> Value {
        let total = self.prompt.saturating_add(self.completion);
        json!({ "prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total })
    }
}

/// What all documents of one answer have in common.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Head {
    /// An answer as a whole.
    pub(crate) fn whole(&self, text: &str, reasoning: &str, reason: Reason, usage: Usage) -> Value {
        let mut message = json!({ "role": "assistant", "content": text });
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.into();
        }
        let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reason.as_str() });
        json!({ "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": [choice], "usage": usage.document() })
    }

    fn chunk(&self, choices: Value, usage: Value) -> Value {
        json!({ "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices, "usage": usage })
    }

    /// A piece of it, like `{"content": …}`.
    pub(crate) fn delta(&self, delta: Value) -> Value {
        self.chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": null }]), Value::Null)
    }

    pub(crate) fn end(&self, reason: Reason) -> Value {
        let choice = json!({ "index": 0, "delta": {}, "logprobs": null, "finish_reason": reason.as_str() });
        self.chunk(json!([choice]), Value::Null)
    }

    pub(crate) fn usage(&self, usage: Usage) -> Value {
        self.chunk(json!([]), usage.document())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Chat, Refusal> {
        Chat::parse(body.to_string().as_bytes(), "m")
    }

    #[test]
    fn a_request_says_what_it_wants() {
        let body = json!({ "model": "m", "user": "somebody", "max_tokens": 5, "temperature": 0, "seed": -1, "stop": "x",
            "stream": true, "stream_options": { "include_usage": true }, "messages": [
                { "role": "developer", "content": "be short" },
                { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] } ] });
        let chat = parse(&body).unwrap();
        assert_eq!((chat.max_tokens, chat.temperature, chat.seed), (Some(5), 0.0, Some(u64::MAX)));
        assert!(chat.stream && chat.usage && chat.stop == ["x"]);
        let text = |message: usize, key: &str| match &chat.messages[message][key] {
            Either::Left(text) => text.clone(),
            Either::Right(_) => panic!("parts"),
        };
        assert_eq!((text(0, "role").as_str(), text(1, "content").as_str()), ("system", "ab"));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (change, wanted) in [
            (json!({ "model": "other" }), "there is no model 'other' here"),
            (json!({ "messages": [] }), "messages is empty"),
            (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "nobody called 'tool'"),
            (json!({ "messages": [{ "role": "user" }] }), "no content"),
            (json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "only text is read"),
            (json!({ "n": 2 }), "n is 1"),
            (json!({ "tools": [{}] }), "tools are not"),
            (json!({ "logprobs": true }), "logprobs are not"),
            (json!({ "response_format": { "type": "json_object" } }), "response_format"),
            (json!({ "temperature": 2.5 }), "temperature is between"),
            (json!({ "temperature": "warm" }), "not understood"),
            (json!({ "top_p": 0 }), "top_p"),
            (json!({ "presence_penalty": 3 }), "presence_penalty"),
            (json!({ "max_tokens": 0 }), "at least 1"),
            (json!({ "max_tokens": -1 }), "not understood"),
            (json!({ "stop": ["a", "b", "c", "d", "e", "f", "g", "h", "i"] }), "more than 8"),
            (json!({ "stop": [""] }), "1 to 256 bytes"),
        ] {
            let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
            for (key, value) in change.as_object().unwrap() {
                body[key] = value.clone();
            }
            let refused = parse(&body).unwrap_err();
            assert!(refused.message.contains(wanted), "{} does not say {wanted}", refused.message);
            assert!(refused.status.is_client_error());
        }
    }
}
