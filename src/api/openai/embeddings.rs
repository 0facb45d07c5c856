//! `POST /v1/embeddings`.

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    ApiError, ApiState,
    asking::{last_headers, route_header},
    begun,
    chat::OpenAiUsage,
    completions::{Input, OpenAiInput, inputs},
    models,
};
use crate::{
    api::shape::answers,
    inference::{InferRequest, PromptForm},
};

/// Most inputs of one request.
const MAX_INPUTS: usize = 256;

/// Inputs of one request that are computed at once: enough to keep a chain busy.
const AT_ONCE: usize = 4;

/// What is to be embedded. Fields that are not named are ignored.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiEmbeddingRequest {
    /// One of `/v1/models`.
    model: String,
    input: OpenAiInput,
    /// `float` or `base64`: little-endian f32.
    encoding_format: Option<OpenAiEncoding>,
    /// Nothing but the model's own width.
    dimensions: Option<u32>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes what is read field by field")]
enum OpenAiEncoding {
    Float,
    Base64,
}

#[derive(serde::Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what json! makes")]
enum OpenAiVector {
    Floats(Vec<f32>),
    Base64(String),
}

answers! {
    OpenAiEmbeddings { object: String, data: Vec<OpenAiEmbedding>, model: String, usage: OpenAiUsage, }
    OpenAiEmbedding { object: String, index: u32, embedding: OpenAiVector, }
}

/// What a model makes of texts, as vectors.
#[utoipa::path(
    post, path = "/v1/embeddings", request_body = OpenAiEmbeddingRequest, responses((status = 200, body = OpenAiEmbeddings))
)]
pub(super) async fn embeddings(
    State(state): State<ApiState>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (wishes, mut fields, model) = begun(&state, &headers, bytes)?;
    let inputs = inputs(&mut fields, "input", MAX_INPUTS)?;
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "encoding_format has to be float or base64")),
    };
    let asked = models::open(&state, &model).await?;
    let width = u32::try_from(asked.ends.hparams.hidden).unwrap_or(u32::MAX);
    if fields.whole("dimensions", 1..=u32::MAX)?.is_some_and(|dimensions| dimensions != width) {
        let message = format!("dimensions is not supported: this model's vectors have {width}");
        return Err(ApiError::unsupported("dimensions", message));
    }
    let base = InferRequest {
        form: PromptForm::Raw,
        max_tokens: 1,
        max_price: wishes.max_price,
        receipt: wishes.receipt,
        trace: wishes.trace,
        ..InferRequest::new(asked.reference, "")
    };
    let at_once = inputs.len().min(AT_ONCE);
    let _places = state.openai.places(at_once)?;
    let requests = inputs.into_iter().map(|input| match input {
        Input::Text(text) => InferRequest { prompt: text, ..base.clone() },
        Input::Tokens(ids) => InferRequest { prompt_ids: ids, ..base.clone() },
    });
    let asker = &state.asker;
    let embedded: Vec<_> = stream::iter(requests)
        .map(|request| async move { asker.embed(&request).await })
        .buffered(at_once)
        .try_collect()
        .await
        .map_err(|error| ApiError::from(&error))?;
    let vector = |vector: &[f32]| {
        if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Value::from(data_encoding::BASE64.encode(&bytes))
        } else {
            json!(vector)
        }
    };
    let data: Vec<Value> = embedded
        .iter()
        .enumerate()
        .map(|(index, one)| json!({ "object": "embedding", "index": index, "embedding": vector(&one.vector) }))
        .collect();
    let tokens: usize = embedded.iter().map(|one| one.summary.prompt_ids.len()).sum();
    let mut headers = HeaderMap::new();
    route_header(&mut headers, embedded.iter().map(|one| one.route.as_slice()));
    let summaries: Vec<_> = embedded.into_iter().map(|one| one.summary).collect();
    last_headers(&mut headers, &summaries);
    let body = json!({
        "object": "list",
        "data": data,
        "model": model,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok((headers, Json(body)).into_response())
}
