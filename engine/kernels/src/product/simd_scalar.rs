//! The operations in plain Rust: what the vector instructions are held to.

use half::{bf16, f16};

use super::simd::Simd;

/// No vector instructions.
pub(crate) struct Plain;

/// Sixteen lanes of four bytes.
#[derive(Clone, Copy)]
pub(crate) struct Bytes([u32; 16]);

impl Bytes {
    /// The four bytes of a lane.
    pub fn lane(self, lane: usize) -> [u8; 4] {
        self.0[lane].to_le_bytes()
    }
}

#[inline(always)]
fn per_byte(mask: u8) -> u32 {
    u32::from_ne_bytes([mask; 4])
}

#[inline(always)]
unsafe fn lanes<T: Copy>(from: *const u8, f: impl Fn(T) -> f32) -> [f32; 16] {
    from.cast::<[T; 16]>().read_unaligned().map(f)
}

impl Simd for Plain {
    type I = Bytes;
    type F = [f32; 16];
    const BYTES: usize = 64;
    const SIGNED_EIGHT: bool = false;
    const MAX_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Bytes {
        Bytes(from.cast::<[u32; 16]>().read_unaligned().map(u32::from_le))
    }
    #[inline(always)]
    unsafe fn zero() -> Bytes {
        Bytes([0; 16])
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(a: Bytes) -> Bytes {
        Bytes(a.0.map(|x| x << N))
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(a: Bytes) -> Bytes {
        Bytes(a.0.map(|x| x >> N))
    }
    #[inline(always)]
    unsafe fn and(a: Bytes, mask: u8) -> Bytes {
        Bytes(a.0.map(|x| x & per_byte(mask)))
    }
    #[inline(always)]
    unsafe fn merge(low: Bytes, high: Bytes, mask: u8) -> Bytes {
        Bytes(std::array::from_fn(|i| low.0[i] | (high.0[i] & per_byte(mask))))
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const FROM: usize, const TO: usize>(
        quads: &[Bytes; 8],
        activations: *const i8,
        start: Bytes,
    ) -> Bytes {
        let mut sums = start.0.map(u32::cast_signed);
        for (j, quad) in quads.iter().enumerate().take(TO).skip(FROM) {
            let a = activations.add(4 * j).cast::<[i8; 4]>().read().map(i32::from);
            for (sum, codes) in sums.iter_mut().zip(quad.0) {
                for (i, a) in a.iter().enumerate() {
                    *sum += (codes >> (8 * i) & 0xff).cast_signed() * a;
                }
            }
        }
        Bytes(sums.map(i32::cast_unsigned))
    }
    #[inline(always)]
    unsafe fn splat_times(from: *const i32, factor: u32) -> Bytes {
        Bytes([(*from * factor.cast_signed()).cast_unsigned(); 16])
    }

    #[inline(always)]
    unsafe fn to_float(a: Bytes) -> [f32; 16] {
        a.0.map(|x| x.cast_signed() as f32)
    }
    #[inline(always)]
    unsafe fn zero_float() -> [f32; 16] {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> [f32; 16] {
        [*from; 16]
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> [f32; 16] {
        lanes(from, |x: f32| x)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> [f32; 16] {
        lanes(from, |x: u16| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> [f32; 16] {
        lanes(from, |x: u16| bf16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> [f32; 16] {
        lanes(from, |x: u8| f32::from(x))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> [f32; 16] {
        lanes(from, |x: i8| f32::from(x))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> [f32; 16] {
        lanes(from, |x: u8| f32::from(x & 0x0f))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> [f32; 16] {
        lanes(from, |x: u8| f32::from(x >> 4))
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, a: [f32; 16], lanes: usize) {
        std::ptr::copy_nonoverlapping(a.as_ptr(), to, lanes);
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
