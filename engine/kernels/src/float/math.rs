//! exp, tanh and the activations: one expression each, for one lane and for many.

use super::simd::{Arith, One};

/// e^x within 1.5 units in the last place (2 among subnormal results).
///
/// ```text
/// x  = min(89, max(−105, x))
/// n  = fma(x, log2 e, 1.5·2^23) − 1.5·2^23            the nearest whole number
/// r  = fma(n, −ln2_low, fma(n, −ln2_high, x))          in ±ln2 / 2
/// q  = c5; q = fma(q, r, c4) … fma(q, r, c0)
/// p  = fma(q, r·r, r) + 1
/// e^x = p · 2^n                                        rounded once
/// ```
///
/// −∞ gives 0, as does all below −103.98; above 88.73 infinity.
pub fn exp(x: f32) -> f32 {
    exp_lanes(One, x)
}

/// The hyperbolic tangent within 2 units in the last place; exactly odd.
///
/// With a = |x| and z = a·a: for a < 0.625 fma(a·z, P(z), a) with a polynomial P of degree 4 (fused, from the highest
/// coefficient down), else 1 − 2 / ([`exp`]`(a + a) + 1)`; then the sign of x.
pub fn tanh(x: f32) -> f32 {
    tanh_lanes(One, x)
}

/// 1 / (1 + [`exp`]`(−x))`.
pub fn sigmoid(x: f32) -> f32 {
    sigmoid_lanes(One, x)
}

/// x · sigmoid(x), as x / (1 + [`exp`]`(−x))`.
pub fn silu(x: f32) -> f32 {
    silu_lanes(One, x)
}

/// GELU by its tanh form: x/2 · (1 + tanh u) with u = √(2/π) · (x + 0.044715·x³), as
/// x / (1 + [`exp`]`(−2u))` with −2u = x · fma(x·x, −0.07135482, −1.5957691).
pub fn gelu_tanh(x: f32) -> f32 {
    gelu_tanh_lanes(One, x)
}

// ln 2 as the sum of its nearest f32 and the rest.
const LN2_HIGH: f32 = std::f32::consts::LN_2;
const LN2_LOW: f32 = -1.904_654_3e-9;
/// 1.5 · 2^23: added to a number below 2^22 it rounds it to a whole one.
const ROUND: f32 = 12_582_912.0;
/// Minimax coefficients for (e^r − 1 − r) / r² on ±ln2 / 2, from the lowest.
const EXP: [f32; 6] = [0.5, 0.166_666_66, 0.041_665_796, 0.008_333_452, 0.001_398_199_9, 0.000_198_756_91];
/// Minimax coefficients for (tanh(a) − a) / a³ in a² on 0..0.625, from the lowest.
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_088, -0.005_704_988_7];

#[inline(always)]
pub(crate) fn exp_lanes<S: Arith>(s: S, x: S::F) -> S::F {
    // The constant stands first, so that a NaN stays one.
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND)), s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_LOW), s.fma(n, s.splat(-LN2_HIGH), x));
    let mut q = s.splat(EXP[5]);
    for c in [EXP[4], EXP[3], EXP[2], EXP[1], EXP[0]] {
        q = s.fma(q, r, s.splat(c));
    }
    let p = s.add(s.fma(q, s.mul(r, r), r), s.splat(1.0));
    s.scale_by_power(p, n)
}

#[inline(always)]
pub(crate) fn tanh_lanes<S: Arith>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let z = s.mul(a, a);
    let mut q = s.splat(TANH[4]);
    for c in [TANH[3], TANH[2], TANH[1], TANH[0]] {
        q = s.fma(q, z, s.splat(c));
    }
    let near = s.fma(s.mul(a, z), q, a);
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(exp_lanes(s, s.add(a, a)), one)));
    s.with_sign(s.select_less(a, s.splat(0.625), near, far), x)
}

#[inline(always)]
pub(crate) fn sigmoid_lanes<S: Arith>(s: S, x: S::F) -> S::F {
    over_one_plus_exp(s, s.splat(1.0), s.sub(s.splat(0.0), x))
}

#[inline(always)]
pub(crate) fn silu_lanes<S: Arith>(s: S, x: S::F) -> S::F {
    over_one_plus_exp(s, x, s.sub(s.splat(0.0), x))
}

#[inline(always)]
pub(crate) fn gelu_tanh_lanes<S: Arith>(s: S, x: S::F) -> S::F {
    let u = s.fma(s.mul(x, x), s.splat(-0.071_354_82), s.splat(-1.595_769));
    over_one_plus_exp(s, x, s.mul(x, u))
}

/// a / (1 + e^b).
#[inline(always)]
fn over_one_plus_exp<S: Arith>(s: S, a: S::F, b: S::F) -> S::F {
    s.div(a, s.add(s.splat(1.0), exp_lanes(s, b)))
}
