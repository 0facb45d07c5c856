//! The operations in AVX2 with FMA and F16C: two vectors are a quad.

use std::arch::x86_64::*;

use super::simd::Simd;

/// AVX2, FMA and F16C.
pub(crate) struct Avx2;

/// Four activations in every lane.
#[inline(always)]
unsafe fn four(activations: *const i8, quad: usize) -> __m256i {
    _mm256_set1_epi32(activations.add(4 * quad).cast::<i32>().read_unaligned())
}

impl Simd for Avx2 {
    type I = __m256i;
    type F = __m256;
    const BYTES: usize = 32;
    const SIGNED_EIGHT: bool = true;
    const MAX_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        _mm256_loadu_si256(from.cast())
    }
    #[inline(always)]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(a: __m256i) -> __m256i {
        _mm256_sll_epi16(a, _mm_cvtsi32_si128(N.cast_signed()))
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(a: __m256i) -> __m256i {
        _mm256_srl_epi16(a, _mm_cvtsi32_si128(N.cast_signed()))
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, mask: u8) -> __m256i {
        _mm256_and_si256(a, _mm256_set1_epi8(mask.cast_signed()))
    }
    #[inline(always)]
    unsafe fn merge(low: __m256i, high: __m256i, mask: u8) -> __m256i {
        _mm256_or_si256(low, Self::and(high, mask))
    }

    /// `vpmaddubsw` adds two products in an i16, where unsigned codes of eight bits would saturate: |w| is multiplied by
    /// the activation with w's sign instead, 2·128·127 at most. Narrower codes leave room for more sums in 16 bits.
    #[inline(always)]
    unsafe fn dot<const BITS: u32, const FROM: usize, const TO: usize>(
        quads: &[__m256i; 8],
        activations: *const i8,
        start: __m256i,
    ) -> __m256i {
        // Quads whose pairs of products fit an i16 together: n · 2 · (2^BITS − 1) · 127 ≤ 32767.
        let together = match BITS {
            0..=4 => 8,
            5 => 4,
            6 => 2,
            _ => 1,
        };
        let ones = _mm256_set1_epi16(1);
        let mut sum = start;
        let mut j = FROM;
        while j < TO {
            let end = if j + together < TO { j + together } else { TO };
            let mut pairs = _mm256_setzero_si256();
            while j < end {
                let a = four(activations, j);
                let products = if BITS == 8 {
                    let w = _mm256_xor_si256(quads[j], _mm256_set1_epi8(i8::MIN));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
                } else {
                    _mm256_maddubs_epi16(quads[j], a)
                };
                pairs = _mm256_add_epi16(pairs, products);
                j += 1;
            }
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        sum
    }
    #[inline(always)]
    unsafe fn splat_times(from: *const i32, factor: u32) -> __m256i {
        _mm256_sllv_epi32(_mm256_set1_epi32(*from), _mm256_set1_epi32(factor.trailing_zeros().cast_signed()))
    }

    #[inline(always)]
    unsafe fn to_float(a: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(a)
    }
    #[inline(always)]
    unsafe fn zero_float() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m256 {
        _mm256_set1_ps(*from)
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> __m256 {
        _mm256_loadu_ps(from.cast())
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> __m256 {
        let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
        _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(0x0f)))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> __m256 {
        let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
        _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(bytes))
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, a: __m256, lanes: usize) {
        if lanes >= 8 {
            _mm256_storeu_ps(to, a);
        } else {
            let mut all = [0.0f32; 8];
            _mm256_storeu_ps(all.as_mut_ptr(), a);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, lanes);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
}
