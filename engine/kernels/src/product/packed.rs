//! Weight matrices, repacked so that one lane holds one output.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};

use super::WeightType;
use super::dequantize::{Block, MAX_BLOCK};
use super::format::{BLOCK, Format, GROUP, Planes, QUAD, Scales, with_format};
use super::rows::Out;
use super::scales::{head, minimum, scale};
use super::simd::quads;
use super::simd_scalar::Plain;
use crate::memory::{AlignedVec, HUGE};
use crate::pool::Pool;

/// Bytes of a file one task repacks, about.
const TASK_BYTES: usize = 512 * 1024;

/// Why a matrix was not packed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The bytes are not those of a matrix of this shape.
    #[error("{got} bytes given where {outputs} rows of {inputs} {ty} weights take {expected}")]
    Length {
        /// The type of the weights.
        ty: WeightType,
        /// Rows of the matrix.
        outputs: usize,
        /// Weights in a row.
        inputs: usize,
        /// Bytes the shape takes.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A row is not a whole number of blocks, or the matrix is empty or beyond the address space.
    #[error("no {ty} matrix has {outputs} rows of {inputs} weights: rows are whole blocks of {}", ty.block_len())]
    Shape {
        /// The type of the weights.
        ty: WeightType,
        /// Rows of the matrix.
        outputs: usize,
        /// Weights in a row.
        inputs: usize,
    },
    /// A weight, or a scale of weights, is infinite or not a number.
    #[error("row {row} holds a weight that is not finite")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
}

/// A matrix `[outputs, inputs]` of weights in the layout of the kernels.
///
/// It takes the bytes of the file's blocks plus at most 5.5 % (Q3_K; Q5_K 2.3 %, Q4_K 2.8 %, Q6_K 1 %, the others nothing),
/// with `outputs` rounded up to 16.
pub struct PackedMatrix {
    ty: WeightType,
    outputs: usize,
    inputs: usize,
    data: AlignedVec<u8>,
}

impl PackedMatrix {
    /// Packs the matrix whose rows lie in `bytes` one after another, in the file's layout.
    ///
    /// # Errors
    /// When `bytes` do not fit the shape, or a weight is not finite.
    pub fn pack(ty: WeightType, outputs: usize, inputs: usize, bytes: &[u8], pool: &Pool) -> Result<Self, PackError> {
        let shape = PackError::Shape { ty, outputs, inputs };
        if outputs == 0 || inputs == 0 || !inputs.is_multiple_of(ty.block_len()) {
            return Err(shape);
        }
        let row_bytes = (inputs / ty.block_len()).checked_mul(ty.block_bytes()).ok_or(shape.clone())?;
        let expected = row_bytes.checked_mul(outputs).ok_or(shape)?;
        if bytes.len() != expected {
            return Err(PackError::Length { ty, outputs, inputs, expected, got: bytes.len() });
        }
        let groups = outputs.div_ceil(GROUP);
        let group_bytes = group_bytes(ty, inputs);
        let mut data = AlignedVec::<u8>::zeroed(groups * group_bytes);
        take_pages(&mut data, pool);
        let groups_per_task = (TASK_BYTES / group_bytes).max(1);
        let bad_row = AtomicUsize::new(usize::MAX);
        let to = Shared(data.as_mut_ptr());
        pool.run(groups.div_ceil(groups_per_task), &|task| {
            let to = &to;
            for group in task * groups_per_task..groups.min((task + 1) * groups_per_task) {
                let first = group * GROUP;
                let rows = &bytes[first * row_bytes..outputs.min(first + GROUP) * row_bytes];
                // SAFETY: the storage holds `groups` groups, and each group is one task's alone.
                let packed = unsafe { std::slice::from_raw_parts_mut(to.0.add(group * group_bytes), group_bytes) };
                let finite = with_format!(ty, F => pack_group::<F>(rows, row_bytes, packed),
                    float => pack_floats(ty, rows, row_bytes, packed));
                if let Err(lane) = finite {
                    bad_row.fetch_min(first + lane, Ordering::Relaxed);
                }
            }
        });
        match bad_row.into_inner() {
            usize::MAX => Ok(Self { ty, outputs, inputs, data }),
            row => Err(PackError::NotFinite { row }),
        }
    }

    /// Rows of the matrix: values a product gives for each row of activations.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Weights in a row: values a row of activations has.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The type the weights had in the file.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Bytes the packed matrix takes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Row `index` in f32: the values [`dequantize`](super::dequantize()) gives.
    ///
    /// # Panics
    /// When there is no such row or `out` is not `inputs` long.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.outputs && out.len() == self.inputs, "no row {index} of {} values", out.len());
        let group = &self.data[index / GROUP * self.group_bytes()..][..self.group_bytes()];
        let lane = index % GROUP;
        with_format!(self.ty, F => unpack_row::<F>(group, lane, out), float => float_row(self.ty, group, lane, out));
    }

    pub(crate) fn groups(&self) -> usize {
        self.outputs.div_ceil(GROUP)
    }

    pub(crate) fn group_bytes(&self) -> usize {
        group_bytes(self.ty, self.inputs)
    }

    /// The packed weights of a group.
    pub(crate) fn group(&self, index: usize) -> *const u8 {
        self.data[index * self.group_bytes()..].as_ptr()
    }

    /// Where the group's outputs go in the rows from `to` on, which are `outputs` apart.
    pub(crate) fn out(&self, group: usize, to: *mut f32) -> Out {
        let first = group * GROUP;
        Out { to: to.wrapping_add(first), stride: self.outputs, lanes: (self.outputs - first).min(GROUP) }
    }
}

struct Shared(*mut u8);
// SAFETY: tasks write disjoint groups, and the owner of the storage waits for them.
unsafe impl Sync for Shared {}

/// Touches every huge page of fresh storage, each from one thread. The system zeroes a page when it is first touched: two
/// tasks that fill neighbouring stretches of one would both wait for a page of their own to be zeroed, one in vain.
fn take_pages(data: &mut AlignedVec<u8>, pool: &Pool) {
    let (pages, to) = (data.len().div_ceil(HUGE), Shared(data.as_mut_ptr()));
    pool.run(pages, &|page| {
        let to = &to;
        // SAFETY: the page begins within the storage, and its first byte is written by this task alone.
        unsafe { to.0.add(page * HUGE).write_volatile(0) };
    });
}

fn group_bytes(ty: WeightType, inputs: usize) -> usize {
    with_format!(ty, F => (inputs / BLOCK).div_ceil(F::BLOCKS) * F::RECORD, float => inputs * GROUP * ty.block_bytes())
}

/// Packs up to 16 rows. Fails with the lane of the first that is not finite.
fn pack_group<F: Format>(rows: &[u8], row_bytes: usize, packed: &mut [u8]) -> Result<(), usize> {
    let (len, size) = (F::TYPE.block_len(), F::TYPE.block_bytes());
    let mut staged = [[0u8; MAX_BLOCK]; GROUP];
    let mut block = Block::default();
    let in_record = F::BLOCKS * BLOCK / len;
    let mut bad = None;
    for (r, record) in packed.chunks_exact_mut(F::RECORD).enumerate() {
        let (codes, scales) = record.split_at_mut(F::SCALES_AT);
        let blocks = r * in_record..((r + 1) * in_record).min(row_bytes / size);
        let filled = blocks.len() * len;
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            for (slot, b) in blocks.clone().enumerate() {
                block.read(F::TYPE, &row[b * size..(b + 1) * size]);
                if !block.is_finite() {
                    bad = Some(bad.map_or(lane, |l: usize| l.min(lane)));
                }
                staged[lane][slot * len..(slot + 1) * len].copy_from_slice(&block.codes[..len]);
                place_scales::<F>(&block, lane, slot, scales);
            }
        }
        for (b, codes) in codes.chunks_exact_mut(F::CODE_BYTES).enumerate().take(filled / BLOCK) {
            place_codes::<F>(&staged, b, codes);
        }
    }
    bad.map_or(Ok(()), Err)
}

/// Puts the scales of one block of the file, of one lane, where [`Scales`] says.
#[inline(always)]
fn place_scales<F: Format>(block: &Block, lane: usize, slot: usize, scales: &mut [u8]) {
    let mut half_at = |at: usize, value: f16| scales[2 * at..2 * at + 2].copy_from_slice(&value.to_le_bytes());
    match F::SCALES {
        Scales::Plain => half_at(slot * GROUP + lane, block.d),
        Scales::Minimum => {
            half_at(slot * GROUP + lane, block.d);
            half_at((2 + slot) * GROUP + lane, block.min);
        }
        Scales::SixBits => {
            half_at(8 * GROUP + lane, block.d);
            half_at(9 * GROUP + lane, -block.min);
            for b in 0..8 {
                scales[b * GROUP + lane] = block.sub_scales[b];
                scales[(8 + b) * GROUP + lane] = block.sub_mins[b];
            }
        }
        Scales::FourBits => {
            half_at(8 * GROUP + lane, block.d);
            half_at(9 * GROUP + lane, -block.min);
            for b in 0..16 {
                scales[b * GROUP + lane] = block.sub_scales[b] | (block.sub_mins[b] << 4);
            }
        }
        Scales::Signed => {
            let at = 16 * GROUP + 4 * lane;
            scales[at..at + 4].copy_from_slice(&block.d.to_f32().to_le_bytes());
            for b in 0..16 {
                scales[b * GROUP + lane] = block.sub_scales[b];
            }
        }
    }
}

/// Cuts the codes of block `b` of 16 rows into quads and planes.
#[inline(always)]
fn place_codes<F: Format>(rows: &[[u8; MAX_BLOCK]; GROUP], b: usize, planes: &mut [u8]) {
    let mut quads = [[0u8; QUAD]; 8];
    for (j, quad) in quads.iter_mut().enumerate() {
        for (four, row) in quad.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
            *four = row.as_chunks::<4>().0[b * 8 + j];
        }
    }
    let (vectors, _) = planes.as_chunks_mut::<QUAD>();
    let (wide, rest) = match F::PLANES {
        Planes::Eight => vectors.split_at_mut(8),
        Planes::Four | Planes::FourOne | Planes::FourTwo => vectors.split_at_mut(4),
        Planes::Two | Planes::TwoOne => vectors.split_at_mut(2),
    };
    match F::PLANES {
        Planes::Eight => wide.copy_from_slice(&quads),
        Planes::Four | Planes::FourOne | Planes::FourTwo => nibble_plane(&quads, wide),
        Planes::Two | Planes::TwoOne => two_bit_plane(&quads, 0, wide),
    }
    match F::PLANES {
        Planes::Eight | Planes::Four | Planes::Two => {}
        Planes::FourOne => one_bit_plane(&quads, 4, rest),
        Planes::FourTwo => two_bit_plane(&quads, 4, rest),
        Planes::TwoOne => one_bit_plane(&quads, 2, rest),
    }
}

#[inline(always)]
fn nibble_plane(quads: &[[u8; QUAD]; 8], plane: &mut [[u8; QUAD]]) {
    for (v, vector) in plane.iter_mut().enumerate() {
        for (i, byte) in vector.iter_mut().enumerate() {
            *byte = (quads[v][i] & 0x0f) | (quads[v + 4][i] << 4);
        }
    }
}

/// The two bits from `bit` up.
#[inline(always)]
fn two_bit_plane(quads: &[[u8; QUAD]; 8], bit: u32, plane: &mut [[u8; QUAD]]) {
    for (v, vector) in plane.iter_mut().enumerate() {
        let two = |q: usize, i: usize| ((quads[4 * v + q][i] >> bit) & 3) << (2 * q);
        for (i, byte) in vector.iter_mut().enumerate() {
            *byte = two(0, i) | two(1, i) | two(2, i) | two(3, i);
        }
    }
}

/// The bit `bit`.
#[inline(always)]
fn one_bit_plane(quads: &[[u8; QUAD]; 8], bit: u32, plane: &mut [[u8; QUAD]]) {
    for (i, byte) in plane[0].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |byte, j| byte | (((quads[j][i] >> bit) & 1) << j));
    }
}

/// Packs up to 16 rows of plain floats: the 16 weights of each input side by side.
fn pack_floats(ty: WeightType, rows: &[u8], row_bytes: usize, packed: &mut [u8]) -> Result<(), usize> {
    // A float whose exponent is all ones is none.
    match ty {
        WeightType::F16 => pack_sized(rows, row_bytes, packed, |w| u16::from_le_bytes(w) & 0x7c00 != 0x7c00),
        WeightType::BF16 => pack_sized(rows, row_bytes, packed, |w| u16::from_le_bytes(w) & 0x7f80 != 0x7f80),
        _ => pack_sized(rows, row_bytes, packed, |w| u32::from_le_bytes(w) & 0x7f80_0000 != 0x7f80_0000),
    }
}

#[inline(always)]
fn pack_sized<const N: usize>(
    rows: &[u8],
    row_bytes: usize,
    packed: &mut [u8],
    finite: impl Fn([u8; N]) -> bool,
) -> Result<(), usize> {
    /// Inputs taken at a time: what they are packed to stays in the first cache while lane after lane is filled in.
    const STRETCH: usize = 128;
    let mut bad = GROUP;
    for (s, packed) in packed.as_chunks_mut::<N>().0.chunks_mut(STRETCH * GROUP).enumerate() {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let mut good = true;
            for (places, w) in packed.chunks_exact_mut(GROUP).zip(&row.as_chunks::<N>().0[s * STRETCH..]) {
                places[lane] = *w;
                good &= finite(*w);
            }
            if !good {
                bad = bad.min(lane);
            }
        }
    }
    if bad < GROUP { Err(bad) } else { Ok(()) }
}

fn float(ty: WeightType, bytes: &[u8]) -> f32 {
    match (ty, bytes) {
        (WeightType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (WeightType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    }
}

fn float_row(ty: WeightType, group: &[u8], lane: usize, out: &mut [f32]) {
    let size = ty.block_bytes();
    for (weights, w) in group.chunks_exact(GROUP * size).zip(out) {
        *w = float(ty, &weights[lane * size..(lane + 1) * size]);
    }
}

fn unpack_row<F: Format>(group: &[u8], lane: usize, out: &mut [f32]) {
    for (record, out) in group.chunks_exact(F::RECORD).zip(out.chunks_mut(F::BLOCKS * BLOCK)) {
        // SAFETY: the record is whole, and plain Rust needs no instructions of the machine.
        let head = unsafe { head::<Plain, F>(record.as_ptr()) };
        for (b, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            // SAFETY: as above; the record holds at least as many blocks as there are chunks of `out`.
            let quads = unsafe { quads::<Plain, F>(record[b * F::CODE_BYTES..].as_ptr()) };
            for (sub, out) in out.chunks_exact_mut(BLOCK / F::SUBS).enumerate() {
                // SAFETY: as above.
                let (scale, minimum) = unsafe {
                    let scale = scale::<Plain, F>(record.as_ptr(), &head, b, sub, 0);
                    (scale, minimum::<Plain, F>(record.as_ptr(), &head, b, sub, 0))
                };
                for (i, w) in out.iter_mut().enumerate() {
                    let k = sub * (BLOCK / F::SUBS) + i;
                    let code = quads[k / 4].lane(lane)[k % 4];
                    let offset = f32::from(code) - F::ZERO as f32;
                    *w = scale[lane] * offset;
                    if F::MINIMUMS {
                        *w += minimum[lane];
                    }
                }
            }
        }
    }
}
