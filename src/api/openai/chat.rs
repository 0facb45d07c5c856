//! `POST /v1/chat/completions`.

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    ApiError, ApiState,
    answer::{Pieces, chat_logprobs, finish_reason, usage},
    asking::{Asking, Common, OpenAiSampling, last_headers},
    begun,
    fields::Fields,
    models,
    stream::{self, About, KEEP_ALIVE, Kind},
    tools::{Calls, Piece, Tools},
};
use crate::api::shape::answers;
use crate::inference::{Format, InferError, InferEvent, InferRequest, Summary, TokenLogprobs};

/// Tokens of an answer unless the request says how many; fewer where the model's context is full before.
const MAX_TOKENS: u32 = 4096;

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// Most alternatives that can be asked for with a token.
pub(super) const MAX_TOP: u32 = 20;

/// Fields that would change what is answered.
const UNSUPPORTED: [(&str, &str); 5] = [
    ("audio", "models here write text only"),
    ("functions", "functions are called as tools: use tools"),
    ("function_call", "functions are called as tools: use tool_choice"),
    ("web_search_options", "models here search nothing"),
    ("prediction", "what an answer may be like is guessed here by other means"),
];

/// What a chat is asked. Fields that are not named are ignored.
#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiChatRequest {
    /// One of `/v1/models`.
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<OpenAiMessage>,
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    logprobs: Option<bool>,
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    /// `{"type": "text"}`, `json_object`, or `json_schema` with a schema.
    response_format: Option<OpenAiFormat>,
    /// Functions, where the model's chat template has a place for them.
    tools: Option<Vec<OpenAiTool>>,
    /// `none`, `auto`, `required`, or a function.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// Variables of the chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Value>,
    #[serde(flatten)]
    drawn: OpenAiSampling,
}

#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiMessage {
    role: OpenAiRole,
    /// A text, or parts of type `text`.
    content: Option<Value>,
    tool_call_id: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

#[derive(serde::Deserialize, ToSchema)]
#[schema(rename_all = "lowercase")]
enum OpenAiRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiFormat {
    r#type: String,
    json_schema: Option<Value>,
}

#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiTool {
    r#type: String,
    function: OpenAiFunction,
}

#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiFunction {
    name: String,
    description: Option<String>,
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

answers! {
    OpenAiChat {
        id: String, object: String, created: u64, model: String, system_fingerprint: String, choices: Vec<OpenAiChoice>,
        usage: OpenAiUsage,
    }

    OpenAiChoice {
        index: u32, message: OpenAiAnswer, finish_reason: String, logprobs: Option<Value>,
    }

    OpenAiAnswer { role: String, content: Option<String>, ; refusal: Option<String>, tool_calls: Vec<Value>, }

    OpenAiUsage {
        prompt_tokens: u64, total_tokens: u64,
        ; completion_tokens: u64, prompt_tokens_details: OpenAiPromptTokens,
    }

    OpenAiPromptTokens { cached_tokens: u64, }
}

/// A conversation's next message, at once or as it comes.
#[utoipa::path(
    post, path = "/v1/chat/completions", request_body = OpenAiChatRequest,
    responses((status = 200, content((OpenAiChat = "application/json"), (String = "text/event-stream"))))
)]
pub(super) async fn chat(
    State(state): State<ApiState>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (wishes, mut fields, model) = begun(&state, &headers, bytes)?;
    let messages = messages(&mut fields)?;
    for (name, why) in UNSUPPORTED {
        if fields.take(name).is_some() {
            return Err(ApiError::unsupported(name, format!("{name} is not supported: {why}")));
        }
    }
    if fields.array("modalities")?.is_some_and(|all| all.iter().any(|kind| kind != "text")) {
        return Err(ApiError::unsupported("modalities", "models here write text only"));
    }
    let logprobs = logprobs(&mut fields)?;
    let max_tokens = fields.whole("max_completion_tokens", 1..=u32::MAX)?;
    let max_tokens = fields.whole("max_tokens", 1..=u32::MAX)?.or(max_tokens).unwrap_or(MAX_TOKENS);
    let mut format = response_format(&mut fields)?;
    let tools = Tools::read(&mut fields)?;
    let mut template = fields.object("chat_template_kwargs")?.unwrap_or_default();
    let common = Common::read(&mut fields, wishes, String::new())?;
    let asked = models::open(&state, &model).await?;
    let Some(chat_template) = &asked.ends.template else {
        let message = format!("the model {model:?} has no chat template: ask it by /v1/completions");
        return Err(ApiError::field("model", message).with_code("unsupported_model"));
    };
    let mut calls = None;
    if let Some(tools) = tools {
        if !chat_template.mentions("tools") {
            let message = format!("tools is not supported: the chat template of {model:?} has no place for them");
            return Err(ApiError::unsupported("tools", message));
        }
        if logprobs.is_some() {
            let message = "logprobs with tools is not supported: what is a call is not told token by token";
            return Err(ApiError::unsupported("logprobs", message));
        }
        let forced = tools.format(chat_template);
        if forced.is_some() && format.is_some() {
            return Err(ApiError::field(
                "tool_choice",
                "an answer that has to be a call cannot have a response_format",
            ));
        }
        format = format.or(forced);
        tools.put_into(&mut template);
        calls = Some(Calls::new(tools, chat_template));
    }
    let infer =
        InferRequest { model: asked.reference, messages, template, max_tokens, format, logprobs, ..common.infer };
    let common = Common { infer, ..common };
    let about = About { calls, ..About::new(Kind::Chat, model, &asked.id, common.n, logprobs.is_some()) };
    answer(&state, about, (0..common.n).map(|k| common.choice(k)).collect(), &common).await
}

/// Gives the answers to `requests`, which differ in their prompts or their seeds.
pub(super) async fn answer(
    state: &ApiState,
    about: About,
    requests: Vec<InferRequest>,
    common: &Common,
) -> Result<Response, ApiError> {
    let mut asking = Asking::begin(state, requests)?;
    if common.stream {
        asking.opened(KEEP_ALIVE).await.map_err(|error| ApiError::from(&error))?;
        return Ok(stream::respond(about, asking, common.include_usage));
    }
    let summaries = collect(&mut asking).await.map_err(|error| ApiError::from(&error))?;
    let mut headers = asking.headers();
    last_headers(&mut headers, &summaries);
    let mut offsets = about.echo.iter().map(|echo| echo.chars().count());
    let choices: Vec<Value> = summaries
        .iter()
        .enumerate()
        .map(|(index, summary)| {
            let tokens = about.logprobs.then(|| tokens_of(summary));
            let mut choice = json!({ "index": index });
            let mut reason = finish_reason(summary.finish_reason);
            match about.kind {
                Kind::Chat => {
                    let (message, called) = message(&about, &summary.text);
                    choice["message"] = message;
                    if called {
                        reason = "tool_calls";
                    }
                    choice["logprobs"] = tokens.map_or(Value::Null, |tokens| chat_logprobs(&tokens));
                }
                Kind::Text => {
                    let echo = about.echo.get(index).map(String::as_str).unwrap_or_default();
                    let mut offset = offsets.next().unwrap_or(0);
                    choice["text"] = json!(format!("{echo}{}", summary.text));
                    choice["logprobs"] =
                        tokens.map_or(Value::Null, |tokens| super::answer::text_logprobs(&tokens, &mut offset));
                }
            }
            choice["finish_reason"] = json!(reason);
            choice
        })
        .collect();
    let body = json!({
        "id": about.id,
        "object": about.kind.object(),
        "created": about.created,
        "model": about.model,
        "system_fingerprint": about.fingerprint,
        "choices": choices,
        "usage": usage(&summaries, about.n),
    });
    Ok((headers, Json(body)).into_response())
}

/// A message of the answer's text, and whether it calls tools.
fn message(about: &About, text: &str) -> (Value, bool) {
    let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
    let Some(mut reader) = about.calls.as_ref().map(Calls::reader) else { return (message, false) };
    let (mut content, mut calls) = (String::new(), Vec::new());
    for piece in reader.push(text).into_iter().chain(reader.end()) {
        match piece {
            Piece::Text(text) => content.push_str(&text),
            Piece::Call { name, arguments } => calls.push(json!({
                "id": crate::api::request_id::made("call_"),
                "type": "function",
                "function": { "name": name, "arguments": arguments },
            })),
        }
    }
    let called = !calls.is_empty();
    if called {
        message["content"] = if content.trim().is_empty() { Value::Null } else { content.into() };
        message["tool_calls"] = calls.into();
    }
    (message, called)
}

/// Waits for all answers.
async fn collect(asking: &mut Asking) -> Result<Vec<Summary>, InferError> {
    let mut summaries: Vec<Option<Summary>> = (0..asking.len()).map(|_| None).collect();
    while let Some((index, event)) = asking.next().await {
        match event {
            InferEvent::Done { summary } => {
                if let Some(place) = summaries.get_mut(index) {
                    *place = Some(*summary);
                }
            }
            InferEvent::Error { error } => {
                // Those that are cancelled now, or done, may cost something, too.
                let charged = error.charged || (asking.len() > 1 && asking.is_remote());
                return Err(InferError { charged, ..error });
            }
            _ => {}
        }
    }
    Ok(summaries.into_iter().flatten().collect())
}

/// The tokens of an answer whose text is shown.
fn tokens_of(summary: &Summary) -> Vec<TokenLogprobs> {
    let mut pieces = Pieces::default();
    let mut tokens = pieces.push(&summary.text, None);
    for token in summary.logprobs.iter().flatten() {
        tokens.extend(pieces.push("", Some(token.clone())));
    }
    tokens.extend(pieces.end(summary.stop_string.is_some()));
    tokens
}

/// How many alternatives are told with each token, if tokens are.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.whole("top_logprobs", 0..=MAX_TOP)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(ApiError::field("top_logprobs", "top_logprobs goes with logprobs: true")),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(usize::try_from(top.unwrap_or(0)).unwrap_or(0))),
    }
}

/// What the answer has to be.
fn response_format(fields: &mut Fields) -> Result<Option<Format>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let wrong = |message: &str| ApiError::field("response_format", message);
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Format::Json)),
        Some("json_schema") => {
            let schema = format.remove("json_schema").and_then(|mut named| Some(named.get_mut("schema")?.take()));
            match schema {
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(Format::Schema(schema))),
                _ => Err(wrong("response_format has to have the schema as json_schema.schema")),
            }
        }
        _ => Err(wrong("response_format.type has to be text, json_object or json_schema")),
    }
}

/// The conversation, as chat templates take it.
fn messages(fields: &mut Fields) -> Result<Vec<Map<String, Value>>, ApiError> {
    let missing = || ApiError::field("messages", "messages has to be an array of one message at least");
    let messages = fields.array("messages")?.filter(|messages| !messages.is_empty()).ok_or_else(missing)?;
    if messages.len() > MAX_MESSAGES {
        let message = format!("messages has {} messages, at most {MAX_MESSAGES} are taken", messages.len());
        return Err(ApiError::field("messages", message));
    }
    messages.into_iter().enumerate().map(|(at, message)| one_message(at, message)).collect()
}

fn one_message(at: usize, message: Value) -> Result<Map<String, Value>, ApiError> {
    let wrong = |what: &str| ApiError::field(format!("messages[{at}]"), format!("messages[{at}] {what}"));
    let Value::Object(mut message) = message else { return Err(wrong("has to be an object")) };
    let role = match message.get("role").and_then(Value::as_str) {
        // What newer clients call it; templates know the older name.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        Some(role) => return Err(wrong(&format!("has the role {role:?}, which is none"))),
        None => return Err(wrong("has no role")),
    };
    let role = json!(role);
    let content = match message.remove("content") {
        Some(Value::String(text)) => text,
        None | Some(Value::Null) if role == "assistant" => String::new(),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for part in parts {
                let kind = part.get("type").and_then(Value::as_str);
                // What an assistant said instead of an answer is what it said, too.
                let name = if kind == Some("refusal") && role == "assistant" { "refusal" } else { "text" };
                match (kind, part.get(name).and_then(Value::as_str)) {
                    (Some(kind), Some(part)) if kind == name => text.push_str(part),
                    (Some(kind), _) if kind != "text" => {
                        let message = format!("messages[{at}] has a part of type {kind:?}; models here read text only");
                        return Err(ApiError::unsupported(format!("messages[{at}].content"), message));
                    }
                    _ => return Err(wrong("has a part of content without a text")),
                }
            }
            text
        }
        _ => return Err(wrong("has to have a content that is a string or an array of parts")),
    };
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        // Clients send arguments as text, templates take them as values.
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(Ok(parsed @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str)
        {
            *arguments = parsed;
        }
    }
    message.insert("role".into(), role);
    message.insert("content".into(), content.into());
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: &Value) -> Result<Vec<Map<String, Value>>, ApiError> {
        let body = json!({ "messages": messages }).to_string();
        super::messages(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn messages_come_as_clients_write_them() {
        let given = json!([
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } },
            ] },
            { "role": "tool", "tool_call_id": "call_1", "content": "2" },
            { "role": "assistant", "content": [{ "type": "refusal", "refusal": "No." }] },
        ]);
        let messages = read(&given).unwrap();
        let of = |at: usize, name: &str| messages[at][name].clone();
        assert_eq!((of(0, "role"), of(1, "content"), of(2, "content")), ("system".into(), "ab".into(), "".into()));
        assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], json!({ "x": 1 }));
        assert_eq!((of(3, "tool_call_id"), of(4, "content")), ("call_1".into(), "No.".into()));
    }

    #[test]
    fn messages_that_are_none_are_named() {
        for (messages, param) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!([3]), "messages[0]"),
            (json!([{ "role": "user", "content": "a" }, { "content": "b" }]), "messages[1]"),
            (json!([{ "role": "robot", "content": "a" }]), "messages[0]"),
            (json!([{ "role": "user", "content": null }]), "messages[0]"),
            (json!([{ "role": "user", "content": [{ "type": "image_url" }] }]), "messages[0].content"),
            (json!([{ "role": "user", "content": [{ "type": "refusal", "refusal": "x" }] }]), "messages[0].content"),
        ] {
            let error = read(&messages).unwrap_err().to_json();
            assert_eq!(error["param"], param, "{messages}");
        }
    }

    #[test]
    fn formats_are_text_json_or_a_schema() {
        let read = |format: Value| {
            let body = json!({ "response_format": format }).to_string();
            response_format(&mut Fields::parse(body.as_bytes()).unwrap())
        };
        assert_eq!(read(json!({ "type": "text" })).unwrap(), None);
        assert_eq!(read(json!({ "type": "json_object" })).unwrap(), Some(Format::Json));
        let schema = json!({ "type": "string" });
        let named = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        assert_eq!(read(named).unwrap(), Some(Format::Schema(schema)));
        for wrong in [json!({ "type": "xml" }), json!({}), json!({ "type": "json_schema", "json_schema": {} })] {
            assert!(read(wrong).is_err());
        }
    }
}
