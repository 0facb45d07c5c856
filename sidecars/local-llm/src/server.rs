//! The routes, and how much of them at once.
//!
//! | memory | bound | when full |
//! |---|---|---|
//! | a request's body | 1 MiB | 413 |
//! | requests that wait for their turn | `--queue` | 429, with when to try again |
//! | tokens of an answer that its reader has not taken | the answer's | – |

use std::{
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

use crate::{
    chat::{Chat, Head, Reason, Refusal, Usage},
    engine::{Answer, Engine, Piece},
};

/// Bytes of a request.
const BODY: usize = 1 << 20;

/// How long a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);

/// After so long without a token a stream says that it is still there.
const PING: Duration = Duration::from_secs(10);

/// How much at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) queue: u16,
    pub(crate) max_tokens: u32,
}

/// What the routes have in common.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    name: String,
    limits: Limits,
    engine: OnceLock<Engine>,
    /// One: see [`crate::engine`].
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    answered: AtomicUsize,
    stop: watch::Sender<bool>,
}

/// Opens the socket, which only this user may connect to. One left by a process that has ended is replaced.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("cannot serve {}: {why}", path.display());
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| cannot(&e))?;
    let mode = dir.metadata().map_err(|e| cannot(&e))?.mode();
    if mode & 0o077 != 0 {
        return Err(cannot(&format!("its directory is open to others (mode {:o}); chmod 700 it", mode & 0o777)));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(cannot(&"another process serves it"));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(cannot(&e)),
        _ => {}
    }
    // Between this and the next line the directory keeps others out.
    let listener = UnixListener::bind(path).map_err(|e| cannot(&e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|e| cannot(&e))?;
    Ok(listener)
}

impl Server {
    pub(crate) fn new(name: String, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            name,
            limits,
            engine: OnceLock::new(),
            places: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            stop: watch::Sender::new(false),
        }))
    }

    /// The model is loaded.
    pub(crate) fn ready(&self, engine: Engine) {
        let _ = self.0.engine.set(engine);
    }

    /// Waits until the program is to stop.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.0.stop.subscribe();
        // The sender is here.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Answers until `stop`, and then what is under way.
    pub(crate) async fn serve(self, listener: UnixListener, stop: impl Future<Output = ()> + Send + 'static) {
        let routes = Router::new()
            .route("/health", get(health))
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(completions))
            .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is no such route") })
            .method_not_allowed_fallback(|| async {
                Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method")
            })
            .with_state(self.clone());
        let stopping = async move {
            stop.await;
            self.0.stop.send_replace(true);
        };
        if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stopping).await {
            eprintln!("quelea-local-llm: the socket has failed: {error}");
        }
    }

    fn engine(&self) -> Result<&Engine, Refusal> {
        let loading = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "loading", "the model is being loaded");
        self.0.engine.get().ok_or_else(loading)
    }

    /// Waits for its turn, unless too many do.
    async fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if let Ok(place) = self.0.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let waiting = Waiting::new(&self.0.waiting);
        if waiting.number > usize::from(self.0.limits.queue) {
            let message = "too many requests are waiting; try again in a moment";
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message));
        }
        let closed = |_| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the program is stopping");
        self.0.places.clone().acquire_owned().await.map_err(closed)
    }

    fn head(&self) -> Head {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = format!("chatcmpl-{:032x}", rand::random::<u128>());
        Head { id, created, model: self.0.name.clone() }
    }
}

/// A count that goes down again when this is dropped.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    /// Which in the queue this one was.
    number: usize,
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, number: count.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

fn document(status: StatusCode, document: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}

/// How the program is. `silent_s` grows while answers are under way and no token comes.
async fn health(State(server): State<Server>) -> Response {
    let Some(engine) = server.0.engine.get() else {
        let loading = json!({ "status": "loading", "model": server.0.name });
        return document(StatusCode::SERVICE_UNAVAILABLE, &loading);
    };
    let running = 1usize.saturating_sub(server.0.places.available_permits());
    let body = json!({
        "status": "ok",
        "model": server.0.name,
        "context": engine.context(),
        "running": running,
        "waiting": server.0.waiting.load(Ordering::Relaxed),
        "answered": server.0.answered.load(Ordering::Relaxed),
        "silent_s": if running == 0 { 0 } else { engine.silent_s() },
    });
    document(StatusCode::OK, &body)
}

async fn models(State(server): State<Server>) -> Response {
    let model = json!({ "id": server.0.name, "object": "model", "created": 0, "owned_by": "local" });
    document(StatusCode::OK, &json!({ "object": "list", "data": [model] }))
}

async fn completions(State(server): State<Server>, request: Request) -> Result<Response, Refusal> {
    let body = body(request).await?;
    let chat = Chat::parse(&body, &server.0.name)?;
    drop(body);
    server.engine()?;
    let place = server.place().await?;
    let engine = server.engine()?;
    let answer = engine.answer(&chat, server.0.limits.max_tokens).await?;
    let head = server.head();
    if chat.stream {
        return Ok(stream(server.clone(), head, answer, place, chat.usage));
    }
    let (text, reasoning, reason, usage) = whole(answer).await?;
    drop(place);
    server.0.answered.fetch_add(1, Ordering::Relaxed);
    Ok(document(StatusCode::OK, &head.whole(&text, &reasoning, reason, usage)))
}

/// A request's body, if it comes in time and is not too long.
async fn body(request: Request) -> Result<Bytes, Refusal> {
    let read = axum::body::to_bytes(request.into_body(), BODY);
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request did not arrive in 30 s");
    let read = tokio::time::timeout(ARRIVAL, read).await.map_err(late)?;
    let long = "the request is longer than 1 MiB, or broke off";
    read.map_err(|_| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", long))
}

async fn whole(mut answer: Answer) -> Result<(String, String, Reason, Usage), Refusal> {
    let (mut text, mut reasoning) = (String::new(), String::new());
    while let Some(piece) = answer.next().await {
        match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::Reasoning(more) => reasoning.push_str(&more),
            Piece::End(reason, usage) => return Ok((text, reasoning, reason, usage)),
            Piece::Failed(refusal) => return Err(refusal),
        }
    }
    Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", "the engine gave no answer"))
}

/// An answer as server-sent events. Dropped with the connection, and the answer with it.
fn stream(server: Server, head: Head, answer: Answer, place: OwnedSemaphorePermit, usage: bool) -> Response {
    let event = |document: &Value| format!("data: {document}\n\n");
    let first = event(&head.delta(json!({ "role": "assistant", "content": "" })));
    let pieces = futures::stream::unfold((answer, place), move |(mut answer, place)| {
        let (server, head) = (server.clone(), head.clone());
        async move {
            let next = match tokio::time::timeout(PING, answer.next()).await {
                Err(_) => ": still here\n\n".to_owned(),
                Ok(None) => return None,
                Ok(Some(Piece::Text(text))) => event(&head.delta(json!({ "content": text }))),
                Ok(Some(Piece::Reasoning(text))) => event(&head.delta(json!({ "reasoning_content": text }))),
                Ok(Some(Piece::Failed(refusal))) => event(&refusal.document()),
                Ok(Some(Piece::End(reason, used))) => {
                    server.0.answered.fetch_add(1, Ordering::Relaxed);
                    let mut last = event(&head.end(reason));
                    if usage {
                        last.push_str(&event(&head.usage(used)));
                    }
                    last.push_str("data: [DONE]\n\n");
                    last
                }
            };
            Some((next, (answer, place)))
        }
    });
    let body = futures::stream::iter([first]).chain(pieces).map(Ok::<_, std::convert::Infallible>);
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}
