//! How fast a model runs on this machine alone.
//!
//! *pp N*: a prompt of exactly N tokens in an empty session, in chunks of [`PREFILL_CHUNK`], logits after the last. *tg N*:
//! N tokens, one at a time, each picked greedily from the logits of the one before, from an empty session on; end-of-text
//! is banned. *tg N, S sessions*: S such answers at once through the stage loop, which computes their tokens together; all
//! tokens of all sessions count. Prompts are random tokens, the same in every run.
//!
//! The first run of each test is cold and stands apart; the others are repeats in the same process, and their median
//! counts. Beside the rates stands how fast as much memory as the weights take can be read, measured in the same process:
//! a token needs all weights once, so it bounds the tokens per second of one session.

mod sessions;

use std::time::Instant;

use quelea_engine::{
    Gguf, Manifest, PREFILL_CHUNK, Span, Stage, StageError, StageOptions,
    runner::{AdmissionError, JobError, SubmitError},
    sampler::{Sampler, SamplerConfig, SamplerError},
    tokenizer::Tokenizer,
};
use quelea_wire::ErrorCode;
use serde::Serialize;

use crate::{
    inference::{
        InferError, memory,
        models::{open_gguf, unusable},
    },
    telemetry::process,
};

/// Tokens of the prompt before the first token that is timed from opening the file.
const FIRST_PROMPT: usize = 8;

/// Passes over memory for its bandwidth; the best counts.
const BANDWIDTH_PASSES: usize = 5;

/// Passes of a product for its rate; the best counts.
const PRODUCT_PASSES: usize = 50;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// A GGUF file, or `demo`.
    pub(crate) file: String,
    /// Lengths of prompts.
    pub(crate) pp: Vec<usize>,
    /// Lengths of answers.
    pub(crate) tg: Vec<usize>,
    /// Numbers of concurrent sessions, for each of `tg`.
    pub(crate) sessions: Vec<usize>,
    /// Runs of each test that count.
    pub(crate) repeat: usize,
    /// On what.
    pub(crate) compute: StageOptions,
}

impl Plan {
    /// Most rows of keys and values that there are at once.
    fn rows(&self) -> u64 {
        let most = |numbers: &[usize]| numbers.iter().copied().max().unwrap_or(0);
        let answers = most(&self.tg).saturating_mul(most(&self.sessions).max(1));
        u64::try_from(most(&self.pp).max(answers).max(FIRST_PROMPT)).unwrap_or(u64::MAX)
    }
}

/// Tokens per second over the runs that count.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Rates {
    pub(crate) median: f64,
    pub(crate) best: f64,
    /// In the order of the runs.
    pub(crate) samples: Vec<f64>,
}

/// One test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TestReport {
    /// `pp128`, `tg64`, `tg64x8`.
    pub(crate) test: String,
    /// Tokens per second of the first run.
    pub(crate) cold_tokens_per_second: f64,
    pub(crate) tokens_per_second: Rates,
    /// For `tg`: bytes of weights read per second, over what the memory allows. Above 1 where the caches help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_share: Option<f64>,
    /// For concurrent sessions: how many tokens were computed together, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_per_batch: Option<f64>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ModelReport {
    pub(crate) model: String,
    pub(crate) architecture: String,
    pub(crate) quantisation: String,
    pub(crate) device: String,
    pub(crate) profile: &'static str,
    /// Of the exact kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isa: Option<&'static str>,
    pub(crate) threads: usize,
    pub(crate) repeat: usize,
    /// Seconds from opening the file until every weight is ready.
    pub(crate) load_seconds: f64,
    /// Seconds from opening the file to the first token after a prompt of 8 tokens.
    pub(crate) first_token_seconds: f64,
    /// Bytes of the weights as the file has them.
    pub(crate) weight_bytes: u64,
    /// Memory of this process in RAM after loading and the first token.
    pub(crate) resident_bytes: Option<u64>,
    /// Bytes per second at which the threads read as much memory as the weights take.
    pub(crate) memory_bytes_per_second: f64,
    /// Operations per second of the exact kernels where no memory is waited for; two for each weight and row.
    pub(crate) product_operations_per_second: f64,
    pub(crate) results: Vec<TestReport>,
}

/// Measures; `started` hears the name of each test before it runs. Blocking.
pub(crate) fn measure(plan: &Plan, mut started: impl FnMut(&str)) -> Result<ModelReport, InferError> {
    started("load");
    let begin = Instant::now();
    let gguf = open_gguf(&plan.file)?;
    let stage = load(plan, &gguf)?;
    let load_seconds = begin.elapsed().as_secs_f64();
    let bench = Bench::new(stage, &gguf)?;
    bench.check(plan)?;
    bench.prompt(FIRST_PROMPT)?;
    let first_token_seconds = begin.elapsed().as_secs_f64();
    let resident_bytes = process::resident_bytes();
    started("limits");
    let weight_bytes = bench.stage.weight_bytes();
    let bytes = usize::try_from(weight_bytes).unwrap_or(usize::MAX);
    let memory_bytes_per_second = plan.compute.read_bandwidth(bytes, BANDWIDTH_PASSES);
    let product_operations_per_second = plan.compute.product_rate(PRODUCT_PASSES);
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let share = |rate: f64| Some(rate * weight_bytes as f64 / memory_bytes_per_second);

    let mut results = Vec::new();
    for &n in &plan.pp {
        let test = format!("pp{n}");
        started(&test);
        let (cold, tokens_per_second) = runs(plan, n, || bench.prompt(n))?;
        results.push(TestReport::new(test, cold, tokens_per_second));
    }
    for &n in &plan.tg {
        let test = format!("tg{n}");
        started(&test);
        let (cold, tokens_per_second) = runs(plan, n, || bench.answer(n))?;
        let memory_share = share(tokens_per_second.median);
        results.push(TestReport { memory_share, ..TestReport::new(test, cold, tokens_per_second) });
    }
    let manifest = Manifest::from_gguf(&gguf).map_err(|e| unusable(&plan.file, &e))?;
    let profile = bench.stage.profile();
    results.extend(sessions::measure(plan, bench, started)?);
    Ok(ModelReport {
        model: manifest.name,
        architecture: manifest.architecture,
        quantisation: manifest.quantisation,
        device: plan.compute.device.to_string(),
        profile,
        isa: plan.compute.isa_used().map(quelea_engine::Isa::name),
        threads: plan.compute.threads_used(),
        repeat: plan.repeat,
        load_seconds,
        first_token_seconds,
        weight_bytes,
        resident_bytes,
        memory_bytes_per_second,
        product_operations_per_second,
        results,
    })
}

fn load(plan: &Plan, gguf: &Gguf) -> Result<Stage, InferError> {
    memory::check_whole(&plan.file, gguf, plan.rows())?;
    let unusable = |e: &dyn std::fmt::Display| unusable(&plan.file, e);
    let layers = quelea_engine::Hparams::from_gguf(gguf).map_err(|e| unusable(&e))?.n_layers;
    Stage::load_with(gguf, Span::whole(layers), &plan.compute).map_err(|e| unusable(&e))
}

/// Runs a test of `tokens` tokens once cold and as often as the plan says: tokens per second of each.
fn runs(
    plan: &Plan,
    tokens: usize,
    mut run: impl FnMut() -> Result<(), InferError>,
) -> Result<(f64, Rates), InferError> {
    let mut rate = || {
        let begin = Instant::now();
        run()?;
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let tokens = tokens as f64;
        Ok::<_, InferError>(tokens / begin.elapsed().as_secs_f64().max(1e-9))
    };
    let cold = rate()?;
    let samples = (0..plan.repeat).map(|_| rate()).collect::<Result<Vec<_>, _>>()?;
    Ok((cold, Rates::of(samples)))
}

impl Rates {
    pub(crate) fn of(samples: Vec<f64>) -> Self {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or_default();
        let (low, high) = (at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2));
        Self { median: f64::midpoint(low, high), best: sorted.last().copied().unwrap_or_default(), samples }
    }

    /// Half of what lies between the slowest and the fastest run, over the median.
    pub(crate) fn spread(&self) -> f64 {
        let low = self.samples.iter().copied().fold(f64::INFINITY, f64::min);
        (self.best - low) / 2.0 / self.median
    }
}

impl TestReport {
    fn new(test: String, cold_tokens_per_second: f64, tokens_per_second: Rates) -> Self {
        Self { test, cold_tokens_per_second, tokens_per_second, memory_share: None, tokens_per_batch: None }
    }
}

/// A whole model, ready to be timed.
struct Bench {
    stage: Stage,
    /// Greedy, without end-of-text.
    sampler: SamplerConfig,
}

impl Bench {
    fn new(stage: Stage, gguf: &Gguf) -> Result<Self, InferError> {
        // A file without a vocabulary has no end-of-text to ban.
        let eos = Tokenizer::from_gguf(gguf).map(|tokenizer| tokenizer.eos_ids().to_vec()).unwrap_or_default();
        let known = eos.into_iter().filter(|id| usize::try_from(*id).is_ok_and(|id| id < stage.vocab()));
        let logit_bias = known.map(|id| (id, -100.0)).collect();
        Ok(Self { stage, sampler: SamplerConfig { logit_bias, ..SamplerConfig::default() } })
    }

    /// Whether the tests fit the model's context.
    fn check(&self, plan: &Plan) -> Result<(), InferError> {
        let context = self.stage.hparams().context_length;
        match plan.pp.iter().chain(&plan.tg).find(|n| **n > context) {
            Some(n) => {
                let message = format!("a test of {n} tokens does not fit the model's context of {context}");
                Err(InferError::new(ErrorCode::Usage, message))
            }
            None => Ok(()),
        }
    }

    /// Reads a prompt of `n` tokens, to the logits after the last.
    fn prompt(&self, n: usize) -> Result<(), InferError> {
        let mut cache = self.stage.new_cache_for(n);
        let mut last = Vec::new();
        for (i, chunk) in self.tokens(0, n).chunks(PREFILL_CHUNK).enumerate() {
            last = self.stage.forward(&mut cache, i * PREFILL_CHUNK, &self.stage.embed(chunk)?)?;
        }
        let row = last.split_off(last.len().saturating_sub(self.stage.hidden()));
        self.stage.logits(&row)?;
        Ok(())
    }

    /// Writes `n` tokens.
    fn answer(&self, n: usize) -> Result<(), InferError> {
        let mut cache = self.stage.new_cache_for(n);
        let mut sampler = Sampler::new(self.sampler.clone(), &[])?;
        let mut id = self.tokens(0, 1).first().copied().unwrap_or_default();
        for pos in 0..n {
            let row = self.stage.forward(&mut cache, pos, &self.stage.embed(&[id])?)?;
            id = sampler.sample(&self.stage.logits(&row)?)?;
        }
        Ok(())
    }

    /// `n` tokens without a pattern, the same for ever; another list for each `session`.
    fn tokens(&self, session: u32, n: usize) -> Vec<u32> {
        let vocab = u64::try_from(self.stage.vocab()).unwrap_or(1).max(1);
        let mut state = u64::from(session).wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        let next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            u32::try_from((state >> 33) % vocab).unwrap_or_default()
        };
        std::iter::repeat_with(next).take(n).collect()
    }
}

macro_rules! failures {
    ($($error:ty),*) => {$(
        impl From<$error> for InferError {
            fn from(error: $error) -> Self {
                Self::new(ErrorCode::EngineFailed, error.to_string())
            }
        }
    )*};
}

failures!(StageError, SamplerError, SubmitError, JobError, AdmissionError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let rates = Rates::of(vec![3.0, 1.0, 2.0, 4.0]);
        assert_eq!((rates.median, rates.best, rates.spread()), (2.5, 4.0, 0.6));
        assert_eq!(rates.samples, [3.0, 1.0, 2.0, 4.0]);
        assert_eq!(Rates::of(vec![3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Rates::of(vec![7.0]).spread(), 0.0);
    }

    #[test]
    fn the_demo_model_can_be_measured() {
        let plan = Plan {
            file: "demo".into(),
            pp: vec![9, 70],
            tg: vec![3],
            sessions: vec![1, 3],
            repeat: 2,
            compute: StageOptions::default(),
        };
        let mut heard = Vec::new();
        let report = measure(&plan, |test| heard.push(test.to_owned())).unwrap();
        let tests: Vec<&str> = report.results.iter().map(|r| r.test.as_str()).collect();
        assert_eq!(tests, ["pp9", "pp70", "tg3", "tg3x1", "tg3x3"]);
        assert_eq!(heard, [&["load", "limits"], &tests[..]].concat());
        for result in &report.results {
            let rates = &result.tokens_per_second;
            assert_eq!(rates.samples.len(), 2);
            assert!(rates.samples.iter().chain([&result.cold_tokens_per_second]).all(|r| r.is_finite() && *r > 0.0));
        }
        assert!(report.load_seconds > 0.0 && report.first_token_seconds > report.load_seconds);
        let too_long = measure(&Plan { pp: vec![1 << 20], ..plan }, |_| {}).unwrap_err();
        assert!(too_long.message.contains("does not fit the model's context"), "{too_long}");
    }
}
