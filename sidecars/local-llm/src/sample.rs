//! How the next token is drawn.
//!
//! The engine has one source of randomness for all its requests, always the same at its start: a request's own `seed` cannot be
//! honoured by it. So tokens are drawn here, from a source that belongs to the request, and the engine is left one token to
//! choose from.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::{DType, Result, Tensor};
use mistralrs_core::CustomLogitsProcessor;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Draws the tokens of one answer.
#[derive(Debug)]
pub(crate) struct Draw {
    temperature: f64,
    /// The likeliest tokens, that together come to so much, are drawn from.
    top_p: f64,
    random: Mutex<StdRng>,
    drawn: AtomicUsize,
}

impl Draw {
    /// From a seed, or from the system's randomness. At a temperature of 0 it is always the likeliest token.
    pub(crate) fn new(temperature: f64, top_p: f64, seed: Option<u64>) -> Self {
        let random = seed.map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64);
        Self { temperature, top_p, random: Mutex::new(random), drawn: AtomicUsize::new(0) }
    }

    /// How many tokens have been drawn.
    pub(crate) fn drawn(&self) -> usize {
        self.drawn.load(Ordering::Relaxed)
    }

    fn draw(&self, logits: &[f32]) -> Option<usize> {
        let most = logits.iter().copied().filter(|logit| logit.is_finite()).reduce(f32::max)?;
        let weigh = |logit: &f32| {
            let weight = (f64::from(*logit - most) / self.temperature).exp();
            if weight.is_finite() { weight } else { 0.0 }
        };
        let mut weights: Vec<(usize, f64)> = logits.iter().map(weigh).enumerate().collect();
        let all: f64 = weights.iter().map(|(_, weight)| weight).sum();
        if self.top_p < 1.0 {
            weights.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut sum = 0.0;
            let mut before = |(_, weight): &(usize, f64)| {
                let enough = sum >= self.top_p * all;
                sum += weight;
                !enough
            };
            let kept = weights.iter().take_while(|weight| before(weight)).count();
            weights.truncate(kept.max(1));
        }
        let all: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.lock().unwrap_or_else(PoisonError::into_inner).random::<f64>() * all;
        for (token, weight) in &weights {
            if at < *weight {
                return Some(*token);
            }
            at -= weight;
        }
        // Rounding: the last that could have been drawn.
        weights.iter().rev().find(|(_, weight)| *weight > 0.0).map(|(token, _)| *token)
    }
}

impl CustomLogitsProcessor for Draw {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> Result<Tensor> {
        self.drawn.fetch_add(1, Ordering::Relaxed);
        if self.temperature == 0.0 {
            return Ok(logits.clone());
        }
        let values: Vec<f32> = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let Some(token) = self.draw(&values) else {
            return Err(candle_core::Error::Msg("the model gives no finite likelihood for any token".into()));
        };
        let only = (0..values.len()).map(|at| if at == token { 0.0 } else { f32::NEG_INFINITY });
        Tensor::from_iter(only, logits.device())?.reshape(logits.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [2.0, 1.0, 0.0, f32::NEG_INFINITY];

    fn drawn(draw: &Draw, times: usize) -> Vec<usize> {
        (0..times).map(|_| draw.draw(&LOGITS).unwrap()).collect()
    }

    #[test]
    fn a_seed_gives_the_same_again_and_another_gives_another() {
        let with = |seed| drawn(&Draw::new(1.0, 1.0, Some(seed)), 64);
        assert_eq!(with(7), with(7));
        assert_ne!(with(7), with(8));
        assert_ne!(drawn(&Draw::new(1.0, 1.0, None), 64), drawn(&Draw::new(1.0, 1.0, None), 64));
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let drawn = drawn(&Draw::new(1.0, 1.0, Some(1)), 20_000);
        let share = |token| drawn.iter().filter(|drawn| **drawn == token).count() as f64 / drawn.len() as f64;
        let all: f64 = (2f64).exp() + (1f64).exp() + 1.0;
        for (token, wanted) in [(0, (2f64).exp() / all), (1, (1f64).exp() / all), (2, 1.0 / all), (3, 0.0)] {
            assert!((share(token) - wanted).abs() < 0.015, "{token}: {} is not {wanted}", share(token));
        }
    }

    #[test]
    fn little_warmth_and_a_small_top_p_leave_the_likeliest() {
        assert!(drawn(&Draw::new(0.01, 1.0, Some(1)), 100).iter().all(|token| *token == 0));
        assert!(drawn(&Draw::new(1.0, 0.5, Some(1)), 100).iter().all(|token| *token == 0));
        assert!(drawn(&Draw::new(1.0, 0.8, Some(1)), 1000).iter().all(|token| *token < 2));
    }

    #[test]
    fn one_token_is_left_and_rubbish_is_an_error() {
        let draw = Draw::new(1.0, 1.0, Some(3));
        let logits = Tensor::new(&LOGITS[..], &candle_core::Device::Cpu).unwrap();
        let left: Vec<f32> = draw.apply(&logits, &[]).unwrap().to_vec1().unwrap();
        assert_eq!(left.iter().filter(|logit| logit.is_finite()).count(), 1);
        let rubbish = Tensor::new(&[f32::NAN, f32::NAN][..], &candle_core::Device::Cpu).unwrap();
        assert!(draw.apply(&rubbish, &[]).is_err());
    }
}
