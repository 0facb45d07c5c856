//! What a Quelea node is on the network: one composite behaviour, its transports and its policies.
//!
//! [`build_swarm`] makes a swarm from a [`Config`]; [`Behaviour`] says field by field what the node does. Decisions that
//! libp2p leaves to the application stand beside the protocol they belong to, as plain functions that an event loop
//! calls:
//!
//! | module | decides |
//! |---|---|
//! | [`config`] | every limit, with its arithmetic |
//! | [`prefixes`] | how many connections an address range may have, and how fast |
//! | [`inbound`] | who gives way when inbound connections are full, by the rule of [`eviction`] |
//! | [`guard`] | how many signatures and records peers get looked at |
//! | [`conduct`] | how peers behave, as a score that ends in a ban |
//! | [`bans`] | who is banned, until when and why |
//! | [`identify`] | which addresses of a peer are believed |
//! | [`pace`] | how fast messages of a connection are read that cost something where they are read |
//! | [`kad`] | which records and peers are kept; the mode; republishing |
//! | [`store`] | quotas and expiry of what the DHT asks this node to hold |
//! | [`scope`] | which addresses a peer may have us dial |
//! | [`gossip`] | topics, scores, and which messages are passed on |
//! | [`peers`] | which peers are remembered, and whom to dial |
//! | [`nat`] | relays, AutoNAT, UPnP, mDNS; the kind of NAT |
//! | [`probe`] | pings on demand |
//! | `muxing` | how fast a connection is read whose streams are not |
//! | [`masking`] | what is left when everything goes through a web server |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod bans;
pub mod conduct;
pub mod config;
mod delay;
pub mod eviction;
pub mod gossip;
pub mod guard;
mod handshakes;
pub mod identify;
pub mod inbound;
pub mod kad;
pub mod masking;
mod muxing;
pub mod nat;
mod nearby;
#[allow(missing_docs, reason = "the derive's event enum cannot carry docs; every field of the struct has them")]
mod node;
pub mod pace;
pub mod peers;
pub mod prefixes;
pub mod probe;
pub mod scope;
pub mod store;
mod swarm;
pub mod traffic;

pub use config::{Config, KadMode, Limits, MemoryLimit, RelayServer};
pub use node::{Behaviour, BehaviourEvent};
pub use swarm::{BuildError, build_masked_swarm, build_memory_swarm, build_swarm};
