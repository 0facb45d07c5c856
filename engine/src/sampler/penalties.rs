//! Penalties for tokens that were there before. Their state is a function of the tokens alone.

use std::collections::HashMap;

use super::{config::SamplerConfig, shifted};

/// The window over prompt and answer, and how often it holds each token.
#[derive(Clone, Debug)]
pub(super) struct Penalties {
    repeat: f32,
    presence: f32,
    frequency: f32,
    window: usize,
    prompt: usize,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Counts in the window.
    seen: HashMap<u32, u32>,
    /// Counts in the window, the prompt left out.
    answered: HashMap<u32, u32>,
}

impl Penalties {
    pub(super) fn new(config: &SamplerConfig, prompt: &[u32]) -> Self {
        let mut penalties = Self {
            repeat: config.repeat_penalty,
            presence: config.presence_penalty,
            frequency: config.frequency_penalty,
            window: config.repeat_last_n,
            prompt: prompt.len(),
            tokens: Vec::new(),
            seen: HashMap::new(),
            answered: HashMap::new(),
        };
        prompt.iter().for_each(|id| penalties.push(*id));
        penalties
    }

    /// The next token of prompt or answer.
    pub(super) fn push(&mut self, id: u32) {
        let at = self.tokens.len();
        self.tokens.push(id);
        *self.seen.entry(id).or_default() += 1;
        if at >= self.prompt {
            *self.answered.entry(id).or_default() += 1;
        }
        let gone = at.checked_sub(self.window).and_then(|gone| Some((gone, *self.tokens.get(gone)?)));
        if let Some((gone, id)) = gone {
            take(&mut self.seen, id);
            if gone >= self.prompt {
                take(&mut self.answered, id);
            }
        }
    }

    /// Changes the logits of the tokens in the window, each by itself.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        if self.repeat != 1.0 {
            for id in self.seen.keys() {
                change(logits, *id, |logit| if logit > 0.0 { logit / self.repeat } else { logit * self.repeat });
            }
        }
        for (id, count) in &self.answered {
            #[expect(clippy::cast_precision_loss, reason = "a count of tokens in a context")]
            let penalty = *count as f32 * self.frequency + self.presence;
            change(logits, *id, |logit| logit - penalty);
        }
    }
}

fn take(counts: &mut HashMap<u32, u32>, id: u32) {
    if let Some(count) = counts.get_mut(&id) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&id);
        }
    }
}

fn change(logits: &mut [f32], id: u32, change: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = shifted(*logit, change);
    }
}
