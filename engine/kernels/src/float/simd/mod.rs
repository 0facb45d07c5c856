//! Sixteen lanes of `f32`, the same on every instruction set.
//!
//! A kernel is written once, generic over [`Simd`], and run through [`dispatch`]. Every operation here is defined lane
//! by lane by its scalar form in [`scalar`]; the few that join lanes use one fixed tree. So all instruction sets give
//! the same bits, as long as no NaN is involved (whose payload is not defined).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

pub(crate) use scalar::{One, Scalar};

use crate::Isa;

/// Lanes of a [`Simd`] register.
pub(crate) const LANES: usize = 16;

/// Arithmetic on `f32` lanes. Each operation rounds once, to nearest even, and keeps subnormals.
pub(crate) trait Arith: Copy {
    /// One or more lanes.
    type F: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: of two zeros and of a NaN and a number, the second.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? x : y`.
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// The magnitude of `a` (which must not be negative) with the sign of `b`.
    fn with_sign(self, a: Self::F, b: Self::F) -> Self::F;
    /// `p · 2^n`, rounded once, for `p` in 0.5..2 and whole `n` in −152..=129.
    fn scale_by_power(self, p: Self::F, n: Self::F) -> Self::F;
}

/// Sixteen lanes, with what moves, joins and converts them.
pub(crate) trait Simd: Arith {
    /// Sixteen lanes of `f64`.
    type D: Copy;
    /// Sums that stay in registers beside what is added to them.
    const SUMS: usize;

    /// Runs a part of a kernel as a function of its own: compiled once, wherever it is called from.
    fn call<K: Kernel>(self, part: K) -> K::Out;

    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, a: Self::F, to: &mut [f32; LANES]);
    /// The sum over the tree: lane i + lane i+8, then +4, +2, +1.
    fn sum(self, a: Self::F) -> f32;
    /// The greatest lane, over the tree of [`Simd::sum`].
    fn greatest(self, a: Self::F) -> f32;
    /// IEEE half precision to single: exact.
    fn widen_f16(self, x: &[u16; LANES]) -> Self::F;
    /// Single to half precision, to nearest even.
    fn narrow_f16(self, a: Self::F) -> [u16; LANES];
    /// Whole numbers as `f32`: exact.
    fn widen_i8(self, x: &[i8; LANES]) -> Self::F;
    /// The nearest whole number, ties to even, for lanes in ±127.
    fn narrow_i8(self, a: Self::F) -> [i8; LANES];
    fn zero_f64(self) -> Self::D;
    /// `acc + a²` in `f64`: the square is exact, the sum rounds once.
    fn add_square(self, acc: Self::D, a: Self::F) -> Self::D;
    fn store_f64(self, a: Self::D) -> [f64; LANES];
    /// Asks for the cache line at an address, whatever it is; changes nothing.
    fn prefetch(self, x: *const u8);
}

/// A kernel, to be run on one instruction set by [`dispatch`]. `run` and what it calls are `#[inline(always)]`: only
/// then are they compiled with the instructions of `S`. A part that is called from several places goes through
/// [`Simd::call`].
pub(crate) trait Kernel {
    type Out;
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs `kernel` on `isa`.
///
/// # Panics
/// Where this processor lacks `isa`.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    match isa {
        Isa::Scalar => kernel.run(Scalar),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => match avx2::Avx2::new() {
            Some(s) => s.call(kernel),
            None => missing(isa),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => match avx512::Avx512::new() {
            Some(s) => s.call(kernel),
            None => missing(isa),
        },
        #[cfg(not(target_arch = "x86_64"))]
        _ => missing(isa),
    }
}

#[cold]
#[allow(clippy::panic, reason = "an instruction set is the program's choice, made with Isa::available")]
fn missing(isa: Isa) -> ! {
    panic!("this processor has no {isa:?}")
}
