//! `POST /api/v1/broadcast`: says a line to every node of the network.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse as _, Response},
};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{ApiState, parse, refuse, shape::answers};
use crate::{inference::InferError, swarm::BroadcastError};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BroadcastRequest)]
struct Said {
    text: String,
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(broadcast))]
pub(super) struct Described;

answers! {
    /// The message's id.
    Broadcast = "quelea.broadcast/v1" { id: String, }
}

/// Says a line to every node of the network.
#[utoipa::path(post, path = "/api/v1/broadcast", request_body = Said, responses((status = 200, body = Broadcast)))]
pub(super) async fn broadcast(State(state): State<ApiState>, body: Bytes) -> Response {
    let said: Said = match parse(&body) {
        Ok(said) => said,
        Err(error) => return refuse(&error),
    };
    match state.asker.plane.handle.broadcast(said.text).await {
        Ok(id) => Json(json!({ "schema": "quelea.broadcast/v1", "id": id })).into_response(),
        Err(error) => refuse(&told(&error)),
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
