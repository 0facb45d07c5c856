//! What a sampler can be told, and what it refuses.

use std::{collections::BTreeMap, ops::RangeInclusive};

/// Bias that a token may have. The ends ban and force.
pub const LOGIT_BIAS: RangeInclusive<f32> = -100.0..=100.0;

/// Most alternatives that can be asked for with each token's log-probability.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 16;

/// Most bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;

/// Most tokens that a vocabulary may have, so that the sum of their weights fits 64 bits.
const MAX_VOCAB: usize = 1 << 24;

/// How to pick. The stages are described at the head of the module.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 is greedy. Finite, not negative.
    pub temperature: f32,
    /// Only so many of the highest logits are considered; 0 is all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability are considered; 1 is all. Within 0..=1.
    pub top_p: f32,
    /// Tokens less likely than this share of the most likely one are not considered; 0 is all. Within 0..=1.
    pub min_p: f32,
    /// Divides positive logits, multiplies negative ones, of tokens in the window; 1 is off. Within 0.01..=100.
    pub repeat_penalty: f32,
    /// Subtracted from the logits of tokens that the answer holds within the window; 0 is off. Within −2..=2.
    pub presence_penalty: f32,
    /// Subtracted as often as the answer holds the token within the window; 0 is off. Within −2..=2.
    pub frequency_penalty: f32,
    /// The penalties' window: so many of the last tokens; `usize::MAX` is all of them, 0 turns penalties off.
    pub repeat_last_n: usize,
    /// Added to the logits of these tokens: within −100..=100, whose ends ban and force.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Two requests with one seed draw alike.
    pub seed: u64,
}

impl Default for SamplerConfig {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

/// Why no token could be picked. Nothing was drawn: the next call draws what this one would have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// A logit is NaN or positive infinity.
    #[error("the logit of token {id} is {value}")]
    Logit {
        /// The token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// There are no logits, or all are negative infinity (banned tokens among them), or too many.
    #[error("no token can be picked from these {count} logits")]
    Nothing {
        /// Logits given.
        count: usize,
    },
    /// A setting that makes no sense.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A bias for a token that the model does not have.
    #[error("logit_bias names token {id}, but the vocabulary has only {vocab} tokens")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Tokens of the model.
        vocab: usize,
    },
    /// Stop strings that cannot be looked for.
    #[error("{found}; expected at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_BYTES} bytes each")]
    Stops {
        /// What was found.
        found: String,
    },
}

impl SamplerConfig {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// [`SamplerError::Setting`] names the first that does not.
    pub fn check(&self) -> Result<(), SamplerError> {
        const SHARE: (RangeInclusive<f32>, &str) = (0.0..=1.0, "a number within 0..=1");
        const PENALTY: (RangeInclusive<f32>, &str) = (-2.0..=2.0, "a number within -2..=2");
        let settings = [
            ("temperature", self.temperature, (0.0..=f32::MAX, "a number that is not negative")),
            ("top_p", self.top_p, SHARE),
            ("min_p", self.min_p, SHARE),
            ("repeat_penalty", self.repeat_penalty, (0.01..=100.0, "a number within 0.01..=100")),
            ("presence_penalty", self.presence_penalty, PENALTY),
            ("frequency_penalty", self.frequency_penalty, PENALTY),
        ];
        let biases = self.logit_bias.values().map(|bias| {
            let range = (LOGIT_BIAS, "a number within -100..=100 for every token");
            ("logit_bias", *bias, range)
        });
        for (name, value, (range, expected)) in settings.into_iter().chain(biases) {
            if !range.contains(&value) {
                return Err(SamplerError::Setting { name, value: f64::from(value), expected });
            }
        }
        Ok(())
    }

    /// Whether all tokens that have a bias are in a vocabulary of this size.
    ///
    /// # Errors
    /// [`SamplerError::UnknownToken`] names the first that is not.
    pub fn check_tokens(&self, vocab: usize) -> Result<(), SamplerError> {
        match self.logit_bias.keys().next_back() {
            Some(&id) if id as usize >= vocab => Err(SamplerError::UnknownToken { id, vocab }),
            _ => Ok(()),
        }
    }

    /// Whether any penalty changes anything.
    pub(super) fn penalises(&self) -> bool {
        let any = self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        any && self.repeat_last_n > 0
    }
}

/// What has been seen of some logits: that they are sound, and the highest of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vocab {
    pub(super) len: usize,
    /// The highest logit, finite.
    pub(super) highest: f32,
}

impl Vocab {
    /// Looks through the logits.
    pub(super) fn of(logits: &[f32]) -> Result<Self, SamplerError> {
        let nothing = SamplerError::Nothing { count: logits.len() };
        if logits.len() > MAX_VOCAB {
            return Err(nothing);
        }
        // Both reductions run in lanes; neither depends on the order.
        let mut lanes = [f32::NEG_INFINITY; 8];
        let mut sound = true;
        let (blocks, tail) = logits.as_chunks::<8>();
        for block in blocks {
            for (lane, value) in lanes.iter_mut().zip(block) {
                *lane = if *value > *lane { *value } else { *lane };
                sound &= *value < f32::INFINITY;
            }
        }
        sound &= tail.iter().all(|value| *value < f32::INFINITY);
        if !sound {
            let bad = logits.iter().copied().enumerate().find(|(_, value)| value.is_nan() || *value == f32::INFINITY);
            return Err(bad.map_or(nothing, |(id, value)| SamplerError::Logit { id, value }));
        }
        let highest = lanes.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
        if highest == f32::NEG_INFINITY { Err(nothing) } else { Ok(Self { len: logits.len(), highest }) }
    }
}
