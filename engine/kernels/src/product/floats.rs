//! A group of 16 outputs times a few rows, for weights that are plain floats.

use super::WeightType;
use super::activations::Tile;
use super::format::GROUP;
use super::rows::{Out, store};
use super::simd::Simd;

/// How far ahead the weights are fetched.
const AHEAD: usize = 4096;

/// A type of plain floats.
pub(crate) trait Float: 'static {
    const TYPE: WeightType;
    const BYTES: usize = Self::TYPE.block_bytes();
    unsafe fn load<S: Simd>(from: *const u8) -> S::F;
}

pub(crate) struct F16;
pub(crate) struct BF16;
pub(crate) struct F32;

impl Float for F16 {
    const TYPE: WeightType = WeightType::F16;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::F {
        S::load_f16(from)
    }
}

impl Float for BF16 {
    const TYPE: WeightType = WeightType::BF16;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::F {
        S::load_bf16(from)
    }
}

impl Float for F32 {
    const TYPE: WeightType = WeightType::F32;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::F {
        S::load_f32(from)
    }
}

/// As [`super::rows::pass`], with `inputs` in place of blocks: per lane, `acc = fma(w, x, acc)` in the order of the inputs.
///
/// # Safety
/// `weights` points to a group of `inputs` inputs, the tile's rows are as long and there are `first + R` of them at
/// least, `out` is good for those rows, and the machine has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn pass<S: Simd, W: Float, const R: usize>(
    weights: *const u8,
    inputs: usize,
    tile: &Tile,
    first: usize,
    out: Out,
) {
    let mut sums = [[S::zero_float(); 2]; R];
    let values = tile.values.add(first * tile.width);
    let mut k = 0;
    while k < inputs {
        let at = weights.add(k * GROUP * W::BYTES);
        S::prefetch(at.wrapping_add(AHEAD));
        let mut part = 0;
        while part < S::PARTS {
            let w = W::load::<S>(at.add(part * S::LANES * W::BYTES));
            let mut r = 0;
            while r < R {
                sums[r][part] = S::fma(w, S::splat(values.add(r * tile.width + k)), sums[r][part]);
                r += 1;
            }
            part += 1;
        }
        k += 1;
    }
    store::<S, R>(&sums, first, out);
}
