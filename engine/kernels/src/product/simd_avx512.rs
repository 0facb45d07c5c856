//! The operations in AVX-512 with VNNI: one vector is one quad.

use std::arch::x86_64::*;

use super::simd::Simd;

/// AVX-512 F, BW, DQ, VL and VNNI.
pub(crate) struct Avx512;

impl Simd for Avx512 {
    type I = __m512i;
    type F = __m512;
    const BYTES: usize = 64;
    const SIGNED_EIGHT: bool = false;
    const MAX_ROWS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(a: __m512i) -> __m512i {
        _mm512_slli_epi16::<N>(a)
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(a: __m512i) -> __m512i {
        _mm512_srli_epi16::<N>(a)
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, mask: u8) -> __m512i {
        _mm512_and_si512(a, _mm512_set1_epi8(mask.cast_signed()))
    }
    #[inline(always)]
    unsafe fn merge(low: __m512i, high: __m512i, mask: u8) -> __m512i {
        // The truth table of a | (b & c).
        _mm512_ternarylogic_epi32::<0xf8>(low, high, _mm512_set1_epi8(mask.cast_signed()))
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const FROM: usize, const TO: usize>(
        quads: &[__m512i; 8],
        activations: *const i8,
        start: __m512i,
    ) -> __m512i {
        let mut sum = start;
        let mut j = FROM;
        while j < TO {
            let a = _mm512_set1_epi32(activations.add(4 * j).cast::<i32>().read_unaligned());
            sum = _mm512_dpbusd_epi32(sum, quads[j], a);
            j += 1;
        }
        sum
    }
    #[inline(always)]
    unsafe fn splat_times(from: *const i32, factor: u32) -> __m512i {
        _mm512_sllv_epi32(_mm512_set1_epi32(*from), _mm512_set1_epi32(factor.trailing_zeros().cast_signed()))
    }

    #[inline(always)]
    unsafe fn to_float(a: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(a)
    }
    #[inline(always)]
    unsafe fn zero_float() -> __m512 {
        _mm512_setzero_ps()
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m512 {
        _mm512_set1_ps(*from)
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> __m512 {
        _mm512_loadu_ps(from.cast())
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))))
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> __m512 {
        let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
        _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(0x0f)))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> __m512 {
        let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
        _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes))
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, a: __m512, lanes: usize) {
        if lanes >= 16 {
            _mm512_storeu_ps(to, a);
        } else {
            _mm512_mask_storeu_ps(to, (1 << lanes) - 1, a);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
}
