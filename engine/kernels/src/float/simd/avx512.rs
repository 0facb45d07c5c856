//! AVX-512 F, BW, DQ and VL: sixteen lanes are one register.

use std::arch::x86_64::*;

use super::avx2::tree;
use super::{Arith, Kernel, LANES, Simd};

/// Proof that this processor has these parts of AVX-512: made by [`Avx512::new`] only. Every SAFETY reason below rests
/// on it.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self(()))
    }
}

macro_rules! op {
    ($name:ident ( $($arg:ident),+ ) = $intrinsic:ident) => {
        #[inline(always)]
        fn $name(self, $($arg: __m512),+) -> __m512 {
            // SAFETY: `self` proves that the processor has the features.
            unsafe { $intrinsic($($arg),+) }
        }
    };
}

impl Arith for Avx512 {
    type F = __m512;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves that the processor has the features.
        unsafe { _mm512_set1_ps(x) }
    }
    op!(add(a, b) = _mm512_add_ps);
    op!(sub(a, b) = _mm512_sub_ps);
    op!(mul(a, b) = _mm512_mul_ps);
    op!(div(a, b) = _mm512_div_ps);
    op!(fma(a, b, c) = _mm512_fmadd_ps);
    op!(max(a, b) = _mm512_max_ps);
    op!(min(a, b) = _mm512_min_ps);
    op!(abs(a) = _mm512_abs_ps);
    // One rounding of the exact product, as in the definition.
    op!(scale_by_power(p, n) = _mm512_scalef_ps);
    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the features.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn with_sign(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the features.
        unsafe { _mm512_or_ps(a, _mm512_and_ps(_mm512_set1_ps(-0.0), b)) }
    }
}

impl Simd for Avx512 {
    type D = [__m512d; 2];
    const SUMS: usize = 16;

    #[inline(always)]
    fn call<K: Kernel>(self, part: K) -> K::Out {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn run<K: Kernel>(s: Avx512, part: K) -> K::Out {
            part.run(s)
        }
        // SAFETY: `self` proves that the processor has the features.
        unsafe { run(self, part) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves that the processor has the features; 16 floats stand at `x`.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, a: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves that the processor has the features; there is room for 16 floats at `to`.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), a) };
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: `self` proves that the processor has the features.
        unsafe {
            let halves = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            tree!(_mm_add_ps, _mm_add_ss, halves)
        }
    }
    #[inline(always)]
    fn greatest(self, a: __m512) -> f32 {
        // SAFETY: `self` proves that the processor has the features.
        unsafe {
            let halves = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            tree!(_mm_max_ps, _mm_max_ss, halves)
        }
    }
    #[inline(always)]
    fn widen_f16(self, x: &[u16; LANES]) -> __m512 {
        // SAFETY: `self` proves that the processor has the features; 16 halves stand at `x`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn narrow_f16(self, a: __m512) -> [u16; LANES] {
        let mut out = [0; LANES];
        // SAFETY: `self` proves that the processor has the features; there is room for 16 halves at `out`.
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a));
        }
        out
    }
    #[inline(always)]
    fn widen_i8(self, x: &[i8; LANES]) -> __m512 {
        // SAFETY: `self` proves that the processor has the features; 16 bytes stand at `x`.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn narrow_i8(self, a: __m512) -> [i8; LANES] {
        let mut out = [0; LANES];
        // SAFETY: `self` proves that the processor has the features; there is room for 16 bytes at `out`.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a))) };
        out
    }
    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        // SAFETY: `self` proves that the processor has the features.
        [unsafe { _mm512_setzero_pd() }; 2]
    }
    #[inline(always)]
    fn add_square(self, acc: Self::D, a: __m512) -> Self::D {
        // SAFETY: `self` proves that the processor has the features.
        unsafe {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
            let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(a));
            [_mm512_fmadd_pd(low, low, acc[0]), _mm512_fmadd_pd(high, high, acc[1])]
        }
    }
    #[inline(always)]
    fn store_f64(self, a: Self::D) -> [f64; LANES] {
        let mut out = [0.0; LANES];
        for (to, half) in out.as_chunks_mut::<8>().0.iter_mut().zip(a) {
            // SAFETY: `self` proves that the processor has the features; there is room for 8 doubles at `to`.
            unsafe { _mm512_storeu_pd(to.as_mut_ptr(), half) };
        }
        out
    }
    #[inline(always)]
    fn prefetch(self, x: *const u8) {
        // SAFETY: every x86-64 processor has SSE; a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) };
    }
}
