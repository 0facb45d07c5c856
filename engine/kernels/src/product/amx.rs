//! Many rows at once on AMX: a group's codes are unpacked once into right-hand tiles, and each tile of activations is
//! multiplied by them block by block. Only the i32 sums come from the tiles; scales are applied as everywhere.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::activations::Tile;
use super::format::{BLOCK, Format, GROUP, QUAD};
use super::rows::Out;
use super::scales::{head, minimum, scale};
use super::simd::{Simd, quads};
use super::simd_avx512::Avx512;
use crate::memory::LINE;

/// Fewest rows for which tiles are worth the unpacking: up to eight, one pass in registers is as fast.
pub(crate) const FEWEST_ROWS: usize = 9;

/// Tiles of activations that share one unpacking: 128 rows, whose sums take 8 KiB.
pub(crate) const TILES: usize = 8;

/// Blocks unpacked at a time: 1024 inputs, 16 KiB of codes, which stay in the first cache beside the activations.
const UNPACKED: usize = 32;

/// Bytes of a block's codes, unpacked.
const CODES: usize = BLOCK * GROUP;

/// What a group's weights are unpacked to, and the sums in between. Too large to be cleared for every task.
#[repr(align(64))]
struct Scratch {
    /// Per block eight quads of signed codes.
    codes: [[u8; CODES]; UNPACKED],
    scales: [[f32; GROUP]; 2 * UNPACKED],
    minimums: [[f32; GROUP]; 2 * UNPACKED],
    /// Integer sums of two steps: one is stored while the other is scaled.
    products: [[[i32; GROUP]; GROUP]; 2],
    /// First halves times their activations' scales, for blocks whose halves share a scale.
    first_halves: [[f32; GROUP]; GROUP],
    sums: [[[f32; GROUP]; GROUP]; TILES],
}

/// The shapes of the eight tile registers.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tile registers; released when dropped. Two sets of three take turns: sums, activations, weights. No code
/// but this module's touches them, so what is in them stays from one instruction to the next.
pub(crate) struct Tiles {
    subs: usize,
    rows: usize,
}

impl Tiles {
    /// Registers for sub-blocks of `32 / subs` inputs.
    ///
    /// # Safety
    /// The machine has AMX and the process the permission to use it.
    pub unsafe fn new(subs: usize) -> Self {
        Self { subs, rows: 0 }
    }

    /// Sets the registers up for tiles of `rows` rows, if they are not.
    #[inline(always)]
    fn set_rows(&mut self, rows: usize) {
        if rows == self.rows {
            return;
        }
        self.rows = rows;
        let mut c = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let shapes = [(rows, QUAD), (rows, BLOCK / self.subs), (8 / self.subs, QUAD)];
        for (tile, (rows, bytes)) in shapes.into_iter().cycle().take(6).enumerate() {
            (c.rows[tile], c.row_bytes[tile]) = (rows as u8, bytes as u16);
        }
        // SAFETY: whoever made this has AMX, and the shapes are within 16 rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &c, options(nostack, readonly, preserves_flags)) };
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever made this has AMX. Tiles left set up would be saved at every switch of the thread.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Multiplies a group by up to [`TILES`] tiles.
///
/// # Safety
/// `weights` points to the records of `blocks` blocks, the tiles hold as many blocks, `out` is good for the rows of the
/// first tile on (row 0 being the first tile's first), the machine has AMX, and `registers` are for [`Format::SUBS`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn product<F: Format>(
    registers: &mut Tiles,
    weights: *const u8,
    blocks: usize,
    tiles: &[Tile],
    out: Out,
) {
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    let mut from = 0;
    while from < blocks {
        let count = UNPACKED.min(blocks - from);
        unpack::<F>(weights, from, count, scratch);
        for (index, tile) in tiles.iter().enumerate() {
            let sums = (&raw mut (*scratch).sums[index]).cast::<f32>();
            let multiply = match (F::SUBS, F::SHARED, F::MINIMUMS) {
                (1, ..) => WHOLES_MINIMUMS,
                (_, true, false) => SHARED,
                (_, true, true) => SHARED_MINIMUMS,
                (_, false, false) => HALVES,
                (_, false, true) => HALVES_MINIMUMS,
            };
            registers.set_rows(tile.rows);
            // Each tile fetches its share of what is unpacked next, in this group or the one behind it.
            let bytes = count.div_ceil(F::BLOCKS) * F::RECORD;
            let share = bytes / tiles.len();
            let next = weights.wrapping_add(from / F::BLOCKS * F::RECORD + bytes + index * share);
            multiply[tile.rows - 1](scratch, tile, from, count, sums, Ahead { next, bytes: share });
        }
        from += count;
    }
    let mut row = 0;
    for (index, tile) in tiles.iter().enumerate() {
        for r in 0..tile.rows {
            let sums = Avx512::load_f32((&raw const (*scratch).sums[index][r]).cast());
            Avx512::store(out.to.add(row * out.stride), sums, out.lanes);
            row += 1;
        }
    }
}

/// Unpacks blocks `from .. from + count` of a group; `from` is a multiple of the blocks of a record.
#[inline(always)]
unsafe fn unpack<F: Format>(weights: *const u8, from: usize, count: usize, to: *mut Scratch) {
    const { assert!(UNPACKED.is_multiple_of(F::BLOCKS)) };
    let zero = _mm512_set1_epi8((F::ZERO as u8).cast_signed());
    let mut head_of = head::<Avx512, F>(weights);
    for b in 0..count {
        let record = weights.add((from + b) / F::BLOCKS * F::RECORD);
        let slot = (from + b) % F::BLOCKS;
        if slot == 0 {
            head_of = head::<Avx512, F>(record);
        }
        let quads = quads::<Avx512, F>(record.add(slot * F::CODE_BYTES));
        let codes = (&raw mut (*to).codes[b]).cast::<__m512i>();
        let mut j = 0;
        while j < 8 {
            codes.add(j).write(_mm512_sub_epi8(quads[j], zero));
            j += 1;
        }
        let mut sub = 0;
        while sub < F::SUBS {
            let at = b * F::SUBS + sub;
            let dw = scale::<Avx512, F>(record, &head_of, slot, sub, 0);
            (&raw mut (*to).scales[at]).cast::<__m512>().write(dw);
            if F::MINIMUMS {
                let mw = minimum::<Avx512, F>(record, &head_of, slot, sub, 0);
                (&raw mut (*to).minimums[at]).cast::<__m512>().write(mw);
            }
            sub += 1;
        }
    }
}

/// Multiplies what is unpacked by one tile, adding to its sums.
type Multiply = unsafe fn(*mut Scratch, &Tile, usize, usize, *mut f32, Ahead);

/// Weights that will be read soon. They are hints: any address will do.
#[derive(Clone, Copy)]
struct Ahead {
    next: *const u8,
    bytes: usize,
}

macro_rules! heights {
    ($name:ident, $($flag:literal),*) => {
        [
            $name::<1, $($flag),*>,
            $name::<2, $($flag),*>,
            $name::<3, $($flag),*>,
            $name::<4, $($flag),*>,
            $name::<5, $($flag),*>,
            $name::<6, $($flag),*>,
            $name::<7, $($flag),*>,
            $name::<8, $($flag),*>,
            $name::<9, $($flag),*>,
            $name::<10, $($flag),*>,
            $name::<11, $($flag),*>,
            $name::<12, $($flag),*>,
            $name::<13, $($flag),*>,
            $name::<14, $($flag),*>,
            $name::<15, $($flag),*>,
            $name::<16, $($flag),*>,
        ]
    };
}

/// By the tile's height. No type of one sub-block to a block lacks a minimum.
const WHOLES_MINIMUMS: [Multiply; GROUP] = heights!(multiply, 1, true);
const HALVES: [Multiply; GROUP] = heights!(multiply, 2, false);
const HALVES_MINIMUMS: [Multiply; GROUP] = heights!(multiply, 2, true);
const SHARED: [Multiply; GROUP] = heights!(multiply_shared, false);
const SHARED_MINIMUMS: [Multiply; GROUP] = heights!(multiply_shared, true);

/// The tiles of one run over what is unpacked, step by step: block by block, or half by half.
#[derive(Clone, Copy)]
struct Steps {
    scratch: *mut Scratch,
    codes: *const i8,
    rows: usize,
    subs: usize,
    count: usize,
}

impl Steps {
    /// Loads the activations and the weights of a step, if there is such a step.
    #[inline(always)]
    unsafe fn load(self, step: usize) {
        if step < self.count {
            let (b, sub) = (step / self.subs, step % self.subs);
            let activations = self.codes.add(b * self.rows * BLOCK + sub * (BLOCK / self.subs));
            let codes = (&raw const (*self.scratch).codes[b]).cast::<u8>().add(sub * (CODES / self.subs));
            load_tiles(step % 2, activations, codes);
        }
    }

    /// Multiplies what is loaded. Past the last step the registers hold sums of no use, which nobody reads.
    #[inline(always)]
    unsafe fn multiply(self, step: usize) {
        multiply_tiles(step % 2);
    }

    #[inline(always)]
    unsafe fn store(self, step: usize) {
        store_tile(step % 2, self.products(step));
    }

    #[inline(always)]
    unsafe fn products(self, step: usize) -> *mut i32 {
        (&raw mut (*self.scratch).products[step % 2]).cast()
    }

    /// A step's sums of a row, one for each output.
    #[inline(always)]
    unsafe fn sums(self, step: usize, row: usize) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_load_si512(self.products(step).add(row * GROUP).cast()))
    }

    #[inline(always)]
    unsafe fn scale(self, step: usize) -> __m512 {
        _mm512_load_ps((&raw const (*self.scratch).scales[step]).cast())
    }

    #[inline(always)]
    unsafe fn minimum<const MINIMUMS: bool>(self, step: usize) -> __m512 {
        if MINIMUMS { _mm512_load_ps((&raw const (*self.scratch).minimums[step]).cast()) } else { _mm512_setzero_ps() }
    }

    /// Fetches the part of what comes next that belongs to a step.
    #[inline(always)]
    unsafe fn prefetch(self, ahead: Ahead, step: usize) {
        let mut line = ahead.bytes * step / self.count / LINE;
        while line < ahead.bytes * (step + 1) / self.count / LINE {
            _mm_prefetch::<_MM_HINT_T1>(ahead.next.wrapping_add(line * LINE).cast());
            line += 1;
        }
    }
}

#[inline(always)]
unsafe fn begin<const M: usize>(from: usize, sums: *const f32) -> [__m512; M] {
    let mut acc = [_mm512_setzero_ps(); M];
    if from > 0 {
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = _mm512_load_ps(sums.add(r * GROUP));
        }
    }
    acc
}

#[inline(always)]
unsafe fn end<const M: usize>(acc: &[__m512; M], sums: *mut f32) {
    for (r, acc) in acc.iter().enumerate() {
        _mm512_store_ps(sums.add(r * GROUP), *acc);
    }
}

/// Step by step (block by block, or half by half), with the tiles two steps ahead of the scaling: while step `s` is scaled,
/// the sums of `s + 1` are stored, those of `s + 2` computed, and the tiles of `s + 3` loaded. Each of the three takes tens of
/// cycles, and a processor that runs two threads does not look far enough ahead to overlap them by itself.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply<const M: usize, const SUBS: usize, const MINIMUMS: bool>(
    scratch: *mut Scratch,
    tile: &Tile,
    from: usize,
    count: usize,
    sums: *mut f32,
    ahead: Ahead,
) {
    let x = tile.blocks(SUBS);
    let mut acc = begin::<M>(from, sums);
    let steps = Steps { scratch, codes: x.codes.add(from * M * BLOCK), rows: M, subs: SUBS, count: count * SUBS };
    steps.load(0);
    steps.multiply(0);
    steps.load(1);
    steps.store(0);
    steps.multiply(1);
    steps.load(2);
    for step in 0..steps.count {
        steps.store(step + 1);
        steps.multiply(step + 2);
        steps.load(step + 3);
        steps.prefetch(ahead, step);
        let (dw, mw) = (steps.scale(step), steps.minimum::<MINIMUMS>(step));
        let scales = x.scales.add((from * SUBS + step) * M);
        let totals = x.totals.add((from * SUBS + step) * M);
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = _mm512_fmadd_ps(steps.sums(step, r), _mm512_mul_ps(dw, _mm512_set1_ps(*scales.add(r))), *acc);
            if MINIMUMS {
                *acc = _mm512_fmadd_ps(mw, _mm512_set1_ps(*totals.add(r)), *acc);
            }
        }
    }
    end(&acc, sums);
}

/// The same for blocks whose halves share a scale.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply_shared<const M: usize, const MINIMUMS: bool>(
    scratch: *mut Scratch,
    tile: &Tile,
    from: usize,
    count: usize,
    sums: *mut f32,
    ahead: Ahead,
) {
    let x = tile.blocks(2);
    let mut acc = begin::<M>(from, sums);
    let steps = Steps { scratch, codes: x.codes.add(from * M * BLOCK), rows: M, subs: 2, count: count * 2 };
    steps.load(0);
    steps.multiply(0);
    steps.load(1);
    steps.store(0);
    steps.multiply(1);
    steps.load(2);
    let first_halves = (&raw mut (*scratch).first_halves).cast::<f32>();
    for block in 0..count {
        let step = 2 * block;
        let scales = x.scales.add((2 * from + step) * M);
        let totals = x.totals.add((2 * from + step) * M);
        steps.store(step + 1);
        steps.multiply(step + 2);
        steps.load(step + 3);
        steps.prefetch(ahead, step);
        for r in 0..M {
            let sum = _mm512_mul_ps(steps.sums(step, r), _mm512_set1_ps(*scales.add(r)));
            _mm512_store_ps(first_halves.add(r * GROUP), sum);
        }
        steps.store(step + 2);
        steps.multiply(step + 3);
        steps.load(step + 4);
        steps.prefetch(ahead, step + 1);
        let (dw, mw) = (steps.scale(step), steps.minimum::<MINIMUMS>(step));
        for (r, acc) in acc.iter_mut().enumerate() {
            let sum = _mm512_load_ps(first_halves.add(r * GROUP));
            let sum = _mm512_fmadd_ps(steps.sums(step + 1, r), _mm512_set1_ps(*scales.add(M + r)), sum);
            if MINIMUMS {
                *acc = _mm512_fmadd_ps(mw, _mm512_set1_ps(*totals.add(r)), *acc);
            }
            *acc = _mm512_fmadd_ps(sum, dw, *acc);
            if MINIMUMS {
                *acc = _mm512_fmadd_ps(mw, _mm512_set1_ps(*totals.add(M + r)), *acc);
            }
        }
    }
    end(&acc, sums);
}

/// Loads the activations and the weights of a step.
#[inline(always)]
unsafe fn load_tiles(set: usize, activations: *const i8, codes: *const u8) {
    macro_rules! load {
        ($activations:tt, $weights:tt) => {
            asm!(
                concat!("tileloadd ", $weights, ", [{codes} + {line}]"),
                concat!("tileloadd ", $activations, ", [{activations} + {block}]"),
                codes = in(reg) codes,
                activations = in(reg) activations,
                line = in(reg) QUAD,
                block = in(reg) BLOCK,
                out($activations) _, out($weights) _,
                options(nostack, readonly, preserves_flags),
            )
        };
    }
    if set == 0 { load!("tmm1", "tmm2") } else { load!("tmm4", "tmm5") }
}

/// `sums[row][output] = Σ activation · code` over a sub-block, in i32.
#[inline(always)]
unsafe fn multiply_tiles(set: usize) {
    macro_rules! multiply {
        ($sums:tt, $activations:tt, $weights:tt) => {
            asm!(
                concat!("tilezero ", $sums),
                concat!("tdpbssd ", $sums, ", ", $activations, ", ", $weights),
                out($sums) _,
                options(nomem, nostack, preserves_flags),
            )
        };
    }
    if set == 0 { multiply!("tmm0", "tmm1", "tmm2") } else { multiply!("tmm3", "tmm4", "tmm5") }
}

/// Stores the sums of a step.
#[inline(always)]
unsafe fn store_tile(set: usize, products: *mut i32) {
    macro_rules! store {
        ($sums:tt) => {
            asm!(
                concat!("tilestored [{products} + {line}], ", $sums),
                products = in(reg) products,
                line = in(reg) QUAD,
                options(nostack, preserves_flags),
            )
        };
    }
    if set == 0 { store!("tmm0") } else { store!("tmm3") }
}
