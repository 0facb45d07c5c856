//! Being reached: `POST /api/v1/ping` and `GET /api/v1/netcheck`.

use std::{io, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use quelea_behaviours::{nat::is_relayed, probe};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    ApiState, failure, parse, refuse,
    shape::{Failure, answers},
};
use crate::{
    address::parse_peer_address,
    inference::InferError,
    netcheck,
    swarm::{
        ConnectError, Handle, PingFailure, Pong,
        dht::{Answer, Ask, Found},
    },
    telemetry::{stats::Path, way},
};

/// The longest a request to wait for a direct connection may wait.
const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// Replies that wait for a slow reader.
const REPLIES: usize = 16;

/// How long the DHT may take to say where a peer is.
const LOOKUP: Duration = Duration::from_secs(5);

/// Between two looks at whether the connection is direct by now.
const DIRECT_LOOK: Duration = Duration::from_millis(200);

/// What to ping, and for how long.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PingRequest {
    /// A peer id, or a full multiaddr.
    peer: String,
    #[serde(default = "four")]
    count: u32,
    /// Bytes there and back.
    #[serde(default)]
    size: usize,
    #[serde(default)]
    until_direct: bool,
    /// How long to wait for a direct connection.
    #[serde(default)]
    deadline_ms: u64,
    #[serde(default)]
    interval_ms: u64,
}

fn four() -> u32 {
    4
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(ping, netcheck))]
pub(super) struct Described;

answers! {
    /// A reply, or with `done` the end.
    PingLine = "quelea.ping/v1" {
        peer_id: String,
        ;
        seq: u32, bytes: usize, rtt_s: f64, path: String, transport: String, via: Option<String>, address: String, error: String,
        done: bool, sent: u32, received: u32, direct: bool, until_direct: bool,
    }

    /// How this node can be reached.
    Netcheck = "quelea.netcheck/v1" {
        reachability: String, nat: NatKind, observed: Vec<Observed>, addresses: Vec<TestedAddress>, external: Vec<String>,
        listen: Vec<String>, upnp: UpnpState, ipv6: Ipv6State, port_mapping: PortMapping, cgnat: bool, relays: Vec<RelayItem>,
        hole_punching: HolePunching, clock: Option<Clock>, peers: ReachedPeers, advice: Vec<String>,
    }

    NatKind { kind: String, mapping: String, filtering: String, double: Option<String>, }
    /// Where a peer sees this node.
    Observed { address: String, transport: String, by: String, }
    TestedAddress { address: String, state: String, dial_backs: u32, failures: u32, reason: Option<String>, }
    UpnpState { state: String, addresses: Vec<String>, }
    Ipv6State { os: bool, global: Option<String>, reachable: bool, }
    PortMapping { gateway: Option<String>, pcp: String, nat_pmp: String, external: Option<String>, }
    RelayItem { peer_id: String, address: String, rtt_s: Option<f64>, reserved: bool, }
    HolePunching { attempts: u64, successes: u64, }
    /// By how much this node's clock is behind those of its peers.
    Clock { skew_s: f64, peers: usize, }
    ReachedPeers { connected: usize, relayed: usize, }
}

/// Pings a peer: a line for each reply, and one for the end.
#[utoipa::path(
    post, path = "/api/v1/ping",
    request_body = PingRequest,
    responses(
        (status = 200, body = PingLine, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "nothing is known of that peer"),
    )
)]
pub(super) async fn ping(State(state): State<ApiState>, body: Bytes) -> Response {
    let request: PingRequest = match parse(&body) {
        Ok(request) => request,
        Err(error) => return refuse(&error),
    };
    let (peer, addrs) = match target(&request.peer) {
        Ok(target) => target,
        Err(message) => return usage(message),
    };
    let handle = state.asker.plane.handle.clone();
    if peer == handle.local() {
        return usage("that is this node itself".to_owned());
    }
    if let Err(error) = reach(&handle, peer, addrs).await {
        let error = unreached(&error);
        return refuse(&error);
    }
    let (lines, receiver) = mpsc::channel(REPLIES);
    tokio::spawn(run(handle, peer, request, lines));
    let lines = stream::unfold(receiver, |mut lines| async { Some((lines.recv().await?, lines)) });
    let bytes = lines.map(|line: Value| -> io::Result<Bytes> { Ok(format!("{line}\n").into()) });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(bytes)).into_response()
}

/// How this node can be reached.
#[utoipa::path(get, path = "/api/v1/netcheck", responses((status = 200, body = Netcheck)))]
pub(super) async fn netcheck(State(state): State<ApiState>) -> Response {
    match state.asker.plane.handle.nat().await {
        Some(view) => Json(netcheck::report(&view, &netcheck::Around::look(state.masked).await)).into_response(),
        None => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &InferError::new(ErrorCode::ShuttingDown, ErrorCode::ShuttingDown.meaning()),
        ),
    }
}

fn usage(message: String) -> Response {
    failure(StatusCode::BAD_REQUEST, &InferError::new(ErrorCode::Usage, message))
}

/// Whom to ping, and where to dial it.
fn target(text: &str) -> Result<(PeerId, Vec<Multiaddr>), String> {
    if text.starts_with('/') {
        let full = parse_peer_address(text).map_err(|e| e.to_string())?;
        return Ok((full.peer, vec![full.addr]));
    }
    let peer = text.parse().map_err(|e| format!("{text:?} is neither a peer id nor a multiaddr: {e}"))?;
    Ok((peer, Vec::new()))
}

/// Connects to `peer`, asking the DHT where it is when neither we nor the relays know.
pub(super) async fn reach(handle: &Handle, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<(), ConnectError> {
    let named = !addrs.is_empty();
    let failed = match handle.connect(peer, addrs).await {
        Err(error) if !named => error,
        done => return done,
    };
    let (_, answer) = handle.dht(Ask::FindPeer { peer }, LOOKUP).await;
    let Ok(Ok(Answer { found: Found::Peers(found), .. })) = answer.await else { return Err(failed) };
    let addrs: Vec<Multiaddr> = found.into_iter().filter(|(id, _)| *id == peer).flat_map(|(_, addrs)| addrs).collect();
    if addrs.is_empty() { Err(failed) } else { handle.connect(peer, addrs).await }
}

fn unreached(error: &ConnectError) -> InferError {
    let code = match error {
        ConnectError::NoAddresses { .. } => ErrorCode::PeerUnknown,
        ConnectError::Busy => ErrorCode::Overloaded,
        ConnectError::Stopped => ErrorCode::ShuttingDown,
        _ => ErrorCode::DialFailed,
    };
    let failed = InferError::new(code, error.to_string());
    if code == ErrorCode::PeerUnknown {
        failed.hint("give a full multiaddr that ends in the peer id, or join the swarm that the peer is in")
    } else {
        failed
    }
}

async fn run(handle: Handle, peer: PeerId, request: PingRequest, lines: mpsc::Sender<Value>) {
    let deadline = Instant::now() + Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    let interval = Duration::from_millis(request.interval_ms);
    let bytes = request.size.min(probe::MAX_BYTES);
    let (mut seq, mut received, mut direct) = (0_u32, 0_u32, false);
    loop {
        seq += 1;
        let result = handle.ping(peer, bytes).await;
        direct = match &result {
            Ok(pong) => !is_relayed(&pong.addr),
            Err(_) => direct,
        };
        received += u32::from(result.is_ok());
        let gone = matches!(result, Err(PingFailure::Stopped));
        if lines.send(reply(peer, seq, bytes, result)).await.is_err() || gone {
            return;
        }
        let done = if request.until_direct { direct || Instant::now() >= deadline } else { seq >= request.count };
        if done {
            break;
        }
        pause(&handle, peer, interval, request.until_direct).await;
        if handle.connect(peer, Vec::new()).await.is_err() && !request.until_direct {
            continue;
        }
    }
    let end = json!({
        "schema": "quelea.ping/v1",
        "done": true,
        "peer_id": peer.to_string(),
        "sent": seq,
        "received": received,
        "direct": direct,
        "until_direct": request.until_direct,
    });
    let _ = lines.send(end).await;
}

/// Waits for the next ping; when a direct connection is wanted, not longer than until there is one.
async fn pause(handle: &Handle, peer: PeerId, interval: Duration, until_direct: bool) {
    let end = Instant::now() + interval;
    while Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        sleep(if until_direct { left.min(DIRECT_LOOK) } else { left }).await;
        if until_direct {
            let peers = handle.snapshot().await.map(|s| s.peers).unwrap_or_default();
            let addrs = peers.into_iter().find(|view| view.peer == peer).map(|view| view.addrs).unwrap_or_default();
            if addrs.iter().any(|addr| !is_relayed(addr)) {
                return;
            }
        }
    }
}

fn reply(peer: PeerId, seq: u32, bytes: usize, result: Result<Pong, PingFailure>) -> Value {
    let mut line = json!({ "schema": "quelea.ping/v1", "peer_id": peer.to_string(), "seq": seq, "bytes": bytes });
    match result {
        Ok(pong) => {
            let (path, transport) = way(&pong.addr);
            let via = relay_of(&pong.addr).filter(|_| path == Path::Relayed);
            line["rtt_s"] = json!(pong.rtt.as_secs_f64());
            line["path"] = json!(if path == Path::Direct { "direct" } else { "relayed" });
            line["transport"] = json!(transport.as_str());
            line["via"] = json!(via.map(|relay| relay.to_string()));
            line["address"] = json!(pong.addr.to_string());
        }
        Err(error) => line["error"] = json!(error.to_string()),
    }
    line
}

/// The relay of a circuit.
fn relay_of(addr: &Multiaddr) -> Option<PeerId> {
    addr.iter().find_map(|part| match part {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    })
}
