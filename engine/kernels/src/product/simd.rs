//! The few vector operations the quantised product is written with, once per instruction set.

use super::format::{Format, Planes, QUAD};

/// A set of vector instructions: integer vectors `I` of [`Simd::BYTES`] bytes, float vectors `F` of a quarter as many
/// lanes. One lane holds one output.
///
/// # Safety
/// Every function needs the instructions of the implementing type, and pointers good for the bytes it names.
pub(crate) trait Simd: 'static {
    type I: Copy;
    type F: Copy;
    /// Bytes of a vector; [`QUAD`] or half of it.
    const BYTES: usize;
    /// Outputs a vector holds.
    const LANES: usize = Self::BYTES / 4;
    /// Vectors to a quad.
    const PARTS: usize = QUAD / Self::BYTES;
    /// Whether `dot` takes 8-bit codes as signed numbers, 128 less than they are stored as.
    const SIGNED_EIGHT: bool;
    /// Most rows of activations that one pass over the weights serves.
    const MAX_ROWS: usize;

    unsafe fn load(from: *const u8) -> Self::I;
    unsafe fn zero() -> Self::I;
    unsafe fn shl<const N: u32>(a: Self::I) -> Self::I;
    unsafe fn shr<const N: u32>(a: Self::I) -> Self::I;
    /// Each byte and-ed with `mask`. Shifts may carry bits over from neighbouring bytes; the mask takes them away.
    unsafe fn and(a: Self::I, mask: u8) -> Self::I;
    /// `low | (high & mask)`, byte by byte.
    unsafe fn merge(low: Self::I, high: Self::I, mask: u8) -> Self::I;

    /// `start` plus, lane by lane, the sum over quads `FROM..TO` of four codes times four activations, exactly. `BITS` is
    /// the width of the codes; `activations` points to the block's 32.
    unsafe fn dot<const BITS: u32, const FROM: usize, const TO: usize>(
        quads: &[Self::I; 8],
        activations: *const i8,
        start: Self::I,
    ) -> Self::I;
    /// The number at `from`, times a power of two, in every lane.
    unsafe fn splat_times(from: *const i32, factor: u32) -> Self::I;

    /// Rounds each i32 to f32.
    unsafe fn to_float(a: Self::I) -> Self::F;
    unsafe fn zero_float() -> Self::F;
    unsafe fn splat(from: *const f32) -> Self::F;
    unsafe fn load_f32(from: *const u8) -> Self::F;
    unsafe fn load_f16(from: *const u8) -> Self::F;
    unsafe fn load_bf16(from: *const u8) -> Self::F;
    unsafe fn load_u8(from: *const u8) -> Self::F;
    unsafe fn load_i8(from: *const u8) -> Self::F;
    unsafe fn load_low_nibbles(from: *const u8) -> Self::F;
    unsafe fn load_high_nibbles(from: *const u8) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Stores the first `lanes` lanes.
    unsafe fn store(to: *mut f32, a: Self::F, lanes: usize);
    /// A hint that the line will be read soon. Any address will do.
    unsafe fn prefetch(at: *const u8);
}

/// The codes of a block for the lanes of one vector, quad by quad: `from` points to the first quad's part.
#[inline(always)]
pub(crate) unsafe fn quads<S: Simd, F: Format>(from: *const u8) -> [S::I; 8] {
    macro_rules! at {
        ($v:literal) => {
            S::load(from.add($v * QUAD))
        };
    }
    match F::PLANES {
        Planes::Eight => [at!(0), at!(1), at!(2), at!(3), at!(4), at!(5), at!(6), at!(7)],
        Planes::Four => nibbles::<S>([at!(0), at!(1), at!(2), at!(3)]),
        Planes::FourOne => {
            let n = nibbles::<S>([at!(0), at!(1), at!(2), at!(3)]);
            let h = at!(4);
            [
                S::merge(n[0], S::shl::<4>(h), 0x10),
                S::merge(n[1], S::shl::<3>(h), 0x10),
                S::merge(n[2], S::shl::<2>(h), 0x10),
                S::merge(n[3], S::shl::<1>(h), 0x10),
                S::merge(n[4], h, 0x10),
                S::merge(n[5], S::shr::<1>(h), 0x10),
                S::merge(n[6], S::shr::<2>(h), 0x10),
                S::merge(n[7], S::shr::<3>(h), 0x10),
            ]
        }
        Planes::FourTwo => {
            let n = nibbles::<S>([at!(0), at!(1), at!(2), at!(3)]);
            let (h, k) = (at!(4), at!(5));
            [
                S::merge(n[0], S::shl::<4>(h), 0x30),
                S::merge(n[1], S::shl::<2>(h), 0x30),
                S::merge(n[2], h, 0x30),
                S::merge(n[3], S::shr::<2>(h), 0x30),
                S::merge(n[4], S::shl::<4>(k), 0x30),
                S::merge(n[5], S::shl::<2>(k), 0x30),
                S::merge(n[6], k, 0x30),
                S::merge(n[7], S::shr::<2>(k), 0x30),
            ]
        }
        Planes::Two => pairs::<S>([at!(0), at!(1)]),
        Planes::TwoOne => {
            let n = pairs::<S>([at!(0), at!(1)]);
            let h = at!(2);
            [
                S::merge(n[0], S::shl::<2>(h), 0x04),
                S::merge(n[1], S::shl::<1>(h), 0x04),
                S::merge(n[2], h, 0x04),
                S::merge(n[3], S::shr::<1>(h), 0x04),
                S::merge(n[4], S::shr::<2>(h), 0x04),
                S::merge(n[5], S::shr::<3>(h), 0x04),
                S::merge(n[6], S::shr::<4>(h), 0x04),
                S::merge(n[7], S::shr::<5>(h), 0x04),
            ]
        }
    }
}

#[inline(always)]
unsafe fn nibbles<S: Simd>(v: [S::I; 4]) -> [S::I; 8] {
    [
        S::and(v[0], 0x0f),
        S::and(v[1], 0x0f),
        S::and(v[2], 0x0f),
        S::and(v[3], 0x0f),
        S::and(S::shr::<4>(v[0]), 0x0f),
        S::and(S::shr::<4>(v[1]), 0x0f),
        S::and(S::shr::<4>(v[2]), 0x0f),
        S::and(S::shr::<4>(v[3]), 0x0f),
    ]
}

#[inline(always)]
unsafe fn pairs<S: Simd>(v: [S::I; 2]) -> [S::I; 8] {
    [
        S::and(v[0], 3),
        S::and(S::shr::<2>(v[0]), 3),
        S::and(S::shr::<4>(v[0]), 3),
        S::and(S::shr::<6>(v[0]), 3),
        S::and(v[1], 3),
        S::and(S::shr::<2>(v[1]), 3),
        S::and(S::shr::<4>(v[1]), 3),
        S::and(S::shr::<6>(v[1]), 3),
    ]
}
