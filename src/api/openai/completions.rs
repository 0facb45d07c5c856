//! `POST /v1/completions`.

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
    response::Response,
};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    ApiError, ApiState,
    asking::{Common, MAX_CHOICES, OpenAiSampling},
    begun,
    chat::{MAX_TOP, OpenAiUsage, answer},
    fields::Fields,
    models,
    stream::{About, Kind},
};
use crate::{
    api::shape::answers,
    inference::{InferRequest, PromptForm},
};

/// Tokens of an answer unless the request says how many, as OpenAI has it.
const MAX_TOKENS: u32 = 16;

/// A prompt or another input: text, or token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// What a completion is asked. Fields that are not named are ignored.
#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiCompletionRequest {
    /// One of `/v1/models`.
    model: String,
    prompt: OpenAiInput,
    /// 16 unless said.
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// Whether the prompt is given back before the answer; not with `logprobs`.
    echo: Option<bool>,
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<u32>,
    #[serde(flatten)]
    drawn: OpenAiSampling,
}

/// A text, texts, token ids, or lists of those; none of them empty.
#[derive(serde::Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read field by field")]
pub(super) enum OpenAiInput {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

answers! {
    OpenAiCompletion {
        id: String, object: String, created: u64, model: String, system_fingerprint: String, choices: Vec<OpenAiText>,
        usage: OpenAiUsage,
    }

    OpenAiText { index: u32, text: String, finish_reason: String, logprobs: Option<Value>, }
}

/// The text after a prompt, or after each of some.
#[utoipa::path(
    post, path = "/v1/completions", request_body = OpenAiCompletionRequest,
    responses((status = 200, content((OpenAiCompletion = "application/json"), (String = "text/event-stream"))))
)]
pub(super) async fn completions(
    State(state): State<ApiState>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (wishes, mut fields, model) = begun(&state, &headers, bytes)?;
    let prompts = inputs(&mut fields, "prompt", MAX_CHOICES)?;
    if fields.take("suffix").is_some_and(|suffix| suffix != "") {
        return Err(ApiError::unsupported("suffix", "suffix is not supported: models here write what follows a text"));
    }
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = fields.whole("logprobs", 0..=MAX_TOP)?.map(|top| usize::try_from(top).unwrap_or(0));
    if echo && logprobs.is_some() {
        let message = "logprobs with echo is not supported: a prompt's own tokens have no log-probabilities here";
        return Err(ApiError::unsupported("logprobs", message));
    }
    let max_tokens = fields.whole("max_tokens", 1..=u32::MAX)?.unwrap_or(MAX_TOKENS);
    let best_of = fields.whole("best_of", 1..=u32::MAX)?;
    let common = Common::read(&mut fields, wishes, String::new())?;
    if best_of.is_some_and(|best| usize::try_from(best) != Ok(common.n)) {
        return Err(ApiError::unsupported("best_of", "best_of is not supported: all that is written is given"));
    }
    let count = prompts.len().saturating_mul(common.n);
    if count > MAX_CHOICES {
        let message = format!("n times the prompts is {count}, at most {MAX_CHOICES} are answered at once");
        return Err(ApiError::field("n", message));
    }
    let asked = models::open(&state, &model).await?;
    let form = PromptForm::Raw;
    let infer = InferRequest { model: asked.reference, form, max_tokens, logprobs, ..common.infer };
    let common = Common { infer, ..common };
    let mut about = About::new(Kind::Text, model, &asked.id, common.n, logprobs.is_some());
    let mut requests = Vec::with_capacity(count);
    for prompt in &prompts {
        for k in 0..common.n {
            requests.push(match prompt {
                Input::Text(text) => InferRequest { prompt: text.clone(), ..common.choice(k) },
                Input::Tokens(ids) => InferRequest { prompt_ids: ids.clone(), ..common.choice(k) },
            });
            if echo {
                about.echo.push(match prompt {
                    Input::Text(text) => text.clone(),
                    Input::Tokens(ids) => asked.ends.tokenizer.decode(ids),
                });
            }
        }
    }
    answer(&state, about, requests, &common).await
}

/// Inputs: a text, texts, token ids, or lists of those; none of them empty.
pub(super) fn inputs(fields: &mut Fields, name: &str, most: usize) -> Result<Vec<Input>, ApiError> {
    let wrong = || {
        let message =
            format!("{name} has to be a text, token ids, or an array of at most {most} of either, none empty");
        ApiError::field(name, message)
    };
    let all = match fields.take(name).ok_or_else(wrong)? {
        Value::String(text) => vec![Input::Text(text)],
        Value::Array(all) if all.first().is_some_and(Value::is_number) => {
            vec![Input::Tokens(tokens(&all).ok_or_else(wrong)?)]
        }
        Value::Array(all) if all.len() <= most => {
            let one = |value: &Value| match value {
                Value::String(text) => Some(Input::Text(text.clone())),
                Value::Array(ids) => tokens(ids).map(Input::Tokens),
                _ => None,
            };
            all.iter().map(one).collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    let empty = |input: &Input| match input {
        Input::Text(text) => text.is_empty(),
        Input::Tokens(ids) => ids.is_empty(),
    };
    if all.is_empty() || all.iter().any(empty) { Err(wrong()) } else { Ok(all) }
}

fn tokens(values: &[Value]) -> Option<Vec<u32>> {
    values.iter().map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn inputs_are_texts_or_tokens() {
        let read = |input: Value| {
            let body = json!({ "input": input }).to_string();
            inputs(&mut Fields::parse(body.as_bytes()).unwrap(), "input", 3).ok()
        };
        let text = |text: &str| Input::Text(text.into());
        assert_eq!(read(json!("a")), Some(vec![text("a")]));
        assert_eq!(read(json!(["a", "b"])), Some(vec![text("a"), text("b")]));
        assert_eq!(read(json!([1, 2, 3, 4])), Some(vec![Input::Tokens(vec![1, 2, 3, 4])]));
        assert_eq!(read(json!([[1], [2, 3]])), Some(vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]));
        for wrong in [
            json!(""),
            json!([]),
            json!([""]),
            json!([[]]),
            json!([1, "a"]),
            json!([-1]),
            json!(["a", "b", "c", "d"]),
            json!(3),
        ] {
            assert_eq!(read(wrong.clone()), None, "{wrong}");
        }
    }
}
