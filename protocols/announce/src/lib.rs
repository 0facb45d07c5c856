//! Signed announcements of which layers a peer serves, and the protocol that fetches them.
//!
//! A worker signs an [`Announcement`] (what it holds, how fast, how busy, at what price), keeps it in memory, and hands
//! it to whoever asks over `/quelea/<net>/announce/1`; the same bytes travel by gossip. A coordinator finds workers by the
//! [provider keys](model_key), fetches or hears their announcements, and keeps them in a [`Book`].
//!
//! | module | holds |
//! |---|---|
//! | `message` | the types and their only encoding |
//! | `signed` | signing and checking |
//! | `codec` | one exchange on one stream |
//! | `behaviour` | asking and answering peers |
//! | `book` | what is known of whom, as a pure map |
//! | `keys` | provider keys and topics |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod behaviour;
mod book;
mod codec;
mod keys;
mod message;
mod signed;

pub use behaviour::{Behaviour, Event, FetchError, FetchId, MAX_FETCHES, MAX_STREAMS, PROTOCOL_NAME, TIMEOUT};
pub use book::{Book, Change, DEFAULT_CAPACITY};
pub use keys::{LAYERS_PER_BUCKET, TOPICS, bucket_key, buckets, model_key, topic_index};
pub use message::{
    Announcement, DecodeError, Ends, MAX_ADDR_BYTES, MAX_ADDRS, MAX_LIFETIME_MS, MAX_OFFERS, MAX_RTT, Offer, Reach,
    State,
};
pub use signed::{DOMAIN, MAX_BYTES, SignError, SignedAnnouncement, VerifyError, next_seq};
