//! What the library gives besides [`Node`](crate::Node): names, answers and events, in types of its own.
//!
//! No type of libp2p, of an HTTP server or of a runtime's channel is part of it, so that a new version of those is no new
//! version of this. docs/adr/0052 has the reasons.

mod answer;
mod events;
mod names;

pub use self::{
    answer::Answer,
    events::{Events, Followed},
    names::{Address, NotAPeerId, NotAnAddress, PeerId},
};
