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
            let multiply = if F::MINIMUMS { HEIGHTS_MINIMUMS } else { HEIGHTS };
            registers.set_rows(tile.rows);
            // Each tile fetches its share of what is unpacked next, in this group or the one behind it.
            let bytes = count.div_ceil(F::BLOCKS) * F::RECORD;
            let share = bytes / tiles.len();
            let next = weights.wrapping_add(from / F::BLOCKS * F::RECORD + bytes + index * share);
            multiply[F::SUBS - 1][tile.rows - 1](scratch, tile, from, count, sums, Ahead { next, bytes: share });
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
    ($subs:literal, $minimums:literal) => {
        [
            multiply::<1, $subs, $minimums>,
            multiply::<2, $subs, $minimums>,
            multiply::<3, $subs, $minimums>,
            multiply::<4, $subs, $minimums>,
            multiply::<5, $subs, $minimums>,
            multiply::<6, $subs, $minimums>,
            multiply::<7, $subs, $minimums>,
            multiply::<8, $subs, $minimums>,
            multiply::<9, $subs, $minimums>,
            multiply::<10, $subs, $minimums>,
            multiply::<11, $subs, $minimums>,
            multiply::<12, $subs, $minimums>,
            multiply::<13, $subs, $minimums>,
            multiply::<14, $subs, $minimums>,
            multiply::<15, $subs, $minimums>,
            multiply::<16, $subs, $minimums>,
        ]
    };
}

/// By sub-blocks to a block, then by height.
const HEIGHTS: [[Multiply; GROUP]; 2] = [heights!(1, false), heights!(2, false)];
const HEIGHTS_MINIMUMS: [[Multiply; GROUP]; 2] = [heights!(1, true), heights!(2, true)];

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
    let sums = sums.cast::<__m512>();
    let mut acc = [_mm512_setzero_ps(); M];
    if from > 0 {
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = sums.add(r).read();
        }
    }
    let x = tile.blocks(SUBS);
    let steps = count * SUBS;
    let products = |step: usize| (&raw mut (*scratch).products[step % 2]).cast::<i32>();
    let load = |step: usize| {
        if step < steps {
            let (b, sub) = (step / SUBS, step % SUBS);
            let activations = x.codes.add((from + b) * M * BLOCK + sub * (BLOCK / SUBS));
            let codes = (&raw const (*scratch).codes[b]).cast::<u8>().add(sub * (CODES / SUBS));
            load_tiles(step % 2, activations, codes);
        }
    };
    load(0);
    multiply_tiles(0);
    load(1);
    store_tile(0, products(0));
    multiply_tiles(1);
    load(2);
    for step in 0..steps {
        // Past the last step the registers hold sums of no use, which nobody reads.
        store_tile((step + 1) % 2, products(step + 1));
        multiply_tiles(step % 2);
        load(step + 3);
        let mut line = ahead.bytes * step / steps / LINE;
        while line < ahead.bytes * (step + 1) / steps / LINE {
            _mm_prefetch::<_MM_HINT_T1>(ahead.next.wrapping_add(line * LINE).cast());
            line += 1;
        }
        let dw = _mm512_load_ps((&raw const (*scratch).scales[step]).cast());
        let mw =
            if MINIMUMS { _mm512_load_ps((&raw const (*scratch).minimums[step]).cast()) } else { _mm512_setzero_ps() };
        let isums = products(step);
        let scales = x.scales.add((from * SUBS + step) * M);
        let totals = x.totals.add((from * SUBS + step) * M);
        for (r, acc) in acc.iter_mut().enumerate() {
            let sum = _mm512_cvtepi32_ps(_mm512_load_si512(isums.add(r * GROUP).cast()));
            *acc = _mm512_fmadd_ps(sum, _mm512_mul_ps(dw, _mm512_set1_ps(*scales.add(r))), *acc);
            if MINIMUMS {
                *acc = _mm512_fmadd_ps(mw, _mm512_set1_ps(*totals.add(r)), *acc);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        sums.add(r).write(*acc);
    }
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
