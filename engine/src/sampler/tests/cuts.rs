//! Top-k, top-p and min-p, held against sorting everything.

use proptest::prelude::*;

use super::{
    super::{cut::Candidate, weight::ONE},
    *,
};

fn candidates(config: &SamplerConfig, logits: &[f32]) -> Vec<Candidate> {
    Cut::default().candidates(config, logits, Vocab::of(logits).unwrap()).to_vec()
}

fn ids(config: &SamplerConfig, logits: &[f32]) -> Vec<u32> {
    candidates(config, logits).iter().map(|c| c.id).collect()
}

/// What the cuts should leave, by sorting everything.
fn naive(config: &SamplerConfig, logits: &[f32]) -> Vec<u32> {
    let mut all = candidates(&SamplerConfig { top_k: 0, top_p: 1.0, min_p: 0.0, ..config.clone() }, logits);
    all.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap().then(a.id.cmp(&b.id)));
    if config.top_k > 0 {
        all.truncate(config.top_k);
    }
    if config.top_p < 1.0 {
        let total: u64 = all.iter().map(|c| c.weight).sum();
        let wanted = f64::from(config.top_p) * total as f64;
        let mut reached = 0;
        let last = all.iter().position(|c| {
            reached += c.weight;
            reached as f64 >= wanted
        });
        all.truncate(last.unwrap() + 1);
    }
    all.retain(|c| c.weight as f64 >= f64::from(config.min_p) * ONE as f64);
    let mut ids: Vec<u32> = all.iter().map(|c| c.id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn cuts_keep_what_they_should() {
    let logits = [1.0, 3.0, 3.0, 2.0, f32::NEG_INFINITY];
    let ids = |config: SamplerConfig| ids(&config, &logits);
    assert_eq!(ids(config(1.0, 0, 1.0, 0)), [0, 1, 2, 3]);
    assert_eq!(ids(config(1.0, 2, 1.0, 0)), [1, 2]);
    assert_eq!(ids(config(1.0, 1, 1.0, 0)), [1]);
    assert_eq!(ids(config(1.0, 99, 1.0, 0)), [0, 1, 2, 3]);
    // Probabilities are 0.40, 0.40, 0.15, 0.05.
    assert_eq!(ids(config(1.0, 0, 0.0, 0)), [1]);
    assert_eq!(ids(config(1.0, 0, 0.5, 0)), [1, 2]);
    assert_eq!(ids(config(1.0, 0, 0.9, 0)), [1, 2, 3]);
    // Top-p counts among what top-k left: 0.5 of two equals is one of them.
    assert_eq!(ids(config(1.0, 2, 0.5, 0)), [1]);
    // The others are 1, e⁻¹ = 0.37 and e⁻² = 0.14 times as likely as the first.
    let min_p = |min_p| ids(SamplerConfig { min_p, ..config(1.0, 0, 1.0, 0) });
    assert_eq!(min_p(0.13), [0, 1, 2, 3]);
    assert_eq!(min_p(0.14), [1, 2, 3]);
    assert_eq!(min_p(0.37), [1, 2]);
    assert_eq!(min_p(1.0), [1, 2]);
    // Temperature comes first: twice as hot, the least likely is 0.37 times as likely as the first.
    assert_eq!(ids(SamplerConfig { min_p: 0.36, ..config(2.0, 0, 1.0, 0) }), [0, 1, 2, 3]);
}

#[test]
fn a_large_vocabulary_is_cut_like_a_small_one() {
    let peaked: Vec<f32> = logits_of(50_000).iter().map(|l| l * 3.0).collect();
    let flat: Vec<f32> = logits_of(50_000).iter().map(|l| (l * 0.1 * 32.0).round() / 32.0).collect();
    let rising: Vec<f32> = (0..50_000_u16).map(|i| f32::from(i) / 8192.0).collect();
    // Whole stretches of equals, and tokens so unlikely that they have no weight.
    let steps: Vec<f32> = logits_of(50_000).iter().map(|l| (l * 2.0).floor() * 8.0).collect();
    let banned: Vec<f32> = flat.iter().map(|l| if *l < 0.2 { f32::NEG_INFINITY } else { *l }).collect();
    for logits in [&peaked, &flat, &rising, &steps, &banned] {
        for (top_k, top_p, min_p) in
            [(40, 1.0, 0.0), (40, 0.9, 0.05), (0, 0.95, 0.0), (0, 0.5, 0.1), (0, 1.0, 0.3), (30_000, 0.99, 0.0)]
        {
            // Next to nothing, and more than any number: what intervals of logits have to survive.
            for temperature in [f32::MIN_POSITIVE, 0.3, 1.0, 70.0, f32::MAX] {
                let config = SamplerConfig { min_p, ..config(temperature, top_k, top_p, 0) };
                assert_eq!(ids(&config, logits), naive(&config, logits), "{temperature} {top_k} {top_p} {min_p}");
            }
        }
    }
}

proptest! {
    #[test]
    fn cuts_are_those_of_sorting(
        raw in prop::collection::vec(-40..40_i32, 1..400),
        step in prop::sample::select(vec![0.05_f32, 0.25, 1.0]),
        top_k in prop_oneof![Just(0_usize), 1..50_usize],
        top_p in prop_oneof![Just(1.0_f32), 0.0..1.0_f32],
        min_p in prop_oneof![Just(0.0_f32), 0.0..1.0_f32],
        temperature in 0.1..3.0_f32,
    ) {
        // Few distinct values, so that there are many ties.
        let logits: Vec<f32> = raw.iter().map(|n| *n as f32 * step).collect();
        let config = SamplerConfig { min_p, ..config(temperature, top_k, top_p, 0) };
        let kept = candidates(&config, &logits);
        prop_assert_eq!(kept.iter().map(|c| c.id).collect::<Vec<_>>(), naive(&config, &logits));
        prop_assert!(kept.iter().any(|c| c.weight == ONE));
        let mut sampler = Sampler::new(config, &[]).unwrap();
        let id = sampler.sample(&logits).unwrap();
        prop_assert!(kept.iter().any(|c| c.id == id));
    }
}
