//! Signed lines of text that every node of a network may hear: what `quelea broadcast` sends.
//!
//! A line travels by gossip on one public topic, in a [signed envelope](quelea_wire::envelope) of domain [`DOMAIN`] and
//! kind 1, so that whoever passes it on cannot put it into another's mouth. The body is
//!
//! ```text
//! sent, Unix milliseconds, u64 LE | text: 1 to 512 bytes of UTF-8
//! ```
//!
//! and nothing else: one text has one encoding. The text is *one* line: control characters (line breaks, escape sequences)
//! are refused, here and by every receiver. What is left may still confuse a terminal (letters that run right to left,
//! zero-width ones): whoever shows a line escapes it.
//!
//! A line is believed for [`LIFETIME_MS`], with [`MAX_SKEW_MS`](quelea_wire::time::MAX_SKEW_MS) for clocks that are off.
//! Within that time receivers remember what they have heard; after it, a replayed line is refused by its date.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod line;

pub use line::{DOMAIN, LIFETIME_MS, LineError, MAX_BYTES, MAX_TEXT, SignedLine};
