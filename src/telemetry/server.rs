//! `/livez`, `/readyz`, `/health` and `/metrics` over HTTP/1.1.
//!
//! Nothing here reads a request's body or changes anything. The server is for supervisors and scrapers on the same machine
//! or network; it holds up when it is reached by others: a bound on connections, on the time a request's head may take, and
//! on a connection's life.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    health::Health,
    metrics::{CONTENT_TYPE, Metrics},
};
use crate::accept::{Bounds, accept};

/// Connections served at once. A supervisor, a few scrapers and a person with a browser; further ones wait in the
/// system's queue.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// The longest wait for a request's head, in an idle connection too. Prometheus scrapes every 15 s by default and then
/// keeps its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest life of a connection. After it the current answer is finished and the connection closed, so that whoever
/// reads slowly frees the place at last.
const LIFE_MAX: Duration = Duration::from_secs(300);

/// How long an answer under way may take when the connection or the server is to end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest request head, in bytes: far beyond what scrapers send, and hyper's smallest buffer.
const HEAD_BYTES_MAX: usize = 8192;

/// What the routes show.
#[derive(Clone, Debug)]
pub struct TelemetryState {
    /// Components' states.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Metrics,
}

/// The routes, for a server of its own ([`serve`]) or to be merged into another.
pub fn router(state: TelemetryState) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(state)
}

async fn livez(State(state): State<TelemetryState>) -> Response {
    if state.health.report().live {
        (StatusCode::OK, "ok").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the event loop does not turn").into_response()
    }
}

async fn readyz(State(state): State<TelemetryState>, RawQuery(query): RawQuery) -> Response {
    let report = state.health.report();
    let ready = report.ready();
    let verbose = query.is_some_and(|q| q.split('&').any(|p| p == "verbose" || p.starts_with("verbose=")));
    // A failure explains itself, asked or not.
    let body = if verbose || !ready { report.to_checks() } else { "ok".to_string() };
    (ok_or_unavailable(ready), body).into_response()
}

async fn health(State(state): State<TelemetryState>) -> Response {
    let report = state.health.report();
    (ok_or_unavailable(report.ready()), Json(report.to_json())).into_response()
}

async fn metrics(State(state): State<TelemetryState>) -> Response {
    match tokio::task::spawn_blocking(move || state.metrics.scrape()).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the scrape failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed").into_response()
        }
    }
}

fn ok_or_unavailable(ok: bool) -> StatusCode {
    if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Serves the routes until `shutdown` is done, then finishes answers under way for at most two seconds.
pub async fn serve(listener: TcpListener, state: TelemetryState, shutdown: impl Future<Output = ()>) {
    let router = router(state);
    let bounds = Bounds { name: "metrics address", connections: CONNECTIONS_MAX, finish: FINISH_TIMEOUT };
    accept(listener, bounds, shutdown, |stream, _, stopping| connection(stream, router.clone(), stopping)).await;
}

async fn connection(stream: TcpStream, router: Router, mut stopping: watch::Receiver<()>) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => Some(outcome),
        // Closed is the signal.
        _ = stopping.changed() => None,
        () = tokio::time::sleep(LIFE_MAX) => None,
    };
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(FINISH_TIMEOUT, served).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to the metrics address ended in an error");
    }
}
