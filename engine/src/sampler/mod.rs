//! Picking the next token from logits, and knowing when to stop.
//!
//! # The order of the stages
//!
//! 1. **Penalties.** Repetition divides a positive logit and multiplies a negative one, for every token of the window,
//!    prompt included (as llama.cpp and vLLM have it). Frequency times the token's count, plus presence, is then
//!    subtracted, for tokens of the *answer* within the window (as OpenAI and vLLM have it).
//! 2. **Logit bias** is added. −100 bans the token, 100 leaves only the tokens that have 100, exactly.
//! 3. **Temperature** divides the logits. 0 ends here: the highest logit is taken.
//! 4. **Top-k** keeps the highest logits.
//! 5. **Top-p** keeps the fewest of the most likely whose probabilities, among those that are left, reach it.
//! 6. **Min-p** drops tokens less likely than this share of the most likely one.
//! 7. **One draw** among the rest, by their probabilities.
//!
//! Temperature stands before the cuts, as with OpenAI, vLLM and Transformers; llama.cpp cuts at temperature 1 first. Ties
//! always go to the lower id.
//!
//! # Exactness
//!
//! A token is a pure function of logits, settings, seed and the tokens before, so a coordinator that restarts goes on
//! with the same draws ([`Sampler::resume`]), on any machine: probabilities are whole multiples of 2⁻⁴⁰ of the most
//! likely one's, whose sums do not depend on their order, and the exponential uses only operations that IEEE 754
//! defines to the last bit.
//!
//! [`log_prob`] tells how likely the model itself found a token: from the raw logits, before any of the above.
//! [`StopMatcher`] finds stop strings in the text.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)
)]

mod config;
mod cut;
mod draw;
mod logprobs;
mod nucleus;
mod penalties;
mod stop;
mod top;
mod weight;

pub use config::{LOGIT_BIAS, MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS, SamplerConfig, SamplerError};
pub use logprobs::{TokenLogProb, log_prob, log_prob_of, weight_sum};
pub use stop::{StopMatcher, Stopped};
pub use top::{NotByTop, top_logits};

use config::Vocab;
use cut::Cut;
use penalties::Penalties;

/// Picks tokens, one draw a token.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    /// Tokens picked so far: the position of the next draw.
    draws: u64,
    penalties: Option<Penalties>,
    /// Logits after penalties and bias. Kept for its memory alone, as is `cut`.
    adjusted: Vec<f32>,
    cut: Cut,
}

impl Sampler {
    /// A sampler at the first token after `prompt`.
    ///
    /// # Errors
    /// [`SamplerError::Setting`] names the setting that makes no sense.
    pub fn new(config: SamplerConfig, prompt: &[u32]) -> Result<Self, SamplerError> {
        config.check()?;
        let penalties = config.penalises().then(|| Penalties::new(&config, prompt));
        Ok(Self { config, draws: 0, penalties, adjusted: Vec::new(), cut: Cut::default() })
    }

    /// A sampler that has picked the tokens of `answer` already: it goes on as the one that picked them would have.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn resume(config: SamplerConfig, prompt: &[u32], answer: &[u32]) -> Result<Self, SamplerError> {
        let mut sampler = Self::new(config, prompt)?;
        answer.iter().for_each(|id| sampler.accept(*id));
        Ok(sampler)
    }

    /// Tokens picked so far.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// Picks the next token from the logits of the whole vocabulary, in order of ids. Negative infinity bans a token.
    ///
    /// # Errors
    /// [`SamplerError`]; the sampler is then as it was.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplerError> {
        let vocab = Vocab::of(logits)?;
        self.config.check_tokens(vocab.len)?;
        let id = if self.penalties.is_none() && self.config.logit_bias.is_empty() {
            self.cut.pick(&self.config, logits, vocab, self.draws)
        } else {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            if let Some(penalties) = &self.penalties {
                penalties.apply(&mut self.adjusted);
            }
            bias(&self.config, &mut self.adjusted);
            let vocab = Vocab::of(&self.adjusted)?;
            self.cut.pick(&self.config, &self.adjusted, vocab, self.draws)
        };
        self.accept(id);
        Ok(id)
    }

    fn accept(&mut self, id: u32) {
        self.draws = self.draws.wrapping_add(1);
        if let Some(penalties) = &mut self.penalties {
            penalties.push(id);
        }
    }
}

/// Adds the bias of each token that has one; bans and forces.
fn bias(config: &SamplerConfig, logits: &mut [f32]) {
    let mut forced = Vec::new();
    for (id, bias) in &config.logit_bias {
        let Some(logit) = logits.get_mut(*id as usize) else { continue };
        if *bias <= *LOGIT_BIAS.start() {
            *logit = f32::NEG_INFINITY;
        } else if *bias >= *LOGIT_BIAS.end() {
            forced.push((*id, *logit));
        } else {
            *logit = shifted(*logit, |logit| logit + bias);
        }
    }
    if !forced.is_empty() {
        logits.fill(f32::NEG_INFINITY);
        for (id, value) in forced {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = value;
            }
        }
    }
}

/// A logit after `change`, held within finite numbers. A banned token stays banned.
fn shifted(logit: f32, change: impl Fn(f32) -> f32) -> f32 {
    if logit == f32::NEG_INFINITY { logit } else { change(logit).clamp(f32::MIN, f32::MAX) }
}

#[cfg(test)]
mod tests;
