//! Answers as server-sent events: `data:` lines and comments, nothing else. An `id:` or an `event:` breaks official clients.

use std::{io, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use futures::{FutureExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    ApiError,
    answer::{Pieces, chat_logprobs, fingerprint, finish_reason, text_logprobs, usage},
    asking::{Asking, cost, timing},
    tools::{Calls, Piece, Reader},
};
use crate::inference::{InferEvent, Summary, TokenLogprobs};

/// Between two signs of life. The first goes out when the answer has not begun by then.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Events that go out in one piece where more are ready.
const AT_ONCE: usize = 16;

/// Which objects an answer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Text,
}

impl Kind {
    /// What a whole answer is called.
    pub(super) fn object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion",
            Self::Text => "text_completion",
        }
    }

    fn chunk(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion.chunk",
            Self::Text => "text_completion",
        }
    }

    /// What its ids begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Text => "cmpl-",
        }
    }
}

/// What an answer says of itself.
pub(super) struct About {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) created: u64,
    /// As the request has it.
    pub(super) model: String,
    /// The model's id.
    pub(super) fingerprint: String,
    /// Choices of each prompt.
    pub(super) n: usize,
    pub(super) logprobs: bool,
    /// Prompts that are given back before the answers, one for each choice.
    pub(super) echo: Vec<String>,
    /// What tools may be called, if any.
    pub(super) calls: Option<Calls>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

#[derive(Serialize, Default)]
struct Choice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[Value; 1]>,
}

/// An answer on its way to a client. Dropping it cancels what is under way.
struct Sse {
    about: About,
    asking: Asking,
    include_usage: bool,
    pieces: Vec<Pieces>,
    /// Where the next token's text begins, for each choice.
    offsets: Vec<usize>,
    summaries: Vec<Option<Summary>>,
    /// Those who look for calls in the answers, if tools may be called.
    readers: Vec<Option<Reader>>,
    /// Calls that each choice has had.
    called: Vec<usize>,
    /// Between two signs of life.
    keep_alive: Duration,
    begun: bool,
    out: Vec<u8>,
}

/// Gives an answer as it comes.
pub(super) fn respond(about: About, asking: Asking, include_usage: bool) -> Response {
    let headers = asking.headers();
    let sse = Sse::new(about, asking, include_usage, KEEP_ALIVE);
    let bytes = stream::unfold(Some(sse), |sse| async { sse?.next().await });
    let kind = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, kind, Body::from_stream(bytes)).into_response()
}

impl Sse {
    fn new(about: About, asking: Asking, include_usage: bool, keep_alive: Duration) -> Self {
        let count = asking.len();
        let offsets = (0..count).map(|i| about.echo.get(i).map_or(0, |text| text.chars().count())).collect();
        Self {
            readers: (0..count).map(|_| about.calls.as_ref().map(Calls::reader)).collect(),
            called: vec![0; count],
            keep_alive,
            about,
            asking,
            include_usage,
            pieces: (0..count).map(|_| Pieces::default()).collect(),
            offsets,
            summaries: (0..count).map(|_| None).collect(),
            begun: false,
            out: Vec::new(),
        }
    }

    /// The next bytes, and the rest unless these are the last.
    async fn next(mut self) -> Option<(io::Result<Bytes>, Option<Self>)> {
        let mut over = false;
        if self.begun {
            match timeout(self.keep_alive, self.asking.next()).await {
                Err(_) => self.out.extend_from_slice(b": keep-alive\n\n"),
                Ok(event) => over = self.event(event),
            }
            for _ in 1..AT_ONCE {
                if over {
                    break;
                }
                let Some(event) = self.asking.next().now_or_never() else { break };
                over = self.event(event);
            }
            if self.out.is_empty() && !over {
                // Nothing that can be shown: an empty piece of a body is none.
                return Some((Ok(Bytes::new()), Some(self)));
            }
        } else {
            self.begun = true;
            self.begin();
        }
        let bytes = Bytes::from(std::mem::take(&mut self.out));
        Some((Ok(bytes), (!over).then_some(self)))
    }

    /// What comes before all text.
    fn begin(&mut self) {
        // Something goes out at once, whatever there is to say.
        self.out.extend_from_slice(b": quelea\n\n");
        for index in 0..self.asking.len() {
            match self.about.kind {
                Kind::Chat => {
                    let delta = Delta { role: Some("assistant"), content: Some(""), tool_calls: None };
                    self.chunk(Choice { index, delta: Some(delta), ..Choice::default() });
                }
                Kind::Text => {
                    let Some(echo) = self.about.echo.get(index).cloned() else { continue };
                    self.chunk(Choice { index, text: Some(&echo), ..Choice::default() });
                }
            }
        }
    }

    /// Writes what an event has to say; whether it was the last.
    fn event(&mut self, event: Option<(usize, InferEvent)>) -> bool {
        match event {
            Some((index, InferEvent::Text { text, logprobs, .. })) => {
                let told = self.pieces.get_mut(index).map(|pieces| pieces.push(&text, logprobs.map(|token| *token)));
                match self.readers.get_mut(index).and_then(Option::as_mut).map(|reader| reader.push(&text)) {
                    Some(pieces) => self.pieces(index, pieces),
                    None => self.piece(index, &text, &told.unwrap_or_default(), None),
                }
                false
            }
            Some((index, InferEvent::Done { summary })) => {
                let stopped = summary.stop_string.is_some();
                let rest = self.pieces.get_mut(index).map(|pieces| pieces.end(stopped)).unwrap_or_default();
                self.piece(index, "", &rest, None);
                let mut reason = finish_reason(summary.finish_reason);
                if let Some(reader) = self.readers.get_mut(index).and_then(Option::as_mut) {
                    let (pieces, calls) = (reader.end(), reader.calls());
                    self.pieces(index, pieces);
                    if calls > 0 {
                        reason = "tool_calls";
                    }
                }
                self.piece(index, "", &[], Some(reason));
                if let Some(place) = self.summaries.get_mut(index) {
                    *place = Some(*summary);
                }
                false
            }
            Some((_, InferEvent::Error { error })) => {
                let error = json!({ "error": ApiError::from(&error).to_json() });
                self.data(&error);
                true
            }
            Some(_) => false,
            None => {
                self.end();
                true
            }
        }
    }

    /// What comes after all text.
    fn end(&mut self) {
        let summaries: Vec<Summary> = std::mem::take(&mut self.summaries).into_iter().flatten().collect();
        if self.include_usage {
            let usage = Some(usage(&summaries, self.about.n));
            self.write(&[], usage);
        }
        // For people and programs that read comments: what headers cannot say before the first token.
        let receipts: Vec<&str> = summaries.iter().filter_map(|summary| summary.receipt.as_deref()).collect();
        let mut after = json!({ "x-quelea-cost": cost(&summaries), "server-timing": timing(&summaries) });
        if !receipts.is_empty() {
            after["x-quelea-receipt"] = json!(receipts);
        }
        self.out.extend_from_slice(format!(": {after}\n\ndata: [DONE]\n\n").as_bytes());
    }

    /// A piece of a choice's text.
    fn piece(&mut self, index: usize, text: &str, tokens: &[TokenLogprobs], finish_reason: Option<&'static str>) {
        if text.is_empty() && tokens.is_empty() && finish_reason.is_none() {
            return;
        }
        let logprobs = (self.about.logprobs && finish_reason.is_none()).then(|| match self.about.kind {
            Kind::Chat => chat_logprobs(tokens),
            Kind::Text => text_logprobs(tokens, self.offsets.get_mut(index).unwrap_or(&mut 0)),
        });
        let content = finish_reason.is_none().then_some(text);
        let choice = match self.about.kind {
            Kind::Chat => Choice { delta: Some(Delta { content, ..Delta::default() }), ..Choice::default() },
            Kind::Text => Choice { text: Some(text), ..Choice::default() },
        };
        self.chunk(Choice { index, logprobs, finish_reason, ..choice });
    }

    /// Text, and calls: each first with its name, then with its arguments.
    fn pieces(&mut self, index: usize, pieces: Vec<Piece>) {
        for piece in pieces {
            let (name, arguments) = match piece {
                Piece::Text(text) => {
                    self.piece(index, &text, &[], None);
                    continue;
                }
                Piece::Call { name, arguments } => (name, arguments),
            };
            let at = self.called.get_mut(index).map_or(0, |count| std::mem::replace(count, *count + 1));
            let first = json!({
                "index": at,
                "id": crate::api::request_id::made("call_"),
                "type": "function",
                "function": { "name": name, "arguments": "" },
            });
            for call in [first, json!({ "index": at, "function": { "arguments": arguments } })] {
                let delta = Delta { tool_calls: Some([call]), ..Delta::default() };
                self.chunk(Choice { index, delta: Some(delta), ..Choice::default() });
            }
        }
    }

    fn chunk(&mut self, choice: Choice<'_>) {
        let usage = self.include_usage.then_some(Value::Null);
        self.write(&[choice], usage);
    }

    fn write(&mut self, choices: &[Choice<'_>], usage: Option<Value>) {
        let mut out = std::mem::take(&mut self.out);
        let About { kind, id, created, model, fingerprint, .. } = &self.about;
        let chunk = Chunk {
            id,
            object: kind.chunk(),
            created: *created,
            model,
            system_fingerprint: fingerprint,
            choices,
            usage,
        };
        data(&mut out, &chunk);
        self.out = out;
    }

    fn data(&mut self, value: &Value) {
        data(&mut self.out, value);
    }
}

/// One event. JSON has no line breaks of its own.
fn data(out: &mut Vec<u8>, value: &impl Serialize) {
    let begin = out.len();
    out.extend_from_slice(b"data: ");
    if serde_json::to_writer(&mut *out, value).is_ok() {
        out.extend_from_slice(b"\n\n");
    } else {
        // Nothing of it is not JSON; half of it would spoil the next.
        out.truncate(begin);
    }
}

impl About {
    pub(super) fn new(kind: Kind, model: String, id: &str, n: usize, logprobs: bool) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        Self {
            kind,
            id: crate::api::request_id::made(kind.prefix()),
            created: now.map_or(0, |now| now.as_secs()),
            model,
            fingerprint: fingerprint(id),
            n,
            logprobs,
            echo: Vec::new(),
            calls: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use quelea_wire::ErrorCode;
    use tokio::sync::mpsc;

    use super::*;
    use crate::inference::InferError;

    fn sse(choices: Vec<mpsc::Receiver<InferEvent>>) -> Sse {
        let about = About::new(Kind::Chat, "m".into(), "0123456789abcdef", 1, false);
        Sse::new(about, Asking::of(choices), false, Duration::from_millis(20))
    }

    async fn next(sse: Sse) -> (String, Option<Sse>) {
        let (bytes, rest) = sse.next().await.unwrap();
        (String::from_utf8(bytes.unwrap().to_vec()).unwrap(), rest)
    }

    fn text(text: &str) -> InferEvent {
        InferEvent::Text { text: text.into(), id: 1, logprobs: None }
    }

    #[tokio::test]
    async fn silence_is_filled_with_comments() {
        let (events, receiver) = mpsc::channel(8);
        let (begin, rest) = next(sse(vec![receiver])).await;
        assert!(begin.starts_with(": quelea\n\ndata: {") && begin.contains("\"role\":\"assistant\""), "{begin}");
        let (ping, rest) = next(rest.unwrap()).await;
        assert_eq!(ping, ": keep-alive\n\n");
        events.send(text("Hi")).await.unwrap();
        let (said, _rest) = next(rest.unwrap()).await;
        assert!(said.contains("{\"content\":\"Hi\"}"), "{said}");
    }

    #[tokio::test]
    async fn an_error_is_the_last_word() {
        let (events, receiver) = mpsc::channel(8);
        let (_other, silent) = mpsc::channel(8);
        events.send(text("Hi")).await.unwrap();
        let error = InferError::new(ErrorCode::HopLost, "peer x is lost");
        events.send(InferEvent::Error { error }).await.unwrap();
        let (_, rest) = next(sse(vec![receiver, silent])).await;
        let (said, rest) = next(rest.unwrap()).await;
        let lines: Vec<&str> = said.split_terminator("\n\n").collect();
        let [hi, error] = lines.as_slice() else { panic!("{said}") };
        assert!(hi.contains("Hi") && error.starts_with("data: {\"error\":{\"message\":\"peer x is lost\""), "{said}");
        assert!(rest.is_none() && !said.contains("DONE") && !said.contains("\"stop\""), "{said}");
    }

    #[tokio::test]
    async fn choices_take_turns() {
        let (channels, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(8)).unzip();
        for channel in &channels {
            for said in ["a", "b"] {
                channel.send(text(said)).await.unwrap();
            }
        }
        let mut asking = Asking::of(receivers);
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push(asking.next().await.unwrap().0);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
        drop(channels);
        // Who ends without a word has failed.
        assert!(matches!(asking.next().await, Some((_, InferEvent::Error { .. }))));
    }
}
