//! Looking for the scale that stores a run of values with the least squared error.
//!
//! All sums run over eight lanes, joined in a fixed order, so that every machine finds the same scales.

/// Rounds to the nearest whole number, ties to even. Values beyond ±2^22 come out inexact; codes are far smaller, and
/// are clamped before.
fn round(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction. Plain arithmetic, where `f32::round` would be a call.
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The nearest code in `low..=high`.
pub(super) fn code(x: f32, low: f32, high: f32) -> f32 {
    round(x.clamp(low, high))
}

fn join(lanes: [f32; 8]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The value of the largest magnitude, with its sign.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, value| if value.abs() > most.abs() { *value } else { most })
}

/// The scale `s` for which `s * code` comes nearest to `x`, codes from `-levels` to `levels - 1`. Negative where the
/// value of the largest magnitude is positive, because there is one negative code more. `x` is a multiple of 8 long.
pub(super) fn symmetric(x: &[f32], levels: f32) -> f32 {
    let most = extreme(x);
    if most.abs() < f32::MIN_POSITIVE {
        return 0.0;
    }
    let mut best = (0.0, most / -levels);
    for step in -9i8..=9 {
        let inverse = -(levels + 0.1 * f32::from(step)) / most;
        let (mut products, mut squares) = ([0f32; 8], [0f32; 8]);
        for eight in x.as_chunks::<8>().0 {
            for ((value, product), square) in eight.iter().zip(&mut products).zip(&mut squares) {
                let code = code(value * inverse, -levels, levels - 1.0);
                *product += value * code;
                *square += code * code;
            }
        }
        // With the best scale for these codes the error falls by (x·c)² / c·c.
        let (product, square) = (join(products), join(squares));
        if square > 0.0 && product * product > best.0 * square {
            best = (product * product / square, product / square);
        }
    }
    best.1
}

/// The scale and the minimum for which `scale * code - minimum` comes nearest to `x`, codes from 0 to `levels`; neither
/// is negative. `x` is a multiple of 8 long.
pub(super) fn affine(x: &[f32], levels: f32) -> (f32, f32) {
    let low = x.iter().fold(0.0, |low: f32, value| low.min(*value));
    let high = x.iter().fold(low, |high: f32, value| high.max(*value));
    if high - low < f32::MIN_POSITIVE {
        return (0.0, -low);
    }
    let n = x.len() as f32;
    let total = sum(x, |value| value);
    let mut best = (f32::INFINITY, (high - low) / levels, -low);
    for step in 0..=20u8 {
        let inverse = (levels - 1.0 + 0.1 * f32::from(step)) / (high - low);
        let (mut codes, mut squares, mut products) = ([0f32; 8], [0f32; 8], [0f32; 8]);
        for eight in x.as_chunks::<8>().0 {
            for (i, value) in eight.iter().enumerate() {
                let code = code((value - low) * inverse, 0.0, levels);
                codes[i] += code;
                squares[i] += code * code;
                products[i] += code * value;
            }
        }
        let (codes, squares, products) = (join(codes), join(squares), join(products));
        // The straight line through (code, value) by least squares; through zero where it would begin above.
        let spread = n * squares - codes * codes;
        if spread <= 0.0 {
            continue;
        }
        let mut scale = (n * products - codes * total) / spread;
        let mut start = (total - scale * codes) / n;
        if start > 0.0 {
            (scale, start) = (products / squares, 0.0);
        }
        if scale <= 0.0 {
            continue;
        }
        // The error with the codes that this scale gives, which may be others.
        let inverse = 1.0 / scale;
        let error = sum(x, |value| {
            let off = value - (scale * code((value - start) * inverse, 0.0, levels) + start);
            off * off
        });
        if error < best.0 {
            best = (error, scale, -start);
        }
    }
    (best.1, best.2)
}

/// The sum of `of` each value.
pub(super) fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 8];
    for eight in x.as_chunks::<8>().0 {
        for (lane, value) in lanes.iter_mut().zip(eight) {
            *lane += of(*value);
        }
    }
    join(lanes)
}
