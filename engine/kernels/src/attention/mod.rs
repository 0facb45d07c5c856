//! Attention over pages of keys and values.
//!
//! A sequence's keys and values stand in [`KvPage`]s of [`PAGE`] positions each; page i holds positions
//! i·PAGE..(i+1)·PAGE. A query at position p sees keys 0..=p, or with a window w those keys j with p − j < w.
//!
//! # Definition
//! For one query row q and one of its heads, with m = −∞, l = 0 and a vector o = 0 of `head_dim` values, for every page
//! that holds a visible key, in ascending order:
//!
//! ```text
//! for each key j of the page:
//!   d = 0; d = fma(q[i], K[j][i], d) for i = 0, 1, … head_dim − 1          (Q8: K are the codes, then d = d · key scale)
//!   s_j = d · scale; with a soft cap s_j = cap · tanh(s_j · (1 / cap)); s_j = −∞ if the key is not visible
//! m' = max(m, greatest s_j)
//! p_j = exp(s_j − m')
//! c = exp(m − m')
//! l = fma(l, c, sum of p_j over the tree j + (j+16), + (j+8), + (j+4), + (j+2), + (j+1))
//! o = o · c; then for the visible keys j, ascending: o = fma(w_j, V[j], o), w_j = p_j (Q8: V are the codes,
//!     w_j = p_j · value scale)
//! m = m'
//! ```
//!
//! and in the end o / l. A key that is not visible adds exactly nothing, whatever stands in its slot: a row's bits depend
//! on its query, its position, and the visible keys and values alone. exp and tanh are those of [`crate::float`].

mod job;
mod page;
mod tile;

#[cfg(test)]
mod tests;

pub use job::{AttendJob, AttendShape, attend};
pub use page::{KvFormat, KvPage};

/// Positions in a page.
pub const PAGE: usize = 32;
