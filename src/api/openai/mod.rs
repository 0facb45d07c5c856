//! The OpenAI API: what people's clients speak already, answered by this node's requests for text.
//!
//! | route | answers |
//! |---|---|
//! | `GET /v1/models`, `/v1/models/{id}` | what can be asked now; `?all=true`: also what is known and cannot be |
//! | `POST /v1/chat/completions` | a conversation's next message, at once or as it comes |
//! | `POST /v1/completions` | the text after a prompt, or after each of some |
//! | `POST /v1/embeddings` | what a model makes of texts, as vectors |
//!
//! | file | holds |
//! |---|---|
//! | [`error`] | errors in OpenAI's shape, with what a client is to do about them |
//! | [`fields`] | reading requests: what is known has to be right, what is unknown is ignored |
//! | [`chat`], [`completions`], [`embeddings`], [`models`] | the routes |
//! | [`asking`] | choices under way: from requests to events |
//! | [`answer`] | an answer's pieces, whatever object they become |
//! | [`stream`] | server-sent events |
//! | [`tools`] | calls of tools, in the words of the models' families |
//! | [`repeats`] | requests with an `Idempotency-Key` |
//!
//! What differs from OpenAI's own, and the headers with `x-quelea-`, are in `docs/openai.md`.

mod answer;
mod asking;
mod chat;
mod completions;
mod embeddings;
mod error;
mod fields;
mod models;
mod repeats;
mod stream;
mod tools;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use quelea_wire::TraceParent;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) use self::error::{ApiError, OpenAiFailure};
use super::{ApiState, trace_of};
use crate::{
    inference::{InferError, discover},
    swarm::Handle,
};

#[derive(utoipa::OpenApi)]
#[openapi(paths(chat::chat, completions::completions, embeddings::embeddings, models::list, models::one))]
pub(super) struct Described;

/// Answers under way at once, each choice of a request counted. Each holds a few kilobytes and a session at every stage.
const MAX_ANSWERS: usize = 128;

/// Peers that are asked what they serve before models are listed, how often at most, and for how long their answers are waited
/// for.
const MAX_ASKED: usize = 64;
const ASKED_EVERY: Duration = Duration::from_secs(5);
const ASKED_FOR: Duration = Duration::from_millis(1500);

/// Longest error of what stands before the routes.
const MAX_ERROR: usize = 64 << 10;

/// What the routes share, whoever listens.
pub(super) struct OpenAi {
    places: Arc<Semaphore>,
    /// Since when this process serves, in Unix seconds: when models were made is not known.
    since: u64,
    /// Answers to requests with an `Idempotency-Key`.
    repeats: repeats::Repeats,
    /// When peers were asked last what they serve.
    asked_around: tokio::sync::Mutex<Option<Instant>>,
}

impl OpenAi {
    pub(super) fn new() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let places = Arc::new(Semaphore::new(MAX_ANSWERS));
        Self { places, since, repeats: repeats::Repeats::default(), asked_around: tokio::sync::Mutex::default() }
    }

    /// Has the peers around say what they serve, unless they have just been asked. Who comes meanwhile waits for the same.
    async fn ask_around(&self, handle: &Handle) {
        let mut asked = self.asked_around.lock().await;
        if asked.is_none_or(|at| at.elapsed() >= ASKED_EVERY) {
            discover::ask_around(handle, MAX_ASKED, ASKED_FOR).await;
            *asked = Some(Instant::now());
        }
    }

    /// Places for so many answers, unless too many are under way.
    fn places(&self, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.places.clone().try_acquire_many_owned(count).map_err(|_| ApiError::busy(MAX_ANSWERS))
    }
}

/// Whether a path is one of these routes, whose errors have OpenAI's shape.
fn owns(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Errors of what stands before the routes, such as a wrong token, in OpenAI's shape.
pub(super) async fn shape(request: Request, next: Next) -> Response {
    if !owns(request.uri().path()) {
        return next.run(request).await;
    }
    let response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || response.extensions().get::<error::Shaped>().is_some()
    {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, MAX_ERROR).await.unwrap_or_default();
    let error = serde_json::from_slice(&body).ok().and_then(|mut body: serde_json::Value| {
        serde_json::from_value::<InferError>(body.get_mut("error")?.take()).ok()
    });
    let error = match error {
        Some(error) => ApiError::from(&error),
        None => ApiError::invalid(String::from_utf8_lossy(&body).into_owned()),
    };
    let shaped = error.with_status(status).into_response();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(shaped.headers().clone());
    Response::from_parts(parts, shaped.into_body())
}

pub(super) fn routes(state: &ApiState) -> Router<ApiState> {
    let once = middleware::from_fn_with_state(state.clone(), repeats::once);
    let asked = Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .layer(once);
    Router::new()
        .merge(asked)
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1", get(nothing))
        .route("/v1/{*rest}", get(nothing).post(nothing).put(nothing).patch(nothing).delete(nothing))
        .method_not_allowed_fallback(wrong_method)
}

async fn nothing(request: Request) -> ApiError {
    ApiError::not_found(format!("there is no {} {}", request.method(), request.uri().path()))
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::invalid(message).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

/// A body, or why there is none.
fn body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| {
        let status = rejection.status();
        ApiError::invalid(rejection.body_text()).with_status(status)
    })
}

/// No new work is taken while the node stops.
fn open_for_work(state: &ApiState) -> Result<(), ApiError> {
    if state.telemetry.health.report().draining {
        let code = quelea_wire::ErrorCode::ShuttingDown;
        return Err(ApiError::from(&InferError::new(code, code.meaning())));
    }
    Ok(())
}

/// What every request for work begins with: its headers' wishes, its body's fields, and the model that it names.
fn begun(
    state: &ApiState,
    headers: &HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<(Wishes, fields::Fields, String), ApiError> {
    open_for_work(state)?;
    let wishes = Wishes::of(headers)?;
    let mut fields = fields::Fields::parse(&body(bytes)?)?;
    let model = fields.model()?;
    Ok((wishes, fields, model))
}

/// What a request's headers ask for, besides what its body does.
#[derive(Debug, Clone, Copy, Default)]
struct Wishes {
    /// The most that it may cost, in micro-credits.
    max_price: Option<u64>,
    /// Whether a receipt is wanted.
    receipt: bool,
    /// The caller's own span, of which the answer is a part.
    trace: Option<TraceParent>,
}

impl Wishes {
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
        let max_price = text("x-quelea-max-price").map(|price| {
            let price: Option<quelea_wire::Credits> = price.parse().ok();
            price.map(|price| price.0).ok_or_else(|| {
                ApiError::invalid("the header x-quelea-max-price has to be an amount of credits, such as 0.25")
            })
        });
        let receipt = matches!(text("x-quelea-receipt"), Some("1" | "true"));
        Ok(Self { max_price: max_price.transpose()?, receipt, trace: trace_of(headers) })
    }
}
