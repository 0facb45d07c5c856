//! A group of 16 outputs times a few rows: the quantised product where weights are unpacked in registers.

use super::activations::Tile;
use super::format::{BLOCK, Format};
use super::scales::{head, minimum, scale};
use super::simd::{Simd, quads};
use crate::memory::LINE;

/// How far ahead of the codes being multiplied the weights are fetched. Measured: see `examples/product.rs`.
const AHEAD: usize = 4096;

/// Where a pass stores its sums: row `r` of the tile at `to + r · stride`, the first `lanes` lanes of it.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub to: *mut f32,
    pub stride: usize,
    pub lanes: usize,
}

/// One pass over a group's weights for some rows of a tile: `(weights, blocks, tile, first row, out)`.
pub(crate) type Pass = unsafe fn(*const u8, usize, &Tile, usize, Out);

/// The passes of a format for one row, two, and so on.
pub(crate) type Passes = &'static [Pass];

/// Multiplies a group by rows `first .. first + R` of a tile; see the module's head for the definition.
///
/// # Safety
/// `weights` points to the records of `blocks` blocks, the tile holds as many blocks and at least `first + R` rows, `out`
/// is good for those rows, and the machine has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn pass<S: Simd, F: Format, const R: usize>(
    weights: *const u8,
    blocks: usize,
    tile: &Tile,
    first: usize,
    out: Out,
) {
    let mut sums = [[S::zero_float(); 2]; R];
    let x = tile.blocks(F::SUBS);
    let mut record = weights;
    let mut b = 0;
    while b < blocks {
        let here = if F::BLOCKS == 8 || blocks - b >= F::BLOCKS { F::BLOCKS } else { blocks - b };
        let head = head::<S, F>(record);
        let mut i = 0;
        while i < here {
            let codes = record.add(i * F::CODE_BYTES);
            let mut line = 0;
            while line < F::RECORD.div_ceil(F::BLOCKS) {
                S::prefetch(codes.wrapping_add(AHEAD + line));
                line += LINE;
            }
            let activations = x.codes.add((b * tile.rows + first) * BLOCK);
            let mut part = 0;
            while part < S::PARTS {
                let quads = quads::<S, F>(codes.add(part * S::BYTES));
                let mut shared = [S::zero_float(); R];
                let mut sub = 0;
                while sub < F::SUBS {
                    let dw = scale::<S, F>(record, &head, i, sub, part);
                    let mw = minimum::<S, F>(record, &head, i, sub, part);
                    let mut r = 0;
                    while r < R {
                        let at = (b * F::SUBS + sub) * tile.rows + first + r;
                        let a = activations.add(r * BLOCK);
                        let start = if F::ZERO == 0 || (F::BITS == 8 && S::SIGNED_EIGHT) {
                            S::zero()
                        } else {
                            S::splat_times(x.sums.add(at), F::ZERO)
                        };
                        let sum = match (F::SUBS, sub) {
                            (1, _) => dot::<S, F, 0, 8>(&quads, a, start),
                            (_, 0) => dot::<S, F, 0, 4>(&quads, a, start),
                            _ => dot::<S, F, 4, 8>(&quads, a, start),
                        };
                        let da = S::splat(x.scales.add(at));
                        let acc = &mut sums[r][part];
                        if !F::SHARED {
                            *acc = S::fma(S::to_float(sum), S::mul(dw, da), *acc);
                        } else if sub == 0 {
                            shared[r] = S::mul(S::to_float(sum), da);
                        } else {
                            *acc = S::fma(S::fma(S::to_float(sum), da, shared[r]), dw, *acc);
                        }
                        if F::MINIMUMS {
                            *acc = S::fma(mw, S::splat(x.totals.add(at)), *acc);
                        }
                        r += 1;
                    }
                    sub += 1;
                }
                part += 1;
            }
            i += 1;
            b += 1;
        }
        record = record.add(F::RECORD);
    }
    store::<S, R>(&sums, first, out);
}

#[inline(always)]
unsafe fn dot<S: Simd, F: Format, const FROM: usize, const TO: usize>(
    quads: &[S::I; 8],
    activations: *const i8,
    start: S::I,
) -> S::I {
    match F::BITS {
        8 => S::dot::<8, FROM, TO>(quads, activations, start),
        6 => S::dot::<6, FROM, TO>(quads, activations, start),
        5 => S::dot::<5, FROM, TO>(quads, activations, start),
        _ => S::dot::<4, FROM, TO>(quads, activations, start),
    }
}

/// Stores the sums of `R` rows.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd, const R: usize>(sums: &[[S::F; 2]; R], first: usize, out: Out) {
    let mut r = 0;
    while r < R {
        let mut part = 0;
        while part < S::PARTS {
            let lane = part * S::LANES;
            if out.lanes > lane {
                S::store(out.to.add((first + r) * out.stride + lane), sums[r][part], out.lanes - lane);
            }
            part += 1;
        }
        r += 1;
    }
}
