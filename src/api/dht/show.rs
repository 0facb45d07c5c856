//! Answers of the DHT as JSON.

use std::time::{Duration, Instant};

use futures::future::join_all;
use libp2p::{Multiaddr, PeerId};
use quelea_behaviours::kad::Choice;
use serde_json::{Map, Value, json};

use crate::api::shape;
use crate::swarm::{
    Handle,
    dht::{Answer, DhtStats, Found, Kind},
};

/// How an answer is shown, with what the request said.
pub(super) enum Show {
    Put { key: String, ttl: Option<Duration>, quorum: usize },
    Values { key: String, all: bool },
    Provided { key: String },
    Providers { key: String },
    Peer,
    Nodes { target: String },
}

impl Show {
    /// What was asked, in a word.
    pub(super) fn query(&self) -> &'static str {
        match self {
            Self::Put { .. } => "put",
            Self::Values { .. } => "get",
            Self::Provided { .. } => "provide",
            Self::Providers { .. } => "providers",
            Self::Peer => "find_peer",
            Self::Nodes { .. } => "find_node",
        }
    }

    /// The document of an answer. Peers that were found are dialled, or rather: their dials are waited for.
    pub(super) async fn answer(self, handle: &Handle, answer: Answer) -> Value {
        let mut shown = match (self, answer.found) {
            (Self::Put { key, ttl, quorum }, Found::Put { peers }) => json!({
                "schema": "quelea.dht_put/v1",
                "key": key,
                "peers": peers,
                "quorum": quorum,
                "ttl_s": ttl.map(|ttl| ttl.as_secs_f64()),
            }),
            (Self::Values { key, all }, Found::Values { choices, invalid }) => values(&key, &choices, invalid, all),
            (Self::Provided { key }, _) => json!({ "schema": "quelea.dht_provide/v1", "key": key }),
            (Self::Providers { key }, Found::Providers(peers)) => {
                // Dialled while the lookup knew where they are.
                let reached = peers.iter().map(|peer| reach(handle, *peer, Vec::new()));
                let items: Vec<Value> = join_all(reached).await;
                let mut shown = shape::list("quelea.dht_providers/v1", items);
                shown["key"] = json!(key);
                shown
            }
            (Self::Peer, Found::Peers(peers)) => {
                let Some((peer, addrs)) = peers.into_iter().next() else { return Value::Null };
                let mut shown = reach(handle, peer, addrs).await;
                shown["schema"] = json!("quelea.dht_peer/v1");
                shown
            }
            (Self::Nodes { target }, Found::Peers(peers)) => {
                let items: Vec<Value> = peers
                    .iter()
                    .map(|(peer, addrs)| json!({ "peer_id": peer.to_string(), "addresses": texts(addrs) }))
                    .collect();
                let mut shown = shape::list("quelea.dht_nodes/v1", items);
                shown["target"] = json!(target);
                shown
            }
            _ => return Value::Null,
        };
        shown["requests"] = json!(answer.effort.requests);
        shown["answers"] = json!(answer.effort.answers);
        shown["elapsed_s"] = json!(answer.took.as_secs_f64());
        shown
    }
}

fn values(key: &str, choices: &[Choice], invalid: usize, all: bool) -> Value {
    let now = Instant::now();
    let item = |choice: &Choice| {
        json!({
            "value": std::str::from_utf8(&choice.value).ok(),
            "value_hex": hex::encode(&choice.value),
            "holders": choice.holders.len(),
            "sequence": choice.sequence,
            "expires_s": choice.expires.map(|at| at.saturating_duration_since(now).as_secs_f64()),
        })
    };
    let mut shown = json!({ "schema": "quelea.dht_get/v1", "key": key, "values": choices.len(), "invalid": invalid });
    match (all, choices.first().map(item)) {
        (true, _) => shown["items"] = choices.iter().map(item).collect(),
        (false, Some(Value::Object(best))) => best.into_iter().for_each(|(name, value)| shown[name] = value),
        _ => {}
    }
    shown
}

/// Waits for a line to `peer`, and shows it: where it is, and whether it was reached.
async fn reach(handle: &Handle, peer: PeerId, mut addrs: Vec<Multiaddr>) -> Value {
    let local = peer == handle.local();
    let connected = local || handle.connect(peer, addrs.clone()).await.is_ok();
    if connected && addrs.is_empty() {
        let views = handle.snapshot().await.map(|snapshot| snapshot.peers).unwrap_or_default();
        addrs = views.into_iter().find(|view| view.peer == peer).map(|view| view.addrs).unwrap_or_default();
    }
    json!({ "peer_id": peer.to_string(), "addresses": texts(&addrs), "connected": connected, "local": local })
}

fn texts(addrs: &[Multiaddr]) -> Vec<String> {
    addrs.iter().map(ToString::to_string).collect()
}

/// `quelea dht stats`.
pub(super) fn stats(stats: &DhtStats) -> Value {
    let queries: Map<String, Value> = Kind::ALL
        .iter()
        .zip(stats.tallies)
        .map(|((_, name), tally)| {
            let all = tally.ok.saturating_add(tally.failed);
            // The share of a count: exact far beyond what one process asks.
            let ratio = (all > 0).then(|| tally.ok as f64 / all as f64);
            ((*name).to_owned(), json!({ "ok": tally.ok, "failed": tally.failed, "success_ratio": ratio }))
        })
        .collect();
    let buckets: Vec<Value> =
        stats.buckets.iter().map(|(bucket, peers)| json!({ "bucket": bucket, "peers": peers })).collect();
    let store = &stats.store;
    json!({
        "schema": "quelea.dht_stats/v1",
        "mode": if stats.server { "server" } else { "client" },
        "peers": stats.buckets.iter().map(|(_, peers)| peers).sum::<usize>(),
        "buckets": buckets,
        "records": { "held": store.values, "held_bytes": store.value_bytes, "own": store.own_values },
        "providers": { "held": store.providers, "keys": store.provider_keys, "own": store.own_providers },
        "store": {
            "peers": store.peers,
            "refused": store.refused,
            "replaced": store.replaced,
            "expired": store.expired,
            "crowded": store.crowded,
        },
        "queries_running": stats.running,
        "queries": queries,
    })
}
