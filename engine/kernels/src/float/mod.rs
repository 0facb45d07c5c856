//! Operations on `f32` rows, the same bits on every instruction set.
//!
//! Each function's documentation is its definition: the expression, the order of a sum, where it rounds. `fma` is
//! `a · b + c` rounded once; all else rounds after every operation, to nearest even. Subnormals are kept. Results are
//! defined where no NaN occurs.

mod elementwise;
mod math;
mod norm;
mod rotate;
pub(crate) mod simd;
mod softmax;
pub(crate) mod split;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use elementwise::Softcap;
pub use elementwise::{add, add_bias, add_scaled, gelu_mul, scale, silu_mul, softcap};
pub(crate) use math::exp_lanes;
pub use math::{exp, gelu_tanh, sigmoid, silu, tanh};
pub use norm::rms_norm;
pub use rotate::{Pairing, rotate};
pub use softmax::softmax;
