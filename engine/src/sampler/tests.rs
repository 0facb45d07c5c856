//! Whole samplers; each stage has its tests in a file of its own.

mod cuts;
mod logprobs;
mod penalties;
mod stops;
mod times;
mod top;

use proptest::prelude::*;

use super::*;

fn config(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> SamplerConfig {
    SamplerConfig { temperature, top_k, top_p, seed, ..SamplerConfig::default() }
}

/// Logits without a pattern, the same for ever.
fn logits_of(count: u32) -> Vec<f32> {
    (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1_048_576.0 - 8.0).collect()
}

fn draw(config: SamplerConfig, count: usize) -> Vec<u32> {
    let logits = logits_of(64);
    let mut sampler = Sampler::new(config, &[1, 2, 3]).unwrap();
    (0..count).map(|_| sampler.sample(&logits).unwrap()).collect()
}

#[test]
fn vectors_whole_samplers() {
    // Also computed by a separate program from the description at the head of the module.
    assert_eq!(draw(config(0.8, 40, 0.95, 1), 16), [29, 63, 8, 55, 21, 55, 50, 21, 21, 21, 50, 63, 16, 55, 55, 21]);
    assert_eq!(draw(config(1.0, 0, 1.0, 2), 16), [29, 8, 55, 42, 63, 55, 8, 21, 63, 21, 8, 29, 63, 16, 29, 42]);
    assert_eq!(draw(config(2.0, 0, 0.5, 3), 16), [55, 42, 42, 55, 55, 42, 63, 63, 29, 55, 8, 21, 55, 21, 8, 55]);
    assert_eq!(
        draw(SamplerConfig { min_p: 0.2, ..config(1.5, 0, 1.0, 4) }, 16),
        [50, 42, 55, 55, 63, 63, 16, 42, 55, 3, 29, 55, 55, 3, 63, 29]
    );
    let penalised = SamplerConfig {
        repeat_penalty: 1.3,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        repeat_last_n: 8,
        logit_bias: [(5, 9.5), (7, -100.0)].into(),
        ..config(0.7, 12, 0.9, 5)
    };
    assert_eq!(draw(penalised.clone(), 16), [63, 8, 55, 42, 21, 58, 50, 29, 24, 63, 8, 16, 55, 21, 42, 50]);
    assert_eq!(
        draw(SamplerConfig { temperature: 0.0, ..penalised }, 16),
        [55, 21, 42, 8, 63, 29, 50, 16, 37, 55, 21, 42, 8, 63, 29, 50]
    );
}

#[test]
fn greedy_takes_the_lower_of_equals() {
    let greedy = |logits: &[f32]| Sampler::new(SamplerConfig::default(), &[]).unwrap().sample(logits);
    assert_eq!(greedy(&[-1.0, 2.0, 2.0, f32::NEG_INFINITY]), Ok(1));
    assert_eq!(greedy(&[-0.0, 0.0]), Ok(0));
    let mut long = vec![0.0; 1000];
    long[777] = 1.0;
    long[900] = 1.0;
    assert_eq!(greedy(&long), Ok(777));
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0, 2.0_f32.ln(), f32::NEG_INFINITY, 5.0_f32.ln()];
    let mut sampler = Sampler::new(config(1.0, 0, 1.0, 5), &[]).unwrap();
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
    let mut sampler = Sampler::new(config(1.0, 0, 1.0, 1), &[]).unwrap();
    let refused = sampler.sample(&[0.0, f32::NAN]);
    assert!(matches!(refused, Err(SamplerError::Logit { id: 1, value }) if value.is_nan()));
    let mut long = vec![0.0; 20];
    long[3] = f32::INFINITY;
    assert_eq!(sampler.sample(&long), Err(SamplerError::Logit { id: 3, value: f32::INFINITY }));
    assert_eq!(sampler.sample(&[]), Err(SamplerError::Nothing { count: 0 }));
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 2]), Err(SamplerError::Nothing { count: 2 }));
    assert_eq!(sampler.draws(), 0);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let default = SamplerConfig::default;
    let inf = f32::INFINITY;
    let bad = [
        ("temperature", SamplerConfig { temperature: -1.0, ..default() }),
        ("temperature", SamplerConfig { temperature: f32::NAN, ..default() }),
        ("temperature", SamplerConfig { temperature: inf, ..default() }),
        ("top_p", SamplerConfig { top_p: 1.5, ..default() }),
        ("top_p", SamplerConfig { top_p: f32::NAN, ..default() }),
        ("min_p", SamplerConfig { min_p: -0.1, ..default() }),
        ("repeat_penalty", SamplerConfig { repeat_penalty: 0.0, ..default() }),
        ("repeat_penalty", SamplerConfig { repeat_penalty: inf, ..default() }),
        ("presence_penalty", SamplerConfig { presence_penalty: 2.5, ..default() }),
        ("frequency_penalty", SamplerConfig { frequency_penalty: f32::NAN, ..default() }),
        ("logit_bias", SamplerConfig { logit_bias: [(1, 101.0)].into(), ..default() }),
        ("logit_bias", SamplerConfig { logit_bias: [(1, 0.0), (2, f32::NAN)].into(), ..default() }),
    ];
    for (setting, config) in bad {
        let refused = Sampler::new(config, &[]).map(|_| ());
        assert!(matches!(&refused, Err(SamplerError::Setting { name, .. }) if *name == setting), "{refused:?}");
    }
    let mut unknown = Sampler::new(SamplerConfig { logit_bias: [(2, 1.0)].into(), ..default() }, &[]).unwrap();
    assert_eq!(unknown.sample(&[0.0, 0.0]), Err(SamplerError::UnknownToken { id: 2, vocab: 2 }));
    assert_eq!(unknown.draws(), 0);
}

#[test]
fn extremes_still_pick() {
    let logits = [1.0e30, -1.0e30, 0.0];
    let sample = |config| Sampler::new(config, &[0]).unwrap().sample(&logits);
    assert_eq!(sample(config(f32::MIN_POSITIVE, 0, 0.9, 0)), Ok(0));
    assert!(sample(config(f32::MAX, 2, 1.0, 7)).is_ok());
    // Nothing overflows into a NaN.
    let huge = [f32::MAX, f32::MIN, 0.0];
    let config =
        SamplerConfig { repeat_penalty: 0.01, logit_bias: [(0, 99.0), (1, -99.0)].into(), ..config(1.0, 0, 1.0, 0) };
    assert_eq!(Sampler::new(config, &[0, 1]).unwrap().sample(&huge), Ok(0));
}

proptest! {
    #[test]
    fn resuming_draws_the_same(
        cut in 0..24_usize,
        seed: u64,
        (repeat, frequency) in (0.8..1.5_f32, -1.0..1.0_f32),
        window in prop_oneof![Just(usize::MAX), 0..12_usize],
    ) {
        let config = SamplerConfig {
            repeat_penalty: repeat,
            frequency_penalty: frequency,
            repeat_last_n: window,
            ..config(1.2, 30, 0.95, seed)
        };
        let logits = logits_of(64);
        let prompt = [4, 8, 15, 16];
        let go = |mut sampler: Sampler, count: usize| -> Vec<u32> {
            (0..count).map(|_| sampler.sample(&logits).unwrap()).collect()
        };
        let whole = go(Sampler::new(config.clone(), &prompt).unwrap(), 24);
        let resumed = Sampler::resume(config, &prompt, &whole[..cut]).unwrap();
        prop_assert_eq!(resumed.draws(), cut as u64);
        prop_assert_eq!(go(resumed, 24 - cut), &whole[cut..]);
    }
}
