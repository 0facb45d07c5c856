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

use super::{ApiState, dht, ledger, models, peers, shape};

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

#[derive(Deserialize)]
pub(super) struct After {
    /// Unix seconds.
    #[serde(default)]
    after: f64,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number that makes no sense means all")]
pub(super) async fn timeseries(State(state): State<ApiState>, Query(After { after }): Query<After>) -> Json<Value> {
    Json(state.telemetry.history.since((after * 1e3).max(0.0) as u64))
}
