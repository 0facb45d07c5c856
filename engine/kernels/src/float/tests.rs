//! Every path against the scalar one, bit for bit; the scalar one against f64.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::{Isa, Pool};

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap())
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Ordinary numbers, and those on which paths are likely to differ.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -8.0f32..8.0,
        2 => -120.0f32..120.0,
        1 => any::<u32>().prop_map(f32::from_bits).prop_filter("a number", |x| x.is_finite()),
        1 => prop::sample::select(vec![0.0, -0.0, 1e-40, -1e-40, f32::MIN_POSITIVE, 1e38, -1e38, 0.625, 88.73, -103.98]),
    ]
}

fn numbers(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(number(), len)
}

/// Runs on every path this machine has; all must agree. Gives back the scalar result.
fn on_all(x: &[f32], f: impl Fn(Isa, &mut [f32])) -> Vec<f32> {
    let mut scalar = x.to_vec();
    f(Isa::Scalar, &mut scalar);
    for isa in Isa::available() {
        let mut out = x.to_vec();
        f(isa, &mut out);
        assert!(scalar.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()), "{isa}");
    }
    scalar
}

/// FNV-1a of the bits.
pub(crate) fn hash(x: impl IntoIterator<Item = f32>) -> u64 {
    let bytes = x.into_iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Units in the last place of the f32 nearest to `exact`.
fn ulps(found: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    if !nearest.is_finite() || found.to_bits() == nearest.to_bits() {
        return if found == nearest { 0.0 } else { f64::INFINITY };
    }
    let magnitude = nearest.abs().max(f32::MIN_POSITIVE);
    let step = f64::from(f32::from_bits(magnitude.to_bits() + 1)) - f64::from(magnitude);
    (f64::from(found) - exact).abs() / step
}

/// Every 4099th number of either sign up to `limit`.
fn sample(limit: f32) -> impl Iterator<Item = f32> {
    (0..=limit.to_bits()).step_by(4099).flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)])
}

fn worst(limit: f32, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
    sample(limit).map(|x| ulps(f(x), exact(f64::from(x)))).fold(0.0, f64::max)
}

#[test]
fn exp_is_within_its_bound() {
    let worst_normal = worst(87.3, exp, f64::exp);
    let worst_all = worst(110.0, exp, f64::exp);
    println!("exp: {worst_normal:.3} ulp, {worst_all:.3} with subnormal results");
    assert!(worst_normal <= 1.5 && worst_all <= 2.0);
    assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
    assert_eq!(exp(-1e30).to_bits(), 0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(exp(3e38), f32::INFINITY);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn tanh_is_within_its_bound_and_odd() {
    let worst = worst(20.0, tanh, f64::tanh);
    println!("tanh: {worst:.3} ulp");
    assert!(worst <= 2.0);
    for x in sample(f32::MAX) {
        assert_eq!(tanh(x).to_bits(), (-tanh(-x)).to_bits());
    }
    assert_eq!(tanh(f32::INFINITY), 1.0);
    assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
}

#[test]
fn activations_are_within_their_bounds() {
    // Relative error, of the result or (where it dies away) of the smallest normal number.
    let relative = |found: f32, exact: f64| (f64::from(found) - exact).abs() / exact.abs().max(1.2e-38);
    for x in sample(80.0) {
        let e = f64::from(x);
        assert!(relative(sigmoid(x), 1.0 / (1.0 + (-e).exp())) < 3e-7, "sigmoid {x}");
        assert!(relative(silu(x), e / (1.0 + (-e).exp())) < 3e-7, "silu {x}");
        // The error of the exponent, up to half a unit of 90, becomes one of the result.
        let u = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (e + 0.044715 * e * e * e);
        if u > -87.0 {
            assert!(relative(gelu_tanh(x), e / (1.0 + (-u).exp())) < 2e-5, "gelu {x}");
        } else {
            assert!(gelu_tanh(x).abs() < 1e-36, "gelu {x}");
        }
    }
}

proptest! {
    #[test]
    fn elementwise_operations_agree(xy in numbers(0..70).prop_flat_map(|x| { let n = x.len(); (Just(x), numbers(n)) }),
                                    s in number(), cap in 1.0f32..60.0) {
        let (x, y) = xy;
        let pool = pool(1);
        let found = on_all(&x, |isa, x| add(isa, x, &y));
        prop_assert_eq!(bits(&found), bits(&x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>()));
        let found = on_all(&x, |isa, x| scale(isa, x, s));
        prop_assert_eq!(bits(&found), bits(&x.iter().map(|x| x * s).collect::<Vec<_>>()));
        on_all(&x, |isa, x| add_scaled(isa, x, &y, s));
        on_all(&x, |isa, x| softcap(isa, &pool, x, cap));
        let found = on_all(&x, |isa, x| silu_mul(isa, &pool, x, &y));
        let expected: Vec<_> = x.iter().zip(&y).map(|(x, y)| silu(*x) * y).collect();
        prop_assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()));
        on_all(&x, |isa, x| gelu_mul(isa, &pool, x, &y));
        if !x.is_empty() {
            on_all(&x.repeat(3), |isa, x| add_bias(isa, x, &y));
        }
    }

    #[test]
    fn rms_norm_agrees_and_is_near(x in numbers(1..300), rows in 1usize..4) {
        let scale: Vec<f32> = x.iter().map(|x| x.abs().min(3.0) + 0.1).collect();
        let rows = x.repeat(rows);
        let found = on_all(&vec![0.0; rows.len()], |isa, out| rms_norm(isa, &pool(1), &rows, &scale, 1e-5, out));
        let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
        // Three roundings to f32: of r and of two products.
        for ((found, x), scale) in found.iter().zip(&rows).zip(scale.iter().cycle()) {
            let exact = f64::from(*x) * r * f64::from(*scale);
            prop_assert!((f64::from(*found) - exact).abs() <= exact.abs() * 2.5e-7 + 1e-37, "{found} {exact}");
        }
    }

    #[test]
    fn rotations_agree_and_keep_the_rest(
        (x, dims, head_dim, heads, rows) in (1usize..70, 0usize..6, 1usize..4, 1usize..4).prop_flat_map(
            |(half, extra, heads, rows)| {
                let head_dim = 2 * half + extra;
                (numbers(rows * heads * head_dim), Just(2 * half), Just(head_dim), Just(heads), Just(rows))
            }),
        neighbours: bool,
    ) {
        let pairing = if neighbours { Pairing::Neighbours } else { Pairing::Halves };
        let angles: Vec<f32> = (0..rows * dims / 2).map(|i| i as f32 * 0.37).collect();
        let (cos, sin): (Vec<_>, Vec<_>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let found = on_all(&x, |isa, x| rotate(isa, x, rows, heads * head_dim, head_dim, dims, pairing, &cos, &sin));
        for (at, (found, x)) in found.chunks(head_dim).zip(x.chunks(head_dim)).enumerate() {
            prop_assert_eq!(bits(&found[dims..]), bits(&x[dims..]));
            for i in 0..dims / 2 {
                let (a, b) = if neighbours { (2 * i, 2 * i + 1) } else { (i, i + dims / 2) };
                let (c, s) = (cos[at / heads * dims / 2 + i], sin[at / heads * dims / 2 + i]);
                prop_assert_eq!(found[a].to_bits(), x[a].mul_add(c, -(x[b] * s)).to_bits());
                prop_assert_eq!(found[b].to_bits(), x[a].mul_add(s, x[b] * c).to_bits());
            }
        }
    }

    #[test]
    fn softmax_agrees_and_is_near(x in numbers(1..130), rows in 1usize..4) {
        let found = on_all(&x.repeat(rows), |isa, out| softmax(isa, out, x.len()));
        let greatest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // The difference of two f32 is rounded before its exponential is taken: that is the definition.
        let e: Vec<f64> = x.iter().map(|&x| f64::from(x - greatest).exp()).collect();
        let sum: f64 = e.iter().sum();
        for (found, e) in found.iter().zip(e.iter().cycle()) {
            prop_assert!((f64::from(*found) - e / sum).abs() <= e / sum * 2e-6 + 1e-44);
        }
    }
}

#[test]
fn threads_change_nothing() {
    let x: Vec<f32> = (0..300_000u64).map(|i| ((i * 7919) % 10_007) as f32 / 1000.0 - 5.0).collect();
    let scale: Vec<f32> = x[..1000].to_vec();
    let run = |threads: usize| {
        let pool = pool(threads);
        let mut out = vec![0.0; x.len()];
        rms_norm(Isa::best(), &pool, &x, &scale, 1e-6, &mut out);
        silu_mul(Isa::best(), &pool, &mut out, &x);
        gelu_mul(Isa::best(), &pool, &mut out, &x);
        softcap(Isa::best(), &pool, &mut out, 30.0);
        bits(&out)
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}

#[test]
fn a_group_does_not_depend_on_its_neighbours() {
    let x: Vec<f32> = (0..5 * 96).map(|i| (i as f32 * 0.7).sin()).collect();
    let scale = vec![1.5; 96];
    let mut together = vec![0.0; x.len()];
    rms_norm(Isa::best(), &pool(1), &x, &scale, 1e-6, &mut together);
    for (row, together) in x.chunks(96).zip(together.chunks(96)) {
        let mut alone = vec![0.0; 96];
        rms_norm(Isa::best(), &pool(1), row, &scale, 1e-6, &mut alone);
        assert_eq!(bits(&alone), bits(together));
    }
}

/// Frozen: other bits are another numeric profile.
#[test]
fn the_functions_keep_their_bits() {
    let of = |f: fn(f32) -> f32| hash(sample(110.0).map(f));
    let found = [of(exp), of(tanh), of(sigmoid), of(silu), of(gelu_tanh)];
    let frozen = [
        0xd76d_8236_47e3_41d7,
        0xa31b_72ea_c40a_4b01,
        0x0f68_fbc7_2962_e3e0,
        0x0f35_c451_9605_c9ce,
        0xeb89_e200_2ef9_0a25,
    ];
    assert_eq!(found, frozen, "{found:#x?}");
    let x: Vec<f32> = sample(30.0).take(24_000).collect();
    for isa in Isa::available() {
        let mut out = vec![0.0; x.len()];
        rms_norm(isa, &pool(1), &x, &x[200..1200], 1e-6, &mut out);
        let norm = hash(out.iter().copied());
        softmax(isa, &mut out, 100);
        let found = [norm, hash(out)];
        assert_eq!(found, [0x5eac_53d2_74f9_ef25, 0x9055_7054_d88f_f625], "{isa} {found:#x?}");
    }
}
