//! The weights protocol `/quelea/<net>/weights/1`: a model's tensors from peer to peer, in chunks that the receiver checks.
//!
//! Whoever holds some of a model answers three questions, each on a stream of its own:
//!
//! | question | answer |
//! |---|---|
//! | *outline* of a model, from a byte on | at most 1 MiB of what is needed to name and check its chunks; the model's id follows from it |
//! | which chunks do you *have*? | a bitmap |
//! | give me these *chunks* | their bytes, together at most 1 MiB |
//!
//! What a chunk is and how it is checked is the engine's (`quelea_engine::outline`): here are numbers and bytes. Nobody is
//! believed: the outline is checked against the model's id, and each chunk against the outline, before anything is kept.
//!
//! # Bytes
//!
//! Little-endian throughout.
//!
//! ```text
//! request: version u8 = 1 | kind u8 | model [32] | by kind
//!          1 outline  offset u32
//!          2 have
//!          3 chunks   first u32 | count u16 (1..=256)
//! answer:  status u8 | by status
//!          0 unknown  nothing of this model is here
//!          1 busy     retry_ms u32 (the receiver waits between 50 and 10,000)
//!          2 outline  total u32 (at most 64 MiB) | len u32 (1..=1 MiB) | bytes
//!          3 have     chunks u32 (at most 4,194,304) | bitmap, one bit a chunk, lowest bit first, spare bits zero
//!          4 chunks   len u32 (1..=1 MiB) | bytes
//!          5 missing  one of the chunks is not here
//! ```
//!
//! Providers are found in the DHT under [`weights_key`]: also those that serve no layers.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod behaviour;
mod codec;
mod message;

use quelea_wire::ModelId;

pub use self::{
    behaviour::{
        AskError, AskId, Behaviour, Event, GLOBAL_RATE, MAX_ASKS, MAX_WAITING, PEER_RATE, PROTOCOL_NAME, ReplyId,
        TIMEOUT,
    },
    message::{Answer, Bitmap, MAX_BYTES, MAX_CHUNKS, MAX_OUTLINE, MAX_RUN, Question, Request},
};

const PREFIX: &[u8] = b"/quelea/weights/";

/// The provider key of everyone who has some of a model's weights: `/quelea/weights/` and the 32 bytes of the id.
#[must_use]
pub fn weights_key(model: &ModelId) -> Vec<u8> {
    [PREFIX, &model.0].concat()
}
