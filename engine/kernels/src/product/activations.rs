//! Rows of activations, and the 8-bit blocks they are multiplied as.

use super::format::{BLOCK, GROUP};
use crate::isa::Isa;
use crate::memory::AlignedVec;
use crate::pool::Pool;

/// Blocks whose largest magnitude is below this count as zero: 127 divided by anything smaller might not be a number.
const SMALLEST: f32 = f32::from_bits(7 << 23); // 2⁻¹²⁰

/// The largest code.
const LARGEST_CODE: f32 = 127.0;

/// From this many values on, a set of rows is quantised by all threads.
const WORTH_SHARING: usize = 16 * 1024;

/// Rows of f32, `[rows, width]`, and the same rows in blocks of 32 values: 8-bit codes and an f32 scale.
///
/// The buffers are kept from one set of rows to the next.
///
/// A block with largest magnitude `m` has the scale `d = m / 127` and the codes `round(x · (127 / m))`, ties to even, within
/// −127..=127. Where `m` is below 2⁻¹²⁰, scale and codes are zero. Where a value of the block is not finite, the scale is
/// NaN and so is everything the row is multiplied by.
///
/// Rows are held in tiles of at most 16, all of the same height or one less, and within a tile block by block, so that
/// the codes of a block in all rows of a tile are one stretch of memory.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    width: usize,
    values: AlignedVec<f32>,
    codes: AlignedVec<i8>,
    scales: AlignedVec<f32>,
    /// Per block, minus the sum of its codes: what an offset of one adds to a product.
    sums: AlignedVec<i32>,
    scaled_sums: AlignedVec<f32>,
    /// The same for each half of a block.
    half_sums: AlignedVec<i32>,
    scaled_half_sums: AlignedVec<f32>,
}

/// The rows of a tile. Within it, the numbers of block `b` and row `r` are at `b · rows + r` (of the half `h`: at
/// `(2b + h) · rows + r`), codes 32 to the block.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The tile's first row.
    pub start: usize,
    pub rows: usize,
    pub codes: *const i8,
    pub scales: *const f32,
    sums: *const i32,
    scaled_sums: *const f32,
    half_sums: *const i32,
    scaled_half_sums: *const f32,
    /// The rows themselves, [`Tile::width`] apart.
    pub values: *const f32,
    pub width: usize,
}

impl Tile {
    /// Negated sums of codes, and sums times scale, of blocks or of their halves.
    #[inline(always)]
    pub fn sums(&self, subs: usize) -> (*const i32, *const f32) {
        if subs == 1 { (self.sums, self.scaled_sums) } else { (self.half_sums, self.scaled_half_sums) }
    }
}

/// How rows are cut into tiles: `tiles` of them, the first `taller` of height `low + 1`, the others of height `low`.
#[derive(Clone, Copy)]
pub(crate) struct Tiling {
    pub tiles: usize,
    pub low: usize,
    pub taller: usize,
}

impl Tiling {
    pub fn of(rows: usize) -> Self {
        let tiles = rows.div_ceil(GROUP).max(1);
        Self { tiles, low: rows / tiles, taller: rows % tiles }
    }

    /// First row and height of a tile.
    pub fn tile(self, index: usize) -> (usize, usize) {
        (index * self.low + index.min(self.taller), self.low + usize::from(index < self.taller))
    }
}

/// Buffers shared by the threads that fill them, each its own tiles.
struct Filling {
    values: *mut f32,
    codes: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
    scaled_sums: *mut f32,
    half_sums: *mut i32,
    scaled_half_sums: *mut f32,
}

// SAFETY: tasks write disjoint tiles, and the owner of the buffers waits for them.
unsafe impl Sync for Filling {}

impl Activations {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Takes the rows `x`, `[x.len() / width, width]`.
    ///
    /// # Panics
    /// When `x` is no whole number of rows.
    pub fn set(&mut self, isa: Isa, pool: &Pool, x: &[f32], width: usize) {
        assert!(width > 0 && x.len().is_multiple_of(width), "{} values are no rows of {width}", x.len());
        (self.rows, self.width) = (x.len() / width, width);
        let blocks = self.rows * (width / BLOCK);
        self.values.reserve(x.len());
        self.codes.reserve(blocks * BLOCK);
        self.scales.reserve(blocks);
        self.sums.reserve(blocks);
        self.scaled_sums.reserve(blocks);
        self.half_sums.reserve(2 * blocks);
        self.scaled_half_sums.reserve(2 * blocks);
        let filling = Filling {
            values: self.values.as_mut_ptr(),
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            scaled_sums: self.scaled_sums.as_mut_ptr(),
            half_sums: self.half_sums.as_mut_ptr(),
            scaled_half_sums: self.scaled_half_sums.as_mut_ptr(),
        };
        let tiling = Tiling::of(self.rows);
        let task = |index: usize| {
            let filling = &filling;
            let (start, rows) = tiling.tile(index);
            let x = &x[start * width..(start + rows) * width];
            // SAFETY: the buffers hold all rows, each task has rows of its own, and the path is one this machine has.
            unsafe {
                filling.values.add(start * width).copy_from_nonoverlapping(x.as_ptr(), x.len());
                if width.is_multiple_of(BLOCK) {
                    filling.tile(isa, x, width, start, rows);
                }
            }
        };
        if x.len() < WORTH_SHARING {
            (0..tiling.tiles).for_each(task);
        } else {
            pool.run(tiling.tiles, &task);
        }
    }

    pub(crate) fn tiling(&self) -> Tiling {
        Tiling::of(self.rows)
    }

    pub(crate) fn tile(&self, index: usize) -> Tile {
        let (start, rows) = self.tiling().tile(index);
        let blocks = start * (self.width / BLOCK);
        Tile {
            start,
            rows,
            codes: self.codes[blocks * BLOCK..].as_ptr(),
            scales: self.scales[blocks..].as_ptr(),
            sums: self.sums[blocks..].as_ptr(),
            scaled_sums: self.scaled_sums[blocks..].as_ptr(),
            half_sums: self.half_sums[2 * blocks..].as_ptr(),
            scaled_half_sums: self.scaled_half_sums[2 * blocks..].as_ptr(),
            values: self.values[start * self.width..].as_ptr(),
            width: self.width,
        }
    }
}

impl Filling {
    /// # Safety
    /// The machine has the path, the buffers hold the rows, and no other thread touches these.
    unsafe fn tile(&self, isa: Isa, x: &[f32], width: usize, start: usize, rows: usize) {
        match isa {
            Isa::Scalar => self.quantise(x, width, start, rows),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => self.quantise_avx2(x, width, start, rows),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => self.quantise_avx512(x, width, start, rows),
            #[cfg(not(target_arch = "x86_64"))]
            _ => self.quantise(x, width, start, rows),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn quantise_avx2(&self, x: &[f32], width: usize, start: usize, rows: usize) {
        self.quantise(x, width, start, rows);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn quantise_avx512(&self, x: &[f32], width: usize, start: usize, rows: usize) {
        self.quantise(x, width, start, rows);
    }

    /// One text for all paths: no operation here depends on an order, and none is fused, so the compiler may use
    /// whatever vectors the path has.
    #[inline(always)]
    unsafe fn quantise(&self, x: &[f32], width: usize, start: usize, rows: usize) {
        let blocks = width / BLOCK;
        for (r, row) in x.chunks_exact(width).enumerate() {
            for (b, x) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
                let at = start * blocks + b * rows + r;
                let half_at = 2 * start * blocks + 2 * b * rows + r;
                let (codes, scale) = block(x);
                let half = |h: usize| codes[16 * h..16 * h + 16].iter().map(|&c| i32::from(c)).sum::<i32>();
                let (first, second) = (half(0), half(1));
                self.codes.add(at * BLOCK).cast::<[i8; BLOCK]>().write(codes);
                self.scales.add(at).write(scale);
                self.sums.add(at).write(-(first + second));
                self.scaled_sums.add(at).write(scale * (first + second) as f32);
                self.half_sums.add(half_at).write(-first);
                self.half_sums.add(half_at + rows).write(-second);
                self.scaled_half_sums.add(half_at).write(scale * first as f32);
                self.scaled_half_sums.add(half_at + rows).write(scale * second as f32);
            }
        }
    }
}

/// The codes and the scale of a block.
#[inline(always)]
fn block(x: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    // Magnitudes compare as their bits do, with the infinities and NaN on top.
    let largest = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).fold(0, u32::max));
    if largest < SMALLEST {
        return ([0; BLOCK], 0.0);
    }
    if !largest.is_finite() {
        return ([0; BLOCK], f32::NAN);
    }
    let inverse = LARGEST_CODE / largest;
    let mut codes = [0; BLOCK];
    for (code, x) in codes.iter_mut().zip(x) {
        let rounded = (x * inverse).round_ties_even().clamp(-LARGEST_CODE, LARGEST_CODE);
        // SAFETY: a number within ±127.
        *code = unsafe { rounded.to_int_unchecked::<i32>() } as i8;
    }
    (codes, largest / LARGEST_CODE)
}
