//! What the node counts as it happens, and the scrape.
//!
//! Everything is recorded through OpenTelemetry's meter into a Prometheus registry. No label's value comes from a peer:
//! they are enums, names fixed in the code, or the ids of at most 16 models ([`NodeStats::model`]).

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider as _},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::TextEncoder;
use quelea_behaviours::store::Refusal;

use super::{
    health::Health,
    instruments::{self, Instruments},
    libp2p_text,
    stats::{ModelLabel, NodeStats},
};

/// How publishing again ends.
const REPUBLISHED: [&str; 2] = ["ok", "failed"];

/// Why an address does not enter the routing table.
const ADDRESS_GROUP: &str = "address_group";

/// The content type of a scrape.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Scopes of rate limits: a peer, its address range, everybody; connections accepted per range; signatures checked; sessions
/// of peers that are traced.
const RATE_SCOPES: [&str; 6] = ["peer", "prefix", "global", "accept", "signatures", "traces"];

/// Which build this is, shown as the labels of `quelea_build_info`.
#[derive(Clone, Debug)]
pub struct BuildInfo {
    /// The package's version.
    pub version: Cow<'static, str>,
    /// The commit it was built from.
    pub commit: Cow<'static, str>,
    /// The compiler.
    pub rustc: Cow<'static, str>,
    /// Cargo features, separated by commas.
    pub features: Cow<'static, str>,
}

impl Default for BuildInfo {
    /// What is known at compile time; a packager sets `QUELEA_COMMIT` and `QUELEA_RUSTC` in the build's environment.
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("QUELEA_COMMIT").unwrap_or("unknown").into(),
            rustc: option_env!("QUELEA_RUSTC").unwrap_or("unknown").into(),
            features: "".into(),
        }
    }
}

/// An enum that is a label's value.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant),+
        }

        impl $name {
            /// Its text on the label.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

label! {
    /// Who asked.
    Direction {
        /// A peer asked us.
        Inbound = "inbound",
        /// We asked a peer.
        Outbound = "outbound",
    }
}
label! {
    /// How a hole punch ended.
    Punch {
        /// The connection is direct now.
        Success = "success",
        /// It stays relayed.
        Failure = "failure",
    }
}
label! {
    /// How a request of one of our protocols ended.
    RpcResult {
        /// Answered.
        Ok = "ok",
        /// Failed, or answered with an error.
        Error = "error",
        /// No answer in time.
        Timeout = "timeout",
        /// Refused by a limit or a policy.
        Refused = "refused",
    }
}
label! {
    /// How an inference request ended.
    Outcome {
        /// The model ended it, or a stop sequence did.
        Stop = "stop",
        /// The token limit ended it.
        Length = "length",
        /// The caller went away or cancelled.
        Cancelled = "cancelled",
        /// Something failed on the way.
        Error = "error",
        /// No chain of peers covers the model.
        NoRoute = "no_route",
        /// Credit or what the caller gives does not suffice.
        NoCredit = "no_credit",
    }
}
label! {
    /// What was asked for, in the words of OpenTelemetry's GenAI conventions.
    Operation {
        /// A conversation.
        Chat = "chat",
        /// A raw prompt.
        TextCompletion = "text_completion",
        /// A text's vector.
        Embeddings = "embeddings",
    }
}
label! {
    /// What a step does.
    Phase {
        /// It takes in the prompt.
        Prefill = "prefill",
        /// It makes a token.
        Decode = "decode",
    }
}
label! {
    /// Where a stage runs.
    Where {
        /// On this node.
        Local = "local",
        /// On a peer.
        Remote = "remote",
    }
}

/// An inference request that ended.
#[derive(Clone, Debug)]
pub struct Finished<'a> {
    /// What was asked for.
    pub operation: Operation,
    /// Of which model.
    pub model: &'a ModelLabel,
    /// How it ended.
    pub outcome: Outcome,
    /// The error's name where it ended in one (`QUE-2003`); a fixed set.
    pub error_type: Option<&'static str>,
    /// From taking the request to its end.
    pub duration: Duration,
    /// From taking the request to the first token, if there was one.
    pub first_token: Option<Duration>,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens made.
    pub output_tokens: u64,
    /// Tokens guessed: right, and wrong.
    pub guessed_tokens: [u64; 2],
}

/// Why metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up metrics: {0}")]
pub struct MetricsError(#[from] opentelemetry_sdk::error::OTelSdkError);

/// The node's metrics. Clones share them; recording never blocks for long and never fails.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    instruments: Instruments,
    registry: prometheus::Registry,
    libp2p: OnceLock<prometheus_client::registry::Registry>,
    /// Dropping it would stop the instruments.
    provider: SdkMeterProvider,
}

impl Metrics {
    /// Sets the instruments up. Gauges are read from `stats` and `health` at each scrape.
    ///
    /// # Errors
    /// When the exporter cannot be registered.
    pub fn new(build: &BuildInfo, stats: &Arc<NodeStats>, health: &Arc<Health>) -> Result<Self, MetricsError> {
        let registry = prometheus::Registry::new();
        // Neither carries anything here: one scope, and the build has a metric of its own.
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        let meter = provider.meter("quelea");
        let instruments = Instruments::new(&meter);
        instruments::observe(&meter, build, stats, health);
        // Counters that alert on their first increase have to exist before it.
        instruments.tasks_panicked.add(0, &[]);
        for result in REPUBLISHED {
            instruments.dht_republished.add(0, &[KeyValue::new("result", result)]);
        }
        for reason in Refusal::ALL.map(Refusal::label).into_iter().chain([ADDRESS_GROUP]) {
            instruments.dht_refused.add(0, &[KeyValue::new("reason", reason)]);
        }
        for scope in RATE_SCOPES {
            instruments.rate_limited.add(0, &[KeyValue::new("scope", scope)]);
        }
        Ok(Self { inner: Arc::new(Inner { instruments, registry, libp2p: OnceLock::new(), provider }) })
    }

    /// For what others count.
    pub(super) fn meter(&self) -> Meter {
        self.inner.provider.meter("quelea")
    }

    /// Joins libp2p's own registry to the scrape, once it is filled. A second one is ignored.
    pub fn join_libp2p(&self, registry: prometheus_client::registry::Registry) {
        if self.inner.libp2p.set(registry).is_err() {
            tracing::warn!("a second libp2p registry was not joined to the metrics");
        }
    }

    /// The node's own metrics and libp2p's, in Prometheus' text format 0.0.4 ([`CONTENT_TYPE`]). Reads `/proc` and formats
    /// some hundred lines: a few milliseconds, so call it on a blocking thread.
    pub fn scrape(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.inner.registry.gather(), &mut text) {
            tracing::warn!(%error, "could not encode metrics");
        }
        if let Some(registry) = self.inner.libp2p.get() {
            let mut open_metrics = String::new();
            match prometheus_client::encoding::text::encode(&mut open_metrics, registry) {
                Ok(()) => {
                    let joined = {
                        let ours: HashSet<&str> = libp2p_text::families(&text).collect();
                        libp2p_text::rewrite(&open_metrics, &ours)
                    };
                    text.push_str(&joined);
                }
                Err(error) => tracing::warn!(%error, "could not encode libp2p's metrics"),
            }
        }
        text
    }

    /// A request of one of our protocols ended. `protocol` is its short name (`announce`).
    pub fn rpc(&self, protocol: &'static str, direction: Direction, result: RpcResult) {
        self.inner.instruments.rpc_requests.add(
            1,
            &[
                KeyValue::new("protocol", protocol),
                KeyValue::new("direction", direction.as_str()),
                KeyValue::new("result", result.as_str()),
            ],
        );
    }

    /// An exchange of peers brought (`Inbound`) or took (`Outbound`) so many records in so many bytes.
    pub fn exchanged(&self, direction: Direction, records: usize, bytes: usize) {
        let labels = [KeyValue::new("direction", direction.as_str())];
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.inner.instruments.exchange_records.add(count(records), &labels);
        self.inner.instruments.exchange_bytes.add(count(bytes), &labels);
    }

    /// An inference request that this node coordinated ended.
    pub fn finished(&self, request: &Finished<'_>) {
        let instruments = &self.inner.instruments;
        let model = KeyValue::new("model", request.model.shared());
        instruments.inference_requests.add(1, &[model.clone(), KeyValue::new("outcome", request.outcome.as_str())]);
        for (kind, tokens) in [("input", request.input_tokens), ("output", request.output_tokens)] {
            instruments.tokens_processed.add(tokens, &[model.clone(), KeyValue::new("type", kind)]);
        }
        for (outcome, tokens) in ["accepted", "rejected"].into_iter().zip(request.guessed_tokens) {
            instruments.speculated_tokens.add(tokens, &[model.clone(), KeyValue::new("outcome", outcome)]);
        }
        let mut labels = vec![
            KeyValue::new("gen_ai.operation.name", request.operation.as_str()),
            KeyValue::new("gen_ai.request.model", request.model.shared()),
        ];
        if let Some(error) = request.error_type {
            labels.push(KeyValue::new("error.type", error));
        }
        instruments.request_duration.record(request.duration.as_secs_f64(), &labels);
        let Some(first_token) = request.first_token else { return };
        instruments.time_to_first_token.record(first_token.as_secs_f64(), &labels);
        if request.output_tokens > 1 {
            let rest = request.duration.saturating_sub(first_token).as_secs_f64();
            instruments.time_per_output_token.record(rest / (request.output_tokens - 1) as f64, &labels);
        }
    }

    /// The swarm's loop came so late to a turn that was due.
    pub fn swarm_late(&self, late: Duration) {
        self.inner.instruments.swarm_late.record(late.as_secs_f64(), &[]);
    }

    /// A request over HTTP is being answered.
    pub fn http_began(&self, route: &str) {
        self.inner.instruments.http_in_flight.add(1, &[KeyValue::new("http.route", route.to_owned())]);
    }

    /// It is not any more.
    pub fn http_ended(&self, route: &str) {
        self.inner.instruments.http_in_flight.add(-1, &[KeyValue::new("http.route", route.to_owned())]);
    }

    /// A request over HTTP was answered within this time. Method and route are such as there are.
    pub fn http_took(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let labels = [
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(status)),
        ];
        self.inner.instruments.http_duration.record(took.as_secs_f64(), &labels);
    }

    /// A stage computed for this long on one step, by its own clock.
    pub fn stage(&self, phase: Phase, at: Where, took: Duration) {
        let labels = [KeyValue::new("phase", phase.as_str()), KeyValue::new("where", at.as_str())];
        self.inner.instruments.stage_duration.record(took.as_secs_f64(), &labels);
    }

    /// A step waited this long until this node's stage computed it.
    pub fn queue_wait(&self, phase: Phase, waited: Duration) {
        let labels = [KeyValue::new("phase", phase.as_str())];
        self.inner.instruments.queue_wait.record(waited.as_secs_f64(), &labels);
    }

    /// A request was answered by a chain of so many peers.
    pub fn chain(&self, stages: usize) {
        self.inner.instruments.stages.record(u64::try_from(stages).unwrap_or(u64::MAX), &[]);
    }

    /// One way to the next peer took this long, as a stage tells from acknowledgements.
    pub fn hop(&self, phase: Phase, took: Duration) {
        self.inner.instruments.hop.record(took.as_secs_f64(), &[KeyValue::new("phase", phase.as_str())]);
    }

    /// A run of a WASM module ended.
    pub fn agent_run(&self, outcome: &'static str, took: Duration, fuel: u64) {
        let labels = [KeyValue::new("outcome", outcome)];
        self.inner.instruments.agent_runs.add(1, &labels);
        self.inner.instruments.agent_fuel_used.add(fuel, &labels);
        self.inner.instruments.agent_run_duration.record(took.as_secs_f64(), &labels);
    }

    /// A database commit took this long. Hand this to [`crate::storage::Db::open`].
    pub fn db_commit(&self, took: Duration) {
        self.inner.instruments.db_commit.record(took.as_secs_f64(), &[]);
    }

    /// The queues there are, so that each shows as 0 before it was ever full.
    pub fn declare_channels(&self, names: &[&'static str]) {
        for name in names {
            self.inner.instruments.channel_full.add(0, &[KeyValue::new("name", *name)]);
        }
    }

    /// A hole punch ended.
    pub fn hole_punch(&self, result: Punch) {
        self.inner.instruments.hole_punches.add(1, &[KeyValue::new("result", result.as_str())]);
    }

    /// A session of this node's user lost a stage; whether it went on.
    pub fn recovered(&self, went_on: bool) {
        let outcome = if went_on { "ok" } else { "failed" };
        self.inner.instruments.recoveries.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A stage of this node handed rows on once more.
    pub fn replayed(&self, rows: u64) {
        self.inner.instruments.replayed_rows.add(rows, &[]);
    }

    /// A commitment of a stage was signed here, or judged.
    pub fn commitment(&self, outcome: &'static str) {
        self.inner.instruments.commitments.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A stage of an answer was computed again, or could not be.
    pub fn audit(&self, outcome: &'static str) {
        self.inner.instruments.audits.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// An answer that was drawn is not audited.
    pub fn audit_skipped(&self, reason: &'static str) {
        self.audit("skipped");
        self.inner.instruments.audits_skipped.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A message of the ledger: its kind, and what became of it.
    pub fn ledger_entry(&self, kind: &'static str, result: &'static str) {
        let labels = [KeyValue::new("kind", kind), KeyValue::new("result", result)];
        self.inner.instruments.ledger_entries.add(1, &labels);
    }

    /// An account was frozen, or a contradiction proven.
    pub fn ledger_disputed(&self, reason: &'static str) {
        self.inner.instruments.ledger_disputes.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A peer's hold met a limit.
    pub fn ledger_limit_refused(&self, reason: &'static str) {
        self.inner.instruments.ledger_limit_refusals.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// This node had lost entries of its own.
    pub fn ledger_self_recovered(&self) {
        self.inner.instruments.ledger_self_recovered.add(1, &[]);
    }

    /// A peer has not paid what was due.
    pub fn ledger_defaulted(&self) {
        self.inner.instruments.ledger_defaults.add(1, &[]);
    }

    /// A call of a peer ended: at which service, of a fixed set of names, and `ok` or an error's code.
    pub fn service_called(&self, service: &'static str, outcome: &'static str, took: Duration) {
        let of = KeyValue::new("service", service);
        self.inner.instruments.service_calls.add(1, &[of.clone(), KeyValue::new("outcome", outcome)]);
        self.inner.instruments.service_duration.record(took.as_secs_f64(), &[of]);
    }

    /// A bounded queue had no place for one item.
    pub fn channel_full(&self, name: &'static str) {
        self.inner.instruments.channel_full.add(1, &[KeyValue::new("name", name)]);
    }

    /// As [`Metrics::channel_full`], when `full`.
    pub fn channel_full_if(&self, full: bool, name: &'static str) {
        if full {
            self.channel_full(name);
        }
    }

    /// A value or a provider record of ours was published again; whether it reached anybody.
    pub fn dht_republished(&self, reached: bool) {
        let [ok, failed] = REPUBLISHED;
        let result = if reached { ok } else { failed };
        self.inner.instruments.dht_republished.add(1, &[KeyValue::new("result", result)]);
    }

    /// A record of another peer was not taken.
    pub fn dht_refused(&self, why: Refusal) {
        self.inner.instruments.dht_refused.add(1, &[KeyValue::new("reason", why.label())]);
    }

    /// So many addresses were kept out of the routing table because their range has its share.
    pub fn dht_group_full(&self, count: u64) {
        if count > 0 {
            self.inner.instruments.dht_refused.add(count, &[KeyValue::new("reason", ADDRESS_GROUP)]);
        }
    }

    /// A rate limit of this scope refused so many things.
    pub fn rate_limited(&self, scope: &'static str, count: u64) {
        if count > 0 {
            self.inner.instruments.rate_limited.add(count, &[KeyValue::new("scope", scope)]);
        }
    }

    /// A task or a thread ended in a panic.
    pub fn task_panicked(&self) {
        self.inner.instruments.tasks_panicked.add(1, &[]);
    }
}
