//! Quantisation: from floats to ggml's block formats.

mod mix;

pub use mix::{Facts, Mix};
