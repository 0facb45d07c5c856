//! Services: those of this node, and calls of others'.
//!
//! | route | body or query | answers |
//! |---|---|---|
//! | `GET /api/v1/services` | – | the services of this node |
//! | `POST /api/v1/services/set` | `name`, `enabled`, `price` | offers it or not, and what it costs from now on |
//! | `GET /api/v1/services/offers` | `peer`, or `name`, or both | what a peer offers, or who offers a service, the best first |
//! | `POST /api/v1/services/call` | `name`, `input` or `input_hex`, `peer` (the best that is found, without), `max_price`, `timeout_s`, `call_id` | lines of JSON: `{"event":"accepted",…}`, `{"event":"progress","text":…}`, then one `{"event":"done","result":{…}}` or `{"event":"error","error":{…}}` |
//!
//! Prices are integers, in micro-credits. A call whose client goes away is given up.

use std::{str::FromStr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{StreamExt as _, stream};
use libp2p::PeerId;
use quelea_service::{CallId, Listed, Name};
use quelea_wire::{Credits, ErrorCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::{
    ApiState, parse, refuse,
    shape::{self, Failure, List, answers},
};
use crate::{
    inference::InferError,
    services::{CallEvent, CallRequest, Offer, Offered},
};

/// How long a call may take unless said otherwise.
const TIMEOUT_S: f64 = 60.0;

/// The longest, in seconds.
const TIMEOUT_MAX_S: f64 = 3000.0;

/// Lines that may wait for a slow client; then the call's progress waits.
const LINES: usize = 16;

#[derive(utoipa::OpenApi)]
#[openapi(paths(own, set, offers, call))]
pub(super) struct Described;

answers! {
    /// A service of this node.
    OwnService {
        name: String, version: u32, price: u64, credits: String, input_max_bytes: u64, output_max_bytes: u64, deadline_s: f64,
        at_once: u32, running: u32, waiting: u32, took_s: Option<f64>, about: String,
        enabled: bool, answered: u64, failed: u64, earned: u64,
    }

    /// It as it is now.
    ServiceSet = "quelea.service/v1" {
        name: String, version: u32, price: u64, credits: String, input_max_bytes: u64, output_max_bytes: u64, deadline_s: f64,
        at_once: u32, running: u32, waiting: u32, took_s: Option<f64>, about: String,
        enabled: bool, answered: u64, failed: u64, earned: u64,
    }

    /// A service of a peer; how soon and how good, where they are compared.
    OfferedService {
        name: String, version: u32, price: u64, credits: String, input_max_bytes: u64, output_max_bytes: u64, deadline_s: f64,
        at_once: u32, running: u32, waiting: u32, took_s: Option<f64>, about: String,
        peer_id: String,
        ; expected_s: f64, score: f64,
    }

    /// `event` is `accepted` or `progress`, and at the end `done` or `error`.
    CallLine {
        event: String,
        ; peer_id: String, version: u32, price: u64, text: String, hex: String, result: ServiceCalled, error: InferError,
    }

    /// What a call came to. What is no text comes as `output_hex`.
    ServiceCalled = "quelea.service_call/v1" {
        call_id: String, name: String, version: u32, peer_id: String, paid: u64, credits: String, note: Option<String>,
        ; output: String, output_hex: String,
    }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/services", get(own))
        .route("/api/v1/services/set", post(set))
        .route("/api/v1/services/offers", get(offers))
        .route("/api/v1/services/call", post(call))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ServiceRequest)]
struct Set {
    name: String,
    enabled: Option<bool>,
    price: Option<u64>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Offers {
    peer: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CallRequest)]
struct CallBody {
    name: String,
    input: Option<String>,
    input_hex: Option<String>,
    peer: Option<String>,
    max_price: Option<u64>,
    timeout_s: Option<f64>,
    call_id: Option<String>,
}

fn usage(message: impl Into<String>) -> InferError {
    InferError::new(ErrorCode::Usage, message)
}

fn name_of(text: &str) -> Result<Name, InferError> {
    text.parse().map_err(|error| usage(format!("{text:?}: {error}")))
}

fn peer_of(text: &str) -> Result<PeerId, InferError> {
    PeerId::from_str(text).map_err(|_| usage(format!("{text:?} is not a peer id")))
}

fn shown(offered: &Offered) -> Value {
    let listed = offered.listed();
    let (answered, failed, earned) = offered.counts();
    let mut value = described(&listed);
    value["enabled"] = offered.enabled().into();
    value["answered"] = answered.into();
    value["failed"] = failed.into();
    value["earned"] = earned.into();
    value
}

fn described(listed: &Listed) -> Value {
    json!({
        "name": listed.name.as_str(),
        "version": listed.version,
        "price": listed.price,
        "credits": Credits(listed.price).to_string(),
        "input_max_bytes": listed.input_max,
        "output_max_bytes": listed.output_max,
        "deadline_s": f64::from(listed.deadline_ms) / 1e3,
        "at_once": listed.at_once,
        "running": listed.running,
        "waiting": listed.waiting,
        "took_s": (listed.took_ms > 0).then(|| f64::from(listed.took_ms) / 1e3),
        "about": listed.about,
    })
}

/// The services of this node.
#[utoipa::path(get, path = "/api/v1/services", responses((status = 200, body = List<OwnService>)))]
async fn own(State(state): State<ApiState>) -> Json<Value> {
    let items = state.services.registry.all().iter().map(|offered| shown(offered)).collect();
    Json(shape::list("quelea.services/v1", items))
}

/// Offers a service or not, and says what it costs.
#[utoipa::path(
    post, path = "/api/v1/services/set",
    request_body = Set,
    responses((status = 200, body = ServiceSet), (status = 404, body = Failure, description = "there is none"))
)]
async fn set(State(state): State<ApiState>, body: Bytes) -> Response {
    let changed = async {
        let Set { name, enabled, price } = parse(&body)?;
        if matches!((enabled, price), (Some(false), Some(_)) | (None, None)) {
            return Err(usage("give 'enabled', 'price', or both to offer it at another price"));
        }
        state.services.set(&name_of(&name)?, enabled, price).await
    };
    match changed.await {
        Ok(offered) => {
            let mut answer = shown(&offered);
            answer["schema"] = "quelea.service/v1".into();
            Json(answer).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// What a peer offers, or who offers a service, the best first.
#[utoipa::path(
    get, path = "/api/v1/services/offers",
    params(Offers),
    responses((status = 200, body = List<OfferedService>), (status = 404, body = Failure, description = "there is none"))
)]
async fn offers(State(state): State<ApiState>, asked: Result<Query<Offers>, QueryRejection>) -> Response {
    let offers = async {
        let Query(asked) = asked.map_err(|error| usage(error.body_text()))?;
        let name = asked.name.as_deref().map(name_of).transpose()?;
        match (asked.peer, name) {
            (Some(peer), name) => {
                let peer = peer_of(&peer)?;
                let listed = state.services.list(peer, name).await?;
                Ok(listed.iter().map(|listed| offered_by(&peer, listed)).collect())
            }
            (None, Some(name)) => {
                let offers = state.services.offers(&name).await;
                let shown = |offer: &Offer| {
                    let mut item = offered_by(&offer.peer, &offer.listed);
                    item["expected_s"] = (offer.expected_ms as f64 / 1e3).into();
                    item["score"] = offer.score.into();
                    item
                };
                Ok(offers.iter().map(shown).collect())
            }
            (None, None) => Err(usage("name a peer, a service, or both")),
        }
    };
    match offers.await {
        Ok(items) => Json(shape::list("quelea.services/v1", items)).into_response(),
        Err(error) => refuse(&error),
    }
}

fn offered_by(peer: &PeerId, listed: &Listed) -> Value {
    let mut item = described(listed);
    item["peer_id"] = peer.to_string().into();
    item
}

fn request(body: &[u8]) -> Result<CallRequest, InferError> {
    let body: CallBody = parse(body)?;
    let input = match (body.input, body.input_hex) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => hex::decode(text).map_err(|e| usage(format!("input_hex: {e}")))?,
        (None, None) => Vec::new(),
        (Some(_), Some(_)) => return Err(usage("give the input as 'input' or as 'input_hex'")),
    };
    let timeout = body.timeout_s.unwrap_or(TIMEOUT_S);
    if !(0.01..=TIMEOUT_MAX_S).contains(&timeout) {
        return Err(usage(format!("timeout_s: {timeout} is not between 0.01 and {TIMEOUT_MAX_S}")));
    }
    let id = match body.call_id {
        Some(text) => {
            let mut id = [0; 16];
            hex::decode_to_slice(&text, &mut id).map_err(|_| usage("call_id: a call's id is 32 hex digits"))?;
            CallId(id)
        }
        None => CallId(rand::random()),
    };
    Ok(CallRequest {
        name: name_of(&body.name)?,
        input,
        peer: body.peer.as_deref().map(peer_of).transpose()?,
        max_price: body.max_price,
        timeout: Duration::from_secs_f64(timeout),
        id,
    })
}

/// Calls a service: lines of events, of which the last is `done` or `error`. Given up when the caller goes.
#[utoipa::path(
    post, path = "/api/v1/services/call",
    request_body = CallBody,
    responses(
        (status = 200, body = CallLine, content_type = "application/x-ndjson"),
        (status = 402, body = Failure, description = "it costs more than there is credit for, or than was to be paid"),
        (status = 404, body = Failure, description = "nobody offers it"),
        (status = 409, body = Failure, description = "the call's id was used for another one"),
    )
)]
async fn call(State(state): State<ApiState>, body: Bytes) -> Response {
    let request = match request(&body) {
        Ok(request) => Arc::new(request),
        Err(error) => return refuse(&error),
    };
    let (events, mut happened) = mpsc::channel(LINES);
    let (say, mut lines) = mpsc::channel::<Value>(LINES);
    let services = state.services.clone();
    tokio::spawn(async move {
        let calling = async {
            let called = services.call(&request, &events).await;
            drop(events);
            called
        };
        let telling = async {
            while let Some(event) = happened.recv().await {
                // With nobody left to tell, the call is given up below.
                let _ = say.send(told(&event)).await;
            }
        };
        let ended = tokio::select! {
            (called, ()) = async { tokio::join!(calling, telling) } => match called {
                Ok(done) => json!({ "event": "done", "result": done.document(&request) }),
                Err(error) => json!({ "event": "error", "error": error }),
            },
            () = say.closed() => return,
        };
        let _ = say.send(ended).await;
    });
    // What fails before anything happened is a status, not a stream.
    let Some(mut first) = lines.recv().await else {
        return refuse(&InferError::new(ErrorCode::Internal, "the call ended without a word"));
    };
    if first["event"] == "error"
        && let Ok(error) = serde_json::from_value::<InferError>(first["error"].take())
    {
        return refuse(&error);
    }
    let rest = stream::unfold(lines, |mut lines| async { Some((lines.recv().await?, lines)) });
    let lines = stream::iter([first]).chain(rest).map(|event| super::line(&event));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn told(event: &CallEvent) -> Value {
    match event {
        CallEvent::Accepted { peer, version, price } => {
            json!({ "event": "accepted", "peer_id": peer.to_string(), "version": version, "price": price })
        }
        CallEvent::Progress(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!({ "event": "progress", "text": text }),
            Err(_) => json!({ "event": "progress", "hex": hex::encode(bytes) }),
        },
    }
}
