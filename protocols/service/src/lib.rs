//! The service protocol `/quelea/<net>/service/1`: small pieces of work that one peer does for another, one stream a call.
//!
//! A *service* has a name, a version and a price. A peer that offers some answers two kinds of questions, each on a stream of
//! its own:
//!
//! | question | answers |
//! |---|---|
//! | *list*: what do you offer? (all, or one name) | one list |
//! | *call*: do this | *accepted*, any number of *progress*, then one *result* or one *error* |
//!
//! Whoever calls chooses the call's id. A call that is repeated with the same id and the same content is the same call: it is
//! answered with what is kept of it, or waits for what is running, and is paid once. A call that costs something names a hold,
//! which the caller has taken out at the provider in the ledger's protocol for exactly this call (see [`job_hash`]). The provider
//! works, says what it asks (at most the hold's maximum), and gets one note. A call that fails costs nothing, but for one that
//! used up what it may use ([`ErrorCode::ServiceExhausted`](quelea_wire::ErrorCode::ServiceExhausted)).
//!
//! A call ends early when its caller sends *cancel*, or resets or closes the stream.
//!
//! # Bytes
//!
//! Little-endian throughout. A frame is `len u32 | kind u8 | body [len]`; each kind has its own cap on `len`, checked before
//! anything is read of the body, and every body is read to its last byte.
//!
//! ```text
//! caller → provider
//!    1 call      version u8 = 1 | id [16] | hold [16], zero for none | price u64 | remaining_ms u32 | service version u16, 0 for any
//!                | name len u8 | name | input (the rest, at most 1 MiB)
//!    2 list      version u8 = 1 | name len u8, 0 for all | name
//!    3 cancel    (nothing)
//! provider → caller
//!   16 accepted  service version u16 | price u64
//!   17 progress  (bytes, at most 16 KiB)
//!   18 result    amount u64 | output (the rest, at most 1 MiB)
//!   19 error     code u16 | amount u64 | retry_ms u32 | message (the rest, UTF-8, at most 512 bytes)
//!   20 listed    count u8 (at most 64) | for each: name len u8 | name | version u16 | price u64 | input_max u32 | output_max u32
//!                | deadline_ms u32 | at_once u16 | running u16 | waiting u16 | took_ms u32 | about len u8 | about (UTF-8)
//! ```
//!
//! Amounts are micro-credits. Deadlines travel as what remains of them. Providers of a service are found in the DHT under
//! [`service_key`].

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod behaviour;
mod codec;
mod cursor;
mod handler;
mod message;
mod name;
mod stream;

use libp2p::StreamProtocol;
use quelea_wire::NetworkId;

pub use self::{
    behaviour::{
        Behaviour, Event, GLOBAL_RATE, MAX_INBOUND, MAX_INBOUND_PER_PEER, MAX_OPENING, OpenError, OpenId, PEER_RATE,
    },
    codec::{FrameError, FrameReader, FrameWriter},
    message::{
        Answer, Ask, Call, CallId, Fault, Listed, MAX_ABOUT, MAX_INPUT, MAX_LISTED, MAX_MESSAGE, MAX_OUTPUT,
        MAX_PROGRESS,
    },
    name::{MAX_NAME, Name, NameError},
    stream::ServiceStream,
};

/// The name in `/quelea/<net>/<name>/1`.
pub const PROTOCOL_NAME: &str = "service";

/// The protocol's id on a network.
#[must_use]
pub fn protocol_id(network: &NetworkId) -> StreamProtocol {
    network.protocol(PROTOCOL_NAME, 1)
}

const PREFIX: &[u8] = b"/quelea/service/";

/// The provider key of everyone who offers a service: `/quelea/service/` and its name.
#[must_use]
pub fn service_key(name: &Name) -> Vec<u8> {
    [PREFIX, name.as_str().as_bytes()].concat()
}

/// What a hold for a call is for, and what its note says was done: the call's id, the service, and what goes in. A hold pays for
/// one call and no other.
#[must_use]
pub fn job_hash(id: &CallId, name: &Name, input: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("quelea service job v1");
    hasher.update(&id.0);
    // The name has a length in front, so that it cannot run into what follows.
    hasher.update(&[u8::try_from(name.as_str().len()).unwrap_or(u8::MAX)]);
    hasher.update(name.as_str().as_bytes());
    hasher.update(input);
    *hasher.finalize().as_bytes()
}
