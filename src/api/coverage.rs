//! `GET /api/v1/coverage?model=REF`: who holds which layers of a model.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use quelea_wire::ErrorCode;
use serde::Deserialize;

use super::{ApiState, refuse, shape::Failure};
use crate::inference::{CoverageReport, InferError};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// `demo`, a file of this machine, or a model id.
    model: String,
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(coverage))]
pub(super) struct Described;

/// Who holds which layers of a model.
#[utoipa::path(
    get, path = "/api/v1/coverage",
    params(Asked),
    responses((status = 200, body = CoverageReport), (status = 404, body = Failure, description = "there is none"))
)]
pub(super) async fn coverage(State(state): State<ApiState>, asked: Result<Query<Asked>, QueryRejection>) -> Response {
    let Query(asked) = match asked {
        Ok(asked) => asked,
        Err(error) => return refuse(&InferError::new(ErrorCode::Usage, error.body_text())),
    };
    match state.asker.coverage(&asked.model).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refuse(&error),
    }
}
