//! Rows times packed weight matrices.
//!
//! # What a product is, bit for bit
//!
//! For plain floats (F16, BF16, F32; exact in f32), with `x` the row of activations and `acc` starting at +0:
//!
//! ```text
//! for k in 0..inputs:  acc = fma(w[k], x[k], acc)
//! ```
//!
//! For every quantised type the row is first turned into blocks of codes `a` with a scale `da` ([`Activations`] says how),
//! a block for each of the type's sub-blocks. `code` is what the file holds for a weight as an unsigned number (Q8_0: plus
//! 128), `zero` the code that stands for zero. Sums of codes are exact in i32, and exact again as f32 (below 2²⁴), so their
//! order does not matter; the rest is f32, each operation rounded once:
//!
//! ```text
//! isum = Σ (code[k] − zero) · a[k]                   // i32, of a sub-block
//!
//! for each sub-block, in order:                      // the K types
//!   acc  = fma(isum, dw · da, acc)
//!   acc  = fma(mw, da · Σ a[k], acc)                 // types with a minimum
//!
//! for each block of two sub-blocks 0 and 1:          // the others, which have one `dw` and `mw` for both
//!   acc  = fma(mw, da₀ · Σ a₀[k], acc)               // types with a minimum
//!   acc  = fma(fma(isum₁, da₁, isum₀ · da₀), dw, acc)
//!   acc  = fma(mw, da₁ · Σ a₁[k], acc)               // types with a minimum
//! ```
//!
//! | type | zero | inputs of a sub-block | `dw` | `mw` |
//! |---|---|---|---|---|
//! | Q4_0, Q5_0, Q8_0 | 8, 16, 128 | 16 | `d` | |
//! | Q4_1, Q5_1 | 0 | 16 | `d` | `m` |
//! | Q4_K, Q5_K | 0 | 32 | `d · scale` | `−dmin · min` |
//! | Q2_K | 0 | 16 | `d · scale` | `−dmin · min` |
//! | Q3_K, Q6_K | 4, 32 | 16 | `d · scale` | |
//!
//! `dw` and `mw` are exact in f32 (11 bits times at most 8). One lane of a vector holds one output, so that no path ever
//! sums across lanes, and each output's chain is the same in the scalar path, AVX2, AVX-512 and AMX, for one row as for
//! many.
//!
//! **Error.** With `n` blocks, the result is off from `Σ w·x` by at most `Σ |w| · da/2` for the rounding of the
//! activations (plus a relative 2⁻²² of `Σ |w|·|x|` for the rounding of their scales) and `γ · Σ |terms|` with
//! `γ = (2n·subs + 2) · 2⁻²⁴` for the sums, the terms being the products in the chain above. Not a number in a row of
//! activations, or a sum beyond f32, gives NaN or an infinity, as f32 does; which NaN is not defined.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod dequantize;
mod dispatch;
mod floats;
mod format;
mod packed;
mod rows;
mod scales;
mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_avx2;
#[cfg(target_arch = "x86_64")]
mod simd_avx512;
mod simd_scalar;
mod weight;

pub use activations::{Activations, Forms};
pub use dequantize::{DequantizeError, dequantize};
pub use dispatch::{Counts, kernels_run, matmul};
pub use packed::{PackError, PackedMatrix};
pub use weight::WeightType;
#[cfg(test)]
mod tests;
