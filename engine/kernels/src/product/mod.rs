//! Rows times packed weight matrices.

mod weight;

pub use weight::WeightType;
