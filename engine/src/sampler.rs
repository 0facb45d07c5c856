//! Picking the next token from logits.
//!
//! Temperature 0 is greedy. Otherwise: the `top_k` highest logits, softmax over them at the temperature, the fewest of
//! the most likely whose probabilities reach `top_p`, one draw among those. Ties always go to the lower id.
//!
//! A draw is a pure function of logits, settings, seed and the number of tokens picked before, so a coordinator that
//! restarts goes on with the same draws ([`Sampler::at`]), on any machine: sums run in a fixed order in f64, and the
//! exponential is the pinned `libm` crate's, not the platform's.

/// How to pick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 is greedy. Finite, not negative.
    pub temperature: f32,
    /// Only so many of the highest logits are considered; 0 is all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability are considered; 1 is all. Within 0..=1.
    pub top_p: f32,
    /// Two requests with one seed draw alike.
    pub seed: u64,
}

impl Default for SamplerConfig {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Why no token could be picked. Nothing was drawn: the next call draws what this one would have.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
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
    /// There are no logits, or all are negative infinity, or more than ids can number.
    #[error("no token can be picked from these {count} logits")]
    Nothing {
        /// Logits given.
        count: usize,
    },
    /// A setting that makes no sense.
    #[error("{name} is {value}, expected {expected}")]
    Config {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
}

/// Picks tokens, one draw a token.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    draws: u64,
}

impl Sampler {
    /// A sampler at its first token.
    pub fn new(config: SamplerConfig) -> Self {
        Self::at(config, 0)
    }

    /// A sampler that has picked `draws` tokens already.
    pub fn at(config: SamplerConfig, draws: u64) -> Self {
        Self { config, draws }
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
        self.config.check()?;
        let (best, highest) = highest(logits)?;
        let id = if self.config.temperature == 0.0 {
            best
        } else {
            let candidates = self.config.candidates(logits, highest);
            pick(&candidates, uniform(self.config.seed, self.draws)).unwrap_or(best)
        };
        self.draws = self.draws.wrapping_add(1);
        Ok(id)
    }
}

impl SamplerConfig {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// [`SamplerError::Config`] names the one that does not.
    pub fn check(&self) -> Result<(), SamplerError> {
        let Self { temperature, top_p, .. } = *self;
        if !temperature.is_finite() || temperature < 0.0 {
            let expected = "a number that is not negative";
            return Err(SamplerError::Config { name: "temperature", value: temperature, expected });
        }
        if !(0.0..=1.0).contains(&top_p) {
            return Err(SamplerError::Config { name: "top_p", value: top_p, expected: "a number within 0..=1" });
        }
        Ok(())
    }

    /// The tokens to draw from, with their weights (their probabilities but for a common factor).
    fn candidates(&self, logits: &[f32], highest: f32) -> Vec<(u32, f64)> {
        let mut order: Vec<(u32, f32)> = (0_u32..).zip(logits.iter().copied()).collect();
        let likely_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = if self.top_k == 0 { order.len() } else { self.top_k.min(order.len()) };
        if top_k < order.len() {
            order.select_nth_unstable_by(top_k, likely_first);
            order.truncate(top_k);
        }
        // Without a cut the order of ids will do, and a large vocabulary need not be sorted.
        if top_k < logits.len() || self.top_p < 1.0 {
            order.sort_unstable_by(likely_first);
        }
        let temperature = f64::from(self.temperature);
        let weight = |logit: f32| libm::exp((f64::from(logit) - f64::from(highest)) / temperature);
        let mut candidates: Vec<(u32, f64)> = order.into_iter().map(|(id, logit)| (id, weight(logit))).collect();
        if self.top_p < 1.0 {
            let wanted = f64::from(self.top_p) * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut reached = 0.0;
            let enough = candidates.iter().position(|(_, weight)| {
                reached += weight;
                reached >= wanted
            });
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
        }
        candidates
    }
}

/// The highest logit and its id, the lowest of those that have it.
fn highest(logits: &[f32]) -> Result<(u32, f32), SamplerError> {
    let nothing = SamplerError::Nothing { count: logits.len() };
    if u32::try_from(logits.len()).is_err() {
        return Err(nothing);
    }
    let mut best: Option<(u32, f32)> = None;
    for (id, value) in (0_u32..).zip(logits.iter().copied()) {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SamplerError::Logit { id: id as usize, value });
        }
        if value > best.map_or(f32::NEG_INFINITY, |(_, logit)| logit) {
            best = Some((id, value));
        }
    }
    best.ok_or(nothing)
}

/// The candidate in whose stretch of the summed weights the draw (within 0..1) falls.
fn pick(candidates: &[(u32, f64)], draw: f64) -> Option<u32> {
    let target = draw * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut reached = 0.0;
    let hit = candidates.iter().find(|(_, weight)| {
        reached += weight;
        reached > target
    });
    // Rounding can leave the target at the very end of the sum.
    hit.or_else(|| candidates.iter().rfind(|(_, weight)| *weight > 0.0)).map(|(id, _)| *id)
}

/// The odd constant of SplitMix64, 2⁶⁴ divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number within 0..1 that depends on seed and position only: SplitMix64 as a counter. The seed is mixed first, so
/// that neighbouring seeds do not give each other's sequences one step apart; output n of the stream is the mix of
/// start + (n + 1) · γ, of which the upper 53 bits are the draw. Frozen by the tests: changing it changes every seeded
/// answer.
fn uniform(seed: u64, position: u64) -> f64 {
    let state = mix(seed.wrapping_add(GAMMA)).wrapping_add(GAMMA.wrapping_mul(position.wrapping_add(1)));
    // 53 bits are exact in f64, and so is the scaling by a power of two.
    (mix(state) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> SamplerConfig {
        SamplerConfig { temperature, top_k, top_p, seed }
    }

    /// 64 logits without a pattern, the same for ever.
    fn logits() -> Vec<f32> {
        (0..64_u32).map(|i| ((i * 37 + 11) % 64) as f32 / 8.0 - 3.0).collect()
    }

    fn draw(config: SamplerConfig, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(config);
        (0..count).map(|_| sampler.sample(&logits()).unwrap()).collect()
    }

    #[test]
    fn vectors_uniform() {
        // The mixer's published values: SplitMix64 from state 0.
        assert_eq!(
            [1, 2, 3].map(|n: u64| mix(GAMMA.wrapping_mul(n))),
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]
        );
        let bits = [(0, 0), (0, 1), (1, 0), (42, 7), (u64::MAX, u64::MAX)].map(|(s, p)| uniform(s, p).to_bits());
        assert_eq!(
            bits,
            [
                0x3fe4_e0db_a5e9_a32f,
                0x3fe6_7054_60be_8829,
                0x3fd7_906a_c21d_0e58,
                0x3fe7_82d4_7a99_890c,
                0x3fd1_1406_38c1_6042
            ]
        );
    }

    #[test]
    fn vectors_draws() {
        let cut = draw(config(0.8, 40, 0.95, 1), 16);
        assert_eq!(cut, [10, 46, 36, 60, 55, 60, 3, 55, 55, 55, 3, 27, 36, 60, 41, 10]);
        let free = draw(config(1.0, 0, 1.0, 2), 16);
        assert_eq!(free, [29, 6, 55, 36, 60, 53, 3, 13, 60, 15, 3, 29, 60, 10, 29, 34]);
        let hot = draw(config(2.0, 0, 0.5, 3), 16);
        assert_eq!(hot, [41, 3, 22, 60, 60, 3, 34, 15, 29, 41, 36, 10, 41, 10, 36, 22]);
        let weights = config(0.7, 3, 1.0, 0).candidates(&logits(), 4.875);
        let bits: Vec<(u32, u64)> = weights.iter().map(|(id, weight)| (*id, weight.to_bits())).collect();
        assert_eq!(bits, [(36, 0x3ff0_0000_0000_0000), (55, 0x3fea_c450_ca25_6bcc), (10, 0x3fe6_63b7_a6f5_114d)]);
    }

    #[test]
    fn a_restart_goes_on_with_the_same_draws() {
        let config = config(1.5, 0, 0.9, 99);
        let whole = draw(config, 20);
        let mut resumed = Sampler::at(config, 12);
        let rest: Vec<u32> = (0..8).map(|_| resumed.sample(&logits()).unwrap()).collect();
        assert_eq!(rest, whole[12..]);
        assert_eq!(resumed.draws(), 20);
    }

    #[test]
    fn greedy_takes_the_lower_of_equals() {
        let mut sampler = Sampler::new(SamplerConfig::default());
        assert_eq!(sampler.sample(&[-1.0, 2.0, 2.0, f32::NEG_INFINITY]), Ok(1));
        assert_eq!(sampler.sample(&[-0.0, 0.0]), Ok(0));
    }

    #[test]
    fn cuts_keep_what_they_should() {
        let logits = [1.0, 3.0, 3.0, 2.0, f32::NEG_INFINITY];
        let ids = |config: SamplerConfig| -> Vec<u32> {
            config.candidates(&logits, 3.0).into_iter().map(|(id, _)| id).collect()
        };
        assert_eq!(ids(config(1.0, 0, 1.0, 0)), [0, 1, 2, 3, 4]);
        assert_eq!(ids(config(1.0, 2, 1.0, 0)), [1, 2]);
        assert_eq!(ids(config(1.0, 1, 1.0, 0)), [1]);
        assert_eq!(ids(config(1.0, 99, 1.0, 0)), [0, 1, 2, 3, 4]);
        // Probabilities are 0.40, 0.40, 0.15, 0.05.
        assert_eq!(ids(config(1.0, 0, 0.0, 0)), [1]);
        assert_eq!(ids(config(1.0, 0, 0.5, 0)), [1, 2]);
        assert_eq!(ids(config(1.0, 0, 0.9, 0)), [1, 2, 3]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 2.0_f32.ln(), f32::NEG_INFINITY, 5.0_f32.ln()];
        let mut sampler = Sampler::new(config(1.0, 0, 1.0, 5));
        let mut counts = [0_u32; 4];
        for _ in 0..80_000 {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        // Expected 10,000, 20,000, 0 and 50,000; five standard deviations are at most 700.
        assert_eq!(counts[2], 0);
        for (count, expected) in counts.into_iter().zip([10_000_u32, 20_000, 0, 50_000]) {
            assert!(count.abs_diff(expected) < 700, "{counts:?}");
        }
    }

    #[test]
    fn refusals_draw_nothing() {
        let mut sampler = Sampler::new(config(1.0, 0, 1.0, 1));
        let refused = sampler.sample(&[0.0, f32::NAN]);
        assert!(matches!(refused, Err(SamplerError::Logit { id: 1, value }) if value.is_nan()));
        assert_eq!(sampler.sample(&[f32::INFINITY]), Err(SamplerError::Logit { id: 0, value: f32::INFINITY }));
        assert_eq!(sampler.sample(&[]), Err(SamplerError::Nothing { count: 0 }));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 2]), Err(SamplerError::Nothing { count: 2 }));
        assert_eq!(sampler.draws(), 0);
        for bad in
            [config(-1.0, 0, 1.0, 0), config(f32::NAN, 0, 1.0, 0), config(1.0, 0, 1.5, 0), config(1.0, 0, f32::NAN, 0)]
        {
            assert!(matches!(Sampler::new(bad).sample(&[0.0]), Err(SamplerError::Config { .. })), "{bad:?}");
        }
    }

    #[test]
    fn extreme_temperatures_still_pick() {
        let logits = [1.0e30, -1.0e30, 0.0];
        assert_eq!(Sampler::new(config(f32::MIN_POSITIVE, 0, 0.9, 0)).sample(&logits), Ok(0));
        assert!(Sampler::new(config(f32::MAX, 2, 1.0, 7)).sample(&logits).is_ok());
    }
}
