//! Exact CPU kernels for transformers.
//!
//! Every function here has one result, bit for bit, whatever the instruction set, the number of threads and the rows that
//! share a call. Sums run in an order that is written down; no sum crosses the lanes of a vector unless over a fixed
//! tree that the scalar path follows as well.
//!
//! - [`float`]: norms, rotations, activations. [`attention`]: queries over pages of keys and values.
//! - [`isa`]: which paths this machine has. [`limits`]: how fast it can be at best.
//! - [`pool`]: the threads the work is spread over.
//! - [`product`]: rows times packed weight matrices.
//!
//! The crate knows nothing of models or files. It is the only one in the workspace with `unsafe` code.

pub mod attention;
pub mod float;
pub mod isa;
pub mod limits;
pub mod memory;
pub mod pool;
pub mod product;

pub use isa::Isa;
pub use pool::{MAX_THREADS, Pool};
pub use product::{Activations, Counts, Forms, PackError, PackedMatrix, WeightType, dequantize, kernels_run, matmul};
