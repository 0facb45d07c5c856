//! Traces: what a request took, span by span, on this node and, where an operator collects them, on the peers that worked for it.
//!
//! | span | kind | where | what it is |
//! |---|---|---|---|
//! | `chat MODEL`, `text_completion MODEL`, `embeddings MODEL` | client, or internal where all runs here | coordinator | a request; GenAI attributes, never a word of prompt or answer |
//! | `pipeline.plan` | internal | coordinator | finding a chain |
//! | `pipeline.open` | internal | coordinator | opening the session at all stages |
//! | `pipeline.prefill`, `pipeline.decode`, `pipeline.close` | internal | coordinator | the prompt, the answer's tokens, the reports and the pay |
//! | `pipeline.failover` | internal | coordinator | a stage is lost until the session goes on |
//! | `pipeline.stage session` | client | coordinator | one peer's part in the session |
//! | `pipeline.stage session` | server | stage | the same, as the peer sees it |
//!
//! Nothing is made per token. Spans of a node's own requests are always made and the newest traces kept in memory
//! ([`recent`]); spans of stages only while traces are [exported](export). What the peers get of a trace is W3C's `traceparent`
//! in the shard protocol's Open, and only where the trace is exported. A stage begins a trace of its own with a link to it, unless
//! the coordinator is one whose parents are taken ([`TraceSettings::parents_from`]): whoever chose a trace id could else write into
//! other traces. What strangers cause is bounded by a rate, whatever their `sampled` says. docs/adr/0051 has the reasons.

mod export;
mod recent;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
        TraceState, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_sdk::trace::{
    SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample, Span as SdkSpan,
};
use quelea_wire::{
    TraceParent,
    rate::{Cell, PeerBuckets, Quota},
};

use super::stats::{Path, Transport};

pub(super) use self::export::observe;
use self::{export::Sink, recent::Recent};
pub(crate) use self::{
    export::TraceSettings,
    recent::{TraceSpan, TraceSummary},
};

/// Sessions of peers that are traced in [`STRANGERS_PERIOD`]: at once, then 16 a second. A trace of a stage is one span of a
/// kilobyte, so that is what the operator's collector gets from strangers.
const STRANGERS: u32 = 64;

/// The same of one peer: as often as a person asks.
const STRANGER: u32 = 16;
const STRANGERS_PERIOD: Duration = Duration::from_secs(4);

/// The longest text of an attribute that somebody else wrote, in bytes: a model's name, a reason.
const MAX_TEXT: usize = 128;

/// Makes spans. Clones are one.
#[derive(Clone)]
pub(crate) struct Traces {
    inner: Arc<Inner>,
}

struct Inner {
    tracer: SdkTracer,
    sink: Arc<Sink>,
    rules: OnceLock<Rules>,
    strangers: Mutex<Strangers>,
}

/// What holds while traces are exported.
struct Rules {
    /// The share of traces that are exported where no caller has decided it.
    ratio: f64,
    parents_from: HashSet<PeerId>,
}

impl Rules {
    fn drawn(&self) -> bool {
        self.ratio >= 1.0 || rand::random::<f64>() < self.ratio
    }
}

struct Strangers {
    each: PeerBuckets,
    all: Cell,
}

/// Whether a new trace is exported, in the context that its first span is made in.
struct Decided(bool);

/// Takes what was decided: by us for a trace's first span, by that for the others. What is not exported is recorded all the
/// same, for [`recent`].
#[derive(Clone, Debug)]
struct AsDecided;

impl ShouldSample for AsDecided {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let inherited = || parent.is_some_and(|cx| cx.span().span_context().is_sampled());
        let sampled = parent.and_then(|cx| cx.get::<Decided>()).map_or_else(inherited, |decided| decided.0);
        let decision = if sampled { SamplingDecision::RecordAndSample } else { SamplingDecision::RecordOnly };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("exported", &self.exports()).finish_non_exhaustive()
    }
}

impl Default for Traces {
    fn default() -> Self {
        let sink = Arc::new(Sink::default());
        let provider = SdkTracerProvider::builder()
            .with_sampler(AsDecided)
            .with_span_processor(export::Hand(sink.clone()))
            .build();
        let strangers = Strangers {
            each: PeerBuckets::new(STRANGER, STRANGERS_PERIOD),
            all: Cell::new(Quota::new(STRANGERS, STRANGERS_PERIOD)),
        };
        let inner =
            Inner { tracer: provider.tracer("quelea"), sink, rules: OnceLock::new(), strangers: Mutex::new(strangers) };
        Self { inner: Arc::new(inner) }
    }
}

/// A request as its span has it at the start.
pub(crate) struct Asking<'a> {
    /// `chat`, in the words of the GenAI conventions.
    pub(crate) operation: &'static str,
    /// The model as it was asked for.
    pub(crate) model: &'a str,
    /// Whether no peer is asked.
    pub(crate) local: bool,
    pub(crate) max_tokens: u32,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// The caller's own span. It came in by the API, where callers have shown who they are.
    pub(crate) parent: Option<TraceParent>,
}

/// Why a session of a peer has no span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited;

impl Traces {
    /// Whether traces leave this node.
    pub(crate) fn exports(&self) -> bool {
        self.inner.rules.get().is_some()
    }

    /// Counts for the scrape.
    pub(super) fn sink(&self) -> &Arc<Sink> {
        &self.inner.sink
    }

    /// The newest traces of requests of this node, the newest first.
    pub(crate) fn recent(&self) -> Vec<TraceSummary> {
        self.recently().list()
    }

    /// The spans of one of them, in the order of their beginnings.
    pub(crate) fn spans(&self, trace_id: &str) -> Option<Vec<TraceSpan>> {
        self.recently().spans(TraceId::from_hex(trace_id).ok()?)
    }

    fn recently(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.inner.sink.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of this node's user begins. Its span is a trace's first here.
    pub(crate) fn request(&self, asking: &Asking<'_>) -> Span {
        let sampled =
            self.inner.rules.get().is_some_and(|rules| asking.parent.map_or_else(|| rules.drawn(), |p| p.sampled));
        let kind = if asking.local { SpanKind::Internal } else { SpanKind::Client };
        let builder = SpanBuilder::from_name(asking.operation).with_kind(kind).with_attributes([
            KeyValue::new("gen_ai.operation.name", asking.operation),
            KeyValue::new("gen_ai.provider.name", "quelea"),
            KeyValue::new("gen_ai.request.model", cut(asking.model)),
            KeyValue::new("gen_ai.request.max_tokens", i64::from(asking.max_tokens)),
            KeyValue::new("gen_ai.request.temperature", f64::from(asking.temperature)),
            KeyValue::new("gen_ai.request.top_p", f64::from(asking.top_p)),
        ]);
        let span = self.first(builder, asking.parent, sampled);
        self.recently().begin(span.span_context().trace_id());
        Span::of(self, span)
    }

    /// A session of `coordinator` at a stage of this node begins, perhaps as part of a trace of its. Nothing where it is not
    /// to be traced.
    ///
    /// # Errors
    /// When it would be, but for the rate of what peers may cause.
    pub(crate) fn session(
        &self,
        coordinator: PeerId,
        local: PeerId,
        trace: Option<TraceParent>,
    ) -> Result<Span, Limited> {
        let Some(rules) = self.inner.rules.get() else { return Ok(Span::none()) };
        let adopted = trace.filter(|_| coordinator == local || rules.parents_from.contains(&coordinator));
        let wanted = match (adopted, trace) {
            (Some(parent), _) => parent.sampled,
            (None, Some(other)) => other.sampled || rules.drawn(),
            // This node's own request is not exported, so neither is its part here.
            (None, None) => coordinator != local && rules.drawn(),
        };
        if !wanted {
            return Ok(Span::none());
        }
        if coordinator != local {
            let now = Instant::now();
            let mut strangers = self.inner.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            if !strangers.each.admit(coordinator, now) || !strangers.all.admit(now) {
                return Err(Limited);
            }
        }
        let builder = SpanBuilder::from_name("pipeline.stage session").with_kind(SpanKind::Server).with_attributes([
            KeyValue::new("rpc.system.name", "libp2p"),
            KeyValue::new("rpc.method", "shard/session"),
            KeyValue::new("quelea.peer.id", coordinator.to_string()),
        ]);
        let builder = match (adopted, trace) {
            (None, Some(other)) => builder.with_links(vec![Link::with_context(context_of(other))]),
            _ => builder,
        };
        Ok(Span::of(self, self.first(builder, adopted, true)))
    }

    /// The first span of a trace on this node.
    fn first(&self, builder: SpanBuilder, parent: Option<TraceParent>, sampled: bool) -> SdkSpan {
        // Not the current one: the context of whoever polls us is nobody's.
        let context = Context::new().with_value(Decided(sampled));
        let context = match parent {
            Some(parent) => context.with_remote_span_context(context_of(parent)),
            None => context,
        };
        self.inner.tracer.build_with_context(builder, &context)
    }
}

fn context_of(parent: TraceParent) -> SpanContext {
    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (TraceId::from_bytes(parent.trace_id()), SpanId::from_bytes(parent.span_id()));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

/// A text of others: of a bounded length, and without what a terminal would obey.
fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}

/// A span, or nothing. It ends when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Span(Option<Box<Live>>);

#[derive(Debug)]
struct Live {
    span: SdkSpan,
    traces: Traces,
}

impl Span {
    fn of(traces: &Traces, span: SdkSpan) -> Self {
        Self(Some(Box::new(Live { span, traces: traces.clone() })))
    }

    /// No span. What is said of it is forgotten.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Where its parts belong.
    pub(crate) fn within(&self) -> Within {
        Within(self.0.as_deref().map(|live| (live.span.span_context().clone(), live.traces.clone())))
    }

    /// What a peer is told of it: nothing where it is not exported.
    pub(crate) fn parent(&self) -> Option<TraceParent> {
        let context = self.0.as_deref()?.span.span_context();
        if !context.is_sampled() {
            return None;
        }
        TraceParent::new(context.trace_id().to_bytes(), context.span_id().to_bytes(), true)
    }

    /// What log lines of this carry: the trace's id, by which [`TraceSummary`] has it. At the level of errors, so that no filter
    /// that shows a line takes its id away.
    pub(crate) fn for_log(&self) -> tracing::Span {
        match self.0.as_deref() {
            Some(live) => tracing::error_span!("request", trace_id = %live.span.span_context().trace_id()),
            None => tracing::Span::none(),
        }
    }

    /// Adds an attribute.
    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(live) = &mut self.0 {
            live.span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Adds how the other side is reached: `network.transport` in the words of the conventions, which know `quic` and `tcp` and
    /// take a WebSocket for what it runs on.
    pub(crate) fn set_way(&mut self, (path, transport): (Path, Transport)) {
        match transport {
            Transport::Quic => self.set("network.transport", "quic"),
            Transport::Tcp | Transport::Websocket => self.set("network.transport", "tcp"),
            Transport::Other => {}
        }
        self.set("quelea.path", path.as_str());
    }

    /// Adds a list of texts of ours.
    pub(crate) fn set_list(&mut self, key: &'static str, texts: impl IntoIterator<Item = String>) {
        if self.0.is_some() {
            let texts = texts.into_iter().map(opentelemetry::StringValue::from).collect();
            self.set(key, Value::Array(opentelemetry::Array::String(texts)));
        }
    }

    /// The request's span is of this model.
    pub(crate) fn of_model(&mut self, operation: &'static str, name: &str, id: &str) {
        if let Some(live) = &mut self.0 {
            live.span.update_name(format!("{operation} {}", cut(name)));
            live.span.set_attribute(KeyValue::new("gen_ai.response.model", id.to_owned()));
        }
    }

    /// Something happened meanwhile.
    pub(crate) fn event(&mut self, name: &'static str) {
        if let Some(live) = &mut self.0 {
            live.span.add_event(name, Vec::new());
        }
    }

    /// It ends in an error; `code` is of a fixed set.
    pub(crate) fn fail(&mut self, code: impl Into<Cow<'static, str>>, message: &str) {
        if let Some(live) = &mut self.0 {
            live.span.set_attribute(KeyValue::new("error.type", code.into()));
            live.span.set_status(Status::error(cut(message)));
        }
    }

    /// It ends as its work did.
    pub(crate) fn ended<T>(mut self, result: &Result<T, crate::inference::InferError>) {
        if let Err(error) = result {
            self.fail(error.code.clone(), &error.message);
        }
    }
}

/// A place in a trace, or nowhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Within(Option<(SpanContext, Traces)>);

impl Within {
    /// A part of what happens here.
    pub(crate) fn start(&self, name: &'static str) -> Span {
        self.begin(SpanBuilder::from_name(name))
    }

    /// Whether there is anything that spans are made for.
    pub(crate) fn is_traced(&self) -> bool {
        self.0.is_some()
    }

    /// A peer's part in a session.
    pub(crate) fn stage(&self, peer: &PeerId, layers: &str) -> Span {
        if self.0.is_none() {
            return Span::none();
        }
        let builder = SpanBuilder::from_name("pipeline.stage session").with_kind(SpanKind::Client);
        self.begin(builder.with_attributes([
            KeyValue::new("rpc.system.name", "libp2p"),
            KeyValue::new("rpc.method", "shard/session"),
            KeyValue::new("quelea.peer.id", peer.to_string()),
            KeyValue::new("quelea.layers", layers.to_owned()),
        ]))
    }

    fn begin(&self, builder: SpanBuilder) -> Span {
        let Some((parent, traces)) = &self.0 else { return Span::none() };
        let context = Context::new().with_remote_span_context(parent.clone());
        Span::of(traces, traces.inner.tracer.build_with_context(builder, &context))
    }
}
