//! Models on the daemon's disk and in its memory.
//!
//! | route | does |
//! |---|---|
//! | `GET /api/v1/models` | the models on disk, whole or in part |
//! | `POST /api/v1/models/pull` | `{"model", "parts"}`: pulls by id; a stream of progress, one JSON object a line, that ends with `done` or `error` |
//! | `POST /api/v1/models/rm` | `{"model"}`: removes it from the disk |
//! | `GET /api/v1/models/ps` | what is loaded |

use std::sync::atomic::Ordering;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures::stream;
use quelea_wire::{ErrorCode, ModelId, time::unix_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use utoipa::ToSchema;

use super::{
    ApiState, line, parse, refuse,
    shape::{self, Failure, List, answers},
};
use crate::{
    events::EventKind,
    inference::InferError,
    weights::{
        Parts,
        fetch::{Progress, STALL, blocking},
        store::{Kept, Store},
    },
};

/// Lines of progress that may be unread; the newest matters.
const UNREAD: usize = 4;

#[derive(utoipa::OpenApi)]
#[openapi(paths(list, pull, rm, ps))]
pub(super) struct Described;

answers! {
    /// The models on disk. `chunks_given` were given to peers since the start.
    Models = "quelea.models/v1" { generated_at: String, items: Vec<KeptModel>, chunks_given: u64, }

    /// A model on disk, whole or in part.
    KeptModel {
        model: String, name: String, architecture: String, quantisation: String, layers_total: u64,
        /// Half-open, like `0..8`.
        layers: Vec<String>,
        bytes: u64, bytes_total: u64, whole: bool, path: Option<String>, fetched_chunks: u64,
    }

    /// Layers of a model in memory.
    LoadedModel {
        model: String, name: String, layers: String, profile: String, weight_bytes: u64, kv_bytes: u64, kv_used_bytes: u64,
        sessions: u64,
    }

    ModelRemoved = "quelea.model_rm/v1" { model: String, }

    /// `type` is `progress`, and at the end `done` or `error`.
    PullLine { ; r#type: String, schema: String, progress: Progress, model: KeptModel, error: InferError, }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/models", get(list))
        .route("/api/v1/models/pull", post(pull))
        .route("/api/v1/models/rm", post(rm))
        .route("/api/v1/models/ps", get(ps))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelRequest)]
struct Wanted {
    /// Its id, of 64 hex digits.
    model: String,
    /// What of it: `all`, `ends`, `tokenizer`, `embedding`, `head`, or layers, like `0..8`. Nothing to removals.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    parts: Option<Parts>,
}

fn id_of(wanted: &Wanted) -> Result<ModelId, InferError> {
    wanted.model.parse().map_err(|_| {
        InferError::new(ErrorCode::Usage, format!("{:?} is no model id", wanted.model)).hint("an id has 64 hex digits")
    })
}

/// Gets a model, or parts of it, from peers: lines of progress, of which the last is `done` or `error`.
#[utoipa::path(
    post, path = "/api/v1/models/pull",
    request_body = Wanted,
    responses((status = 200, body = PullLine, content_type = "application/x-ndjson"))
)]
async fn pull(State(state): State<ApiState>, body: Bytes) -> Response {
    let (id, parts) = match parse::<Wanted>(&body).and_then(|wanted| Ok((id_of(&wanted)?, wanted.parts))) {
        Ok((id, parts)) => (id, parts.unwrap_or(Parts::All)),
        Err(error) => return refuse(&error),
    };
    let (lines, unread) = mpsc::channel::<Value>(UNREAD);
    let puller = state.asker.models.puller().clone();
    let events = state.telemetry.events.clone();
    tokio::spawn(async move {
        let (progress, mut seen) = watch::channel(Progress::default());
        let mut pulling = Box::pin(puller.pull(id, parts, STALL, &progress));
        let ended = loop {
            tokio::select! {
                ended = &mut pulling => break ended,
                Ok(()) = seen.changed() => {
                    let now = *seen.borrow_and_update();
                    // A reader that is slow misses some; the last line is always sent.
                    let _ = lines.try_send(json!({ "type": "progress", "progress": now }));
                }
                // Nobody waits for it any more. What has come is kept.
                () = lines.closed() => return,
            }
        };
        let now = *seen.borrow();
        let last = match ended {
            Ok(kept) => {
                events.emit(unix_ms(), EventKind::Storage { change: "pulled", model: id.to_string() });
                json!({ "type": "done", "schema": "quelea.pull/v1", "progress": now, "model": described(&kept) })
            }
            Err(error) => json!({ "type": "error", "error": error }),
        };
        let _ = lines.send(last).await;
    });
    let lines = stream::unfold(unread, |mut unread| async { Some((line(&unread.recv().await?), unread)) });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// The models on disk.
#[utoipa::path(get, path = "/api/v1/models", responses((status = 200, body = Models)))]
async fn list(State(state): State<ApiState>) -> Response {
    match kept(&state).await {
        Ok(all) => Json(all).into_response(),
        Err(error) => refuse(&error),
    }
}

/// The list of the models on disk.
pub(super) async fn kept(state: &ApiState) -> Result<Value, InferError> {
    let shelf = state.asker.models.puller().shelf.clone();
    let given = shelf.chunks_given.load(Ordering::Relaxed);
    let all = blocking(move || {
        let ids = shelf.store().map(Store::ids).unwrap_or_default();
        ids.into_iter().filter_map(|id| shelf.kept(id).ok().flatten()).map(|kept| described(&kept)).collect::<Vec<_>>()
    });
    let mut all = shape::list("quelea.models/v1", all.await?);
    all["chunks_given"] = json!(given);
    Ok(all)
}

/// Removes a model from the disk.
#[utoipa::path(
    post, path = "/api/v1/models/rm",
    request_body = Wanted,
    responses((status = 200, body = ModelRemoved), (status = 404, body = Failure, description = "there is none"))
)]
async fn rm(State(state): State<ApiState>, body: Bytes) -> Response {
    let removed = async {
        let id = id_of(&parse(&body)?)?;
        if state.asker.plane.served().iter().any(|served| served.file.id == id) {
            let message = format!("layers of model {} are served at present", id.short());
            return Err(InferError::new(ErrorCode::Usage, message).hint("stop the daemon that serves it first"));
        }
        let shelf = state.asker.models.puller().shelf.clone();
        let gone = blocking(move || {
            let gone = shelf.store()?.remove(id)?;
            shelf.forget(id);
            Ok::<_, InferError>(gone)
        });
        if gone.await?? { Ok(id) } else { Err(not_here(&id)) }
    };
    match removed.await {
        Ok(id) => {
            let kind = EventKind::Storage { change: "removed", model: id.to_string() };
            state.telemetry.events.emit(unix_ms(), kind);
            Json(json!({ "schema": "quelea.model_rm/v1", "model": id.to_string() })).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// What is loaded.
#[utoipa::path(get, path = "/api/v1/models/ps", responses((status = 200, body = List<LoadedModel>)))]
pub(super) async fn ps(State(state): State<ApiState>) -> Json<Value> {
    let items: Vec<Value> = state.asker.plane.served().iter().map(|served| {
        let load = served.runner.load();
        json!({
            "model": served.file.id.to_string(),
            "name": served.file.manifest.name,
            "layers": served.span.to_string(),
            "profile": served.profile.to_string(),
            "weight_bytes": served.runner.stage().weight_bytes(),
            "kv_bytes": u64::from(load.kv_pages_total).saturating_mul(served.page_bytes()),
            "kv_used_bytes": u64::from(load.kv_pages_total.saturating_sub(load.kv_pages_free)).saturating_mul(served.page_bytes()),
            "sessions": load.sessions,
        })
    }).collect();
    Json(shape::list("quelea.model_ps/v1", items))
}

pub(crate) fn not_here(id: &ModelId) -> InferError {
    InferError::new(ErrorCode::NotFound, format!("model {id} is not on this disk"))
        .hint("'quelea model list' shows what is")
}

/// A model on disk, as commands and the API show it.
pub(crate) fn described(kept: &Kept) -> Value {
    let (here, total) = kept.bytes();
    json!({
        "model": kept.id.to_string(),
        "name": kept.manifest.name,
        "architecture": kept.manifest.architecture,
        "quantisation": kept.manifest.quantisation,
        "layers_total": kept.manifest.n_layers,
        "layers": spans(&kept.layers()),
        "bytes": here,
        "bytes_total": total,
        "whole": kept.is_whole(),
        "path": kept.path(),
        "fetched_chunks": kept.fetched.load(Ordering::Relaxed),
    })
}

/// Runs of layers that are there, as spans.
fn spans(there: &[bool]) -> Vec<String> {
    let mut spans = Vec::new();
    let mut start = None;
    for (i, is) in there.iter().copied().chain([false]).enumerate() {
        match (start, is) {
            (None, true) => start = Some(i),
            (Some(first), false) => {
                spans.push(format!("{first}..{i}"));
                start = None;
            }
            _ => {}
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_as_spans() {
        assert_eq!(spans(&[true, true, false, true]), ["0..2", "3..4"]);
        assert!(spans(&[false, false]).is_empty() && spans(&[]).is_empty());
    }
}
