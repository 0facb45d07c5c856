//! Bans: `GET /api/v1/peers/bans`, `POST /api/v1/peers/ban`, `POST /api/v1/peers/unban`.

use std::time::Duration;

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use quelea_behaviours::bans::{Ban, By, Subject};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    ApiState, failure, parse, refuse,
    shape::{self, List, answers, seconds},
};
use crate::inference::InferError;

/// What `ban` is asked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BanRequest {
    /// A peer id, or a range of addresses.
    subject: String,
    /// For how many seconds.
    for_s: u64,
    /// Why.
    #[serde(default)]
    reason: String,
}

/// What `unban` is asked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UnbanRequest {
    /// A peer id, or a range of addresses.
    subject: String,
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(list, ban, unban))]
pub(super) struct Described;

answers! {
    /// A ban. `by` is `operator`, `conduct` or `fraud`; `times` counts those of this subject.
    BanItem { subject: String, since_at_s: f64, until_at_s: f64, by: String, times: u32, reason: String, }

    /// The ban as it holds.
    BanMade = "quelea.peers.ban/v1" { ban: BanItem, }

    /// Whether there was a ban.
    BanLifted = "quelea.peers.unban/v1" { subject: String, lifted: bool, }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/peers/bans", get(list))
        .route("/api/v1/peers/ban", post(ban))
        .route("/api/v1/peers/unban", post(unban))
}

fn to_json(ban: &Ban) -> Value {
    json!({
        "subject": ban.subject.to_string(),
        "since_at_s": seconds(ban.since_ms),
        "until_at_s": seconds(ban.until_ms),
        "by": match ban.by { By::Operator => "operator", By::Conduct => "conduct", By::Fraud => "fraud" },
        "times": ban.times,
        "reason": ban.reason,
    })
}

/// Who is refused.
#[utoipa::path(get, path = "/api/v1/peers/bans", responses((status = 200, body = List<BanItem>)))]
async fn list(State(state): State<ApiState>) -> Json<Value> {
    let bans = state.asker.plane.handle.bans().await;
    Json(shape::list("quelea.peers.bans/v1", bans.iter().map(to_json).collect()))
}

/// Refuses a peer or a range of addresses for some time.
#[utoipa::path(post, path = "/api/v1/peers/ban", request_body = BanRequest, responses((status = 200, body = BanMade)))]
async fn ban(State(state): State<ApiState>, body: Bytes) -> Response {
    let request: BanRequest = match parse(&body) {
        Ok(request) => request,
        Err(error) => return refuse(&error),
    };
    let subject = match subject(&request.subject) {
        Ok(subject) => subject,
        Err(refused) => return *refused,
    };
    let handle = &state.asker.plane.handle;
    if subject == Subject::Peer(handle.local()) {
        let error = InferError::new(ErrorCode::Usage, "that is this node itself");
        return failure(StatusCode::BAD_REQUEST, &error);
    }
    match handle.ban(subject, Duration::from_secs(request.for_s), request.reason).await {
        Ok(ban) => Json(json!({ "schema": "quelea.peers.ban/v1", "ban": to_json(&ban) })).into_response(),
        Err(error) => {
            let error = InferError::new(ErrorCode::Overloaded, error.to_string());
            failure(StatusCode::SERVICE_UNAVAILABLE, &error)
        }
    }
}

/// Takes a ban back.
#[utoipa::path(post, path = "/api/v1/peers/unban", request_body = UnbanRequest, responses((status = 200, body = BanLifted)))]
async fn unban(State(state): State<ApiState>, body: Bytes) -> Response {
    let request: UnbanRequest = match parse(&body) {
        Ok(request) => request,
        Err(error) => return refuse(&error),
    };
    let subject = match subject(&request.subject) {
        Ok(subject) => subject,
        Err(refused) => return *refused,
    };
    match state.asker.plane.handle.unban(subject).await {
        Some(lifted) => {
            let answer = json!({
                "schema": "quelea.peers.unban/v1", "subject": subject.to_string(), "lifted": lifted,
            });
            Json(answer).into_response()
        }
        None => {
            let error = InferError::new(ErrorCode::ShuttingDown, ErrorCode::ShuttingDown.meaning());
            failure(StatusCode::SERVICE_UNAVAILABLE, &error)
        }
    }
}

fn subject(text: &str) -> Result<Subject, Box<Response>> {
    text.parse().map_err(|error: quelea_behaviours::bans::ParseSubjectError| {
        let error = InferError::new(ErrorCode::Usage, error.to_string());
        Box::new(failure(StatusCode::BAD_REQUEST, &error))
    })
}
