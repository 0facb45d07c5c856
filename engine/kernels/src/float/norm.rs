//! RMSNorm.

use super::simd::{Kernel, LANES, Simd, dispatch};
use super::split::{Split, TASK};
use crate::{Isa, Pool};

/// RMSNorm of every group of `scale.len()` values (a row, or the heads of a row), times `scale`, into `out`.
///
/// With n = `scale.len()`, per group:
///
/// ```text
/// s[l]  = Σ x[i]², i = l, l+16, l+32, …     l in 0..16, in f64, ascending
/// s     = sixteen partial sums over the tree l + (l+8), + (l+4), + (l+2), + (l+1), in f64
/// r     = 1 / √(s / n + eps)                in f64, then rounded to f32
/// out   = (x · r) · scale                   in f32
/// ```
///
/// # Panics
/// If the lengths do not fit together.
pub fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], scale: &[f32], eps: f32, out: &mut [f32]) {
    let width = scale.len();
    assert_eq!(x.len(), out.len(), "operands of one length");
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % width, 0, "whole groups");
    let step = (TASK / width).max(1) * width;
    if x.len() <= step {
        return dispatch(isa, RmsNorm { x, scale, eps, out });
    }
    let parts = Split::new(out);
    pool.run(x.len().div_ceil(step), &|task| {
        let from = task * step;
        let x = &x[from..x.len().min(from + step)];
        // SAFETY: tasks have numbers of their own, hence ranges of their own.
        let out = unsafe { parts.part(from, x.len()) };
        dispatch(isa, RmsNorm { x, scale, eps, out });
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.scale.len();
        let (scale, scale_rest) = self.scale.as_chunks::<LANES>();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (x, x_rest) = x.as_chunks::<LANES>();
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            let mut squares = s.zero_f64();
            for x in x {
                squares = s.add_square(squares, s.load(x));
            }
            if !x_rest.is_empty() {
                // A zero adds nothing.
                squares = s.add_square(squares, s.load(&padded(x_rest)));
            }
            let mut sums = s.store_f64(squares);
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    sums[i] += sums[i + half];
                }
            }
            let r = (1.0 / (sums[0] / width as f64 + f64::from(self.eps)).sqrt()) as f32;
            for ((x, scale), out) in x.iter().zip(scale).zip(out) {
                s.store(s.mul(s.mul(s.load(x), s.splat(r)), s.load(scale)), out);
            }
            for ((x, scale), out) in x_rest.iter().zip(scale_rest).zip(out_rest) {
                *out = (x * r) * scale;
            }
        }
    }
}

fn padded(x: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    out[..x.len()].copy_from_slice(x);
    out
}
