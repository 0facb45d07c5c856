//! Penalties and biases.

use proptest::prelude::*;

use super::*;

#[test]
fn bias_bans_and_forces() {
    let logits = [5.0, 4.0, 3.0, f32::NEG_INFINITY];
    let pick = |bias: &[(u32, f32)]| {
        let config = SamplerConfig { logit_bias: bias.iter().copied().collect(), ..SamplerConfig::default() };
        Sampler::new(config, &[]).unwrap().sample(&logits)
    };
    assert_eq!(pick(&[]), Ok(0));
    assert_eq!(pick(&[(2, 2.5)]), Ok(2));
    assert_eq!(pick(&[(0, -100.0)]), Ok(1));
    assert_eq!(pick(&[(2, 100.0)]), Ok(2));
    assert_eq!(pick(&[(2, 100.0), (1, 100.0), (0, 99.0)]), Ok(1));
    assert_eq!(pick(&[(3, 100.0)]), Err(SamplerError::Nothing { count: 4 }));
    assert_eq!(pick(&[(0, -100.0), (1, -100.0), (2, -100.0)]), Err(SamplerError::Nothing { count: 4 }));
}

/// Logits after the penalties of `config` with this history.
fn penalised(config: &SamplerConfig, prompt: &[u32], answer: &[u32], logits: &[f32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    let mut penalties = Penalties::new(config, prompt);
    answer.iter().for_each(|id| penalties.push(*id));
    penalties.apply(&mut logits);
    logits
}

#[test]
fn penalties_count_in_their_window() {
    let logits = [2.0, -2.0, 2.0, 2.0, f32::NEG_INFINITY];
    let config = |repeat_penalty, presence_penalty, frequency_penalty, repeat_last_n| SamplerConfig {
        repeat_penalty,
        presence_penalty,
        frequency_penalty,
        repeat_last_n,
        ..SamplerConfig::default()
    };
    let after = |config| penalised(&config, &[0, 1], &[2, 2, 4, 9], &logits);
    let banned = f32::NEG_INFINITY;
    // Repetition: prompt and answer, down from either side of zero, once however often.
    assert_eq!(after(config(2.0, 0.0, 0.0, usize::MAX)), [1.0, -4.0, 1.0, 2.0, banned]);
    assert_eq!(after(config(2.0, 0.0, 0.0, 4)), [2.0, -2.0, 1.0, 2.0, banned]);
    assert_eq!(after(config(2.0, 0.0, 0.0, 2)), [2.0, -2.0, 2.0, 2.0, banned]);
    // Presence and frequency: the answer only.
    assert_eq!(after(config(1.0, 0.5, 0.0, 64)), [2.0, -2.0, 1.5, 2.0, banned]);
    assert_eq!(after(config(1.0, 0.0, 0.5, 64)), [2.0, -2.0, 1.0, 2.0, banned]);
    assert_eq!(after(config(1.0, 0.0, 0.5, 3)), [2.0, -2.0, 1.5, 2.0, banned]);
    assert_eq!(after(config(2.0, 0.25, 0.5, 64)), [1.0, -4.0, -0.25, 2.0, banned]);
    assert!(!config(2.0, 0.5, 0.5, 0).penalises());
}

proptest! {
    #[test]
    fn penalties_never_lift_a_token_and_are_a_function_of_the_tokens(
        prompt in prop::collection::vec(0..8_u32, 0..20),
        answer in prop::collection::vec(0..8_u32, 0..20),
        window in prop_oneof![Just(usize::MAX), 1..30_usize],
        logits in prop::collection::vec(-9.0..9.0_f32, 8),
        (repeat, presence, frequency) in (1.0..3.0_f32, 0.0..2.0_f32, 0.0..2.0_f32),
    ) {
        let config = SamplerConfig {
            repeat_penalty: repeat,
            presence_penalty: presence,
            frequency_penalty: frequency,
            repeat_last_n: window,
            ..SamplerConfig::default()
        };
        let got = penalised(&config, &prompt, &answer, &logits);
        let all = [&prompt[..], &answer].concat();
        let from = all.len().saturating_sub(window);
        for (id, (after, before)) in (0_u32..).zip(got.iter().zip(&logits)) {
            prop_assert!(after <= before);
            let in_answer = all[from.max(prompt.len())..].iter().filter(|t| **t == id).count() as f32;
            let mut expected = *before;
            if all[from..].contains(&id) {
                expected = if expected > 0.0 { expected / repeat } else { expected * repeat };
            }
            if in_answer > 0.0 {
                expected -= in_answer * frequency + presence;
            }
            prop_assert_eq!(*after, expected);
        }
    }
}
