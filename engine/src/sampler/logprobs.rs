//! How likely the model found a token, before anything was done to its logits.

use super::{
    config::{MAX_TOP_LOGPROBS, SamplerError, Vocab},
    cut::ranking,
    weight::{ONE, Scale},
};

/// A token's log-probability, and those of the most likely tokens in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProb {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability: not above 0; negative infinity for a banned token.
    pub logprob: f32,
    /// The most likely tokens, the likeliest first; the token itself may be among them.
    pub top: Vec<(u32, f32)>,
}

/// The log-probability of `id` and of the `top` most likely tokens (at most [`MAX_TOP_LOGPROBS`]) in the softmax of raw
/// `logits`: at temperature 1, before penalties, bias and cuts.
///
/// # Errors
/// [`SamplerError`] when the logits are not sound, or `id` is none of them.
pub fn log_prob(logits: &[f32], id: u32, top: usize) -> Result<TokenLogProb, SamplerError> {
    log_prob_of(logits, weight_sum(logits)?, id, top)
}

/// As [`log_prob`], of logits of which only the highest are there, and the [`weight_sum`] of all.
///
/// # Errors
/// As [`log_prob`].
pub fn log_prob_of(logits: &[f32], sum: u64, id: u32, top: usize) -> Result<TokenLogProb, SamplerError> {
    let vocab = Vocab::of(logits)?;
    let logit = logits.get(id as usize).copied();
    let logit = logit.ok_or(SamplerError::UnknownToken { id, vocab: vocab.len })?;
    let offset = log_sum(sum, vocab);
    let top = ranking(logits, top.min(MAX_TOP_LOGPROBS));
    Ok(TokenLogProb {
        id,
        logprob: less(logit, offset),
        top: top.into_iter().map(|(id, logit)| (id, less(logit, offset))).collect(),
    })
}

/// The sum of the weights of all logits, in units of 2⁻⁴⁰ of the highest one's: the same on every machine.
///
/// # Errors
/// [`SamplerError`] when the logits are not sound.
pub fn weight_sum(logits: &[f32]) -> Result<u64, SamplerError> {
    let vocab = Vocab::of(logits)?;
    Ok(Scale::new(vocab.highest, 1.0).weights(logits, &mut Vec::new()))
}

/// The logarithm of the sum of the exponentials of all logits.
#[expect(clippy::cast_precision_loss, reason = "40 bits of a sum are plenty for a logarithm in f32")]
fn log_sum(sum: u64, vocab: Vocab) -> f64 {
    f64::from(vocab.highest) + libm::log(sum as f64 / ONE as f64)
}

#[expect(clippy::cast_possible_truncation, reason = "log-probabilities are wanted in f32")]
fn less(logit: f32, offset: f64) -> f32 {
    (f64::from(logit) - offset).min(0.0) as f32
}
