//! Drawing from the highest logits alone, where somebody else has all of them.

use super::{
    config::{SamplerConfig, SamplerError, Vocab},
    cut::ranking,
};

/// The `k` highest of some logits with their tokens: the highest first, of equals the lowest id. Banned tokens are left out.
///
/// # Errors
/// [`SamplerError`] when the logits are not sound.
pub fn top_logits(logits: &[f32], k: usize) -> Result<Vec<(u32, f32)>, SamplerError> {
    Vocab::of(logits)?;
    Ok(ranking(logits, k))
}

/// Why some of the highest logits do not tell what would be drawn from all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotByTop {
    /// Without top-k every token may be drawn.
    #[error("without top_k every token may be drawn, and all logits are needed for that")]
    AllTokens,
    /// A penalty or bias that raises logits.
    #[error("a penalty or bias that makes tokens likelier may raise one that is not among the likeliest")]
    Raises,
}

impl SamplerConfig {
    /// How many of the highest logits tell what would be drawn from all of them, bit for bit.
    ///
    /// Greedy needs one, top-k needs k: the cuts after it and the draw look at those alone. Penalties and bans only lower
    /// logits, so as many more as there are tokens that they may touch leave that many which nothing has touched, and no
    /// token that is not there is above those.
    ///
    /// # Errors
    /// [`NotByTop`] where no number does.
    pub fn top_needed(&self) -> Result<usize, NotByTop> {
        let raises = self.penalises()
            && (self.repeat_penalty < 1.0 || self.presence_penalty < 0.0 || self.frequency_penalty < 0.0);
        if raises || self.logit_bias.values().any(|bias| *bias > 0.0) {
            return Err(NotByTop::Raises);
        }
        let drawn = match (self.temperature == 0.0, self.top_k) {
            (true, _) => 1,
            (false, 0) => return Err(NotByTop::AllTokens),
            (false, k) => k,
        };
        let penalised = if self.penalises() { self.repeat_last_n } else { 0 };
        Ok(drawn.saturating_add(penalised).saturating_add(self.logit_bias.len()))
    }
}
