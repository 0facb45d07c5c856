//! Rows of activations, and the 8-bit blocks they are multiplied as.

use super::WeightType;
use super::format::{BLOCK, Format, GROUP, with_format};
use crate::isa::Isa;
use crate::memory::AlignedVec;
use crate::pool::Pool;

/// Blocks whose largest magnitude is below this count as zero: 127 divided by anything smaller might not be a number.
const SMALLEST: f32 = f32::from_bits(7 << 23); // 2⁻¹²⁰

/// The largest code.
const LARGEST_CODE: f32 = 127.0;

/// From this many values on, a set of rows is quantised by all threads.
const WORTH_SHARING: usize = 16 * 1024;

/// What a set of rows is turned into: what the matrices it will meet need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    floats: bool,
    wholes: bool,
    halves: bool,
}

impl Forms {
    /// What matrices of these types are multiplied by.
    pub fn of(types: impl IntoIterator<Item = WeightType>) -> Self {
        let mut forms = Self::default();
        for ty in types {
            with_format!(ty, F => *(if F::SUBS == 2 { &mut forms.halves } else { &mut forms.wholes }) = true,
                float => forms.floats = true);
        }
        forms
    }

    fn has(self, other: Self) -> bool {
        (self.floats || !other.floats) && (self.wholes || !other.wholes) && (self.halves || !other.halves)
    }
}

/// Rows of f32, `[rows, width]`, and the same rows in blocks of 32 or 16 values: 8-bit codes and an f32 scale.
///
/// The buffers are kept from one set of rows to the next.
///
/// A block with largest magnitude `m` has the scale `d = m / 127` and the codes `round(x · (127 / m))`, ties to even, within
/// −127..=127. Where `m` is below 2⁻¹²⁰, scale and codes are zero. Where a value of the block is not finite, the scale is
/// NaN and so is everything the row is multiplied by.
///
/// Rows are held in tiles of at most 16, all of the same height or one less, and within a tile 32 values by 32 values, so
/// that the codes of a stretch in all rows of a tile are next to each other.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    width: usize,
    forms: Forms,
    values: AlignedVec<f32>,
    wholes: Blocks,
    halves: Blocks,
}

/// Rows in blocks of one length, `32 / subs`.
#[derive(Default)]
struct Blocks {
    codes: AlignedVec<i8>,
    scales: AlignedVec<f32>,
    /// Per block, minus the sum of its codes: what an offset of one adds to a product.
    sums: AlignedVec<i32>,
    /// Per block, the sum of the values it stands for: what weights of one add.
    totals: AlignedVec<f32>,
}

/// Pointers to the same, from a tile's first block on.
#[derive(Clone, Copy)]
pub(crate) struct BlocksAt {
    pub codes: *mut i8,
    pub scales: *mut f32,
    pub sums: *mut i32,
    pub totals: *mut f32,
}

impl Blocks {
    fn reserve(&mut self, values: usize, subs: usize) {
        let blocks = values / BLOCK * subs;
        self.codes.reserve(values);
        self.scales.reserve(blocks);
        self.sums.reserve(blocks);
        self.totals.reserve(blocks);
    }

    /// The blocks from value `first` on, to be read; where there are none, pointers to nothing.
    fn at(&self, first: usize, subs: usize) -> BlocksAt {
        let all = BlocksAt {
            codes: self.codes.as_ptr().cast_mut(),
            scales: self.scales.as_ptr().cast_mut(),
            sums: self.sums.as_ptr().cast_mut(),
            totals: self.totals.as_ptr().cast_mut(),
        };
        all.from(first, subs)
    }

    fn at_mut(&mut self) -> BlocksAt {
        BlocksAt {
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            totals: self.totals.as_mut_ptr(),
        }
    }
}

impl BlocksAt {
    fn from(self, value: usize, subs: usize) -> Self {
        let block = value / BLOCK * subs;
        Self {
            codes: self.codes.wrapping_add(value),
            scales: self.scales.wrapping_add(block),
            sums: self.sums.wrapping_add(block),
            totals: self.totals.wrapping_add(block),
        }
    }
}

/// The rows of a tile. Within it, the codes of stretch `b` and row `r` are at `32 · (b · rows + r)`, and the numbers of its
/// block `s` at `(b · subs + s) · rows + r`.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The tile's first row.
    pub start: usize,
    pub rows: usize,
    wholes: BlocksAt,
    halves: BlocksAt,
    /// The rows themselves, [`Tile::width`] apart.
    pub values: *const f32,
    pub width: usize,
}

impl Tile {
    /// The rows in blocks of `32 / subs`.
    #[inline(always)]
    pub fn blocks(&self, subs: usize) -> BlocksAt {
        if subs == 1 { self.wholes } else { self.halves }
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

/// All buffers, shared by the threads that fill them, each its own tiles.
struct Filling {
    values: *mut f32,
    wholes: BlocksAt,
    halves: BlocksAt,
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

    /// Takes the rows `x`, `[x.len() / width, width]`, in the forms that matrices to come need.
    ///
    /// # Panics
    /// When `x` is no whole number of rows, or rows of another width than a multiple of 32 are to be put in blocks.
    pub fn set(&mut self, isa: Isa, pool: &Pool, x: &[f32], width: usize, forms: Forms) {
        assert!(width > 0 && x.len().is_multiple_of(width), "{} values are no rows of {width}", x.len());
        let blocks = forms.wholes || forms.halves;
        assert!(!blocks || width.is_multiple_of(BLOCK), "rows of {width} are no blocks of {BLOCK}");
        (self.rows, self.width, self.forms) = (x.len() / width, width, forms);
        if forms.floats {
            self.values.reserve(x.len());
        }
        if forms.wholes {
            self.wholes.reserve(x.len(), 1);
        }
        if forms.halves {
            self.halves.reserve(x.len(), 2);
        }
        let to =
            Filling { values: self.values.as_mut_ptr(), wholes: self.wholes.at_mut(), halves: self.halves.at_mut() };
        let tiling = Tiling::of(self.rows);
        let task = |index: usize| {
            let to = &to;
            let (start, rows) = tiling.tile(index);
            let first = start * width;
            let x = &x[first..first + rows * width];
            // SAFETY: the buffers hold all rows, each task has rows of its own, and the path is one this machine has.
            unsafe {
                if forms.floats {
                    to.values.add(first).copy_from_nonoverlapping(x.as_ptr(), x.len());
                }
                if forms.wholes {
                    quantise::<1>(isa, x, width, rows, to.wholes.from(first, 1));
                }
                if forms.halves {
                    quantise::<2>(isa, x, width, rows, to.halves.from(first, 2));
                }
            }
        };
        if x.len() < WORTH_SHARING {
            (0..tiling.tiles).for_each(task);
        } else {
            pool.run(tiling.tiles, &task);
        }
    }

    /// Whether the rows are there in the forms that matrices of a type need.
    pub(crate) fn serves(&self, ty: WeightType) -> bool {
        self.forms.has(Forms::of([ty]))
    }

    pub(crate) fn tiling(&self) -> Tiling {
        Tiling::of(self.rows)
    }

    pub(crate) fn tile(&self, index: usize) -> Tile {
        let (start, rows) = self.tiling().tile(index);
        let first = start * self.width;
        Tile {
            start,
            rows,
            wholes: self.wholes.at(first, 1),
            halves: self.halves.at(first, 2),
            values: self.values.as_ptr().wrapping_add(first),
            width: self.width,
        }
    }
}

/// Puts the rows of a tile in blocks.
///
/// # Safety
/// The machine has the path, the buffers hold the rows, and no other thread touches these.
unsafe fn quantise<const SUBS: usize>(isa: Isa, x: &[f32], width: usize, rows: usize, to: BlocksAt) {
    match isa {
        Isa::Scalar => quantise_rows::<SUBS>(x, width, rows, to),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => quantise_avx2::<SUBS>(x, width, rows, to),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => quantise_avx512::<SUBS>(x, width, rows, to),
        #[cfg(not(target_arch = "x86_64"))]
        _ => quantise_rows::<SUBS>(x, width, rows, to),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn quantise_avx2<const SUBS: usize>(x: &[f32], width: usize, rows: usize, to: BlocksAt) {
    quantise_rows::<SUBS>(x, width, rows, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantise_avx512<const SUBS: usize>(x: &[f32], width: usize, rows: usize, to: BlocksAt) {
    quantise_rows::<SUBS>(x, width, rows, to);
}

/// One text for all paths: no operation here depends on an order, and none is fused, so the compiler may use
/// whatever vectors the path has.
#[inline(always)]
unsafe fn quantise_rows<const SUBS: usize>(x: &[f32], width: usize, rows: usize, to: BlocksAt) {
    for (r, row) in x.chunks_exact(width).enumerate() {
        for (b, x) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            let mut all = [0; BLOCK];
            let blocks = x.chunks_exact(BLOCK / SUBS).zip(all.chunks_exact_mut(BLOCK / SUBS));
            for (sub, (x, codes)) in blocks.enumerate() {
                let at = (b * SUBS + sub) * rows + r;
                let scale = block(x, codes);
                let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
                to.scales.add(at).write(scale);
                to.sums.add(at).write(-sum);
                to.totals.add(at).write(scale * sum as f32);
            }
            to.codes.add((b * rows + r) * BLOCK).cast::<[i8; BLOCK]>().write(all);
        }
    }
}

/// Puts the codes of a block into `codes`, which are zero, and returns its scale.
#[inline(always)]
fn block(x: &[f32], codes: &mut [i8]) -> f32 {
    // Magnitudes compare as their bits do, with the infinities and NaN on top.
    let largest = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).fold(0, u32::max));
    if largest < SMALLEST {
        return 0.0;
    }
    if !largest.is_finite() {
        return f32::NAN;
    }
    let inverse = LARGEST_CODE / largest;
    for (code, x) in codes.iter_mut().zip(x) {
        let rounded = (x * inverse).round_ties_even().clamp(-LARGEST_CODE, LARGEST_CODE);
        // SAFETY: a number within ±127.
        *code = unsafe { rounded.to_int_unchecked::<i32>() } as i8;
    }
    largest / LARGEST_CODE
}
