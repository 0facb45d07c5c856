//! Scaling rules against their formulas, written out a second time from the papers.

use super::*;

const DIMS: usize = 32;

fn base_frequency(pair: usize, base: f64) -> f64 {
    1.0 / base.powf(2.0 * pair as f64 / DIMS as f64)
}

fn close(found: f64, exact: f64) -> bool {
    (found - exact).abs() <= 1e-12 * exact.abs().max(1.0)
}

#[test]
fn factors_and_linear_scaling_divide() {
    let factors: Vec<f32> = (0..16u16).map(|i| 1.0 + f32::from(i)).collect();
    let scaled = Frequencies::plain(DIMS, 500_000.0, 4.0, Some(&factors));
    for (i, found) in scaled.radians.iter().enumerate() {
        assert!(close(*found, base_frequency(i, 500_000.0) / (i as f64 + 1.0) / 4.0), "pair {i}: {found}");
    }
    let (cos, sin) = scaled.at([(0, 1), (7, 2)].into_iter()).unwrap();
    assert_eq!((cos.len(), sin.len()), (3 * 16, 3 * 16));
    assert_eq!((cos[3], sin[3]), (1.0, 0.0));
    let angle = 8.0 * base_frequency(3, 500_000.0) / 16.0;
    assert!(close(f64::from(cos[2 * 16 + 3]), f64::from(angle.cos() as f32)));
    assert!(close(f64::from(sin[2 * 16 + 3]), f64::from(angle.sin() as f32)));
}

/// A model of 128 positions stretched fourfold: pairs with a wavelength under 4 keep theirs, pairs with a wavelength
/// over 128 are stretched, to whole pairs outwards.
#[test]
fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
    let yarn = Yarn { original_context: 128, ext_factor: 1.0, beta_fast: 32.0, beta_slow: 1.0, log_multiplier: 0.0 };
    let base = 1e6f64;
    let kept: Vec<f64> = yarn_kept(&yarn, DIMS, base).take(16).collect();
    let turns = |pair: f64| 128.0 * base.powf(-2.0 * pair / DIMS as f64) / (2.0 * PI);
    // The pair, as a real number, that turns so often over the original context.
    let pair_of = |wanted: f64| {
        let (mut low, mut high) = (-32.0f64, 32.0f64);
        for _ in 0..200 {
            let middle = f64::midpoint(low, high);
            if turns(middle) > wanted { low = middle } else { high = middle }
        }
        low
    };
    let (low, high) = (pair_of(32.0).floor().max(0.0), pair_of(1.0).ceil());
    assert!(low < high && high < 16.0, "the case has all three ranges: {low} {high}");
    for (i, kept) in kept.iter().enumerate() {
        let exact = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        assert!(close(*kept, exact), "pair {i}: {kept}, not {exact}");
    }
    assert_eq!((kept[0], kept[15]), (1.0, 0.0));
}

#[test]
fn yarn_magnitudes() {
    assert!(close(yarn_magnitude(4.0, 0.0), 1.0 + 0.1 * 4f64.ln()));
    assert!(close(yarn_magnitude(16.0, 1.0), 1.0));
    assert!(close(yarn_magnitude(16.0, 0.5), (1.0 + 0.1 * 16f64.ln()) / (1.0 + 0.05 * 16f64.ln())));
    assert!(close(yarn_magnitude(1.0, 0.0), 1.0));
}
