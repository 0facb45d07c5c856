//! The engine's sampler, as a request asks for it: settings, draws, and the text that comes of them.

use std::sync::Arc;

use quelea_engine::{
    sampler::{
        MAX_TOP_LOGPROBS, Sampler, SamplerConfig, SamplerError, StopMatcher, Stopped, TokenLogProb, log_prob,
        log_prob_of,
    },
    tokenizer::{Decoder, Tokenizer},
};
use quelea_shard::frame::TopLogits;
use quelea_wire::ErrorCode;

use super::{
    follow::Follow,
    models::Ends,
    types::{InferError, InferRequest, LikelyToken, TokenLogprobs},
};

/// Logits that are picked from on the spot: they take some ten microseconds, less than it takes to wake another thread.
const PICK_HERE_MAX: usize = 4096;

/// The sampler's settings, once they make sense for a vocabulary of this size.
pub(super) fn settings(request: &InferRequest, vocab: usize) -> Result<SamplerConfig, InferError> {
    let usage = |message: String| InferError::new(ErrorCode::Usage, message);
    let repeat_last_n = match request.repeat_last_n {
        -1 => usize::MAX,
        n => usize::try_from(n).map_err(|_| {
            usage(format!("repeat_last_n is {n}, expected a number of tokens, 0 for none or -1 for all"))
        })?,
    };
    if let Some(top) = request.logprobs.filter(|top| *top > MAX_TOP_LOGPROBS) {
        return Err(usage(format!("logprobs asks for {top} alternatives, expected at most {MAX_TOP_LOGPROBS}")));
    }
    let config = SamplerConfig {
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        repeat_penalty: request.repeat_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repeat_last_n,
        logit_bias: request.logit_bias.clone(),
        seed: request.seed,
    };
    let checked = config.check().and_then(|()| config.check_tokens(vocab));
    checked.and_then(|()| StopMatcher::new(&request.stop)).map_err(|e| usage(e.to_string()))?;
    Ok(config)
}

/// Logits after some rows: of all tokens, or of the likeliest.
#[derive(Default)]
pub(super) struct Logits {
    /// `[n, vocab]`. Negative infinity for tokens that are not among the likeliest.
    values: Vec<f32>,
    vocab: usize,
    /// What the weights of all tokens sum up to, after each row, where only the likeliest are there.
    sums: Vec<u64>,
}

/// The logits after one row.
pub(super) struct LogitsRow {
    values: Vec<f32>,
    sum: Option<u64>,
}

impl Logits {
    /// Those of all tokens, `[n, vocab]`.
    pub(super) fn all(values: Vec<f32>, vocab: usize) -> Self {
        Self { values, vocab, sums: Vec::new() }
    }

    /// Those of the likeliest, whose ids are below `vocab`.
    pub(super) fn likeliest(rows: Vec<TopLogits>, vocab: usize) -> Self {
        let mut values = vec![f32::NEG_INFINITY; rows.len().saturating_mul(vocab)];
        let mut sums = Vec::with_capacity(rows.len());
        for (TopLogits { sum, top }, row) in rows.into_iter().zip(values.chunks_mut(vocab.max(1))) {
            sums.push(sum);
            for (id, logit) in top {
                if let Some(value) = usize::try_from(id).ok().and_then(|id| row.get_mut(id)) {
                    *value = logit;
                }
            }
        }
        Self { values, vocab, sums }
    }

    /// Those after the row at `i`.
    pub(super) fn row(&self, i: usize) -> LogitsRow {
        let row = self.values.get(i * self.vocab..).and_then(|rows| rows.get(..self.vocab)).unwrap_or_default();
        LogitsRow { values: row.to_vec(), sum: self.sums.get(i).copied() }
    }
}

impl From<Vec<f32>> for LogitsRow {
    fn from(values: Vec<f32>) -> Self {
        Self { values, sum: None }
    }
}

/// The sampler of one request. A clone draws ahead what this one would draw.
#[derive(Clone)]
pub(super) struct Picker {
    ends: Arc<Ends>,
    sampler: Sampler,
    /// Alternatives to tell with each token's log-probability, if any.
    logprobs: Option<usize>,
    /// What the answer has to be.
    follow: Option<Follow>,
}

impl Picker {
    /// A sampler that has drawn the tokens of `said` already.
    pub(super) fn new(
        ends: &Arc<Ends>,
        request: &InferRequest,
        prompt: &[u32],
        said: &[u32],
        follow: Option<Follow>,
    ) -> Result<Self, InferError> {
        let config = settings(request, ends.hparams.vocab)?;
        let sampler = Sampler::resume(config, prompt, said).map_err(|e| failed(&e))?;
        Ok(Self { ends: ends.clone(), sampler, logprobs: request.logprobs, follow })
    }

    /// Whether the answer is what it has to be, and nothing may follow.
    pub(super) fn is_complete(&self) -> bool {
        self.follow.as_ref().is_some_and(Follow::is_complete)
    }

    /// The token that these logits give, and how likely it was when the request asks for that. Large vocabularies take
    /// a millisecond, so they are off the async threads.
    pub(super) async fn pick(
        self,
        row: impl Into<LogitsRow>,
    ) -> Result<(Self, u32, Option<TokenLogprobs>), InferError> {
        let mut picker = self;
        let LogitsRow { values: logits, sum } = row.into();
        let values = logits.len();
        let pick = move || {
            let id = match &mut picker.follow {
                None => picker.sampler.sample(&logits).map_err(|e| failed(&e))?,
                Some(follow) => {
                    let allowed = follow.allowed(&logits)?;
                    let id = picker.sampler.sample(&allowed).map_err(|e| failed(&e))?;
                    follow.push(id)?;
                    id
                }
            };
            let log_prob = |top| match sum {
                Some(sum) => log_prob_of(&logits, sum, id, top),
                None => log_prob(&logits, id, top),
            };
            let likely = picker.logprobs.map(log_prob).transpose().map_err(|e| failed(&e))?;
            let likely = likely.map(|likely| described(&picker.ends.tokenizer, &likely));
            Ok((picker, id, likely))
        };
        if values <= PICK_HERE_MAX {
            return pick();
        }
        tokio::task::spawn_blocking(pick).await.map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?
    }
}

fn failed(error: &SamplerError) -> InferError {
    InferError::new(ErrorCode::EngineFailed, error.to_string())
}

fn described(tokenizer: &Tokenizer, likely: &TokenLogProb) -> TokenLogprobs {
    let token = |id: u32, logprob: f32| {
        let bytes = tokenizer.bytes(id).into_owned();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // A control token has no text in an answer, but a name.
        let token = if text.is_empty() { tokenizer.piece(id).unwrap_or_default().to_owned() } else { text };
        LikelyToken { id, token, bytes, logprob }
    };
    TokenLogprobs {
        chosen: token(likely.id, likely.logprob),
        top_logprobs: likely.top.iter().map(|(id, logprob)| token(*id, *logprob)).collect(),
    }
}

/// The text of an answer, token by token, up to a stop string.
pub(super) struct Text {
    decoder: Decoder,
    stops: StopMatcher,
    /// All that may be shown so far.
    pub(super) shown: String,
    /// The stop string that ended the text, counted from 0.
    pub(super) stop: Option<usize>,
}

impl Text {
    pub(super) fn new(tokenizer: &Tokenizer, stops: &[String]) -> Result<Self, InferError> {
        let stops = StopMatcher::new(stops).map_err(|e| InferError::new(ErrorCode::Usage, e.to_string()))?;
        Ok(Self { decoder: tokenizer.decoder(), stops, shown: String::new(), stop: None })
    }

    /// The text that a token makes ready to be shown.
    pub(super) fn push(&mut self, id: u32) -> String {
        let piece = self.decoder.push(id);
        self.add(&piece)
    }

    /// What is left when no more tokens come.
    pub(super) fn finish(&mut self) -> String {
        if self.stop.is_some() {
            return String::new();
        }
        let rest = self.decoder.finish();
        let mut rest = self.add(&rest);
        if self.stop.is_none() {
            let held = self.stops.finish();
            self.shown.push_str(&held);
            rest.push_str(&held);
        }
        rest
    }

    fn add(&mut self, piece: &str) -> String {
        let Stopped { text, stop } = self.stops.push(piece);
        self.stop = stop;
        self.shown.push_str(&text);
        text
    }
}
