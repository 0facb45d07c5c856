//! `GET /api/v1/config`: what the node was started with, and where each value comes from. `POST /api/v1/config/set` changes the
//! configuration file, for the next start.

use std::{path::Path, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse as _, Response},
};
use quelea_wire::ErrorCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ApiState, parse, refuse,
    shape::{self, Failure, answers},
};
use crate::inference::InferError;

/// A setting as it holds. Secrets are never settings: they lie in files, whose paths may be here.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(crate) struct ConfigItem {
    /// The flag without its dashes.
    pub(crate) key: String,
    /// As it was written; nothing where it is not set.
    pub(crate) values: Vec<String>,
    /// `default`, `command line`, or `environment NAME`.
    pub(crate) origin: String,
    /// What it does, in a line.
    pub(crate) help: String,
}

/// How many values a setting has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SettingKind {
    /// `true` or `false`.
    Switch,
    One,
    Many,
}

/// How a setting may be changed over the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(crate) struct Editable {
    #[serde(skip)]
    pub(crate) key: String,
    pub(crate) kind: SettingKind,
    /// What it can be, where that is a list.
    pub(crate) choices: Vec<String>,
    /// What the file says now, for the next start; nothing where it says nothing.
    pub(crate) written: Option<Vec<String>>,
}

/// The configuration file, behind whoever knows what a daemon would take. Its calls read and write disks.
pub(crate) trait ConfigFile: std::fmt::Debug + Send + Sync {
    /// Where it is, or would be.
    fn path(&self) -> &Path;

    /// What may be changed.
    ///
    /// # Errors
    /// When the file cannot be read, or is wrong.
    fn editable(&self) -> Result<Vec<Editable>, InferError>;

    /// Sets `key` in it, or takes it out.
    ///
    /// # Errors
    /// When it may not be changed, or a daemon would not start with that. The file is then as it was.
    fn set(&self, key: &str, values: Option<&[String]>) -> Result<(), InferError>;
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(config, set))]
pub(super) struct Described;

answers! {
    /// What the node was started with; `log` is what is logged now. `file` is the configuration file, `file_error` what is wrong
    /// with it.
    ConfigShown = "quelea.config/v1" {
        generated_at: String, items: Vec<ConfigSetting>, log: Option<String>, version: String, file: Option<String>,
        file_error: Option<String>,
    }

    /// A setting, and how it may be changed over the API, where it may.
    ConfigSetting { key: String, values: Vec<String>, origin: String, help: String, edit: Option<Editable>, }

    /// What the file says from now on. It holds from the next start on.
    ConfigSetDone = "quelea.config.set/v1" { key: String, values: Option<Vec<String>>, path: String, }
}

/// What the node was started with, and where each value comes from.
#[utoipa::path(get, path = "/api/v1/config", responses((status = 200, body = ConfigShown)))]
pub(super) async fn config(State(state): State<ApiState>) -> Json<Value> {
    let (editable, error) = match on_disk(&state, |file| file.editable()).await {
        Some(Ok(editable)) => (editable, None),
        Some(Err(error)) => (Vec::new(), Some(error.message)),
        None => (Vec::new(), None),
    };
    let item = |item: &ConfigItem| {
        let mut shown = json!(item);
        shown["edit"] = json!(editable.iter().find(|one| one.key == item.key));
        shown
    };
    let mut list = shape::list("quelea.config/v1", state.config.iter().map(item).collect());
    list["log"] = json!(state.logs.as_ref().and_then(|tail| tail.directives()));
    list["version"] = json!(env!("CARGO_PKG_VERSION"));
    list["file"] = json!(state.config_file.as_ref().map(|file| file.path().display().to_string()));
    list["file_error"] = json!(error);
    Json(list)
}

/// A setting, and what it is to be.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigSet {
    /// The flag without its dashes.
    key: String,
    /// Its values, as the flag has them; null takes it out of the file.
    values: Option<Vec<String>>,
}

/// Changes the configuration file, for the next start. Nothing is written that this daemon would not start with.
#[utoipa::path(
    post, path = "/api/v1/config/set",
    request_body = ConfigSet,
    responses(
        (status = 200, body = ConfigSetDone),
        (status = 400, body = Failure, description = "it may not be changed here, or would be wrong"),
        (status = 404, body = Failure, description = "there is no such setting, or no configuration file"),
    )
)]
pub(super) async fn set(State(state): State<ApiState>, body: Bytes) -> Response {
    let wanted: ConfigSet = match parse(&body) {
        Ok(wanted) => wanted,
        Err(error) => return refuse(&error),
    };
    let (key, values) = (wanted.key.clone(), wanted.values.clone());
    match on_disk(&state, move |file| file.set(&key, values.as_deref()).map(|()| file.path().display().to_string()))
        .await
    {
        Some(Ok(path)) => {
            tracing::info!(key = %wanted.key, "a setting was written over the API");
            Json(json!({
                "schema": "quelea.config.set/v1", "key": wanted.key, "values": wanted.values, "path": path,
            }))
            .into_response()
        }
        Some(Err(error)) => refuse(&error),
        None => refuse(&InferError::new(ErrorCode::NotFound, "this node has no configuration file")),
    }
}

/// Works on the file, where there is one, off the async threads.
async fn on_disk<T: Send + 'static>(
    state: &ApiState,
    work: impl FnOnce(&dyn ConfigFile) -> Result<T, InferError> + Send + 'static,
) -> Option<Result<T, InferError>> {
    let file = Arc::clone(state.config_file.as_ref()?);
    let done = tokio::task::spawn_blocking(move || work(file.as_ref())).await;
    Some(done.unwrap_or_else(|error| Err(InferError::new(ErrorCode::Internal, error.to_string()))))
}
