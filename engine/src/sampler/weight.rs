//! How likely a token is beside the most likely one, as a whole number.

/// The weight of the most likely token. Lesser ones are rounded to whole numbers: what is 28 nats below the top has no
/// weight left. Sums of 2²⁴ of them fit 64 bits.
pub(super) const ONE: u64 = 1 << ONE_BITS;
const ONE_BITS: u64 = 40;

/// Weights computed together, so that compilers can put them into lanes.
const LANES: usize = 8;

/// Adding it leaves the nearest integer in the lowest bits, also of a negative number.
const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2⁵²
/// The same for numbers that are not negative.
const INTEGER: f64 = 4_503_599_627_370_496.0; // 2⁵²
/// ln 2 in two parts. The last 21 bits of the first are zero: times a small integer it is exact.
const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
/// From here on down the weight is 0. Keeps what follows away from infinities.
const LOWEST: f64 = -30.0;
/// 1/12!, 1/11!, …, 1/1!.
const TAYLOR: [f64; 12] = [
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    1.0 / 2.0,
    1.0,
];

/// e^x in units of 1 / [`ONE`], to the nearest, for each x from negative infinity to 0.
///
/// Cody and Waite's reduction to |r| ≤ ln 2 / 2, then the Taylor polynomial of degree 12 (its error is below 2⁻⁵²), by
/// Horner's rule: additions and multiplications in `f64` that are nowhere fused, so that every machine computes the same
/// bits.
#[inline]
fn exp(x: [f64; LANES]) -> [u64; LANES] {
    let x = x.map(|x| if x > LOWEST { x } else { LOWEST });
    let rounded = x.map(|x| x * std::f64::consts::LOG2_E + ROUND);
    let mut r = [0.0; LANES];
    for ((r, x), rounded) in r.iter_mut().zip(x).zip(rounded) {
        let n = rounded - ROUND;
        *r = (x - n * LN_2[0]) - n * LN_2[1];
    }
    let mut p = [0.0; LANES];
    for c in TAYLOR {
        for (p, r) in p.iter_mut().zip(r) {
            *p = (*p + c) * r;
        }
    }
    let mut weights = [0; LANES];
    for ((weight, p), rounded) in weights.iter_mut().zip(p).zip(rounded) {
        // 2^(n + 40), by its exponent's bits; n is within -44..=0.
        let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(1023 + ONE_BITS);
        let scaled = (p + 1.0) * f64::from_bits(exponent << 52);
        *weight = (scaled + INTEGER).to_bits().wrapping_sub(INTEGER.to_bits());
    }
    weights
}

/// What turns logits into weights: the highest of them has [`ONE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    highest: f64,
    temperature: f64,
}

impl Scale {
    /// For a `temperature` above 0.
    pub(super) fn new(highest: f32, temperature: f32) -> Self {
        Self { highest: f64::from(highest), temperature: f64::from(temperature) }
    }

    #[inline]
    fn below(self, logit: f32) -> f64 {
        (f64::from(logit) - self.highest) / self.temperature
    }

    /// The weight of one logit.
    pub(super) fn weight(self, logit: f32) -> u64 {
        let [weight, ..] = exp([self.below(logit); LANES]);
        weight
    }

    /// The weights of all logits, in order, into `weights`; their sum.
    pub(super) fn weights(self, logits: &[f32], weights: &mut Vec<u64>) -> u64 {
        weights.clear();
        weights.resize(logits.len(), 0);
        let (blocks, tail) = logits.as_chunks::<LANES>();
        let (into, into_tail) = weights.as_chunks_mut::<LANES>();
        let mut sums = [0; LANES];
        for (block, weights) in blocks.iter().zip(into) {
            *weights = exp(block.map(|logit| self.below(logit)));
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += *weight;
            }
        }
        for (logit, weight) in tail.iter().zip(into_tail) {
            *weight = self.weight(*logit);
            sums[0] += *weight;
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(x: f64) -> u64 {
        exp([x; LANES])[7]
    }

    #[test]
    fn weights_are_the_nearest_integers() {
        assert_eq!(weight(0.0), ONE);
        assert_eq!([weight(-30.0), weight(-1e300), weight(f64::NEG_INFINITY)], [0; 3]);
        let mut x = 0.0;
        while x > -29.0 {
            #[allow(clippy::cast_precision_loss)]
            let off = weight(x) as f64 - libm::exp(x) * ONE as f64;
            // Half a unit of rounding, and an ulp or two of the largest.
            assert!(off.abs() <= 0.501, "{x}: {off}");
            x -= 0.000_917;
        }
    }

    #[test]
    fn weights_fall_with_the_logit() {
        let mut last = ONE;
        for i in 0..300_000 {
            let w = weight(-f64::from(i) * 1e-4);
            assert!(w <= last, "{i}");
            last = w;
        }
    }

    #[test]
    fn vectors() {
        let frozen = [-0.5, -1.0, -2.5, -7.125, -20.0, -27.0].map(weight);
        assert_eq!(frozen, [666_887_512_957, 404_487_723_188, 90_253_410_453, 884_813_302, 2266, 2]);
    }
}
