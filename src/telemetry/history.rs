//! The last hour, in memory: what charts show before anybody has set up a database of metrics.
//!
//! One point every [`STEP`], [`POINTS`] of them: with 16 figures of 8 bytes some 90 KiB. What is counted is kept as counted,
//! since the start; who draws takes differences.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// Between two points.
pub(crate) const STEP: Duration = Duration::from_secs(5);

/// Points kept: an hour of them.
pub(crate) const POINTS: usize = 720;

/// Name, the metric that is summed up, and what its labels must hold (nothing for all).
const SERIES: [(&str, &str, &str); 16] = [
    ("peers", "quelea_peers_connected", ""),
    ("peers_known", "quelea_peers_known", ""),
    ("cpu_s", "process_cpu_seconds_total", ""),
    ("memory_bytes", "process_resident_memory_bytes", ""),
    ("sent_bytes", "libp2p_bandwidth_bytes_total", "direction=\"Outbound\""),
    ("received_bytes", "libp2p_bandwidth_bytes_total", "direction=\"Inbound\""),
    ("input_tokens", "quelea_tokens_processed_total", "type=\"input\""),
    ("output_tokens", "quelea_tokens_processed_total", "type=\"output\""),
    ("requests", "quelea_inference_requests_total", ""),
    ("stage_rows", "quelea_stage_rows_total", ""),
    ("sessions", "quelea_shard_sessions", ""),
    ("queue", "quelea_inference_queue_depth", ""),
    ("kv_used_bytes", "quelea_kv_cache_used_bytes", ""),
    ("owed", "quelea_ledger_owed_credits", ""),
    ("owing", "quelea_ledger_owing_credits", ""),
    ("dht_records", "quelea_dht_records", ""),
];

/// What was at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Unix milliseconds.
    time_ms: u64,
    /// As [`SERIES`] has them.
    values: [f64; SERIES.len()],
}

impl Point {
    /// Reads a scrape.
    pub(crate) fn of(time_ms: u64, scrape: &str) -> Self {
        let mut values = [0.0; SERIES.len()];
        for line in scrape.lines().filter(|line| !line.starts_with('#')) {
            let Some((id, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = id.split_once('{').unwrap_or((id, ""));
            for (sum, (_, wanted, label)) in values.iter_mut().zip(SERIES) {
                if name == wanted && labels.contains(label) {
                    *sum += value.parse().unwrap_or(0.0);
                }
            }
        }
        Self { time_ms, values }
    }

    /// `{"schema", "time_ms", "type": "metric", …}`.
    pub(crate) fn event(&self) -> Value {
        let mut event = json!({ "schema": "quelea.event/v1", "time_ms": self.time_ms, "type": "metric" });
        for ((name, _, _), value) in SERIES.iter().zip(self.values) {
            event[*name] = json!(value);
        }
        event
    }
}

/// A clonable reference to the points.
#[derive(Debug, Clone)]
pub(crate) struct History {
    kept: Arc<Mutex<VecDeque<Point>>>,
    newest: Arc<watch::Sender<Option<Point>>>,
}

impl Default for History {
    fn default() -> Self {
        Self { kept: Arc::default(), newest: Arc::new(watch::channel(None).0) }
    }
}

impl History {
    /// One more; the oldest goes when the hour is full.
    pub(crate) fn push(&self, point: Point) {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= POINTS {
                kept.pop_front();
            }
            kept.push_back(point);
        }
        self.newest.send_replace(Some(point));
    }

    /// The newest point, and those that come.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Point>> {
        self.newest.subscribe()
    }

    /// The points after `after_ms`, by series: `{"t": […], "series": {"peers": […], …}}`.
    pub(crate) fn since(&self, after_ms: u64) -> Value {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let points: Vec<Point> = kept.iter().filter(|point| point.time_ms > after_ms).copied().collect();
        drop(kept);
        let mut series = Map::new();
        for (at, (name, _, _)) in SERIES.iter().enumerate() {
            let values = points.iter().map(|point| json!(point.values.get(at)));
            series.insert((*name).to_owned(), values.collect());
        }
        let times: Vec<f64> = points.iter().map(|point| point.time_ms as f64 / 1e3).collect();
        json!({ "schema": "quelea.timeseries/v1", "step_s": STEP.as_secs(), "t": times, "series": series })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_becomes_sums() {
        let scrape = "# TYPE quelea_peers_connected gauge\nquelea_peers_connected{path=\"direct\",transport=\"tcp\"} 2\n\
            quelea_peers_connected{path=\"relayed\",transport=\"tcp\"} 1\nquelea_peers_connected_other 9\n\
            libp2p_bandwidth_bytes_total{protocols=\"/ip4/tcp\",direction=\"Inbound\"} 900\n\
            libp2p_bandwidth_bytes_total{protocols=\"/ip4/tcp\",direction=\"Outbound\"} 70\nprocess_cpu_seconds_total 1.5\n";
        let event = Point::of(7, scrape).event();
        assert_eq!(
            (&event["peers"], &event["received_bytes"], &event["sent_bytes"]),
            (&json!(3.0), &json!(900.0), &json!(70.0))
        );
        assert_eq!((&event["cpu_s"], &event["owed"]), (&json!(1.5), &json!(0.0)));
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let history = History::default();
        for n in 1..=(POINTS as u64 + 10) {
            history.push(Point::of(n * 1000, &format!("quelea_peers_known {n}\n")));
        }
        let all = history.since(0);
        assert_eq!(all["t"].as_array().unwrap().len(), POINTS);
        assert_eq!((&all["t"][0], &all["series"]["peers_known"][0]), (&json!(11.0), &json!(11.0)));
        assert_eq!(history.since((POINTS as u64 + 8) * 1000)["t"], json!([729.0, 730.0]));
    }
}
