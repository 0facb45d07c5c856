//! The control API: JSON over HTTP/1.1, on a unix socket for this user and on loopback TCP with a token.
//!
//! | route | answers |
//! |---|---|
//! | `GET /api/v1/openapi.json` | all of this for programs; see [`openapi`] |
//! | `GET /api/v1/id` | peer id and full addresses |
//! | `GET /api/v1/status` | peers, spans, sessions, health |
//! | `GET /api/v1/peers/bans`, `POST /api/v1/peers/ban`, `…/unban` | who is refused, and changes of that |
//! | `POST /api/v1/shutdown` | ends the daemon; see `shutdown` |
//! | `GET /api/v1/stats`, `GET /metrics` | the node's counters, for people and for Prometheus |
//! | `GET /api/v1/snapshot`, `/api/v1/timeseries` | the whole node at once, and its last hour; see `snapshot` |
//! | `GET /api/v1/logs`, `POST /api/v1/logs/level` | the log; see `logs` |
//! | `GET /api/v1/traces`, `/api/v1/traces/{id}` | where the time of this node's newest requests went; see `traces` |
//! | `GET /api/v1/config` | what the node was started with |
//! | `/api/v1/login*`, `/api/v1/session`, `/api/v1/tokens*` | getting in; see `login` and `access` |
//! | `GET /api/v1/events` | a stream of events (SSE), with replay; see [`events`] |
//! | `POST /api/v1/broadcast` | says a line to every node; see [`broadcast`] |
//! | `POST /api/v1/infer` | a stream of [`InferEvent`]s, one JSON object a line |
//! | `GET /api/v1/coverage` | who holds which layers of a model |
//! | `POST /api/v1/plan` | what a request would be answered by, and why |
//! | `/api/v1/dht/*` | see `dht` |
//! | `POST /api/v1/store/backup` | see `store` |
//! | `/api/v1/ledger*`, `GET /api/v1/trust` | see `ledger` |
//! | `/api/v1/agents*`, `POST /api/v1/compute`, `POST /api/v1/web/read` | see `agents` |
//! | `/api/v1/models*` | see `models` |
//! | `/api/v1/peers*`, `/api/v1/bootstrap*` | see `peers` |
//! | `/api/v1/services*` | see `services` |
//! | `POST /api/v1/ping` | a stream of replies, one JSON object a line |
//! | `GET /api/v1/netcheck` | how this node can be reached |
//!
//! Beside it stands the OpenAI API under `/v1`; see [`openai`].
//! `GET /` is the web page (`page`), which works with nothing but these routes.
//!
//! Lists are `{"schema", "generated_at", "items"}`; see `shape`. Errors are `{"error": {"code", "message", "hint", "retryable"}}` with a fitting status; that of
//! an answer that was cut off has its `text` so far, and the `resume` id by which another request goes on with it. A request
//! whose client goes away is cancelled at every stage.

pub(crate) mod access;
mod agents;
mod bans;
mod broadcast;
pub(crate) mod config;
mod coverage;
mod dht;
mod events;
mod ledger;
pub(crate) mod login;
mod logs;
mod measure;
pub(crate) mod models;
mod nat;
mod openai;
mod openapi;
mod page;
mod peers;
mod plan;
mod request_id;
mod serve;
mod services;
pub(crate) mod shape;
mod shutdown;
mod snapshot;
mod stats;
pub(crate) mod store;
mod traces;

use std::{future::Future, io, path::Path, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{StreamExt, stream};
use quelea_wire::{ErrorCode, TraceParent};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc},
};

use self::{
    access::Access,
    config::{ConfigFile, ConfigItem},
    login::Door,
    shape::{Failure, answers},
};
use crate::{
    agents::installed::Agents,
    inference::{Asker, EVENT_QUEUE, InferError, InferEvent, InferRequest},
    node::full_addresses,
    services::Services,
    storage::Db,
    telemetry::{Telemetry, tail::LogTail},
};

/// The longest request: a prompt of a few hundred thousand tokens.
const BODY_MAX: usize = 4 << 20;

/// What the routes work on.
#[derive(Clone)]
pub(crate) struct ApiState {
    asker: Arc<Asker>,
    services: Arc<Services>,
    agents: Arc<Agents>,
    telemetry: Telemetry,
    /// A node that keeps nothing has none.
    db: Option<Db>,
    /// Nothing is asked of the network around.
    masked: bool,
    /// What the OpenAI API's requests share.
    openai: Arc<openai::OpenAi>,
    /// Who may come in.
    door: Door,
    /// The log, where it is kept.
    logs: Option<LogTail>,
    /// What the node was started with.
    config: Arc<Vec<ConfigItem>>,
    /// The file behind it, where there is one.
    config_file: Option<Arc<dyn ConfigFile>>,
    /// Places for streams that do not end.
    streams: Arc<Semaphore>,
}

impl ApiState {
    pub(crate) fn new(
        asker: Arc<Asker>,
        services: Arc<Services>,
        agents: Arc<Agents>,
        telemetry: Telemetry,
        db: Option<Db>,
        masked: bool,
        door: Door,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(events::STREAMS_MAX));
        Self {
            asker,
            services,
            agents,
            telemetry,
            db,
            masked,
            openai: Arc::new(openai::OpenAi::new()),
            door,
            logs: None,
            config: Arc::default(),
            config_file: None,
            streams,
        }
    }

    /// Shows what the node was started with and its log, and has the file changed.
    pub(crate) fn with(
        mut self,
        config: Vec<ConfigItem>,
        file: Option<Arc<dyn ConfigFile>>,
        logs: Option<LogTail>,
    ) -> Self {
        self.config = Arc::new(config);
        self.config_file = file;
        self.logs = logs;
        self
    }
}

fn router(state: ApiState) -> Router {
    Router::new()
        .route("/api/v1/openapi.json", get(openapi::openapi))
        .route("/api/v1/id", get(id))
        .route("/api/v1/status", get(status))
        .route("/api/v1/stats", get(stats::stats))
        .route("/metrics", get(stats::metrics))
        .route("/api/v1/shutdown", post(shutdown::shutdown))
        .route("/api/v1/events", get(events::events))
        .route("/api/v1/snapshot", get(snapshot::snapshot))
        .route("/api/v1/timeseries", get(snapshot::timeseries))
        .route("/api/v1/traces", get(traces::list))
        .route("/api/v1/traces/{id}", get(traces::one))
        .route("/api/v1/logs", get(logs::logs))
        .route("/api/v1/logs/level", post(logs::level))
        .route("/api/v1/config", get(config::config))
        .route("/api/v1/config/set", post(config::set))
        .merge(login::routes())
        .merge(if state.door.page { page::routes() } else { Router::new() })
        .route("/api/v1/store/backup", post(store::backup))
        .route("/api/v1/broadcast", post(broadcast::broadcast))
        .route("/api/v1/infer", post(infer))
        .route("/api/v1/plan", post(plan::plan))
        .route("/api/v1/coverage", get(coverage::coverage))
        .merge(dht::routes())
        .merge(agents::routes())
        .merge(models::routes())
        .merge(bans::routes())
        .merge(ledger::routes())
        .merge(peers::routes())
        .merge(services::routes())
        .merge(openai::routes(&state))
        .route("/api/v1/ping", post(nat::ping))
        .route("/api/v1/netcheck", get(nat::netcheck))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, &InferError::new(ErrorCode::Usage, "no such route")) })
        .layer(middleware::from_fn(shape::errors))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(state.telemetry.metrics.clone(), measure::measure))
        .with_state(state)
}

/// Serves TCP; every request must show who it is from.
pub(crate) fn serve_tcp(
    listener: TcpListener,
    state: ApiState,
    access: Access,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let router = router(state).layer(middleware::from_fn_with_state(access, access::check));
    let router = router.layer(middleware::from_fn(openai::shape)).layer(middleware::from_fn(request_id::name));
    serve::serve(listener, router, shutdown)
}

/// Opens the socket, which only this user may connect to. A socket left by a dead daemon is replaced: the caller holds
/// the directory's lock.
pub(crate) fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the unix socket; the file's mode is the access check.
pub(crate) async fn serve_unix(
    listener: UnixListener,
    state: ApiState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let router = router(state).layer(middleware::from_fn(request_id::name));
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown).await {
        tracing::error!(%error, "the control socket has stopped");
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(id, status, infer))]
pub(super) struct Described;

answers! {
    /// Who this node is, and where it can be dialled.
    Id = "quelea.id/v1" { peer_id: String, addresses: Vec<String>, agent: String, }

    /// A node at a glance.
    NodeStatus = "quelea.status/v1" {
        peer_id: String, version: String, addresses: Vec<String>, health: Health, peers_connected: usize,
        peers_known: Option<usize>, peers: Vec<StatusPeer>, serves: Vec<ServedLayers>, announced: Vec<AnnouncedLayers>,
    }

    /// How the node's parts are, by their names.
    Health = "quelea.health/v1" {
        status: String, live: bool, ready: bool, uptime_seconds: f64,
        components: std::collections::BTreeMap<String, ComponentHealth>,
    }

    /// `starting`, `ok`, `degraded` or `failed`, and why.
    ComponentHealth { status: String, message: String, }

    /// A connected peer, in short.
    StatusPeer { peer_id: String, agent: Option<String>, rtt_s: Option<f64>, addresses: Vec<String>, connected_s: f64, }

    /// Layers that this node runs.
    ServedLayers {
        model: String, name: String,
        /// Half-open, like `0..8`.
        layers: String,
        price_decode: u64, price_prefill: u64, layers_total: u16, profile: String, sessions: u64, queue: u64,
        kv_pages_free: u64, kv_pages_cached: u64, kv_pages_total: u64,
    }

    /// Layers that a peer says it runs.
    AnnouncedLayers { peer_id: String, model: String, layers: String, }
}

/// Who this node is.
#[utoipa::path(get, path = "/api/v1/id", responses((status = 200, body = Id)))]
async fn id(State(state): State<ApiState>) -> Json<Value> {
    let handle = &state.asker.plane.handle;
    Json(json!({
        "schema": "quelea.id/v1",
        "peer_id": handle.local().to_string(),
        "addresses": full_addresses(handle).await,
        "agent": concat!("quelea/", env!("CARGO_PKG_VERSION")),
    }))
}

/// The node at a glance: peers, what is served, health.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, body = NodeStatus)))]
async fn status(State(state): State<ApiState>) -> Json<Value> {
    let plane = &state.asker.plane;
    let snapshot = plane.handle.snapshot().await;
    let peers: Vec<Value> = snapshot
        .iter()
        .flat_map(|s| &s.peers)
        .map(|peer| {
            json!({
                "peer_id": peer.peer.to_string(),
                "agent": peer.agent,
                "rtt_s": peer.rtt.map(|rtt| rtt.as_secs_f64()),
                "addresses": peer.addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "connected_s": peer.connected_for.as_secs_f64(),
            })
        })
        .collect();
    let serves: Vec<Value> = plane
        .served()
        .iter()
        .map(|served| {
            let load = served.runner.load();
            json!({
                "model": served.file.id.to_string(),
                "name": served.file.manifest.name,
                "layers": served.span.to_string(),
                "price_decode": plane.price.decode,
                "price_prefill": plane.price.prefill,
                "layers_total": served.file.layers(),
                "profile": served.profile.to_string(),
                "sessions": load.sessions,
                "queue": load.queued,
                "kv_pages_free": load.kv_pages_free,
                "kv_pages_cached": load.kv_pages_cached,
                "kv_pages_total": load.kv_pages_total,
            })
        })
        .collect();
    let heard = plane.handle.announced().await;
    let known: Vec<Value> = heard
        .iter()
        .flat_map(|signed| signed.announcement().offers.iter().map(move |offer| (signed.peer(), offer)))
        .map(|(peer, offer)| {
            json!({ "peer_id": peer.to_string(), "model": offer.model.to_string(), "layers": offer.span.to_string() })
        })
        .collect();
    Json(json!({
        "schema": "quelea.status/v1",
        "peer_id": plane.handle.local().to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "addresses": full_addresses(&plane.handle).await,
        "health": state.telemetry.health.report().to_json(),
        "peers_connected": peers.len(),
        "peers_known": snapshot.as_ref().map(|s| s.known),
        "peers": peers,
        "serves": serves,
        "announced": known,
    }))
}

/// The caller's own span, by W3C's `traceparent`. As that has it, a malformed one is none, and so are two.
fn trace_of(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all("traceparent").iter();
    match (given.next(), given.next()) {
        (Some(one), None) => TraceParent::from_bytes(one.as_bytes()).ok(),
        _ => None,
    }
}

/// Has a model answer: lines of events, of which the last is `done` or `error`.
#[utoipa::path(
    post, path = "/api/v1/infer",
    request_body = InferRequest,
    responses(
        (status = 200, body = InferEvent, content_type = "application/x-ndjson"),
        (status = 402, body = Failure, description = "no peer gives credit, or it costs more than was to be paid"),
        (status = 404, body = Failure, description = "there is no such model, or nothing to go on with"),
        (status = 409, body = Failure, description = "that answer is being gone on with"),
    )
)]
async fn infer(State(state): State<ApiState>, headers: HeaderMap, body: Bytes) -> Response {
    let request = match parse::<InferRequest>(&body) {
        Ok(request) => InferRequest { trace: trace_of(&headers), ..request },
        Err(error) => return refuse(&error),
    };
    if state.telemetry.health.report().draining {
        let error = InferError::new(ErrorCode::ShuttingDown, ErrorCode::ShuttingDown.meaning());
        return failure(StatusCode::SERVICE_UNAVAILABLE, &error);
    }
    let (events, mut receiver) = mpsc::channel(EVENT_QUEUE);
    let asker = state.asker.clone();
    tokio::spawn(async move { asker.infer(request, events).await });
    // What fails before anything was produced is a status, not a stream.
    match receiver.recv().await {
        Some(InferEvent::Error { error }) => refuse(&error),
        Some(first) => {
            let rest = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
            let lines = stream::iter([first]).chain(rest).map(|event| line(&event));
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
        }
        None => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            &InferError::new(ErrorCode::Internal, "the request ended without a word"),
        ),
    }
}

fn line(event: &impl serde::Serialize) -> io::Result<Bytes> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line.into())
}

fn failure(status: StatusCode, error: &InferError) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// The answer that says so, with the status that fits.
fn refuse(error: &InferError) -> Response {
    failure(status_of(error.error_code()), error)
}

/// A request's body.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, InferError> {
    serde_json::from_slice(body)
        .map_err(|e| InferError::new(ErrorCode::Usage, format!("the request is not understood: {e}")))
}

/// The node's database.
fn database(state: &ApiState) -> Result<&Db, InferError> {
    state.db.as_ref().ok_or_else(|| InferError::new(ErrorCode::StorageFailed, "this node keeps nothing on disk"))
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Usage | ErrorCode::ContextFull | ErrorCode::ModelFile | ErrorCode::ServiceInput => {
            StatusCode::BAD_REQUEST
        }
        ErrorCode::ModelUnknown
        | ErrorCode::ModelFileNeeded
        | ErrorCode::NotFound
        | ErrorCode::PeerUnknown
        | ErrorCode::ServiceUnknown => StatusCode::NOT_FOUND,
        ErrorCode::AnswerBusy | ErrorCode::CallConflict => StatusCode::CONFLICT,
        ErrorCode::AgentRefused => StatusCode::BAD_REQUEST,
        ErrorCode::NoCredit | ErrorCode::AccountFrozen | ErrorCode::AllowanceSpent => StatusCode::PAYMENT_REQUIRED,
        ErrorCode::Unauthorized => StatusCode::FORBIDDEN,
        ErrorCode::Internal | ErrorCode::EngineFailed | ErrorCode::AnswerUnreadable => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
