//! The DHT's part of the control API.
//!
//! Lookups answer with lines of JSON: `{"event":"progress",…}` while they run, then one `{"event":"done","result":{…}}` or
//! `{"event":"error","error":{…}}`. A lookup that fails before it got anywhere answers with a status instead.
//!
//! | route | body | result |
//! |---|---|---|
//! | `POST /api/v1/dht/put` | `key`, `value` or `value_hex`, `ttl_s`, `quorum` | how many peers acknowledged |
//! | `POST /api/v1/dht/get` | `key`, `quorum`, `all` | the best value, or every one |
//! | `POST /api/v1/dht/provide` | `key` | – |
//! | `POST /api/v1/dht/providers` | `key` | peers, and whether each was reached |
//! | `POST /api/v1/dht/find-peer` | `peer` | addresses, and whether it was reached |
//! | `POST /api/v1/dht/find-node` | `target`: a key or a peer id | the closest peers |
//! | `POST /api/v1/dht/delete` | `key` | what was given up; no lookup, plain JSON |
//! | `GET /api/v1/dht/stats` | – | figures; plain JSON |
//!
//! The bodies of lookups may carry `timeout_s`, of at most 30. A key without a slash in front stands for one under
//! `/quelea/user/`.

mod show;

use std::time::{Duration, Instant};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{StreamExt, stream};
use libp2p::PeerId;
use quelea_behaviours::store::{StoreLimits, USER_PREFIX};
use quelea_wire::{ErrorCode, time::unix_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use self::show::Show;
use super::{
    ApiState, failure, parse, refuse,
    shape::{Failure, answers},
};
use crate::{
    events::EventKind,
    inference::InferError,
    swarm::dht::{Ask, DhtError, Effort, MAX_TIMEOUT},
};

/// Lines that may wait for a slow client. Progress that finds no room is left out: the next one replaces it.
const LINES: usize = 8;

/// Peers that must acknowledge a value when nobody says how many. It is sent to all k closest in any case.
const PUT_QUORUM: usize = 1;

/// What every key of ours begins with.
const NAMESPACE: &str = "/quelea/";

#[derive(utoipa::OpenApi)]
#[openapi(paths(ask_put, ask_get_value, ask_provide, ask_providers, ask_find_peer, ask_find_node, delete, stats))]
pub(super) struct Described;

/// `event` is `progress`, and at the end `done` or `error`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what json! makes")]
struct DhtLine<T: ToSchema> {
    event: String,
    requests: Option<u32>,
    answers: Option<u32>,
    failures: Option<u32>,
    result: Option<T>,
    error: Option<InferError>,
}

answers! {
    DhtPut = "quelea.dht_put/v1" {
        key: String, peers: u64, quorum: u64, ttl_s: Option<f64>, requests: u32, answers: u32, elapsed_s: f64,
    }

    /// The best value, or with `all` every one in `items`.
    DhtGot = "quelea.dht_get/v1" {
        key: String, values: u64, invalid: u64, requests: u32, answers: u32, elapsed_s: f64,
        ; value: Option<String>, value_hex: String, holders: u64, sequence: Option<u64>, expires_s: Option<f64>,
        items: Vec<DhtValue>,
    }

    DhtValue { value: Option<String>, value_hex: String, holders: u64, sequence: Option<u64>, expires_s: Option<f64>, }
    DhtProvided = "quelea.dht_provide/v1" { key: String, requests: u32, answers: u32, elapsed_s: f64, }
    DhtProviders = "quelea.dht_providers/v1" {
        generated_at: String, items: Vec<DhtReached>, key: String, requests: u32, answers: u32, elapsed_s: f64,
    }
    DhtReached { peer_id: String, addresses: Vec<String>, connected: bool, local: bool, }
    DhtPeer = "quelea.dht_peer/v1" {
        peer_id: String, addresses: Vec<String>, connected: bool, local: bool, requests: u32, answers: u32, elapsed_s:
        f64,
    }
    DhtNodes = "quelea.dht_nodes/v1" {
        generated_at: String, items: Vec<DhtNode>, target: String, requests: u32, answers: u32, elapsed_s: f64,
    }
    DhtNode { peer_id: String, addresses: Vec<String>, }
    DhtDeleted = "quelea.dht_delete/v1" { key: String, value: bool, provided: bool, }

    /// `mode` is `server` or `client`.
    DhtFigures = "quelea.dht_stats/v1" {
        mode: String, peers: u64, buckets: Vec<DhtBucket>, records: DhtRecords, providers: DhtProviderCounts, store: DhtStore,
        queries_running: u64, queries: std::collections::BTreeMap<String, DhtQueries>,
    }

    DhtBucket { bucket: u64, peers: u64, }
    DhtRecords { held: u64, held_bytes: u64, own: u64, }
    DhtProviderCounts { held: u64, keys: u64, own: u64, }
    DhtStore { peers: u64, refused: u64, replaced: u64, expired: u64, crowded: u64, }
    DhtQueries { ok: u64, failed: u64, success_ratio: Option<f64>, }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/dht/put", post(ask_put))
        .route("/api/v1/dht/get", post(ask_get_value))
        .route("/api/v1/dht/provide", post(ask_provide))
        .route("/api/v1/dht/providers", post(ask_providers))
        .route("/api/v1/dht/find-peer", post(ask_find_peer))
        .route("/api/v1/dht/find-node", post(ask_find_node))
        .route("/api/v1/dht/delete", post(delete))
        .route("/api/v1/dht/stats", get(stats))
}

/// A lookup that a request asks for, and how its answer is shown.
struct Question {
    ask: Ask,
    show: Show,
    timeout: Duration,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DhtPutRequest)]
struct PutBody {
    key: String,
    value: Option<String>,
    value_hex: Option<String>,
    ttl_s: Option<f64>,
    quorum: Option<usize>,
    timeout_s: Option<f64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DhtGetRequest)]
struct GetBody {
    key: String,
    quorum: Option<usize>,
    #[serde(default)]
    all: bool,
    timeout_s: Option<f64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DhtKeyRequest)]
struct KeyBody {
    key: String,
    timeout_s: Option<f64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DhtPeerRequest)]
struct PeerBody {
    peer: String,
    timeout_s: Option<f64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DhtTargetRequest)]
struct TargetBody {
    target: String,
    timeout_s: Option<f64>,
}

/// Puts a value, and has the closest peers keep it.
#[utoipa::path(
    post, path = "/api/v1/dht/put",
    request_body = PutBody,
    responses(
        (status = 200, body = DhtLine<DhtPut>, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "nothing was found"),
    )
)]
async fn ask_put(state: State<ApiState>, body: Bytes) -> Response {
    lookup(state, put(&body)).await
}

/// Looks for a value.
#[utoipa::path(
    post, path = "/api/v1/dht/get",
    request_body = GetBody,
    responses(
        (status = 200, body = DhtLine<DhtGot>, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "nothing was found"),
    )
)]
async fn ask_get_value(state: State<ApiState>, body: Bytes) -> Response {
    lookup(state, get_value(&body)).await
}

/// Says that this node has what a key stands for.
#[utoipa::path(
    post, path = "/api/v1/dht/provide",
    request_body = KeyBody,
    responses(
        (status = 200, body = DhtLine<DhtProvided>, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "nothing was found"),
    )
)]
async fn ask_provide(state: State<ApiState>, body: Bytes) -> Response {
    lookup(state, provide(&body)).await
}

/// Who has what a key stands for, and whether they were reached.
#[utoipa::path(
    post, path = "/api/v1/dht/providers",
    request_body = KeyBody,
    responses(
        (status = 200, body = DhtLine<DhtProviders>, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "nothing was found"),
    )
)]
async fn ask_providers(state: State<ApiState>, body: Bytes) -> Response {
    lookup(state, providers(&body)).await
}

/// Where a peer is, and whether it was reached.
#[utoipa::path(
    post, path = "/api/v1/dht/find-peer",
    request_body = PeerBody,
    responses(
        (status = 200, body = DhtLine<DhtPeer>, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "nothing was found"),
    )
)]
async fn ask_find_peer(state: State<ApiState>, body: Bytes) -> Response {
    lookup(state, find_peer(&body)).await
}

/// The peers that are closest to a key or a peer id.
#[utoipa::path(
    post, path = "/api/v1/dht/find-node",
    request_body = TargetBody,
    responses(
        (status = 200, body = DhtLine<DhtNodes>, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "nothing was found"),
    )
)]
async fn ask_find_node(state: State<ApiState>, body: Bytes) -> Response {
    lookup(state, find_node(&body)).await
}

fn put(body: &[u8]) -> Result<Question, InferError> {
    let body: PutBody = parse(body)?;
    let key = key_of(&body.key)?;
    if !key.starts_with(USER_PREFIX) {
        let message = format!("{:?} cannot be put: only keys under /quelea/user/ are open", body.key);
        return Err(usage(message).hint("a key without a slash in front is put there"));
    }
    let value = match (body.value, body.value_hex) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(hex)) => hex::decode(hex).map_err(|e| usage(format!("value_hex: {e}")))?,
        _ => return Err(usage("give the value as 'value' or as 'value_hex'")),
    };
    let limits = StoreLimits::default();
    if value.len() > limits.value_bytes {
        let message = format!("a value of {} bytes is too long: at most {} fit", value.len(), limits.value_bytes);
        return Err(usage(message).hint("keep the data elsewhere and put its address or its hash"));
    }
    let ttl = body.ttl_s.map(|seconds| duration("ttl_s", seconds)).transpose()?;
    let quorum = body.quorum.unwrap_or(PUT_QUORUM);
    let show = Show::Put { key: text(&key), ttl, quorum };
    Ok(Question { ask: Ask::Put { key, value, ttl, quorum }, show, timeout: timeout(body.timeout_s)? })
}

fn get_value(body: &[u8]) -> Result<Question, InferError> {
    let body: GetBody = parse(body)?;
    let key = key_of(&body.key)?;
    let quorum = if body.all { Some(usize::MAX) } else { body.quorum };
    let show = Show::Values { key: text(&key), all: body.all };
    Ok(Question { ask: Ask::Get { key, quorum }, show, timeout: timeout(body.timeout_s)? })
}

fn provide(body: &[u8]) -> Result<Question, InferError> {
    let body: KeyBody = parse(body)?;
    let key = key_of(&body.key)?;
    let show = Show::Provided { key: text(&key) };
    Ok(Question { ask: Ask::Provide { key }, show, timeout: timeout(body.timeout_s)? })
}

fn providers(body: &[u8]) -> Result<Question, InferError> {
    let body: KeyBody = parse(body)?;
    let key = key_of(&body.key)?;
    let show = Show::Providers { key: text(&key) };
    Ok(Question { ask: Ask::Providers { key }, show, timeout: timeout(body.timeout_s)? })
}

fn find_peer(body: &[u8]) -> Result<Question, InferError> {
    let body: PeerBody = parse(body)?;
    let peer: PeerId = body.peer.parse().map_err(|_| usage(format!("{:?} is not a peer id", body.peer)))?;
    Ok(Question { ask: Ask::FindPeer { peer }, show: Show::Peer, timeout: timeout(body.timeout_s)? })
}

fn find_node(body: &[u8]) -> Result<Question, InferError> {
    let body: TargetBody = parse(body)?;
    let (target, shown) = match body.target.parse::<PeerId>() {
        Ok(peer) => (peer.to_bytes(), peer.to_string()),
        Err(_) => key_of(&body.target).map(|key| (key.clone(), text(&key)))?,
    };
    let show = Show::Nodes { target: shown };
    Ok(Question { ask: Ask::Closest { target }, show, timeout: timeout(body.timeout_s)? })
}

/// Gives up what this node publishes under a key.
#[utoipa::path(
    post, path = "/api/v1/dht/delete",
    request_body = KeyBody,
    responses(
        (status = 200, body = DhtDeleted),
        (status = 404, body = Failure, description = "this node publishes nothing there"),
    )
)]
async fn delete(State(state): State<ApiState>, body: Bytes) -> Response {
    let key = match parse::<KeyBody>(&body).and_then(|body| key_of(&body.key)) {
        Ok(key) => key,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error),
    };
    let shown = text(&key);
    match state.asker.plane.handle.dht_delete(key).await {
        Ok((false, false)) => {
            let message = format!("this node publishes nothing under {shown}");
            failure(StatusCode::NOT_FOUND, &InferError::new(ErrorCode::NotFound, message))
        }
        Ok((value, provided)) => {
            Json(json!({ "schema": "quelea.dht_delete/v1", "key": shown, "value": value, "provided": provided }))
                .into_response()
        }
        Err(error) => refused(&error),
    }
}

/// The DHT in figures.
#[utoipa::path(get, path = "/api/v1/dht/stats", responses((status = 200, body = DhtFigures)))]
async fn stats(State(state): State<ApiState>) -> Response {
    match figures(&state).await {
        Ok(figures) => Json(figures).into_response(),
        Err(error) => refused(&error),
    }
}

/// The figures of [`stats`].
pub(super) async fn figures(state: &ApiState) -> Result<Value, DhtError> {
    state.asker.plane.handle.dht_stats().await.map(|stats| show::stats(&stats))
}

/// Asks, and streams how far it is and what came of it.
async fn lookup(State(state): State<ApiState>, question: Result<Question, InferError>) -> Response {
    let Question { ask, show, timeout } = match question {
        Ok(question) => question,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error),
    };
    let handle = state.asker.plane.handle.clone();
    let events = state.telemetry.events.clone();
    let (query, asked) = (show.query(), Instant::now());
    let (mut efforts, mut answer) = handle.dht(ask, timeout).await;
    let (lines, mut unread) = mpsc::channel::<Value>(LINES);
    tokio::spawn(async move {
        let answered = loop {
            tokio::select! {
                answered = &mut answer => break answered.unwrap_or(Err(DhtError::Stopped)),
                Ok(()) = efforts.changed() => {
                    let effort = *efforts.borrow_and_update();
                    let _ = lines.try_send(progress(effort));
                }
                // The client has gone: the loop sees that nobody waits.
                () = lines.closed() => return,
            }
        };
        let kind = EventKind::Dht { query, ok: answered.is_ok(), duration_s: asked.elapsed().as_secs_f64() };
        events.emit(unix_ms(), kind);
        let last = match answered {
            Ok(answer) => json!({ "event": "done", "result": show.answer(&handle, answer).await }),
            Err(error) => json!({ "event": "error", "error": explain(&error) }),
        };
        let _ = lines.send(last).await;
    });
    let Some(first) = unread.recv().await else { return refused(&DhtError::Stopped) };
    if let Some(error) = first.get("error").and_then(|error| serde_json::from_value::<InferError>(error.clone()).ok()) {
        return refuse(&error);
    }
    let rest = stream::unfold(unread, |mut unread| async { Some((unread.recv().await?, unread)) });
    let lines = stream::iter([first]).chain(rest).map(|event| super::line(&event));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn progress(effort: Effort) -> Value {
    let Effort { requests, answers, failures } = effort;
    json!({ "event": "progress", "requests": requests, "answers": answers, "failures": failures })
}

fn explain(error: &DhtError) -> InferError {
    let (code, hint) = match error {
        DhtError::NotFound => (ErrorCode::NotFound, None),
        DhtError::Timeout => (ErrorCode::DeadlineExceeded, Some("give it longer with --timeout")),
        DhtError::NoPeers => {
            (ErrorCode::NoRoute, Some("'quelea dht stats' shows whether the node knows any; start with --bootstrap"))
        }
        DhtError::Quorum { .. } => {
            (ErrorCode::QuorumNotMet, Some("the value is kept here and published again; ask for a smaller --quorum"))
        }
        DhtError::Refused(_) => (ErrorCode::Overloaded, Some("'quelea dht delete' gives keys up")),
        DhtError::Busy => (ErrorCode::Overloaded, None),
        DhtError::Stopped => (ErrorCode::ShuttingDown, None),
    };
    let explained = InferError::new(code, error.to_string());
    match hint {
        Some(hint) => explained.hint(hint),
        None => explained,
    }
}

fn refused(error: &DhtError) -> Response {
    refuse(&explain(error))
}

fn usage(message: impl Into<String>) -> InferError {
    InferError::new(ErrorCode::Usage, message)
}

/// The bytes of a key as people write it.
fn key_of(given: &str) -> Result<Vec<u8>, InferError> {
    let limit = StoreLimits::default().key_bytes;
    let key = match given.strip_prefix('/') {
        None if given.is_empty() => return Err(usage("the key is empty")),
        None => [USER_PREFIX, given.as_bytes()].concat(),
        Some(_) if given.starts_with(NAMESPACE) => given.as_bytes().to_vec(),
        Some(_) => {
            let message = format!("{given:?} is in no namespace of this network");
            return Err(usage(message).hint("keys start with /quelea/, or with no slash for /quelea/user/"));
        }
    };
    if given.chars().any(char::is_control) {
        return Err(usage("a key has no control characters"));
    }
    if key.len() > limit {
        return Err(usage(format!(
            "a key of {} bytes is too long: at most {limit}, the namespace included",
            key.len()
        )));
    }
    Ok(key)
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

fn timeout(seconds: Option<f64>) -> Result<Duration, InferError> {
    seconds.map_or(Ok(MAX_TIMEOUT), |seconds| duration("timeout_s", seconds).map(|given| given.min(MAX_TIMEOUT)))
}

/// A time that makes sense: more than nothing, and no more than a year.
fn duration(name: &str, seconds: f64) -> Result<Duration, InferError> {
    let year = 365.0 * 24.0 * 3600.0;
    let given = Duration::try_from_secs_f64(seconds).ok().filter(|given| !given.is_zero() && seconds <= year);
    given.ok_or_else(|| usage(format!("{name} is out of range: {seconds}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_a_namespace_of_ours() {
        assert_eq!(key_of("greeting").unwrap(), b"/quelea/user/greeting");
        assert_eq!(key_of("/quelea/peer/x").unwrap(), b"/quelea/peer/x");
        for wrong in ["", "/elsewhere/x", "/user/x", "a\nb", &"k".repeat(116)] {
            assert!(key_of(wrong).is_err(), "{wrong:?}");
        }
        assert!(key_of(&"k".repeat(115)).is_ok());
    }

    #[test]
    fn what_cannot_be_put_is_refused_in_words() {
        let refused = |body: Value| put(body.to_string().as_bytes()).err().unwrap().message;
        assert!(refused(json!({ "key": "/quelea/peer/x", "value": "v" })).contains("only keys under /quelea/user/"));
        assert!(refused(json!({ "key": "k", "value": "v".repeat(1025) })).contains("1025 bytes"));
        assert!(refused(json!({ "key": "k" })).contains("value_hex"));
        assert!(refused(json!({ "key": "k", "value": "v", "tll_s": 1 })).contains("tll_s"));
        for odd in [-1.0, 0.0, 1e300] {
            assert!(refused(json!({ "key": "k", "value": "v", "ttl_s": odd })).contains("ttl_s"), "{odd}");
        }
        let long = put(json!({ "key": "k", "value_hex": "00ff", "timeout_s": 1e6 }).to_string().as_bytes()).unwrap();
        assert_eq!(long.timeout, MAX_TIMEOUT);
    }
}
