//! A plan as people and programs see it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{LeftOut, NoPlan, Objective, Plan, Planned, Query, Source};
use crate::inference::types::Prediction;

/// One stage of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanHop {
    /// The peer that would run the layers.
    pub peer: String,
    /// The layers, half-open.
    pub layers: String,
    /// Bytes of their weights; 0 when sizes are not known.
    pub weight_bytes: u64,
    /// Milliseconds to compute one row of an answer.
    pub compute_ms: f64,
    /// Milliseconds that a row waits for its turn.
    pub queue_ms: f64,
    /// Milliseconds from the stage before.
    pub one_way_ms: f64,
    /// Whether that was measured.
    pub one_way_measured: bool,
    /// Bytes of rows that it receives, for each token and for the whole prompt.
    pub bytes_per_token: u64,
    /// See `bytes_per_token`.
    pub bytes_for_prompt: u64,
    /// Micro-credits for the whole request.
    pub price: u64,
    /// Where its speed comes from.
    pub source: Source,
    /// Whether it embeds the tokens, and so sees them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sees_tokens: bool,
    /// Whether it computes the logits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gives_logits: bool,
}

/// A chain and what it is expected to take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// The stages in order; empty when everything runs here.
    pub hops: Vec<PlanHop>,
    /// Milliseconds from the last stage back.
    pub back_ms: f64,
    /// Tokens per second after the first one.
    pub tokens_per_s: f64,
    /// Seconds until the first token.
    pub first_token_s: f64,
    /// Seconds for the whole answer.
    pub total_s: f64,
    /// Tokens per second of many requests together, bounded by the slowest stage.
    pub most_tokens_per_s: f64,
    /// Micro-credits for the whole request.
    pub price: u64,
}

/// A peer that is not used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanLeftOut {
    /// The peer.
    pub peer: String,
    /// The layers that it holds, where that is known.
    pub layers: Option<String>,
    /// Why.
    pub reason: String,
}

/// What is missing where there is no plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanMissing {
    /// What is missing, in a sentence.
    pub message: String,
    /// The layers that nobody usable holds.
    pub layers: Vec<String>,
    /// Bytes of their weights.
    pub bytes: u64,
    /// Who was counted: peer and layers.
    #[schema(value_type = Vec<Vec<String>>)]
    pub counted: Vec<(String, String)>,
}

/// The answer to "what would a request like this be answered by?".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanReport {
    /// The model's id.
    pub model: String,
    /// Its name.
    pub name: String,
    /// Its layers, half-open.
    pub layers: String,
    /// Bytes of all layers; 0 when sizes are not known.
    pub weight_bytes: u64,
    /// What the plan is good at.
    pub objective: Objective,
    /// Whether the first stage embeds and the last gives logits, as this node has neither embedding nor head.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub thin: bool,
    /// Tokens of the prompt and of the answer.
    pub prompt_tokens: u64,
    /// See `prompt_tokens`.
    pub answer_tokens: u64,
    /// The plan that would be used.
    pub chosen: Option<PlanView>,
    /// Plans that are as good, the chosen one among them.
    pub as_good: usize,
    /// A plan that shares no peer with it.
    pub spare: Option<PlanView>,
    /// What this node alone would take.
    pub local: Option<PlanView>,
    /// Where the speed of this node comes from, and why it cannot run the model alone if it cannot.
    pub local_note: Option<String>,
    /// Whether it would be faster than the plan.
    pub local_is_faster: bool,
    /// What is missing, if there is no plan.
    pub missing: Option<PlanMissing>,
    /// Who cannot be used.
    pub left_out: Vec<PlanLeftOut>,
    /// Who could be, and is not.
    pub passed_over: Vec<PlanLeftOut>,
}

impl PlanReport {
    /// Calls peers by their names.
    pub(super) fn rename(&mut self, names: &HashMap<String, String>) {
        let call = |peer: &mut String| {
            if let Some(name) = names.get(peer) {
                peer.clone_from(name);
            }
        };
        for plan in [&mut self.chosen, &mut self.spare].into_iter().flatten() {
            plan.hops.iter_mut().for_each(|hop| call(&mut hop.peer));
        }
        self.left_out.iter_mut().chain(&mut self.passed_over).for_each(|out| call(&mut out.peer));
        if let Some(missing) = &mut self.missing {
            missing.counted.iter_mut().for_each(|(peer, _)| call(peer));
            for (peer, name) in names {
                missing.message = missing.message.replace(peer, name);
            }
        }
    }
}

/// What a chosen plan promises.
pub(crate) fn prediction(query: &Query, planned: &Planned) -> Prediction {
    let here = planned.local_is_faster(query);
    let plan = planned.local.as_ref().filter(|_| here).unwrap_or(&planned.chosen);
    Prediction {
        tokens_per_s: per_second(plan.token_ns),
        first_token_s: seconds(plan.first_token_ns),
        price: plan.price,
        local_tokens_per_s: planned.local.as_ref().map(|local| per_second(local.token_ns)),
    }
}

/// Everything that was found, or what was not.
pub(crate) fn report(
    model: &str,
    name: &str,
    query: &Query,
    result: Result<Planned, NoPlan>,
    local_note: Option<String>,
) -> PlanReport {
    let mut report = PlanReport {
        model: model.to_owned(),
        name: name.to_owned(),
        layers: query.span.to_string(),
        weight_bytes: query.layer_bytes.iter().sum(),
        objective: query.objective,
        thin: query.ends.embedding,
        prompt_tokens: query.prompt_rows,
        answer_tokens: query.answer_rows,
        chosen: None,
        as_good: 0,
        spare: None,
        local: None,
        local_note,
        local_is_faster: false,
        missing: None,
        left_out: Vec::new(),
        passed_over: Vec::new(),
    };
    match result {
        Ok(planned) => {
            report.chosen = Some(view(query, &planned.chosen));
            report.as_good = planned.as_good;
            report.spare = planned.spare.as_ref().map(|plan| view(query, plan));
            report.local = planned.local.as_ref().map(|plan| view(query, plan));
            report.local_is_faster = planned.local_is_faster(query);
            report.left_out = planned.left_out.iter().map(left_out).collect();
            report.passed_over = planned.passed_over.iter().map(left_out).collect();
        }
        Err(none) => {
            report.left_out = none.left_out.iter().map(left_out).collect();
            report.missing = Some(PlanMissing {
                message: none.to_string(),
                layers: none.missing.iter().map(ToString::to_string).collect(),
                bytes: none.missing_bytes,
                counted: none.counted.iter().map(|(peer, span)| (peer.to_string(), span.to_string())).collect(),
            });
        }
    }
    report
}

fn view(query: &Query, plan: &Plan) -> PlanView {
    let last = plan.hops.len().saturating_sub(1);
    let hops = plan.hops.iter().enumerate().map(|(i, planned)| PlanHop {
        peer: planned.hop.peer.to_string(),
        layers: planned.hop.span.to_string(),
        weight_bytes: query.layer_bytes.get(planned.hop.span.as_usize()).unwrap_or_default().iter().sum(),
        compute_ms: millis(planned.compute_ns),
        queue_ms: millis(planned.queue_ns),
        one_way_ms: millis(planned.one_way_ns),
        one_way_measured: planned.one_way_known,
        bytes_per_token: planned.row_bytes,
        bytes_for_prompt: planned.row_bytes.saturating_mul(query.prompt_rows),
        price: planned.price,
        source: planned.source,
        sees_tokens: query.ends.embedding && i == 0,
        gives_logits: query.ends.head && i == last,
    });
    PlanView {
        hops: hops.collect(),
        back_ms: millis(plan.back_ns),
        tokens_per_s: per_second(plan.token_ns),
        first_token_s: seconds(plan.first_token_ns),
        total_s: seconds(plan.total_ns(query)),
        most_tokens_per_s: per_second(plan.bottleneck_ns),
        price: plan.price,
    }
}

fn left_out(out: &LeftOut) -> PlanLeftOut {
    PlanLeftOut {
        peer: out.peer.to_string(),
        layers: out.span.map(|span| span.to_string()),
        reason: out.reason.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a time for people")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn millis(ns: u64) -> f64 {
    seconds(ns) * 1e3
}

fn per_second(ns: u64) -> f64 {
    1.0 / seconds(ns.max(1))
}
