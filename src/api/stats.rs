//! `GET /api/v1/stats`: the node's counters, as its metrics have them, sorted for people; and `GET /metrics`, as they are.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use quelea_wire::ErrorCode;
use serde_json::{Map, Value, json};
use tokio::task::JoinError;

use super::{ApiState, failure, shape::answers};
use crate::{inference::InferError, telemetry::metrics::CONTENT_TYPE};

#[derive(utoipa::OpenApi)]
#[openapi(paths(stats, metrics))]
pub(super) struct Described;

answers! {
    /// The node's counters since its start, and its gauges.
    Stats = "quelea.stats/v1" {
        uptime_s: Option<f64>, cpu_s: Option<f64>, memory_bytes: Option<u64>,
        /// Each with the labels of its metric, and `bytes`.
        traffic: Vec<std::collections::BTreeMap<String, Value>>,
        /// Each with the labels of its metric, and `count`.
        requests: Vec<std::collections::BTreeMap<String, Value>>,
        gossip: GossipStats,
        dedup: DedupStats,
        /// Queues that were full, and how often.
        queues: Vec<std::collections::BTreeMap<String, Value>>,
        rate_limits: Vec<std::collections::BTreeMap<String, Value>>,
    }

    GossipStats {
        messages: Vec<std::collections::BTreeMap<String, Value>>, neighbours: Option<u64>, penalised: Option<u64>,
        announced: Option<u64>,
    }

    DedupStats {
        exact_ids: Option<u64>, bloom_ids: Option<u64>, bytes: Option<u64>, fill_ratio: Option<f64>,
        false_positive_ratio: Option<f64>,
    }
}

/// The node's counters, sorted for people.
#[utoipa::path(get, path = "/api/v1/stats", responses((status = 200, body = Stats)))]
pub(super) async fn stats(State(state): State<ApiState>) -> Response {
    let metrics = state.telemetry.metrics.clone();
    match tokio::task::spawn_blocking(move || report(&metrics.scrape())).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &unread(&error)),
    }
}

/// The metrics, in Prometheus' text format; those of the metrics address, for whoever has a token.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(state): State<ApiState>) -> Response {
    let metrics = state.telemetry.metrics.clone();
    match tokio::task::spawn_blocking(move || metrics.scrape()).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &unread(&error)),
    }
}

fn unread(error: &JoinError) -> InferError {
    InferError::new(ErrorCode::Internal, format!("the counters could not be read: {error}"))
}

/// One line of a scrape.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (id, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let Some((name, labels)) = id.split_once('{') else {
            return Some(Self { name: id, labels: Vec::new(), value });
        };
        // No value of the families that are read here holds a quote or a comma.
        let pairs = labels.strip_suffix('}')?.split(',').filter_map(|pair| pair.split_once('='));
        let labels = pairs.map(|(key, value)| (key, value.trim_matches('"'))).collect();
        Some(Self { name, labels, value })
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// A count: whole below 2⁵³, which no counter here reaches.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and not negative")]
fn count(value: f64) -> Value {
    json!(value as u64)
}

fn report(scrape: &str) -> Value {
    let samples: Vec<Sample<'_>> =
        scrape.lines().filter(|line| !line.starts_with('#')).filter_map(Sample::parse).collect();
    let value = |name: &str| samples.iter().find(|sample| sample.name == name).map(|sample| sample.value);
    let whole = |name: &str| value(name).map_or(Value::Null, count);
    // Every sample of a family as an object of its labels and its count.
    let rows = |name: &str, counted: &str| -> Vec<Value> {
        let of_family = samples.iter().filter(|sample| sample.name == name);
        let row = |sample: &Sample<'_>| {
            let labels = sample.labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
            Value::Object(labels.chain([(counted.to_owned(), count(sample.value))]).collect::<Map<_, _>>())
        };
        of_family.map(row).collect()
    };
    let ids = |stage: &str| {
        let of_stage = |s: &&Sample<'_>| s.name == "quelea_gossip_dedup_ids" && s.label("stage") == Some(stage);
        samples.iter().find(of_stage).map_or(Value::Null, |sample| count(sample.value))
    };
    json!({
        "schema": "quelea.stats/v1",
        "uptime_s": value("quelea_uptime_seconds"),
        "cpu_s": value("process_cpu_seconds_total"),
        "memory_bytes": whole("process_resident_memory_bytes"),
        "traffic": rows("libp2p_bandwidth_bytes_total", "bytes"),
        "requests": rows("quelea_rpc_requests_total", "count"),
        "gossip": {
            "messages": rows("quelea_gossip_messages_total", "count"),
            "neighbours": whole("quelea_gossip_neighbours"),
            "penalised": whole("quelea_gossip_penalised"),
            "announced": whole("quelea_gossip_announced"),
        },
        "dedup": {
            "exact_ids": ids("exact"),
            "bloom_ids": ids("bloom"),
            "bytes": whole("quelea_gossip_dedup_bytes"),
            "fill_ratio": value("quelea_gossip_dedup_fill_ratio"),
            "false_positive_ratio": value("quelea_gossip_dedup_false_positive_ratio"),
        },
        "queues": rows("quelea_channel_full_total", "full"),
        "rate_limits": rows("quelea_rate_limited_total", "count"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_sorted() {
        let scrape = "# HELP x y\n# TYPE x counter\nquelea_uptime_seconds 12.5\n\
            quelea_channel_full_total{name=\"storage\"} 3\n\
            quelea_gossip_messages_total{topic=\"broadcast\",verdict=\"accepted\"} 7\n\
            quelea_gossip_dedup_ids{stage=\"bloom\"} 4\n\
            quelea_gossip_dedup_ids{stage=\"exact\"} 5\nquelea_gossip_dedup_false_positive_ratio 0.0000015\n\
            libp2p_bandwidth_bytes_total{protocols=\"/ip4/tcp/p2p\",direction=\"Inbound\"} 900\n";
        let report = report(scrape);
        assert_eq!(report["uptime_s"], 12.5);
        assert_eq!(report["queues"], json!([{ "name": "storage", "full": 3 }]));
        assert_eq!(report["gossip"]["messages"], json!([{ "topic": "broadcast", "verdict": "accepted", "count": 7 }]));
        assert_eq!((&report["dedup"]["exact_ids"], &report["dedup"]["bloom_ids"]), (&json!(5), &json!(4)));
        assert_eq!(report["dedup"]["false_positive_ratio"], 1.5e-6);
        assert_eq!(report["traffic"][0]["bytes"], 900);
        assert_eq!((&report["rate_limits"], &report["memory_bytes"]), (&json!([]), &Value::Null));
    }
}
