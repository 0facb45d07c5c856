//! What Quelea's protocols share: network names, model ids, layer ranges, signed envelopes, instants, error codes, and
//! the limits in front of them.
//!
//! Nothing here opens a stream. It is the vocabulary that `announce`, `shard` and the ledger have in common, so that a
//! model id or an error number means the same thing on every protocol.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod envelope;
mod error_code;
mod ids;
pub mod prefix;
mod price;
pub mod rate;
mod span;
pub mod time;
mod trace;

pub use error_code::{ErrorCode, UnknownErrorCode};
pub use ids::{ModelId, NetworkId, ParseIdError, Profile};
pub use price::{Credits, ParseCreditsError, Price, WorkedRows};
pub use span::{MAX_LAYERS, SpanError, SpanRange};
pub use trace::{NotATraceParent, TraceParent};
