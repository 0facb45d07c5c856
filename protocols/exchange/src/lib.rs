//! Peers tell each other of peers, over `/quelea/<net>/exchange/1`.
//!
//! A node asks its neighbours in turn: it sends a [`Filter`] of the peers whose records it has, and gets back signed
//! [`PeerRecord`]s that are not in it, those most trusted first. Each record says where a peer can be dialled and was
//! signed by that peer within the last hour; it is passed on at most three times. The [`Exchanger`] decides whom to ask,
//! when, and what to answer, without a clock and without a socket; [`Behaviour`] drives it on a swarm.
//!
//! | module | holds |
//! |---|---|
//! | `filter` | the Bloom filter and its wire form |
//! | `record` | the signed record |
//! | `message` | one exchange on one stream, as bytes |
//! | `codec` | the same for libp2p's request-response |
//! | `exchanger` | whom to ask, when, and what to answer: a pure machine |
//! | `records` | the records held: bounded, shared out among those who told them |
//! | `behaviour` | the machine on a swarm |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod behaviour;
mod codec;
mod exchanger;
mod filter;
mod message;
mod record;
mod records;

pub use behaviour::{Behaviour, Config, Event, MAX_STREAMS, PROTOCOL_NAME, Reach, SilentReason, TIMEOUT};
pub use exchanger::{ASKS_PER_ROUND, Ask, Exchanger, MAX_PARTNERS, Now, ROUND, SILENCE_MAX};
pub use filter::{Filter, FilterError, HASHES, MAX_BITS, MAX_KEYS, MIN_BITS};
pub use message::{Answer, Entry, MAX_RECORDS, MAX_RESPONSE_BYTES, RawEntry, Request, Response};
pub use record::{
    DOMAIN, MAX_ADDR_BYTES, MAX_ADDRS, MAX_AGE_MS, MAX_AGENT_BYTES, MAX_RECORD_BYTES, PeerRecord, RecordError,
    SignError, SignedRecord, VerifyError,
};
pub use records::{Held, MAX_HELD, MAX_PER_TELLER, MAX_TTL};
