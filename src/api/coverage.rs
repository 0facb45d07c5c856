//! `GET /api/v1/coverage?model=REF`: who holds which layers of a model.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use quelea_wire::ErrorCode;
use serde::Deserialize;

use super::{ApiState, refuse};
use crate::inference::InferError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// `demo`, a file of this machine, or a model id.
    model: String,
}

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
