//! One clonable reference to everything a part of the node reports to.

use std::{sync::Arc, time::Duration};

use libp2p::{
    PeerId,
    multiaddr::{Multiaddr, Protocol},
};
use quelea_engine::runner::{Output, Phase as JobPhase};
use quelea_wire::{ErrorCode, ModelId, TraceParent, time::unix_ms};

use super::{
    health::{Component, Health, Status},
    history::History,
    metrics::{BuildInfo, Finished, Metrics, MetricsError, Operation, Outcome, Phase, Where},
    stats::{NodeStats, Path, Transport},
    traces::{self, Asking, Limited, Span, Traces},
};
use crate::{
    events::{EventBus, EventKind},
    inference::{FinishReason, InferError, InferRequest, PromptForm, Route, Summary},
};

/// The loop counts as stuck when it has not turned for so long; it ticks four times a second.
const HEARTBEAT_MAX: Duration = Duration::from_secs(5);

/// The queues of the table in [`crate::swarm`], so that each shows as 0 before it was ever full.
const CHANNELS: [&str; 12] = [
    "shard_inbound",
    "service_inbound",
    "storage",
    "stage",
    "queries",
    "results",
    "gossip_validation",
    "weights",
    "commitments",
    "ledger",
    "ledger_send",
    "ledger_out",
];

/// Gauges, metrics and health of one node.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    pub(crate) stats: Arc<NodeStats>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Metrics,
    /// What happens, for those who follow it.
    pub(crate) events: EventBus,
    /// The last hour.
    pub(crate) history: History,
    /// What requests took.
    pub(crate) traces: Traces,
}

impl Telemetry {
    pub(crate) fn new() -> Result<Self, MetricsError> {
        let stats = Arc::new(NodeStats::default());
        let health = Arc::new(Health::new(HEARTBEAT_MAX));
        let metrics = Metrics::new(&BuildInfo::default(), &stats, &health)?;
        metrics.declare_channels(&CHANNELS);
        let traces = Traces::default();
        traces::observe(&metrics.meter(), &traces);
        Ok(Self { stats, health, metrics, events: EventBus::default(), history: History::default(), traces })
    }

    /// A request of this node's user begins.
    pub(crate) fn request_span(&self, request: &InferRequest) -> Span {
        self.asking(operation(request), request)
    }

    /// A text of this node's user is to be embedded.
    pub(crate) fn embedding_span(&self, request: &InferRequest) -> Span {
        self.asking(Operation::Embeddings, request)
    }

    fn asking(&self, operation: Operation, request: &InferRequest) -> Span {
        self.traces.request(&Asking {
            operation: operation.as_str(),
            model: &request.model,
            local: request.route == Route::Local,
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            parent: request.trace,
        })
    }

    /// A peer's session begins at a stage of this node.
    pub(crate) fn session_span(&self, coordinator: PeerId, local: PeerId, trace: Option<TraceParent>) -> Span {
        self.traces.session(coordinator, local, trace).unwrap_or_else(|Limited| {
            self.metrics.rate_limited("traces", 1);
            Span::none()
        })
    }

    /// A component works.
    pub(crate) fn ok(&self, component: Component, message: impl Into<String>) {
        self.health.set(component, Status::Ok, message);
    }

    /// A note was `made` for a peer, or `taken` from it.
    pub(crate) fn note(&self, peer: PeerId, note: &'static str, amount: u64) {
        self.metrics.ledger_entry("note", note);
        self.events.emit(unix_ms(), EventKind::Ledger { peer: peer.to_string(), note, amount });
    }

    /// A stage of this node computed a batch.
    pub(crate) fn stage_computed(&self, phase: JobPhase, output: &Output) {
        let phase = if phase == JobPhase::Decode { Phase::Decode } else { Phase::Prefill };
        self.metrics.stage(phase, Where::Local, output.compute);
        self.metrics.queue_wait(phase, output.queued);
    }

    /// A request of this node's user was answered.
    pub(crate) fn request_done(&self, request: &InferRequest, model: &ModelId, summary: &Summary) {
        let outcome = match summary.finish_reason {
            FinishReason::Stop => Outcome::Stop,
            FinishReason::Length => Outcome::Length,
        };
        let took = Duration::from_secs_f64(summary.total_s);
        self.finished(operation(request), Some(model), outcome, None, Some(summary), took);
        self.hops(Phase::Decode, summary);
    }

    /// A text of this node's user was embedded.
    pub(crate) fn embedding_done(&self, model: &ModelId, summary: &Summary) {
        let took = Duration::from_secs_f64(summary.total_s);
        self.finished(Operation::Embeddings, Some(model), Outcome::Stop, None, Some(summary), took);
        self.hops(Phase::Prefill, summary);
    }

    /// A text of this node's user could not be embedded.
    pub(crate) fn embedding_failed(&self, model: Option<&ModelId>, error: &InferError, took: Duration) {
        let code = error.error_code();
        self.finished(Operation::Embeddings, model, outcome(code), Some(code.label()), None, took);
    }

    fn hops(&self, phase: Phase, summary: &Summary) {
        self.metrics.chain(summary.hops.len());
        for hop in &summary.hops {
            self.metrics.stage(phase, Where::Remote, Duration::from_secs_f64(hop.compute_ms_per_row / 1e3));
            if let Some(ms) = hop.hop_ms {
                self.metrics.hop(phase, Duration::from_secs_f64(ms / 1e3));
            }
        }
    }

    /// A request of this node's user failed.
    pub(crate) fn request_failed(
        &self,
        request: &InferRequest,
        model: Option<&ModelId>,
        error: &InferError,
        took: Duration,
    ) {
        let code = error.error_code();
        self.finished(operation(request), model, outcome(code), Some(code.label()), None, took);
    }

    fn finished(
        &self,
        operation: Operation,
        model: Option<&ModelId>,
        outcome: Outcome,
        error_type: Option<&'static str>,
        summary: Option<&Summary>,
        duration: Duration,
    ) {
        // A name that led to no model is what a client typed: it gets no label of its own.
        let label = model.map_or_else(|| super::stats::OTHER_MODEL.to_owned(), ModelId::short);
        let model = self.stats.model(&label);
        let tokens = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.events.emit(
            unix_ms(),
            EventKind::Job {
                model: label.clone(),
                outcome: outcome.as_str(),
                error: error_type,
                input_tokens: summary.map_or(0, |s| tokens(s.prompt_ids.len())),
                output_tokens: summary.map_or(0, |s| tokens(s.ids.len().saturating_sub(s.resumed_tokens))),
                duration_s: duration.as_secs_f64(),
            },
        );
        self.metrics.finished(&Finished {
            operation,
            model: model.label(),
            outcome,
            error_type,
            duration,
            first_token: summary.map(|s| Duration::from_secs_f64(s.ttft_s)),
            input_tokens: summary.map_or(0, |s| tokens(s.prompt_ids.len())),
            output_tokens: summary.map_or(0, |s| tokens(s.ids.len().saturating_sub(s.resumed_tokens))),
            guessed_tokens: summary
                .and_then(|s| s.speculation)
                .map_or([0; 2], |s| [s.accepted, s.proposed.saturating_sub(s.accepted)]),
        });
    }
}

/// Says of a request's span what came of it, in the words of the GenAI conventions. Neither prompt nor answer is among it.
pub(crate) fn say_what_came(span: &mut Span, summary: &Summary) {
    let tokens = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let finish = match summary.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    };
    span.set_list("gen_ai.response.finish_reasons", [finish.to_owned()]);
    span.set("gen_ai.usage.input_tokens", tokens(summary.prompt_ids.len()));
    span.set("gen_ai.usage.output_tokens", tokens(summary.ids.len().saturating_sub(summary.resumed_tokens)));
    span.set("gen_ai.response.time_to_first_chunk", summary.ttft_s);
    span.set("quelea.stages", tokens(summary.hops.len()));
    span.set("quelea.cached_tokens", tokens(summary.cached_tokens));
}

/// How a connection at `addr` reaches its peer, for the gauges.
pub(crate) fn way(addr: &Multiaddr) -> (Path, Transport) {
    let mut way = (Path::Direct, Transport::Other);
    for part in addr {
        match part {
            Protocol::P2pCircuit => way.0 = Path::Relayed,
            Protocol::Tcp(_) if way.1 == Transport::Other => way.1 = Transport::Tcp,
            Protocol::QuicV1 | Protocol::Quic => way.1 = Transport::Quic,
            Protocol::Ws(_) | Protocol::Wss(_) => way.1 = Transport::Websocket,
            _ => {}
        }
    }
    way
}

/// What a request asks for.
pub(crate) fn operation(request: &InferRequest) -> Operation {
    let raw = request.form == PromptForm::Raw && request.messages.is_empty();
    if raw { Operation::TextCompletion } else { Operation::Chat }
}

fn outcome(code: ErrorCode) -> Outcome {
    match code {
        ErrorCode::Cancelled => Outcome::Cancelled,
        ErrorCode::NoRoute => Outcome::NoRoute,
        ErrorCode::NoCredit | ErrorCode::PaymentRequired | ErrorCode::PriceTooHigh => Outcome::NoCredit,
        _ => Outcome::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_told_from_addresses() {
        let of = |addr: &str| way(&addr.parse().unwrap());
        assert_eq!(of("/ip4/10.0.0.1/tcp/1"), (Path::Direct, Transport::Tcp));
        assert_eq!(of("/ip4/10.0.0.1/udp/1/quic-v1"), (Path::Direct, Transport::Quic));
        assert_eq!(of("/ip4/10.0.0.1/tcp/1/ws"), (Path::Direct, Transport::Websocket));
        assert_eq!(of("/ip4/10.0.0.1/udp/1/quic-v1/p2p-circuit"), (Path::Relayed, Transport::Quic));
    }
}
