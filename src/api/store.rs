//! `POST /api/v1/store/backup`: copies the database to a new file, on the machine of the daemon.

use std::path::PathBuf;

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

use super::{
    ApiState, database, parse, refuse,
    shape::{Failure, answers},
};
use crate::{
    inference::InferError,
    storage::{BackupError, OpenError},
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BackupRequest)]
struct Wanted {
    /// Absolute.
    #[schema(value_type = String)]
    path: PathBuf,
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(backup))]
pub(super) struct Described;

answers! {
    /// The copy.
    Backup = "quelea.store_backup/v1" { path: String, bytes: u64, }
}

/// Copies the database to a new file, on the machine of the node.
#[utoipa::path(
    post, path = "/api/v1/store/backup",
    request_body = Wanted,
    responses((status = 200, body = Backup), (status = 404, body = Failure, description = "there is no such folder"))
)]
pub(super) async fn backup(State(state): State<ApiState>, body: Bytes) -> Response {
    match copied(&state, &body).await {
        Ok((path, bytes)) => {
            Json(json!({ "schema": "quelea.store_backup/v1", "path": path, "bytes": bytes })).into_response()
        }
        Err(error) => refuse(&error),
    }
}

async fn copied(state: &ApiState, body: &[u8]) -> Result<(PathBuf, u64), InferError> {
    let Wanted { path } = parse(body)?;
    if !path.is_absolute() {
        let message = format!("{} is no absolute path", path.display());
        return Err(InferError::new(ErrorCode::Usage, message));
    }
    let bytes = database(state)?.backup(path.clone()).await.map_err(|e| explain(&e))?;
    Ok((path, bytes))
}

/// What went wrong with a copy, as commands and the API say it.
pub(crate) fn explain(error: &BackupError) -> InferError {
    let code = match error {
        BackupError::Exists(_) => ErrorCode::Usage,
        BackupError::Missing(_) => ErrorCode::NotFound,
        BackupError::Open(OpenError::NotADatabase(_) | OpenError::Newer { .. } | OpenError::InUse(_)) => {
            ErrorCode::Usage
        }
        _ => ErrorCode::StorageFailed,
    };
    InferError::new(code, error.to_string())
}
