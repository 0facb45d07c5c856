//! The newest traces of this node's own requests, in memory: for who asks where the time went, without a collector.

use std::{
    collections::{HashMap, VecDeque},
    time::{SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    Array, KeyValue, Value,
    trace::{SpanId, SpanKind, Status, TraceId},
};
use opentelemetry_sdk::trace::SpanData;
use serde::Serialize;
use serde_json::{Map, json};

/// Traces that are kept: the oldest gives way.
pub(super) const TRACES: usize = 64;

/// Spans of a trace that are kept. A request over twenty stages that loses one has some thirty; of a client's trace with more
/// requests than that, the later ones are only counted.
pub(super) const SPANS: usize = 64;

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<SpanData>,
    left_out: u64,
}

/// At most [`TRACES`] times [`SPANS`] spans of about a kilobyte.
#[derive(Debug, Default)]
pub(super) struct Recent {
    order: VecDeque<TraceId>,
    traces: HashMap<TraceId, Kept>,
}

/// A trace in a list.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(crate) struct TraceSummary {
    /// 32 hex digits.
    pub(crate) trace_id: String,
    /// The name of its first request's span.
    pub(crate) name: String,
    /// When it began, Unix milliseconds.
    pub(crate) started_ms: u64,
    /// From the first span's beginning to the last one's end.
    pub(crate) duration_s: f64,
    /// Spans that are kept.
    pub(crate) spans: usize,
    /// Spans that were too many.
    pub(crate) left_out: u64,
    /// What went wrong, where something did: the `error.type` of a request's span.
    pub(crate) error: Option<String>,
    /// Whether it was for a collector, too.
    pub(crate) exported: bool,
}

/// A span of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(crate) struct TraceSpan {
    /// 16 hex digits.
    pub(crate) span_id: String,
    /// The same of the span that it is part of; nothing where there is none.
    pub(crate) parent_span_id: Option<String>,
    /// Its name.
    pub(crate) name: String,
    /// `internal`, `client`, `server`.
    pub(crate) kind: &'static str,
    /// When it began, Unix milliseconds.
    pub(crate) started_ms: u64,
    /// Seconds after the trace's beginning.
    pub(crate) after_s: f64,
    /// How long it took.
    pub(crate) duration_s: f64,
    /// What is known of it.
    #[schema(value_type = Object)]
    pub(crate) attributes: Map<String, serde_json::Value>,
    /// What happened meanwhile: names, and seconds after the trace's beginning.
    pub(crate) events: Vec<serde_json::Value>,
    /// Why it failed, where it did.
    pub(crate) error: Option<String>,
}

impl Recent {
    /// Spans of this trace are kept from now on.
    pub(super) fn begin(&mut self, trace: TraceId) {
        if self.traces.contains_key(&trace) {
            return;
        }
        if self.order.len() >= TRACES
            && let Some(oldest) = self.order.pop_front()
        {
            self.traces.remove(&oldest);
        }
        self.order.push_back(trace);
        self.traces.insert(trace, Kept::default());
    }

    /// A span has ended.
    pub(super) fn add(&mut self, span: &SpanData) {
        let Some(kept) = self.traces.get_mut(&span.span_context.trace_id()) else { return };
        if kept.spans.len() < SPANS {
            kept.spans.push(span.clone());
        } else {
            kept.left_out += 1;
        }
    }

    /// Those that have a span that has ended, the newest first.
    pub(super) fn list(&self) -> Vec<TraceSummary> {
        let summary = |id: &TraceId| {
            let kept = self.traces.get(id)?;
            let first = first_of(kept)?;
            let end = kept.spans.iter().map(|span| span.end_time).max()?;
            let error = kept.spans.iter().filter(|span| is_request(span)).find_map(error_type);
            Some(TraceSummary {
                trace_id: id.to_string(),
                name: first.name.to_string(),
                started_ms: unix_ms(first.start_time),
                duration_s: seconds(first.start_time, end),
                spans: kept.spans.len(),
                left_out: kept.left_out,
                error,
                exported: first.span_context.is_sampled(),
            })
        };
        self.order.iter().rev().filter_map(summary).collect()
    }

    /// The spans of a trace, in the order of their beginnings.
    pub(super) fn spans(&self, trace: TraceId) -> Option<Vec<TraceSpan>> {
        let kept = self.traces.get(&trace)?;
        let began = kept.spans.iter().map(|span| span.start_time).min()?;
        let mut spans: Vec<&SpanData> = kept.spans.iter().collect();
        spans.sort_by_key(|span| (span.start_time, std::cmp::Reverse(span.end_time)));
        Some(spans.into_iter().map(|span| shown(span, began)).collect())
    }
}

/// The span of a request, rather than of a part of one.
fn is_request(span: &SpanData) -> bool {
    span.parent_span_id == SpanId::INVALID || span.parent_span_is_remote
}

fn first_of(kept: &Kept) -> Option<&SpanData> {
    let requests = kept.spans.iter().filter(|span| is_request(span));
    requests.min_by_key(|span| span.start_time).or_else(|| kept.spans.iter().min_by_key(|span| span.start_time))
}

fn error_type(span: &SpanData) -> Option<String> {
    let of = |kv: &&KeyValue| kv.key.as_str() == "error.type";
    span.attributes.iter().find(of).map(|kv| kv.value.as_str().into_owned())
}

fn shown(span: &SpanData, began: SystemTime) -> TraceSpan {
    let events = span.events.iter();
    TraceSpan {
        span_id: span.span_context.span_id().to_string(),
        parent_span_id: (span.parent_span_id != SpanId::INVALID).then(|| span.parent_span_id.to_string()),
        name: span.name.to_string(),
        kind: match span.span_kind {
            SpanKind::Client => "client",
            SpanKind::Server => "server",
            _ => "internal",
        },
        started_ms: unix_ms(span.start_time),
        after_s: seconds(began, span.start_time),
        duration_s: seconds(span.start_time, span.end_time),
        attributes: span.attributes.iter().map(|kv| (kv.key.to_string(), value(&kv.value))).collect(),
        events: events.map(|e| json!({ "name": e.name, "after_s": seconds(began, e.timestamp) })).collect(),
        error: match &span.status {
            Status::Error { description } => Some(description.to_string()),
            _ => None,
        },
    }
}

fn value(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => json!(value),
        Value::I64(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::String(value) => json!(value.as_str()),
        Value::Array(Array::String(values)) => json!(values.iter().map(|v| v.as_str()).collect::<Vec<_>>()),
        other => json!(other.as_str()),
    }
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The clock may have been set meanwhile.
fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).map_or(0.0, |took| took.as_secs_f64())
}
