//! libp2p's rendezvous, `/rendezvous/1.0.0`: peers tell a known point where they are, and ask it for others.
//!
//! A **point** keeps signed records of peers by namespace for a time; a **client** registers its own under the namespace of
//! its network ([`namespace`]) at each point it was told of, and asks it for those of others. The messages are libp2p's, so
//! that points and clients of other implementations serve; docs/adr/0017 says why the code is not.
//!
//! | module | holds |
//! |---|---|
//! | `pb` | the part of protobuf that the messages use |
//! | `message` | requests and answers as bytes |
//! | `record` | libp2p's signed peer record |
//! | `codec` | the same for libp2p's request-response |
//! | `registry` | what a point holds, and for how long: a pure machine |
//! | `points` | which point to ask for what, and when: a pure machine |
//! | `behaviour` | both machines on a swarm |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod behaviour;
mod codec;
mod message;
mod own;
mod pb;
mod points;
mod record;
mod registry;

use libp2p::StreamProtocol;
use quelea_wire::NetworkId;

pub use behaviour::{Behaviour, Config, Event, Failure, MAX_STREAMS, Reach, Served, TIMEOUT};
pub use message::{
    Answer, Listed, MAX_COOKIE_BYTES, MAX_LISTED, MAX_NAMESPACE_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES,
    MessageError, Request, Status,
};
pub use points::{Ask, MAX_PAGES, MAX_POINTS, Point, Points, ROUND, SILENCE_MAX};
pub use record::{Form, MAX_ADDR_BYTES, MAX_ADDRS, MAX_RECORD_BYTES, Record, RecordError};
pub use registry::{MAX_PER_GROUP, MAX_PER_PEER, MAX_REGISTRATIONS, MAX_TTL, Registry};

/// The protocol, shared with every network of libp2p.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/rendezvous/1.0.0");

/// Under what the peers of a network register: what the protocol would be called if it were ours.
#[must_use]
pub fn namespace(network: &NetworkId) -> String {
    network.protocol("rendezvous", 1).to_string()
}
