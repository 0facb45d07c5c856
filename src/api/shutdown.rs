//! `POST /api/v1/shutdown`: the daemon ends as on SIGTERM. `grace_ms` is what is under way has, 20 seconds unless said
//! otherwise.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{ApiState, parse, refuse, shape::answers};
use crate::node::GRACE;

/// The longest that somebody may have a draining node wait.
const GRACE_MAX: Duration = Duration::from_secs(3600);

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ShutdownRequest)]
struct Wanted {
    #[serde(default)]
    grace_ms: Option<u64>,
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(shutdown))]
pub(super) struct Described;

answers! {
    /// How long what is under way has.
    Shutdown = "quelea.shutdown/v1" { grace_s: f64, }
}

/// Ends the node, as SIGTERM does.
#[utoipa::path(post, path = "/api/v1/shutdown", request_body = Wanted, responses((status = 200, body = Shutdown)))]
pub(super) async fn shutdown(State(state): State<ApiState>, body: Bytes) -> Response {
    let Wanted { grace_ms } = match parse(&body) {
        Ok(wanted) => wanted,
        Err(error) => return refuse(&error),
    };
    let grace = grace_ms.map_or(GRACE, Duration::from_millis).min(GRACE_MAX);
    tracing::info!(grace_s = grace.as_secs_f64(), "told to stop over the API");
    state.telemetry.health.ask_to_stop(grace);
    Json(json!({ "schema": "quelea.shutdown/v1", "grace_s": grace.as_secs_f64() })).into_response()
}
