//! The newest traces of this node's own requests: `GET /api/v1/traces`, `GET /api/v1/traces/{id}`.
//!
//! They are in memory, whether a collector gets them or not, and hold neither prompts nor answers.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    ApiState, failure,
    shape::{self, Failure, List, answers},
};
use crate::{
    inference::InferError,
    telemetry::traces::{TraceSpan, TraceSummary},
};

#[derive(utoipa::OpenApi)]
#[openapi(paths(list, one))]
pub(super) struct Described;

answers! {
    /// A trace, its spans in the order of their beginnings.
    Trace = "quelea.trace/v1" { trace_id: String, spans: Vec<TraceSpan>, }
}

/// The newest requests of this node, and how long they took.
#[utoipa::path(get, path = "/api/v1/traces", responses((status = 200, body = List<TraceSummary>)))]
pub(super) async fn list(State(state): State<ApiState>) -> Json<Value> {
    let traces = state.telemetry.traces.recent();
    Json(shape::list("quelea.traces/v1", traces.iter().map(|trace| json!(trace)).collect()))
}

/// Where the time of a request went.
#[utoipa::path(
    get, path = "/api/v1/traces/{id}",
    params(("id" = String, Path, description = "32 hex digits")),
    responses((status = 200, body = Trace), (status = 404, body = Failure, description = "it is not kept"))
)]
pub(super) async fn one(State(state): State<ApiState>, Path(id): Path<String>) -> Response {
    match state.telemetry.traces.spans(&id) {
        Some(spans) => Json(json!({ "schema": "quelea.trace/v1", "trace_id": id, "spans": spans })).into_response(),
        None => {
            let error = InferError::new(ErrorCode::Usage, "no such trace is kept")
                .hint("the newest are, of requests that have ended: 'quelea trace ls'");
            failure(StatusCode::NOT_FOUND, &error)
        }
    }
}
