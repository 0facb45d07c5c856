//! What is drawn from the highest logits is what is drawn from all.

use super::*;

const VOCAB: usize = 97;

/// All logits but the `k` highest are gone.
fn cut(logits: &[f32], k: usize) -> Vec<f32> {
    let mut left = vec![f32::NEG_INFINITY; logits.len()];
    for (id, logit) in top_logits(logits, k).unwrap() {
        left[id as usize] = logit;
    }
    left
}

prop_compose! {
    fn any_config()(
        temperature in prop_oneof![Just(0.0_f32), 0.05_f32..3.0],
        top_k in 1..30_usize,
        top_p in prop_oneof![Just(1.0_f32), 0.0_f32..1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
        repeat in prop_oneof![Just(1.0_f32), 1.0_f32..3.0],
        (presence, frequency) in prop_oneof![Just((0.0_f32, 0.0_f32)), (0.0_f32..2.0, 0.0_f32..2.0)],
        window in 0..12_usize,
        bias in proptest::collection::btree_map(0..VOCAB as u32, -100.0_f32..=0.0, 0..4),
        seed in any::<u64>(),
    ) -> SamplerConfig {
        SamplerConfig {
            temperature, top_k, top_p, min_p, seed,
            repeat_penalty: repeat,
            presence_penalty: presence,
            frequency_penalty: frequency,
            repeat_last_n: window,
            logit_bias: bias,
        }
    }
}

proptest! {
    #[test]
    fn the_highest_logits_draw_as_all_do(
        config in any_config(),
        // Few values, so that many are equal.
        rows in proptest::collection::vec(proptest::collection::vec(-40..40_i32, VOCAB), 1..20),
        prompt in proptest::collection::vec(0..VOCAB as u32, 0..8),
    ) {
        let needed = config.top_needed().unwrap();
        let mut whole = Sampler::new(config.clone(), &prompt).unwrap();
        let mut part = Sampler::new(config, &prompt).unwrap();
        for row in rows {
            let logits: Vec<f32> = row.into_iter().map(|n| n as f32 / 8.0).collect();
            let left = cut(&logits, needed);
            let id = whole.sample(&logits).unwrap();
            prop_assert_eq!(part.sample(&left).unwrap(), id);
            let sum = weight_sum(&logits).unwrap();
            prop_assert_eq!(log_prob_of(&left, sum, id, 1).unwrap(), log_prob(&logits, id, 1).unwrap());
        }
    }
}

#[test]
fn what_no_number_of_logits_tells_is_said() {
    let needed = |config: SamplerConfig| config.top_needed();
    let greedy = SamplerConfig::default();
    assert_eq!(needed(greedy.clone()), Ok(1));
    assert_eq!(needed(config(0.8, 40, 0.9, 1)), Ok(40));
    assert_eq!(needed(config(0.8, 0, 0.9, 1)), Err(NotByTop::AllTokens));
    assert_eq!(needed(SamplerConfig { repeat_penalty: 1.2, ..greedy.clone() }), Ok(65));
    assert_eq!(needed(SamplerConfig { repeat_penalty: 0.9, ..greedy.clone() }), Err(NotByTop::Raises));
    assert_eq!(needed(SamplerConfig { presence_penalty: -0.5, ..greedy.clone() }), Err(NotByTop::Raises));
    assert_eq!(needed(SamplerConfig { logit_bias: [(3, -100.0), (4, -2.0)].into(), ..greedy.clone() }), Ok(3));
    assert_eq!(needed(SamplerConfig { logit_bias: [(3, 1.0)].into(), ..greedy }), Err(NotByTop::Raises));
}
