//! How likely the model itself found a token.

use super::*;

#[test]
fn log_probabilities_are_those_of_the_raw_logits() {
    let logits: Vec<f32> = [1.0_f32, 5.0, 2.0, 5.0, 0.5].iter().map(|n| n.ln()).collect();
    let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
    let got = log_prob(&logits, 2, 3).unwrap();
    assert_eq!(got.id, 2);
    close(got.logprob, (2.0_f32 / 13.5).ln());
    assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
    close(got.top[0].1, (5.0_f32 / 13.5).ln());
    assert_eq!(log_prob(&logits, 0, 0).unwrap().top, []);
    assert_eq!(log_prob(&logits, 0, 99).unwrap().top.len(), 5);
    assert_eq!(log_prob(&logits, 5, 0), Err(SamplerError::UnknownToken { id: 5, vocab: 5 }));
    // One sure token has probability 1, the others what is left: nothing below 0 is called 0.
    let sure = log_prob(&[0.0, -200.0, f32::NEG_INFINITY], 1, 1).unwrap();
    assert_eq!((sure.logprob, sure.top[0]), (-200.0, (0, 0.0)));
    assert_eq!(log_prob(&[0.0, f32::NEG_INFINITY], 1, 0).unwrap().logprob, f32::NEG_INFINITY);
    let all: f32 = (0..5).map(|id| log_prob(&logits, id, 0).unwrap().logprob.exp()).sum();
    close(all, 1.0);
}

#[test]
fn log_probabilities_of_a_large_vocabulary_agree_with_the_slow_way() {
    let logits: Vec<f32> = logits_of(150_000).iter().map(|l| l * 2.0).collect();
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(*l) - f64::from(max))).sum();
    let expected = f64::from(logits[17]) - f64::from(max) - libm::log(sum);
    assert_eq!(log_prob(&logits, 17, 0).unwrap().logprob, expected as f32);
}
