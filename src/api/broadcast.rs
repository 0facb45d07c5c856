//! `POST /api/v1/broadcast`: says a line to every node of the network.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::json;

use super::{ApiState, failure, status_of};
use crate::{inference::InferError, swarm::BroadcastError};

#[derive(Deserialize)]
struct Said {
    text: String,
}

pub(super) async fn broadcast(State(state): State<ApiState>, body: Bytes) -> Response {
    let said: Said = match serde_json::from_slice(&body) {
        Ok(said) => said,
        Err(error) => {
            let error = InferError::new(ErrorCode::Usage, format!("the request is not understood: {error}"));
            return failure(StatusCode::BAD_REQUEST, &error);
        }
    };
    match state.asker.plane.handle.broadcast(said.text).await {
        Ok(id) => Json(json!({ "schema": "quelea.broadcast/v1", "id": id })).into_response(),
        Err(error) => {
            let error = told(&error);
            failure(status_of(error.error_code()), &error)
        }
    }
}

fn told(error: &BroadcastError) -> InferError {
    let message = error.to_string();
    match error {
        BroadcastError::Line(_) => InferError::new(ErrorCode::Usage, message),
        BroadcastError::Nobody => InferError::new(ErrorCode::NotConnected, message)
            .hint("wait until peers are connected ('quelea status'), or start the daemon with --bootstrap"),
        BroadcastError::Busy => InferError::new(ErrorCode::Overloaded, message),
        BroadcastError::Refused(_) => InferError::new(ErrorCode::Internal, message),
        BroadcastError::Stopped => InferError::new(ErrorCode::ShuttingDown, message),
    }
}
