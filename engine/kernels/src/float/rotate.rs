//! Rotary position embedding.

use super::simd::{Kernel, Simd, dispatch};
use crate::Isa;

/// Which two values of a head are rotated together; n is the number of dimensions that are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// 2i with 2i + 1 (Llama's order).
    Neighbours,
    /// i with i + n/2 (GPT-NeoX's order).
    Halves,
}

/// Rotates the first `dims` values of every head: `x` is `[rows, width]`, heads of `head_dim` side by side, `cos` and
/// `sin` are `[rows, dims / 2]`. Of a pair (a, b) with c, s:
///
/// ```text
/// a' = fma(a, c, −(b · s))
/// b' = fma(a, s, b · c)
/// ```
///
/// # Panics
/// If the lengths do not fit together, `dims` is odd or above `head_dim`, or `width` is not whole heads.
#[allow(clippy::too_many_arguments, reason = "a shape, a table, and the data")]
pub fn rotate(
    isa: Isa,
    x: &mut [f32],
    rows: usize,
    width: usize,
    head_dim: usize,
    dims: usize,
    pairing: Pairing,
    cos: &[f32],
    sin: &[f32],
) {
    if rows == 0 || width == 0 || dims == 0 {
        return;
    }
    assert!(dims <= head_dim && dims.is_multiple_of(2), "an even part of a head");
    assert_eq!(width % head_dim, 0, "whole heads");
    assert_eq!(x.len(), rows * width, "rows of x");
    assert_eq!(cos.len(), rows * dims / 2, "cosines");
    assert_eq!(sin.len(), rows * dims / 2, "sines");
    dispatch(isa, Rotate { x, width, head_dim, dims, pairing, cos, sin });
}

struct Rotate<'a> {
    x: &'a mut [f32],
    width: usize,
    head_dim: usize,
    dims: usize,
    pairing: Pairing,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Out = ();
    // Plain loops: the compiler makes vectors of them, and no lane depends on another.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.dims / 2;
        let tables = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        for (row, (cos, sin)) in self.x.chunks_exact_mut(self.width).zip(tables) {
            for head in row.chunks_exact_mut(self.head_dim) {
                let head = &mut head[..self.dims];
                match self.pairing {
                    Pairing::Neighbours => {
                        for ((pair, c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                            *pair = turn(*pair, *c, *s);
                        }
                    }
                    Pairing::Halves => {
                        let (low, high) = head.split_at_mut(half);
                        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                            [*a, *b] = turn([*a, *b], *c, *s);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turn([a, b]: [f32; 2], c: f32, s: f32) -> [f32; 2] {
    [a.mul_add(c, -(b * s)), a.mul_add(s, b * c)]
}
