//! Softmax of short rows, such as a router's scores.

use super::exp_lanes;
use super::simd::{Kernel, LANES, Simd, dispatch};
use crate::Isa;

/// Softmax of every group of `width` values, in place.
///
/// Per group: m the greatest value; e = [`exp`](super::exp)(x − m); sixteen partial sums of e, the l-th over
/// l, l+16, l+32, … ascending, joined over the tree l + (l+8), + (l+4), + (l+2), + (l+1); then e / sum.
///
/// # Panics
/// If `x` is not whole groups.
pub fn softmax(isa: Isa, x: &mut [f32], width: usize) {
    if x.is_empty() {
        return;
    }
    assert!(width > 0 && x.len().is_multiple_of(width), "whole groups");
    dispatch(isa, Softmax { x, width });
}

struct Softmax<'a> {
    x: &'a mut [f32],
    width: usize,
}

impl Kernel for Softmax<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.width) {
            let (x, rest) = row.as_chunks_mut::<LANES>();
            // Lanes past the end are −∞: never the greatest, and their exponential is 0.
            let mut last = [f32::NEG_INFINITY; LANES];
            last[..rest.len()].copy_from_slice(rest);
            let mut greatest = s.load(&last);
            for x in x.iter() {
                greatest = s.max(greatest, s.load(x));
            }
            let greatest = s.splat(s.greatest(greatest));
            let mut sum = s.splat(0.0);
            for x in x.iter_mut() {
                let e = exp_lanes(s, s.sub(s.load(x), greatest));
                sum = s.add(sum, e);
                s.store(e, x);
            }
            let e = exp_lanes(s, s.sub(s.load(&last), greatest));
            let sum = s.splat(s.sum(s.add(sum, e)));
            for x in x {
                s.store(s.div(s.load(x), sum), x);
            }
            s.store(s.div(e, sum), &mut last);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}
