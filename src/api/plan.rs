//! `POST /api/v1/plan`: what a request would be answered by, and why.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{ApiState, parse, refuse, shape::Failure};
use crate::inference::{PlanRequest, planner::PlanReport};

#[derive(utoipa::OpenApi)]
#[openapi(paths(plan))]
pub(super) struct Described;

/// What a request would be answered by, and why.
#[utoipa::path(
    post, path = "/api/v1/plan",
    request_body = PlanRequest,
    responses((status = 200, body = PlanReport), (status = 404, body = Failure, description = "there is none"))
)]
pub(super) async fn plan(State(state): State<ApiState>, body: Bytes) -> Response {
    let request: PlanRequest = match parse(&body) {
        Ok(request) => request,
        Err(error) => return refuse(&error),
    };
    match state.asker.plan(&request).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refuse(&error),
    }
}
