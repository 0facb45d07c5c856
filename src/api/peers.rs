//! Peers and the list to start from, in the control API.
//!
//! | route | body | answers |
//! |---|---|---|
//! | `GET /api/v1/peers` | – | the connected peers |
//! | `GET /api/v1/peers/known` | – | every peer remembered |
//! | `GET /api/v1/peers/{id}` | – | what is known of one peer |
//! | `POST /api/v1/peers/connect` | `addr`: a full multiaddr, or a peer id | once connected |
//! | `POST /api/v1/peers/disconnect` | `peer` | once its connections are told to end |
//! | `GET /api/v1/bootstrap` | – | the operator's list of peers to start from |
//! | `POST /api/v1/bootstrap/add`, `…/rm` | `addr`: a full multiaddr | once it is written down |
//!
//! Times are seconds as floats, instants Unix seconds. Streams and bytes are those
//! of the connections that a peer has now, `null` where nobody counts.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use quelea_wire::{ErrorCode, time::unix_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    ApiState, database, parse, refuse,
    shape::{self, Failure, List, answers, seconds},
};
use crate::{
    address::{PeerAddress, parse_peer_address},
    inference::InferError,
    storage::WriteError,
    swarm::{ConnectError, KnownView, PeerView},
    telemetry::way,
};

#[derive(utoipa::OpenApi)]
#[openapi(paths(list, known, info, connect, disconnect, starts, add_start, remove_start))]
pub(super) struct Described;

answers! {
    /// A connected peer. Streams and bytes are those of its connections now, null where nobody counts.
    PeerItem {
        peer_id: String, agent: Option<String>, direction: String, path: String, transport: String, ip: Option<String>,
        relay: Option<String>, rtt_s: Option<f64>, streams: Option<u64>, sent_bytes: Option<u64>, received_bytes: Option<u64>,
        protocols: Vec<String>, conduct: f64, addresses: Vec<String>, connected_s: f64,
    }

    /// A peer that is remembered.
    KnownPeer {
        peer_id: String, agent: Option<String>, connected: bool, source: String, told_by: Option<String>, anchor:
        bool, conduct: f64,
        failures: u64, first_seen_at_s: f64, last_seen_at_s: Option<f64>, addresses: Vec<String>, record: Option<PeerRecordShown>,
    }

    /// What the peer says of itself, signed.
    PeerRecordShown { seq: u64, signed_at_s: f64, addresses: Vec<String>, }

    /// All that is known of one peer.
    Peer = "quelea.peer/v1" {
        peer_id: String, agent: Option<String>, connected: bool, source: String, told_by: Option<String>, anchor:
        bool, conduct: f64,
        failures: u64, first_seen_at_s: f64, last_seen_at_s: Option<f64>, addresses: Vec<String>, record: Option<PeerRecordShown>,
        connection: Option<PeerItem>,
    }

    PeerConnected = "quelea.peers_connect/v1" { peer_id: String, }
    PeerDisconnected = "quelea.peers_disconnect/v1" { peer_id: String, }
    /// A peer to start from.
    Start { addr: String, added_at_s: f64, connected: bool, }
    StartAdded = "quelea.bootstrap_add/v1" { addr: String, }
    StartRemoved = "quelea.bootstrap_rm/v1" { addr: String, }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/peers", get(list))
        .route("/api/v1/peers/known", get(known))
        .route("/api/v1/peers/{id}", get(info))
        .route("/api/v1/peers/connect", post(connect))
        .route("/api/v1/peers/disconnect", post(disconnect))
        .route("/api/v1/bootstrap", get(starts))
        .route("/api/v1/bootstrap/add", post(add_start))
        .route("/api/v1/bootstrap/rm", post(remove_start))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AddrBody {
    /// A multiaddr that ends in `/p2p/` and a peer id; to connect, a peer id alone will do.
    addr: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PeerBody {
    /// Its peer id.
    peer: String,
}

/// The connected peers, the nearest first.
#[utoipa::path(get, path = "/api/v1/peers", responses((status = 200, body = List<PeerItem>)))]
pub(super) async fn list(State(state): State<ApiState>) -> Json<Value> {
    let mut peers = state.asker.plane.handle.snapshot().await.map(|s| s.peers).unwrap_or_default();
    peers.sort_by_key(|peer| (peer.rtt.is_none(), peer.rtt, peer.peer));
    let items: Vec<Value> = peers.iter().map(connected).collect();
    Json(shape::list("quelea.peers/v1", items))
}

/// Every peer that is remembered.
#[utoipa::path(get, path = "/api/v1/peers/known", responses((status = 200, body = List<KnownPeer>)))]
async fn known(State(state): State<ApiState>) -> Json<Value> {
    let mut all = state.asker.plane.handle.known(None).await;
    all.sort_by_key(|view| (!view.connected, std::cmp::Reverse(view.known.last_seen_ms), view.peer));
    let items: Vec<Value> = all.iter().map(remembered).collect();
    Json(shape::list("quelea.peers_known/v1", items))
}

/// What is known of one peer.
#[utoipa::path(
    get, path = "/api/v1/peers/{id}",
    params(("id" = String, Path, description = "a peer id")),
    responses((status = 200, body = Peer), (status = 404, body = Failure, description = "there is none"))
)]
async fn info(State(state): State<ApiState>, Path(id): Path<String>) -> Response {
    let peer = match peer_of(&id) {
        Ok(peer) => peer,
        Err(error) => return refuse(&error),
    };
    let handle = &state.asker.plane.handle;
    let Some(view) = handle.known(Some(peer)).await.pop() else {
        let error = InferError::new(ErrorCode::NotFound, format!("nothing is known of {peer}"));
        return refuse(&error.hint("'quelea dht find-peer' asks the swarm where it is"));
    };
    let peers = handle.snapshot().await.map(|s| s.peers).unwrap_or_default();
    let mut answer = remembered(&view);
    answer["connection"] = peers.iter().find(|p| p.peer == peer).map_or(Value::Null, connected);
    answer["schema"] = json!("quelea.peer/v1");
    Json(answer).into_response()
}

/// Connects to a peer, and keeps the connection.
#[utoipa::path(
    post, path = "/api/v1/peers/connect",
    request_body = AddrBody,
    responses((status = 200, body = PeerConnected), (status = 404, body = Failure, description = "no addresses are known"))
)]
async fn connect(State(state): State<ApiState>, body: Bytes) -> Response {
    let (peer, addrs) = match parse::<AddrBody>(&body).and_then(|body| target(&body.addr)) {
        Ok(target) => target,
        Err(error) => return refuse(&error),
    };
    let handle = &state.asker.plane.handle;
    if let Err(error) = super::nat::reach(handle, peer, addrs).await {
        return refuse(&undialled(&error));
    }
    handle.keep(peer).await;
    Json(json!({ "schema": "quelea.peers_connect/v1", "peer_id": peer.to_string() })).into_response()
}

/// Ends the connections to a peer.
#[utoipa::path(
    post, path = "/api/v1/peers/disconnect",
    request_body = PeerBody,
    responses((status = 200, body = PeerDisconnected), (status = 404, body = Failure, description = "it is not connected"))
)]
async fn disconnect(State(state): State<ApiState>, body: Bytes) -> Response {
    let peer = match parse::<PeerBody>(&body).and_then(|body| peer_of(&body.peer)) {
        Ok(peer) => peer,
        Err(error) => return refuse(&error),
    };
    if state.asker.plane.handle.disconnect(peer).await {
        Json(json!({ "schema": "quelea.peers_disconnect/v1", "peer_id": peer.to_string() })).into_response()
    } else {
        refuse(&InferError::new(ErrorCode::NotFound, format!("{peer} is not connected")))
    }
}

/// The peers that this node starts from.
#[utoipa::path(get, path = "/api/v1/bootstrap", responses((status = 200, body = List<Start>)))]
async fn starts(State(state): State<ApiState>) -> Response {
    let db = match database(&state) {
        Ok(db) => db,
        Err(error) => return refuse(&error),
    };
    match db.bootstrap_list().await {
        Ok(listed) => {
            let peers = state.asker.plane.handle.snapshot().await.map(|s| s.peers).unwrap_or_default();
            let item = |(addr, added_ms): &(String, u64)| {
                let start = parse_peer_address(addr).ok();
                let connected = start.is_some_and(|start| peers.iter().any(|peer| peer.peer == start.peer));
                json!({ "addr": addr, "added_at_s": seconds(*added_ms), "connected": connected })
            };
            let items: Vec<Value> = listed.iter().map(item).collect();
            Json(shape::list("quelea.bootstrap/v1", items)).into_response()
        }
        Err(error) => refuse(&InferError::new(ErrorCode::StorageFailed, error.to_string())),
    }
}

/// Adds a peer to start from, and dials it.
#[utoipa::path(post, path = "/api/v1/bootstrap/add", request_body = AddrBody, responses((status = 200, body = StartAdded)))]
async fn add_start(State(state): State<ApiState>, body: Bytes) -> Response {
    let (start, db) = match parse::<AddrBody>(&body).and_then(|body| Ok((start(&body.addr)?, database(&state)?))) {
        Ok(given) => given,
        Err(error) => return refuse(&error),
    };
    match db.add_bootstrap(start.to_string(), unix_ms()).await {
        Ok(()) => {
            state.asker.plane.handle.bootstrap(start.peer, start.addr.clone()).await;
            Json(json!({ "schema": "quelea.bootstrap_add/v1", "addr": start.to_string() })).into_response()
        }
        Err(error) => refuse(&unwritten(&error)),
    }
}

/// Takes a peer from the list to start from.
#[utoipa::path(
    post, path = "/api/v1/bootstrap/rm",
    request_body = AddrBody,
    responses((status = 200, body = StartRemoved), (status = 404, body = Failure, description = "there is none"))
)]
async fn remove_start(State(state): State<ApiState>, body: Bytes) -> Response {
    let (start, db) = match parse::<AddrBody>(&body).and_then(|body| Ok((start(&body.addr)?, database(&state)?))) {
        Ok(given) => given,
        Err(error) => return refuse(&error),
    };
    let listed = db.bootstrap_list().await.unwrap_or_default();
    if !listed.iter().any(|(addr, _)| *addr == start.to_string()) {
        let error = InferError::new(ErrorCode::NotFound, format!("{start} is not on the list"));
        return refuse(&error.hint("'quelea bootstrap list' shows what is"));
    }
    match db.remove_bootstrap(start.to_string()).await {
        Ok(()) => Json(json!({ "schema": "quelea.bootstrap_rm/v1", "addr": start.to_string() })).into_response(),
        Err(error) => refuse(&unwritten(&error)),
    }
}

fn connected(peer: &PeerView) -> Value {
    // Of several connections, a direct one is the one that is used.
    let best = peer.addrs.iter().min_by_key(|addr| quelea_behaviours::nat::is_relayed(addr));
    let (path, transport) = best.map(way).map_or(("-", "-"), |(path, transport)| (path.as_str(), transport.as_str()));
    json!({
        "peer_id": peer.peer.to_string(),
        "agent": peer.agent,
        "direction": if peer.outbound { "outbound" } else { "inbound" },
        "path": path,
        "transport": transport,
        "ip": best.and_then(ip_version),
        "relay": best.and_then(relay_of).map(|relay| relay.to_string()),
        "rtt_s": peer.rtt.map(|rtt| rtt.as_secs_f64()),
        "streams": peer.traffic.map(|sums| sums.streams),
        "sent_bytes": peer.traffic.map(|sums| sums.sent),
        "received_bytes": peer.traffic.map(|sums| sums.received),
        "protocols": peer.protocols,
        "conduct": conduct(peer.conduct),
        "addresses": peer.addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "connected_s": peer.connected_for.as_secs_f64(),
    })
}

fn remembered(view: &KnownView) -> Value {
    let known = &view.known;
    json!({
        "peer_id": view.peer.to_string(),
        "agent": known.agent,
        "connected": view.connected,
        "source": known.source.as_str(),
        "told_by": known.teller.map(|teller| teller.to_string()),
        "anchor": known.anchor,
        "conduct": conduct(known.conduct),
        "failures": known.failures,
        "first_seen_at_s": seconds(known.first_seen_ms),
        "last_seen_at_s": known.last_seen_ms.map(seconds),
        "addresses": known.addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "record": view.record.as_ref().map(|record| json!({
            "seq": record.seq,
            "signed_at_s": seconds(record.signed_ms),
            "addresses": record.addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
    })
}

/// As people read trust: 0 to 1.
fn conduct(ten_thousandths: u16) -> f64 {
    f64::from(ten_thousandths) / 10_000.0
}

fn ip_version(addr: &Multiaddr) -> Option<&'static str> {
    match addr.iter().next()? {
        Protocol::Ip4(_) => Some("v4"),
        Protocol::Ip6(_) => Some("v6"),
        _ => None,
    }
}

/// The relay that an address leads through.
fn relay_of(addr: &Multiaddr) -> Option<PeerId> {
    let mut relay = None;
    for part in addr {
        match part {
            Protocol::P2p(peer) => relay = Some(peer),
            Protocol::P2pCircuit => return relay,
            _ => {}
        }
    }
    None
}

/// A full multiaddr, or the id of a peer whose addresses are known.
fn target(given: &str) -> Result<(PeerId, Vec<Multiaddr>), InferError> {
    match given.trim().parse::<PeerId>() {
        Ok(peer) => Ok((peer, Vec::new())),
        Err(_) => start(given).map(|start| (start.peer, vec![start.addr])),
    }
}

fn start(given: &str) -> Result<PeerAddress, InferError> {
    parse_peer_address(given).map_err(|e| InferError::new(ErrorCode::Usage, e.to_string()))
}

fn peer_of(given: &str) -> Result<PeerId, InferError> {
    let shown: String = given.chars().take(80).collect();
    given.trim().parse().map_err(|_| InferError::new(ErrorCode::Usage, format!("{shown:?} is not a peer id")))
}

fn undialled(error: &ConnectError) -> InferError {
    let (code, hint) = match error {
        ConnectError::NoAddresses { .. } => {
            (ErrorCode::NotFound, "give a full address, ending in /p2p/ and its peer id")
        }
        ConnectError::Busy => (ErrorCode::Overloaded, "try again in a moment"),
        ConnectError::Stopped => (ErrorCode::ShuttingDown, "the node is stopping"),
        _ => (ErrorCode::DialFailed, "check the address, and that the node there is running on the same network"),
    };
    InferError::new(code, error.to_string()).hint(hint)
}

fn unwritten(error: &WriteError) -> InferError {
    match error {
        WriteError::ListFull => InferError::new(ErrorCode::Usage, error.to_string()).hint("see 'quelea bootstrap rm'"),
        _ => InferError::new(ErrorCode::StorageFailed, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_and_targets_are_read() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let through = format!("/ip4/9.9.9.9/tcp/1/p2p/{relay}/p2p-circuit/p2p/{peer}").parse().unwrap();
        assert_eq!(relay_of(&through), Some(relay));
        assert_eq!(relay_of(&format!("/ip4/9.9.9.9/tcp/1/p2p/{peer}").parse().unwrap()), None);
        assert_eq!(target(&peer.to_string()).unwrap(), (peer, Vec::new()));
        let (to, addrs) = target(&format!("/ip4/9.9.9.9/tcp/1/p2p/{peer}")).unwrap();
        assert_eq!((to, addrs[0].to_string()), (peer, "/ip4/9.9.9.9/tcp/1".to_owned()));
        assert!(target("/ip4/9.9.9.9/tcp/1").unwrap_err().message.contains("/p2p/"));
        assert!(peer_of("nobody").unwrap_err().message.contains("nobody"));
    }
}
