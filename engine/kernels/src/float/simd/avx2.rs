//! AVX2 with FMA and F16C: sixteen lanes are two registers.

use std::arch::x86_64::*;

use super::{Arith, Kernel, LANES, Simd};

/// Proof that this processor has AVX2, FMA and F16C: made by [`Avx2::new`] only. Every SAFETY reason below rests on it.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
            .then_some(Self(()))
    }
}

/// Lanes 0..8 and 8..16.
type Pair = (__m256, __m256);

/// One intrinsic on both halves.
macro_rules! both {
    ($name:ident ( $($arg:ident),+ ) = $intrinsic:ident) => {
        #[inline(always)]
        fn $name(self, $($arg: Pair),+) -> Pair {
            // SAFETY: `self` proves that the processor has the features.
            unsafe { ($intrinsic($($arg.0),+), $intrinsic($($arg.1),+)) }
        }
    };
}

impl Arith for Avx2 {
    type F = Pair;

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        // SAFETY: `self` proves that the processor has the features.
        let x = unsafe { _mm256_set1_ps(x) };
        (x, x)
    }
    both!(add(a, b) = _mm256_add_ps);
    both!(sub(a, b) = _mm256_sub_ps);
    both!(mul(a, b) = _mm256_mul_ps);
    both!(div(a, b) = _mm256_div_ps);
    both!(fma(a, b, c) = _mm256_fmadd_ps);
    both!(max(a, b) = _mm256_max_ps);
    both!(min(a, b) = _mm256_min_ps);
    #[inline(always)]
    fn select_less(self, a: Pair, b: Pair, x: Pair, y: Pair) -> Pair {
        // SAFETY: `self` proves that the processor has the features.
        unsafe {
            (
                _mm256_blendv_ps(y.0, x.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                _mm256_blendv_ps(y.1, x.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
            )
        }
    }
    #[inline(always)]
    fn abs(self, a: Pair) -> Pair {
        // SAFETY: `self` proves that the processor has the features.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            (_mm256_andnot_ps(sign, a.0), _mm256_andnot_ps(sign, a.1))
        }
    }
    #[inline(always)]
    fn with_sign(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: `self` proves that the processor has the features.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            (_mm256_or_ps(a.0, _mm256_and_ps(sign, b.0)), _mm256_or_ps(a.1, _mm256_and_ps(sign, b.1)))
        }
    }
    #[inline(always)]
    fn scale_by_power(self, p: Pair, n: Pair) -> Pair {
        #[inline(always)]
        fn half(_: Avx2, p: __m256, n: __m256) -> __m256 {
            // SAFETY: the first argument proves that the processor has the features.
            unsafe {
                let n = _mm256_cvtps_epi32(n);
                let first = _mm256_srai_epi32::<1>(n);
                let second = _mm256_sub_epi32(n, first);
                let bias = _mm256_set1_epi32(127);
                let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(first, bias)));
                let rest = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(second, bias)));
                _mm256_mul_ps(_mm256_mul_ps(p, power), rest)
            }
        }
        (half(self, p.0, n.0), half(self, p.1, n.1))
    }
}

/// Joins 8 lanes: i with i+4, then +2, +1.
macro_rules! tree {
    ($join:ident, $join_one:ident, $x:expr) => {{
        let x = $x;
        let x = $join(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = $join(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32($join_one(x, _mm_movehdup_ps(x)))
    }};
}
pub(super) use tree;

impl Simd for Avx2 {
    type D = [__m256d; 4];
    const SUMS: usize = 4;

    #[inline(always)]
    fn call<K: Kernel>(self, part: K) -> K::Out {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn run<K: Kernel>(s: Avx2, part: K) -> K::Out {
            part.run(s)
        }
        // SAFETY: `self` proves that the processor has the features.
        unsafe { run(self, part) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Pair {
        // SAFETY: `self` proves that the processor has the features; 16 floats stand at `x`.
        unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn store(self, a: Pair, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves that the processor has the features; there is room for 16 floats at `to`.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), a.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), a.1);
        }
    }
    #[inline(always)]
    fn sum(self, a: Pair) -> f32 {
        // SAFETY: `self` proves that the processor has the features.
        unsafe { tree!(_mm_add_ps, _mm_add_ss, _mm256_add_ps(a.0, a.1)) }
    }
    #[inline(always)]
    fn greatest(self, a: Pair) -> f32 {
        // SAFETY: `self` proves that the processor has the features.
        unsafe { tree!(_mm_max_ps, _mm_max_ss, _mm256_max_ps(a.0, a.1)) }
    }
    #[inline(always)]
    fn widen_f16(self, x: &[u16; LANES]) -> Pair {
        // SAFETY: `self` proves that the processor has the features; 16 halves stand at `x`.
        unsafe {
            let at = x.as_ptr().cast::<__m128i>();
            (_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))))
        }
    }
    #[inline(always)]
    fn narrow_f16(self, a: Pair) -> [u16; LANES] {
        let mut out = [0; LANES];
        // SAFETY: `self` proves that the processor has the features; there is room for 16 halves at `out`.
        unsafe {
            let at = out.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(at, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a.0));
            _mm_storeu_si128(at.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a.1));
        }
        out
    }
    #[inline(always)]
    fn widen_i8(self, x: &[i8; LANES]) -> Pair {
        // SAFETY: `self` proves that the processor has the features; 16 bytes stand at `x`.
        unsafe {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            (
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))),
            )
        }
    }
    #[inline(always)]
    fn narrow_i8(self, a: Pair) -> [i8; LANES] {
        let mut out = [0; LANES];
        // SAFETY: `self` proves that the processor has the features; there is room for 16 bytes at `out`.
        unsafe {
            // Packing works on halves of 128 bits: their middle quarters change places first.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(a.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }
    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        // SAFETY: `self` proves that the processor has the features.
        [unsafe { _mm256_setzero_pd() }; 4]
    }
    #[inline(always)]
    fn add_square(self, acc: Self::D, a: Pair) -> Self::D {
        #[inline(always)]
        fn quarter(_: Avx2, acc: __m256d, x: __m128) -> __m256d {
            // SAFETY: the first argument proves that the processor has the features.
            unsafe {
                let x = _mm256_cvtps_pd(x);
                _mm256_fmadd_pd(x, x, acc)
            }
        }
        // SAFETY: `self` proves that the processor has the features.
        let (b, d) = unsafe { (_mm256_extractf128_ps::<1>(a.0), _mm256_extractf128_ps::<1>(a.1)) };
        // SAFETY: as above.
        let (a, c) = unsafe { (_mm256_castps256_ps128(a.0), _mm256_castps256_ps128(a.1)) };
        [quarter(self, acc[0], a), quarter(self, acc[1], b), quarter(self, acc[2], c), quarter(self, acc[3], d)]
    }
    #[inline(always)]
    fn store_f64(self, a: Self::D) -> [f64; LANES] {
        let mut out = [0.0; LANES];
        for (to, quarter) in out.as_chunks_mut::<4>().0.iter_mut().zip(a) {
            // SAFETY: `self` proves that the processor has the features; there is room for 4 doubles at `to`.
            unsafe { _mm256_storeu_pd(to.as_mut_ptr(), quarter) };
        }
        out
    }
    #[inline(always)]
    fn prefetch(self, x: *const u8) {
        // SAFETY: every x86-64 processor has SSE; a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) };
    }
}
