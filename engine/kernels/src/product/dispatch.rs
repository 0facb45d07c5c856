//! Which kernel a product runs on, and how it is spread over threads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::WeightType;
use super::activations::{Activations, Tile, Tiling};
use super::floats::{self, BF16, F16, F32, Float};
use super::format::{BLOCK, Format, with_format};
use super::packed::PackedMatrix;
use super::rows::{self, Pass, Passes};
use super::simd::Simd;
use super::simd_scalar::Plain;
use crate::isa::Isa;
use crate::pool::Pool;

/// Bytes of weights a task reads at one row. Long enough to stream, short enough to share the end of a matrix.
const TASK_BYTES: usize = 128 * 1024;

/// The same for few rows, where memory is the limit: a long run of one thread is fetched faster than short ones of several.
const STREAM_BYTES: usize = 1 << 20;

/// Rows of activations from which a task takes proportionally fewer weights.
const TASK_ROWS: usize = 8;

/// How many products of a group of 16 outputs with a tile of rows each path has computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Isa::ALL.len()]);

impl Counts {
    /// Those computed on `isa`.
    pub fn of(self, isa: Isa) -> u64 {
        self.0[isa as usize]
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Isa::ALL.into_iter().filter(|&isa| self.of(isa) > 0).peekable();
        while let Some(isa) = parts.next() {
            write!(f, "{isa} {}{}", self.of(isa), if parts.peek().is_some() { ", " } else { "" })?;
        }
        Ok(())
    }
}

static RUN: [AtomicU64; Isa::ALL.len()] = [const { AtomicU64::new(0) }; Isa::ALL.len()];

/// What [`matmul`] has computed in this process, by path.
pub fn kernels_run() -> Counts {
    Counts(std::array::from_fn(|i| RUN[i].load(Ordering::Relaxed)))
}

/// A matrix in a call, with where its results go.
struct Job<'a> {
    matrix: &'a PackedMatrix,
    out: *mut f32,
    /// The path its kernel really takes.
    isa: Isa,
    groups_per_task: usize,
    /// Tasks of the call before this matrix's.
    first_task: usize,
}

// SAFETY: `out` is written by tasks of disjoint groups, and the caller, who holds the slice, waits for them.
unsafe impl Sync for Job<'_> {}

/// Multiplies rows of activations by matrices, `x · wᵀ`: each `out` is `[rows, outputs]`, row by row.
///
/// All matrices share one parallel region. Returns which paths ran; for a few rows, and for plain floats, [`Isa::Amx`]
/// takes the kernels of [`Isa::Avx512`].
///
/// # Panics
/// When the machine lacks the path, a matrix has other `inputs` than the rows or needs them in another form, or an `out`
/// has another length.
pub fn matmul(isa: Isa, pool: &Pool, x: &Activations, products: &mut [(&PackedMatrix, &mut [f32])]) -> Counts {
    assert!(isa.is_available(), "this machine has no {isa}");
    let mut counts = Counts::default();
    if x.rows() == 0 {
        return counts;
    }
    let tiling = x.tiling();
    let mut jobs = Vec::with_capacity(products.len());
    let mut tasks = 0;
    for (matrix, out) in products.iter_mut() {
        assert_eq!(matrix.inputs(), x.width(), "inputs of the matrix and width of the rows");
        assert!(x.serves(matrix.ty()), "rows that were not prepared for {}", matrix.ty());
        assert_eq!(out.len(), matrix.outputs() * x.rows(), "room for the product");
        let isa = path(isa, matrix.ty(), x.rows());
        counts.0[isa as usize] += (matrix.groups() * tiling.tiles) as u64;
        let few = x.rows() <= TASK_ROWS;
        let bytes = if few { STREAM_BYTES } else { TASK_BYTES * TASK_ROWS / x.rows().min(8 * TASK_ROWS) };
        let even = matrix.groups().div_ceil(4 * pool.threads());
        let groups_per_task = (bytes / matrix.group_bytes()).min(even).max(1);
        jobs.push(Job { matrix, out: out.as_mut_ptr(), isa, groups_per_task, first_task: tasks });
        tasks += matrix.groups().div_ceil(groups_per_task);
    }
    pool.run(tasks, &|task| {
        let job = &jobs[jobs.partition_point(|job| job.first_task <= task) - 1];
        let first = (task - job.first_task) * job.groups_per_task;
        job.run(x, tiling, first..job.matrix.groups().min(first + job.groups_per_task));
    });
    for (total, n) in RUN.iter().zip(counts.0) {
        total.fetch_add(n, Ordering::Relaxed);
    }
    counts
}

/// The path that multiplies `rows` rows by weights of a type when `isa` is asked for.
fn path(isa: Isa, ty: WeightType, rows: usize) -> Isa {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && (ty.is_float() || rows < super::amx::FEWEST_ROWS) {
        return Isa::Avx512;
    }
    let _ = (ty, rows);
    isa
}

impl Job<'_> {
    fn run(&self, x: &Activations, tiling: Tiling, groups: std::ops::Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Amx {
            with_format!(self.matrix.ty(), F => self.run_amx::<F>(x, tiling, groups), float => {});
            return;
        }
        let (length, passes) = with_format!(self.matrix.ty(),
        F => (self.matrix.inputs() / BLOCK, passes::<F>(self.isa)),
        float => (self.matrix.inputs(), match self.matrix.ty() {
            WeightType::F16 => float_passes::<F16>(self.isa),
            WeightType::BF16 => float_passes::<BF16>(self.isa),
            _ => float_passes::<F32>(self.isa),
        }));
        for group in groups {
            for index in 0..tiling.tiles {
                let tile = x.tile(index);
                let out = self.matrix.out(group, self.out.wrapping_add(tile.start * self.matrix.outputs()));
                let mut first = 0;
                for left in (1..=tile.rows.div_ceil(passes.len())).rev() {
                    let rows = (tile.rows - first).div_ceil(left);
                    // SAFETY: the group's weights are as long as the rows, which `matmul` checked along with the room in
                    // `out`; the tile has `first + rows` rows at least; the path is one this machine has.
                    unsafe { passes[rows - 1](self.matrix.group(group), length, &tile, first, out) };
                    first += rows;
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn run_amx<F: Format>(&self, x: &Activations, tiling: Tiling, groups: std::ops::Range<usize>) {
        use super::amx;

        // SAFETY: `matmul` has checked that AMX is there and granted.
        let mut registers = unsafe { amx::Tiles::new(F::SUBS) };
        for group in groups {
            let mut tiles: [Tile; amx::TILES] = [x.tile(0); amx::TILES];
            for first in (0..tiling.tiles).step_by(amx::TILES) {
                let count = amx::TILES.min(tiling.tiles - first);
                for (index, tile) in tiles.iter_mut().enumerate().take(count) {
                    *tile = x.tile(first + index);
                }
                let out = self.matrix.out(group, self.out.wrapping_add(tiles[0].start * self.matrix.outputs()));
                // SAFETY: as in `run`, and the registers are for this format.
                unsafe {
                    let weights = self.matrix.group(group);
                    amx::product::<F>(&mut registers, weights, self.matrix.inputs() / BLOCK, &tiles[..count], out);
                }
            }
        }
    }
}

/// A pass for each number of rows up to the most the path takes, compiled for its instructions.
macro_rules! passes {
    ($(#[$feature:meta])* $simd:ty, $kind:ident, $module:ident, [$($rows:literal)*]) => {{
        $(#[$feature])*
        unsafe fn compiled<K: $kind, const R: usize>(
            weights: *const u8,
            length: usize,
            tile: &Tile,
            first: usize,
            out: rows::Out,
        ) {
            $module::pass::<$simd, K, R>(weights, length, tile, first, out);
        }
        const { assert!([$($rows),*].len() == <$simd as Simd>::MAX_ROWS) };
        const { &[$(compiled::<K, $rows> as Pass),*] }
    }};
}

macro_rules! by_path {
    ($name:ident, $kind:ident, $module:ident) => {
        fn $name<K: $kind>(isa: Isa) -> Passes {
            #[cfg(target_arch = "x86_64")]
            use super::{simd_avx2::Avx2, simd_avx512::Avx512};
            match isa {
                Isa::Scalar => passes!(Plain, $kind, $module, [1 2 3 4]),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => passes!(#[target_feature(enable = "avx2,fma,f16c")] Avx2, $kind, $module, [1 2 3 4]),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => passes!(
                    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
                    Avx512, $kind, $module, [1 2 3 4 5 6 7 8]
                ),
                #[cfg(not(target_arch = "x86_64"))]
                _ => passes!(Plain, $kind, $module, [1 2 3 4]),
            }
        }
    };
}

by_path!(passes, Format, rows);
by_path!(float_passes, Float, floats);
