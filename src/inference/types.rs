//! A request for text, the events it produces, and how it can fail: the same over the API, the CLI and the library.

use std::{collections::BTreeMap, time::Duration};

use libp2p::PeerId;
use quelea_wire::{ErrorCode, TraceParent};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::planner::Objective;

/// Chunks of a prompt that may be on their way through a chain at once: enough to keep four stages busy.
pub(crate) const PREFILL_WINDOW: u8 = 4;

/// How the prompt is given to the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PromptForm {
    /// As a user's message when the model has a chat template, else as it is.
    #[default]
    Auto,
    /// As a user's message.
    Chat,
    /// As it is.
    Raw,
}

/// Where the layers are run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Route {
    /// By the peers that hold them, or all of them here where that is known to be faster.
    #[default]
    Auto,
    /// By the peers that hold them.
    Swarm,
    /// All of them here.
    Local,
}

/// With which arithmetic a request is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RequestProfile {
    /// As this node computes.
    #[default]
    Own,
    /// As the exact kernels compute, but what goes into each layer, and out of the last one, is rounded to bf16: half the
    /// bytes between peers, and other answers.
    ExactBf16,
}

/// Whether several tokens are guessed and verified in one pass. The answer is the same either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Speculate {
    /// As many as pay, by what passes take and how often guesses were right.
    Auto,
    /// None. Guesses that are wrong are work for stages, too.
    #[default]
    Off,
    /// This many, wherever there is a guess; 7 at most.
    #[serde(untagged)]
    Tokens(u8),
}

/// What guessing has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Speculation {
    /// Tokens that were guessed and verified.
    pub proposed: u64,
    /// Those of them that were right.
    pub accepted: u64,
    /// Passes through the layers after the prompt's, with guesses or without.
    pub passes: u64,
}

/// What an answer has to be: only tokens that keep it so are drawn, and it ends when it is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// A JSON object.
    Json,
    /// A JSON value that this JSON schema allows.
    Schema(Value),
    /// A text of this grammar, in llguidance's variant of Lark.
    Grammar(String),
}

/// What to ask, and how to draw the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InferRequest {
    /// `demo`, the path of a GGUF file on this machine, or a model id of 64 hex digits.
    pub model: String,
    /// The prompt.
    #[serde(default)]
    pub prompt: String,
    /// A conversation instead of a prompt: of each message its `role`, mostly its `content`, and what else the model's chat
    /// template takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub messages: Vec<Map<String, Value>>,
    /// Further variables of the chat template, such as `tools` or `enable_thinking`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub template: Map<String, Value>,
    /// The prompt's token ids instead of its text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_ids: Vec<u32>,
    /// What the answer has to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// How the prompt is given to the model.
    #[serde(default)]
    pub form: PromptForm,
    /// A system message before the prompt; needs a chat template.
    #[serde(default)]
    pub system: Option<String>,
    /// Most tokens to answer with.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// 0 takes the likeliest token each time.
    #[serde(default)]
    pub temperature: f32,
    /// Draw among this many likeliest tokens; 0 for all.
    #[serde(default)]
    pub top_k: usize,
    /// Draw among the likeliest tokens that together have this probability.
    #[serde(default = "default_top_p")]
    pub top_p: f32,
    /// Draw only tokens at least this share as likely as the likeliest; 0 for all.
    #[serde(default)]
    pub min_p: f32,
    /// Makes tokens of prompt and answer less likely to come again; 1 is off.
    #[serde(default = "default_repeat_penalty")]
    pub repeat_penalty: f32,
    /// Makes tokens of the answer less likely to come again; 0 is off.
    #[serde(default)]
    pub presence_penalty: f32,
    /// The same, for each time that the token is there.
    #[serde(default)]
    pub frequency_penalty: f32,
    /// The penalties look at so many of the last tokens; -1 for all of them.
    #[serde(default = "default_repeat_last_n")]
    pub repeat_last_n: i64,
    /// Added to the logits of these tokens; -100 bans a token, 100 allows no others.
    #[serde(default)]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Texts that end the answer. They are not part of it.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Tell each token's log-probability, and those of this many alternatives.
    #[serde(default)]
    pub logprobs: Option<usize>,
    /// Seed of the draws.
    #[serde(default)]
    pub seed: u64,
    /// Go on after an end-of-text token.
    #[serde(default)]
    pub ignore_eos: bool,
    /// Milliseconds that one step may take: a token, or a chunk of the prompt.
    #[serde(default = "default_step_timeout_ms")]
    pub step_timeout_ms: u64,
    /// Where the layers are run.
    #[serde(default)]
    pub route: Route,
    /// Chunks of the prompt that may be on their way through a chain at once, at most 4; with 1 each is sent when the one
    /// before has come back.
    #[serde(default = "default_prefill_window")]
    pub prefill_window: u8,
    /// Whether several tokens are guessed and verified in one pass.
    #[serde(default)]
    #[schema(value_type = Value)]
    pub speculate: Speculate,
    /// A smaller model with the same vocabulary that guesses where the text itself does not tell: named as `model` is.
    #[serde(default)]
    pub draft: Option<String>,
    /// What the chain is chosen by.
    #[serde(default)]
    pub objective: Objective,
    /// The most that a chain may cost for the prompt and `max_tokens`, in micro-credits; one whose price is above is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price: Option<u64>,
    /// Have the stages' signatures for what they did in the summary, as a receipt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub receipt: bool,
    /// The name of an answer to go on with, or `last`. What was asked, and how tokens are drawn, is then as it was; from here
    /// come only `route`, `objective`, `max_price`, `step_timeout_ms`, `prefill_window`, `speculate` and `draft`, which change
    /// no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// Whether the first stage embeds and the last gives logits, so that nothing of the model but its tokenizer is needed
    /// here; the first stage then sees the tokens. Left out: where embedding and head are not on this machine.
    #[serde(default)]
    pub thin: Option<bool>,
    /// So many of the first and of the last layers are run here, of a model whose file is here. Chains are then chosen by
    /// [`Objective::Private`].
    #[serde(default)]
    pub private: u16,
    /// With which arithmetic it is computed.
    #[serde(default)]
    pub profile: RequestProfile,
    /// The caller's own span, where it has one.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) trace: Option<TraceParent>,
}

fn default_max_tokens() -> u32 {
    256
}

fn default_top_p() -> f32 {
    1.0
}

fn default_repeat_penalty() -> f32 {
    1.0
}

fn default_repeat_last_n() -> i64 {
    64
}

fn default_prefill_window() -> u8 {
    PREFILL_WINDOW
}

fn default_step_timeout_ms() -> u64 {
    10_000
}

impl InferRequest {
    /// A greedy request for `prompt` to `model`, with everything else left at its default. What is to be otherwise is changed by
    /// its fields.
    #[must_use]
    pub fn new(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            prompt: prompt.into(),
            messages: Vec::new(),
            template: Map::new(),
            prompt_ids: Vec::new(),
            format: None,
            form: PromptForm::Auto,
            system: None,
            max_tokens: default_max_tokens(),
            temperature: 0.0,
            top_k: 0,
            top_p: default_top_p(),
            min_p: 0.0,
            repeat_penalty: default_repeat_penalty(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: default_repeat_last_n(),
            logit_bias: BTreeMap::new(),
            stop: Vec::new(),
            logprobs: None,
            seed: 0,
            ignore_eos: false,
            step_timeout_ms: default_step_timeout_ms(),
            route: Route::Auto,
            prefill_window: default_prefill_window(),
            speculate: Speculate::Off,
            draft: None,
            objective: Objective::Latency,
            max_price: None,
            receipt: false,
            resume: None,
            thin: None,
            private: 0,
            profile: RequestProfile::Own,
            trace: None,
        }
    }

    /// What the chain is chosen by.
    pub(crate) fn objective(&self) -> Objective {
        if self.private > 0 { Objective::Private } else { self.objective }
    }

    pub(crate) fn step_timeout(&self) -> Duration {
        Duration::from_millis(self.step_timeout_ms.clamp(10, 3_600_000))
    }
}

/// One stage of the route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct RouteHop {
    /// The peer that runs the layers.
    pub peer: String,
    /// The layers, half-open: `0..8`.
    pub layers: String,
    /// Measured round trip to it, in milliseconds, when there is one.
    pub rtt_ms: Option<f64>,
    /// Whether it embeds the tokens, and so sees them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sees_tokens: bool,
    /// Whether it computes the logits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gives_logits: bool,
}

/// What one stage did for the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct HopReport {
    /// The peer that ran the layers.
    pub peer: String,
    /// The layers, half-open.
    pub layers: String,
    /// Rows that it computed.
    pub rows: u64,
    /// Mean milliseconds of computing per row, by its own clock.
    pub compute_ms_per_row: f64,
    /// Mean milliseconds that a batch waited for the stage.
    pub queue_ms_per_row: f64,
    /// Mean milliseconds one way to the next hop, from acknowledgements; nothing when none was measured.
    pub hop_ms: Option<f64>,
    /// What it has signed for at last; nothing where it did not.
    #[serde(default)]
    pub committed: Option<CommittedRows>,
}

/// What a stage has signed for: all rows from the first that was computed to this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct CommittedRows {
    /// The position behind the last row.
    pub rows: u32,
    /// Root over the rows that it was given, in hex.
    pub in_root: String,
    /// Root over the rows that it gave on, in hex.
    pub out_root: String,
}

/// What a peer was given of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Saw {
    /// The peer.
    pub peer: String,
    /// The layers that it ran, half-open: it was given the rows before them, and has those between and behind them.
    pub layers: String,
    /// Whether it was given the tokens themselves.
    pub tokens: bool,
}

/// A stage that was lost while answering, and how the answer went on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Recovery {
    /// The peers that were lost.
    pub lost: Vec<String>,
    /// Why the first of them was.
    pub why: String,
    /// Who took their layers over; empty when the same peers went on.
    pub taken_over_by: Vec<RouteHop>,
    /// Positions from which each stage of the new chain computes, in the order of the layers: what it did not have.
    pub computes_from: Vec<u32>,
    /// Seconds from noticing the loss to going on.
    pub recovery_s: f64,
}

/// Why the answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model said that it was done, or one of the request's stop strings came.
    Stop,
    /// `max_tokens` or the model's context was reached.
    Length,
}

/// A token that the model found likely.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LikelyToken {
    /// The token's id.
    pub id: u32,
    /// Its text; bytes that are no whole character show as U+FFFD.
    pub token: String,
    /// Its bytes. Those of an answer's tokens, joined, are the answer.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability, by the raw logits: at temperature 1, before penalties, bias and cuts.
    pub logprob: f32,
}

/// How likely the model found a token of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenLogprobs {
    /// The token.
    #[serde(flatten)]
    pub chosen: LikelyToken,
    /// The likeliest tokens in its place, the likeliest first; as many as were asked for.
    pub top_logprobs: Vec<LikelyToken>,
}

/// What a plan promises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Prediction {
    /// Tokens per second after the first one.
    pub tokens_per_s: f64,
    /// Seconds from the request to the first token; of a model's first request without looking around and opening.
    pub first_token_s: f64,
    /// Micro-credits for the whole request.
    pub price: u64,
    /// Tokens per second of this node alone, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_tokens_per_s: Option<f64>,
}

/// A question for a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PlanRequest {
    /// As in [`InferRequest`].
    pub model: String,
    /// Tokens of the prompt.
    #[serde(default = "default_prompt_tokens")]
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// What the chain is chosen by.
    #[serde(default)]
    pub objective: Objective,
    /// Milliseconds that looking around may take.
    #[serde(default = "default_step_timeout_ms")]
    pub timeout_ms: u64,
    /// As in [`InferRequest`].
    #[serde(default)]
    pub thin: Option<bool>,
    /// As in [`InferRequest`].
    #[serde(default)]
    pub private: u16,
    /// As in [`InferRequest`].
    #[serde(default)]
    pub profile: RequestProfile,
}

impl PlanRequest {
    /// For a prompt of 128 tokens and an answer of 256, the soonest.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            prompt_tokens: default_prompt_tokens(),
            max_tokens: default_max_tokens(),
            objective: Objective::default(),
            timeout_ms: default_step_timeout_ms(),
            thin: None,
            private: 0,
            profile: RequestProfile::default(),
        }
    }
}

fn default_prompt_tokens() -> u64 {
    128
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What a request cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Cost {
    /// All of it, in micro-credits.
    pub micro_credits: u64,
    /// The same in credits, with six decimals.
    pub credits: String,
    /// Who got what.
    pub stages: Vec<StageCost>,
}

/// What one stage got for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct StageCost {
    /// The peer.
    pub peer: String,
    /// Its layers, half-open.
    pub layers: String,
    /// Rows of the prompt that it computed.
    pub prefill_rows: u64,
    /// Rows of the answer.
    pub decode_rows: u64,
    /// Credits, with six decimals.
    pub credits: String,
    /// The note that pays it, in hex; nothing where it is yet to be signed.
    pub note: Option<String>,
}

/// What a finished request amounted to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Summary {
    /// The model's id.
    pub model: String,
    /// The numeric profile.
    pub profile: String,
    /// Whether the first stage embedded the tokens, which it saw, and the last gave logits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub thin: bool,
    /// The whole answer.
    pub text: String,
    /// The prompt's token ids.
    pub prompt_ids: Vec<u32>,
    /// How many of them were not computed: stages had kept them from requests that began alike.
    #[serde(default)]
    pub cached_tokens: usize,
    /// The answer's token ids, without the end-of-text token, but with those of a stop string.
    pub ids: Vec<u32>,
    /// How many of them come from before the answer was cut off and gone on with.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resumed_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The stop string that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_string: Option<String>,
    /// Log-probabilities of `ids` after the first `resumed_tokens`, one for each, when they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// What guessing tokens has come to, where there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<Speculation>,
    /// What the plan promised; nothing when none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Prediction>,
    /// Who did what, in the order of the layers; empty when everything ran here.
    pub hops: Vec<HopReport>,
    /// Bytes of rows that left for the first stage, headers aside.
    #[serde(default)]
    pub bytes_sent: u64,
    /// Bytes of rows that came back from the last stage.
    #[serde(default)]
    pub bytes_received: u64,
    /// Which peers were given what, those that were lost and those that took over among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saw: Vec<Saw>,
    /// What it cost, where anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// The receipt, in hex, where it was asked for and peers computed the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// Layers that were run here by the request's wish, half-open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private: Vec<String>,
    /// Stages that were lost meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recoveries: Vec<Recovery>,
    /// Seconds from the request to the first token.
    pub ttft_s: f64,
    /// Seconds from the request to the end.
    pub total_s: f64,
    /// Tokens per second after the first one; nothing when there was only one.
    pub tokens_per_s: Option<f64>,
    /// Prompt tokens per second.
    pub prompt_tokens_per_s: f64,
}

/// Something that happened while answering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum InferEvent {
    /// The route is chosen and open.
    Route {
        /// The model's id.
        model: String,
        /// The stages in order; empty when everything runs here.
        hops: Vec<RouteHop>,
        /// By what name the answer can be gone on with if this process dies, where that is kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<String>,
    },
    /// More text. Always whole characters; may be empty while a character is incomplete, or while the text may still
    /// become a stop string.
    Text {
        /// The new text.
        text: String,
        /// The token that brought it.
        id: u32,
        /// The token's log-probability, when that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// Something to know; the answer goes on.
    Warning {
        /// What.
        message: String,
    },
    /// The end, when all went well.
    Done {
        /// Figures.
        summary: Box<Summary>,
    },
    /// The end, when something failed.
    Error {
        /// What.
        error: InferError,
    },
}

/// Why a request failed. Of an answer that was cut off there are `text`, what there is of it, and `resume`, by what name it can be
/// gone on with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error, ToSchema)]
#[error("{message} [{code}]")]
#[non_exhaustive]
pub struct InferError {
    /// `QUE-nnnn`.
    pub code: String,
    /// What happened, with the peer and the layers where one is to blame.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// When there may be room, as a peer guesses that refused for want of it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
    /// Whether peers that ask a price had begun to work: some of it may have to be paid, and asking again costs again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub charged: bool,
    /// The peer that is to blame; boxed, as errors are returned everywhere and few are about a peer.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) about: Option<Box<PeerId>>,
    /// What there is of the answer, if it was cut off; boxed, as errors are returned everywhere.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub cut: Option<Box<CutOff>>,
}

/// No peer makes us say that somebody should stay away for longer.
const MAX_RETRY_AFTER_MS: u32 = 120_000;

/// An answer that was cut off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CutOff {
    /// Its text so far.
    pub text: String,
    /// By what name it can be gone on with, if it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
}

impl InferError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retryable = code.retryable();
        Self {
            code: code.to_string(),
            message: message.into(),
            hint: None,
            retryable,
            retry_after_ms: None,
            charged: false,
            about: None,
            cut: None,
        }
    }

    /// There may be room after so many milliseconds, of which at most [`MAX_RETRY_AFTER_MS`] are believed; 0 says nothing.
    pub(crate) fn retry_after(mut self, ms: u32) -> Self {
        if ms == 0 {
            return self;
        }
        let ms = ms.min(MAX_RETRY_AFTER_MS);
        self.retry_after_ms = Some(ms);
        let hint = format!("ask again in {:.1} s, or start another worker", f64::from(ms) / 1e3);
        self.hint(hint)
    }

    /// The same request fails again, whatever is usual for errors of this code.
    pub(crate) fn not_retryable(mut self) -> Self {
        self.retryable = false;
        self
    }

    pub(crate) fn about(mut self, peer: PeerId) -> Self {
        self.about = Some(Box::new(peer));
        self
    }

    /// The peer that is to blame, where one is.
    pub(crate) fn peer(&self) -> Option<PeerId> {
        self.about.as_deref().copied()
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The code as a value.
    pub(crate) fn error_code(&self) -> ErrorCode {
        self.code.strip_prefix("QUE-").and_then(|n| n.parse().ok()).map_or(ErrorCode::Internal, ErrorCode::from_u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_code_through_json() {
        let error = InferError::new(ErrorCode::NoRoute, "short of layers 2..4").hint("start a worker");
        let json = serde_json::to_string(&InferEvent::Error { error: error.clone() }).unwrap();
        let InferEvent::Error { error: back } = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
        assert_eq!(back, error);
        assert_eq!(back.error_code(), ErrorCode::NoRoute);
        assert!(back.retryable && back.cut.is_none() && back.retry_after_ms.is_none());
        assert_eq!(error.clone().retry_after(0), error);
        let full = InferError::new(ErrorCode::NoKvPages, "full").retry_after(u32::MAX);
        assert_eq!(serde_json::to_value(&full).unwrap()["retry_after_ms"], MAX_RETRY_AFTER_MS);
        let cut = CutOff { text: "Once".into(), resume: Some("0123456789abcdef".into()) };
        let error = InferError { cut: Some(Box::new(cut)), ..error };
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!((&json["text"], &json["resume"]), (&"Once".into(), &"0123456789abcdef".into()));
        assert_eq!(serde_json::from_value::<InferError>(json).unwrap(), error);
    }

    #[test]
    fn a_request_needs_only_model_and_prompt_and_refuses_unknown_fields() {
        let request: InferRequest = serde_json::from_str(r#"{"model":"demo","prompt":"hi"}"#).unwrap();
        assert_eq!(request, InferRequest::new("demo", "hi"));
        assert!(serde_json::from_str::<InferRequest>(r#"{"model":"demo","prompt":"hi","max_token":1}"#).is_err());
    }
}
