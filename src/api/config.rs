//! `GET /api/v1/config`: what the node was started with, and where each value comes from.

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    ApiState,
    shape::{self, answers},
};

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

#[derive(utoipa::OpenApi)]
#[openapi(paths(config))]
pub(super) struct Described;

answers! {
    /// What the node was started with; `log` is what is logged now.
    ConfigShown = "quelea.config/v1" {
        generated_at: String, items: Vec<ConfigItem>, log: Option<String>, version: String,
    }
}

/// What the node was started with, and where each value comes from.
#[utoipa::path(get, path = "/api/v1/config", responses((status = 200, body = ConfigShown)))]
pub(super) async fn config(State(state): State<ApiState>) -> Json<Value> {
    let items = state.config.iter().map(|item| json!(item)).collect();
    let mut list = shape::list("quelea.config/v1", items);
    list["log"] = json!(state.logs.as_ref().and_then(|tail| tail.directives()));
    list["version"] = json!(env!("CARGO_PKG_VERSION"));
    Json(list)
}
