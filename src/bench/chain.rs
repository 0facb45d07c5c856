//! What splitting a model costs, and what distance does to it: worker processes on this machine, asked from here.
//!
//! Each figure stands beside a plain one, measured in turns with it, so that whatever else the machine does hits both:
//!
//! | test | plain | beside it |
//! |---|---|---|
//! | `decode` | the unsplit model in this process | K workers, a token at a time: stages that wait for each other |
//! | `sessions` | one answer over K workers | S answers at once: tokens of all per second |
//! | `prefill` | each chunk of the prompt when the one before is back | chunks on their way through all stages at once |
//! | `paid` | K workers that ask nothing | K that have a price: holds, vouchers, notes and receipts besides |
//! | `speculation` | a token at a time | tokens guessed from the text itself, several in a pass; the answer is one of four tokens |
//!
//! Workers are processes of this program with a share of the layers each, on loopback, and as far apart as `delay` says
//! (each holds back what it sends: [`line_delay`](quelea_behaviours::Config::line_delay)). They share this machine's
//! cores. Prompts are words without meaning, others for every run, so that no stage has them from before. Answers go on
//! after an end-of-text token. Those of one prompt are compared, token for token.

mod lab;
mod prompts;

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    time::{Duration, Instant},
};

use quelea_engine::Hparams;
use quelea_wire::ErrorCode;
use serde::Serialize;

use self::{lab::Lab, prompts::Prompts};
use super::model::Rates;
use crate::inference::{
    InferError, InferRequest, PromptForm, Route, Speculate, Summary,
    models::{open_gguf, unusable},
};

/// Of so many tokens an answer is made that repeats itself: what random weights write does not, and texts do.
const FEW: usize = 4;
/// Lifts a token's logit over all others.
const OVER_ALL: f32 = 100.0;

/// What workers ask for 1,000 layer-rows where they ask anything, in micro-credits: every voucher that can be due is, and
/// thousands of answers are within a newcomer's credit.
const PRICE: u64 = 100;

/// Tokens of a prompt whose reading is not measured.
const SHORT_PROMPT: usize = 8;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// A GGUF file, or `demo`.
    pub(crate) file: String,
    /// The program whose daemons are the workers.
    pub(crate) program: PathBuf,
    /// Numbers of workers.
    pub(crate) stages: Vec<u16>,
    /// Answers at once.
    pub(crate) sessions: u16,
    /// Tokens of a prompt whose reading is measured.
    pub(crate) prompt: usize,
    /// Tokens of an answer.
    pub(crate) tokens: u32,
    /// How far apart all are, one way.
    pub(crate) delay: Duration,
    /// Threads of each worker, and of the unsplit model.
    pub(crate) threads: Option<NonZeroUsize>,
    /// Runs of each test that count, after one that does not.
    pub(crate) turns: u16,
}

/// A test and what stands beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Pair {
    pub(crate) test: &'static str,
    pub(crate) stages: u16,
    /// Tokens per second.
    pub(crate) plain: Rates,
    /// Tokens per second.
    pub(crate) measured: Rates,
    /// Of the medians.
    pub(crate) ratio: f64,
}

impl Pair {
    fn of(test: &'static str, stages: u16, runs: Vec<(f64, f64)>) -> Self {
        let (plain, measured): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
        let (plain, measured) = (Rates::of(plain), Rates::of(measured));
        let ratio = measured.median / plain.median;
        Self { test, stages, plain, measured, ratio }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ChainReport {
    pub(crate) layers: u16,
    pub(crate) delay_ms: u64,
    pub(crate) sessions: u16,
    pub(crate) prompt_tokens: usize,
    pub(crate) tokens: u32,
    pub(crate) turns: u16,
    pub(crate) results: Vec<Pair>,
}

/// Measures; `started` hears the name of each test before it runs.
pub(crate) async fn measure(plan: &Plan, mut started: impl FnMut(&str)) -> Result<ChainReport, InferError> {
    let gguf = open_gguf(&plan.file)?;
    let hparams = Hparams::from_gguf(&gguf).map_err(|e| unusable(&plan.file, &e))?;
    let layers = u16::try_from(hparams.n_layers).unwrap_or(u16::MAX);
    let mut prompts = Prompts::new(&gguf, &plan.file)?;
    let longest = plan.prompt.max(SHORT_PROMPT).saturating_add(usize::try_from(plan.tokens).unwrap_or(usize::MAX));
    if longest > hparams.context_length {
        let message = format!("{longest} tokens do not fit the model's context of {}", hparams.context_length);
        return Err(InferError::new(ErrorCode::Usage, message).hint("ask for less with --prompt-tokens and --tokens"));
    }
    if let Some(stages) = plan.stages.iter().find(|stages| **stages > layers) {
        let message = format!("{layers} layers cannot be shared by {stages} workers");
        return Err(InferError::new(ErrorCode::Usage, message));
    }
    let mut results = Vec::new();
    for &stages in &plan.stages {
        started(&format!("{stages} workers"));
        let lab = Lab::start(plan, layers, stages, 0).await?;
        let outcome = tests(plan, &lab, &mut prompts, stages, &mut started, &mut results).await;
        if outcome.is_ok() {
            started(&format!("paid, {stages} workers"));
        }
        let outcome = match outcome {
            Ok(()) => beside_paid(plan, &lab, &mut prompts, (layers, stages)).await,
            Err(error) => Err(error),
        };
        lab.stop().await;
        results.push(outcome?);
    }
    Ok(ChainReport {
        layers,
        delay_ms: u64::try_from(plan.delay.as_millis()).unwrap_or(u64::MAX),
        sessions: plan.sessions,
        prompt_tokens: plan.prompt,
        tokens: plan.tokens,
        turns: plan.turns,
        results,
    })
}

async fn tests(
    plan: &Plan,
    lab: &Lab,
    prompts: &mut Prompts,
    stages: u16,
    started: &mut impl FnMut(&str),
    results: &mut Vec<Pair>,
) -> Result<(), InferError> {
    for test in ["decode", "sessions", "prefill", "speculation"] {
        started(&format!("{test}, {stages} workers"));
        let mut runs = Vec::new();
        for turn in 0..=plan.turns {
            let run = match test {
                "decode" => decode(plan, lab, prompts).await?,
                "sessions" => sessions(plan, lab, prompts).await?,
                "prefill" => prefill(plan, lab, prompts).await?,
                _ => speculation(plan, lab, prompts).await?,
            };
            if turn > 0 {
                runs.push(run);
            }
        }
        results.push(Pair::of(test, stages, runs));
    }
    Ok(())
}

/// Workers that ask nothing, and as many others that have a price: both stay, and are asked in turns.
async fn beside_paid(
    plan: &Plan,
    free: &Lab,
    prompts: &mut Prompts,
    (layers, stages): (u16, u16),
) -> Result<Pair, InferError> {
    let paid = Lab::start(plan, layers, stages, PRICE).await?;
    let mut runs = Vec::new();
    let outcome = async {
        for turn in 0..=plan.turns {
            let request = request(plan, prompts.of(SHORT_PROMPT));
            // Who comes second may find the machine warmer.
            let (one, other) = if turn % 2 == 0 { (free, &paid) } else { (&paid, free) };
            let (one, other) = (one.ask(request.clone()).await?, other.ask(request).await?);
            same(&one, &other)?;
            let (plain, measured) = if turn % 2 == 0 { (one, other) } else { (other, one) };
            if plain.cost.is_some() || measured.cost.is_none() {
                return Err(InferError::new(
                    ErrorCode::Internal,
                    "what was to be paid was not, or the other way round",
                ));
            }
            if turn > 0 {
                runs.push((per_second(&plain)?, per_second(&measured)?));
            }
        }
        Ok(())
    };
    let outcome = outcome.await;
    paid.stop().await;
    outcome.map(|()| Pair::of("paid", stages, runs))
}

/// A greedy request for exactly so many tokens.
fn request(plan: &Plan, prompt: String) -> InferRequest {
    InferRequest {
        form: PromptForm::Raw,
        route: Route::Swarm,
        max_tokens: plan.tokens,
        ignore_eos: true,
        step_timeout_ms: 120_000,
        ..InferRequest::new(&plan.file, prompt)
    }
}

/// The unsplit model, then the workers.
async fn decode(plan: &Plan, lab: &Lab, prompts: &mut Prompts) -> Result<(f64, f64), InferError> {
    let split = request(plan, prompts.of(SHORT_PROMPT));
    let unsplit = InferRequest { route: Route::Local, ..split.clone() };
    let (unsplit, split) = (lab.ask(unsplit).await?, lab.ask(split).await?);
    same(&unsplit, &split)?;
    Ok((per_second(&unsplit)?, per_second(&split)?))
}

/// One answer, then several at once: tokens of all per second.
async fn sessions(plan: &Plan, lab: &Lab, prompts: &mut Prompts) -> Result<(f64, f64), InferError> {
    let mut rates = Vec::new();
    for count in [1, plan.sessions] {
        let requests: Vec<_> = (0..count).map(|_| request(plan, prompts.of(SHORT_PROMPT))).collect();
        let began = Instant::now();
        let answers = futures::future::try_join_all(requests.into_iter().map(|request| lab.ask(request))).await?;
        let tokens: usize = answers.iter().map(|answer| answer.ids.len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        rates.push(tokens as f64 / began.elapsed().as_secs_f64());
    }
    Ok((rates.first().copied().unwrap_or_default(), rates.last().copied().unwrap_or_default()))
}

/// One chunk of the prompt at a time, then as many as there may be.
async fn prefill(plan: &Plan, lab: &Lab, prompts: &mut Prompts) -> Result<(f64, f64), InferError> {
    let alone = InferRequest { max_tokens: 1, prefill_window: 1, ..request(plan, prompts.of(plan.prompt)) };
    let together = InferRequest { max_tokens: 1, ..request(plan, prompts.of(plan.prompt)) };
    let (alone, together) = (lab.ask(alone).await?, lab.ask(together).await?);
    if alone.cached_tokens + together.cached_tokens > 0 {
        return Err(InferError::new(ErrorCode::Internal, "stages had a part of the prompt from before"));
    }
    Ok((alone.prompt_tokens_per_s, together.prompt_tokens_per_s))
}

/// A token at a time, then guessed ones.
async fn speculation(plan: &Plan, lab: &Lab, prompts: &mut Prompts) -> Result<(f64, f64), InferError> {
    let few = prompts.few(FEW).into_iter().map(|id| (id, OVER_ALL)).collect();
    let plain = InferRequest { logit_bias: few, ..request(plan, prompts.repeating(SHORT_PROMPT)) };
    let guessed = InferRequest { speculate: Speculate::Auto, ..plain.clone() };
    let (plain, guessed) = (lab.ask(plain).await?, lab.ask(guessed).await?);
    same(&plain, &guessed)?;
    Ok((per_second(&plain)?, per_second(&guessed)?))
}

fn per_second(answer: &Summary) -> Result<f64, InferError> {
    answer.tokens_per_s.ok_or_else(|| InferError::new(ErrorCode::Internal, "an answer of one token has no rate"))
}

fn same(one: &Summary, other: &Summary) -> Result<(), InferError> {
    if one.ids == other.ids {
        return Ok(());
    }
    Err(InferError::new(ErrorCode::Internal, "the same prompt has two answers: this is a defect, please report it"))
}
