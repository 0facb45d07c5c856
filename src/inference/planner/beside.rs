//! What a request takes beside its chain: looking around and opening before the first token, and with each pass the ends of
//! the model, drawing and telling, all of which happen here; and how many tokens a pass brings where some are guessed.

use std::collections::HashMap;

use quelea_wire::ModelId;

use super::observed::Took;
use crate::inference::types::{Prediction, Summary};

/// Models remembered; the one that was asked longest ago gives way.
const MAX_MODELS: usize = 64;

/// A new request weighs one part in this many, as in the other averages.
const WEIGHT: f64 = 3.0;

/// A request's seconds beside its chain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// Before the first token.
    first_s: f64,
    /// With each pass after it.
    pass_s: Option<f64>,
    /// Tokens that a pass brought, where some were guessed.
    guessing: Option<f64>,
}

impl Sample {
    /// Of a request that was answered.
    #[expect(clippy::cast_precision_loss, reason = "times and counts of one request")]
    pub(crate) fn of(summary: &Summary, took: Took) -> Self {
        let seconds = |ns: u64| ns as f64 / 1e9;
        let later = summary.ids.len().saturating_sub(summary.resumed_tokens + 1) as f64;
        let passes = (took.passes > 0).then_some(took.passes as f64);
        let answering = summary.total_s - summary.ttft_s - seconds(took.answer_ns);
        Self {
            first_s: (summary.ttft_s - seconds(took.prompt_ns)).max(0.0),
            pass_s: passes.map(|passes| (answering / passes).max(0.0)),
            guessing: passes.filter(|_| summary.speculation.is_some()).map(|passes| (later / passes).max(1.0)),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Means {
    first_s: f64,
    pass_s: f64,
    guessing: f64,
    touched: u64,
}

/// Moving averages by model.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    models: HashMap<ModelId, Means>,
    clock: u64,
}

impl Beside {
    /// Takes a request that was answered.
    pub(crate) fn learn(&mut self, model: ModelId, sample: Sample) {
        self.clock += 1;
        let oldest = self.models.iter().min_by_key(|(_, means)| means.touched).map(|(model, _)| *model);
        if let Some(oldest) = oldest.filter(|_| self.models.len() >= MAX_MODELS && !self.models.contains_key(&model)) {
            self.models.remove(&oldest);
        }
        let first = Means {
            first_s: sample.first_s,
            pass_s: sample.pass_s.unwrap_or(0.0),
            guessing: sample.guessing.unwrap_or(1.0),
            touched: self.clock,
        };
        let means = self.models.entry(model).or_insert(first);
        means.touched = self.clock;
        let follow = |mean: &mut f64, new: Option<f64>| *mean += (new.unwrap_or(*mean) - *mean) / WEIGHT;
        follow(&mut means.first_s, Some(sample.first_s));
        follow(&mut means.pass_s, sample.pass_s);
        follow(&mut means.guessing, sample.guessing);
    }

    /// What a chain promises, and what comes beside it. Nothing is known of a model's first request.
    pub(crate) fn with(&self, model: ModelId, guesses: bool, mut chain: Prediction) -> Prediction {
        if let Some(means) = self.models.get(&model) {
            chain.first_token_s += means.first_s;
            let pass_s = 1.0 / chain.tokens_per_s.max(f64::MIN_POSITIVE) + means.pass_s;
            chain.tokens_per_s = if guesses { means.guessing } else { 1.0 } / pass_s;
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(first_s: f64, pass_s: f64, guessing: Option<f64>) -> Sample {
        Sample { first_s, pass_s: Some(pass_s), guessing }
    }

    fn chain() -> Prediction {
        Prediction { tokens_per_s: 10.0, first_token_s: 0.2, price: 0, local_tokens_per_s: None }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn what_comes_beside_the_chain_is_added_and_guessed_tokens_count() {
        let (mut beside, model) = (Beside::default(), ModelId([1; 32]));
        assert_eq!(beside.with(model, true, chain()), chain(), "nothing is known");
        beside.learn(model, sample(0.3, 0.1, None));
        let plain = beside.with(model, true, chain());
        assert!(close(plain.first_token_s, 0.5) && close(plain.tokens_per_s, 5.0), "{plain:?}");
        for _ in 0..50 {
            beside.learn(model, sample(0.3, 0.1, Some(4.0)));
        }
        let guessed = beside.with(model, true, chain());
        assert!(close(guessed.tokens_per_s, 20.0), "{guessed:?}");
        assert!(close(beside.with(model, false, chain()).tokens_per_s, 5.0));
        assert_eq!(beside.with(ModelId([2; 32]), true, chain()), chain(), "another model");
    }

    #[test]
    fn models_are_bounded() {
        let mut beside = Beside::default();
        for n in 0..=255 {
            beside.learn(ModelId([n; 32]), sample(0.1, 0.1, None));
        }
        assert_eq!(beside.models.len(), MAX_MODELS);
        assert!(beside.models.contains_key(&ModelId([255; 32])) && !beside.models.contains_key(&ModelId([0; 32])));
    }
}
