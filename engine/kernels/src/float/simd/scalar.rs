//! The definition: one lane, and sixteen of them one after the other.

use half::f16;

use super::{Arith, Kernel, LANES, Simd};

/// A single lane.
#[derive(Clone, Copy)]
pub(crate) struct One;

impl Arith for One {
    type F = f32;

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn select_less(self, a: f32, b: f32, x: f32, y: f32) -> f32 {
        if a < b { x } else { y }
    }
    #[inline(always)]
    fn abs(self, a: f32) -> f32 {
        a.abs()
    }
    #[inline(always)]
    fn with_sign(self, a: f32, b: f32) -> f32 {
        a.copysign(b)
    }
    #[inline(always)]
    fn scale_by_power(self, p: f32, n: f32) -> f32 {
        // Halves of n keep both factors normal; the first product is exact, so that only the second rounds.
        let n = n as i32;
        let first = n >> 1;
        let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        p * power(first) * power(n - first)
    }
}

/// Sixteen lanes without vector instructions.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// Applies one operation of [`One`] in every lane.
macro_rules! each {
    ($name:ident ( $($arg:ident),+ )) => {
        #[inline(always)]
        fn $name(self, $($arg: Self::F),+) -> Self::F {
            let mut out = [0.0; LANES];
            for lane in 0..LANES {
                out[lane] = One.$name($($arg[lane]),+);
            }
            out
        }
    };
}

impl Arith for Scalar {
    type F = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    each!(add(a, b));
    each!(sub(a, b));
    each!(mul(a, b));
    each!(div(a, b));
    each!(fma(a, b, c));
    each!(max(a, b));
    each!(min(a, b));
    each!(select_less(a, b, x, y));
    each!(abs(a));
    each!(with_sign(a, b));
    each!(scale_by_power(p, n));
}

impl Simd for Scalar {
    type D = [f64; LANES];
    const SUMS: usize = 1;

    #[inline(always)]
    fn call<K: Kernel>(self, part: K) -> K::Out {
        #[inline(never)]
        fn run<K: Kernel>(s: Scalar, part: K) -> K::Out {
            part.run(s)
        }
        run(self, part)
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, a: Self::F, to: &mut [f32; LANES]) {
        *to = a;
    }
    #[inline(always)]
    fn sum(self, mut a: Self::F) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] += a[i + half];
            }
        }
        a[0]
    }
    #[inline(always)]
    fn greatest(self, mut a: Self::F) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] = One.max(a[i], a[i + half]);
            }
        }
        a[0]
    }
    #[inline(always)]
    fn widen_f16(self, x: &[u16; LANES]) -> Self::F {
        x.map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    fn narrow_f16(self, a: Self::F) -> [u16; LANES] {
        a.map(|a| f16::from_f32(a).to_bits())
    }
    #[inline(always)]
    fn widen_i8(self, x: &[i8; LANES]) -> Self::F {
        x.map(f32::from)
    }
    #[inline(always)]
    fn narrow_i8(self, a: Self::F) -> [i8; LANES] {
        a.map(|a| a.round_ties_even() as i8)
    }
    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        [0.0; LANES]
    }
    #[inline(always)]
    fn add_square(self, mut acc: Self::D, a: Self::F) -> Self::D {
        for lane in 0..LANES {
            // The product of two f32 is exact in f64: fused or not is the same.
            let x = f64::from(a[lane]);
            acc[lane] += x * x;
        }
        acc
    }
    #[inline(always)]
    fn store_f64(self, a: Self::D) -> [f64; LANES] {
        a
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
