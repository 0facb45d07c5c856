//! The node as a whole, for who begins to look or has missed something: `GET /api/v1/snapshot`, and the last hour,
//! `GET /api/v1/timeseries?after=UNIX-SECONDS`.
//!
//! A snapshot's `cursor` is the number of the newest event *before* it was made: whoever goes on with
//! `/api/v1/events?after=CURSOR` hears some things twice, and misses nothing.

use axum::{
    Json,
    extract::{Query, State},
};
use quelea_wire::time::unix_ms;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiState, dht, ledger, models, peers,
    shape::{self, answers},
};

#[derive(utoipa::OpenApi)]
#[openapi(paths(snapshot, timeseries))]
pub(super) struct Described;

answers! {
    /// The node as a whole. What cannot be told at the moment is null.
    Snapshot = "quelea.snapshot/v1" {
        generated_at: String,
        /// The number of the newest event before: `after` of `/api/v1/events`.
        cursor: u64,
        status: super::NodeStatus, peers: Vec<peers::PeerItem>, ledger: Option<ledger::Accounts>,
        dht: Option<dht::DhtFigures>, models: Option<models::Models>, loaded: Vec<models::LoadedModel>,
        /// An event of the type `metric`.
        metric: Option<std::collections::BTreeMap<String, Value>>,
    }

    /// The last hour. Counters are told as counted since the start.
    Timeseries = "quelea.timeseries/v1" {
        step_s: u64,
        /// Unix seconds of the points.
        t: Vec<f64>,
        /// By name, a value for each point.
        series: std::collections::BTreeMap<String, Vec<Option<f64>>>,
    }
}

/// The node as a whole, for who begins to look.
#[utoipa::path(get, path = "/api/v1/snapshot", responses((status = 200, body = Snapshot)))]
pub(super) async fn snapshot(State(state): State<ApiState>) -> Json<Value> {
    let cursor = state.telemetry.events.newest();
    let metric = state.telemetry.history.watch().borrow().map(|point| point.event());
    let (status, peers, ledger, dht, models, loaded) = tokio::join!(
        super::status(State(state.clone())),
        peers::list(State(state.clone())),
        ledger::listed(state.asker.plane.ledger()),
        dht::figures(&state),
        models::kept(&state),
        models::ps(State(state.clone())),
    );
    Json(json!({
        "schema": "quelea.snapshot/v1",
        "generated_at": shape::rfc3339(unix_ms()),
        "cursor": cursor,
        "status": status.0,
        "peers": peers.0["items"],
        // What cannot be told at the moment is null; the rest is told.
        "ledger": ledger.ok(),
        "dht": dht.ok(),
        "models": models.ok(),
        "loaded": loaded.0["items"],
        "metric": metric,
    }))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// Unix seconds.
    #[serde(default)]
    after: f64,
}

/// The last hour, a point every five seconds.
#[utoipa::path(get, path = "/api/v1/timeseries", params(After), responses((status = 200, body = Timeseries)))]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number that makes no sense means all")]
pub(super) async fn timeseries(State(state): State<ApiState>, Query(After { after }): Query<After>) -> Json<Value> {
    Json(state.telemetry.history.since((after * 1e3).max(0.0) as u64))
}
