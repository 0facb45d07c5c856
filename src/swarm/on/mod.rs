//! One file per source of events; each acts in plain functions on the driver.

pub(super) mod announce;
pub(super) mod conduct;
pub(super) mod connection;
pub(super) mod dht;
pub(super) mod exchange;
pub(super) mod gossip;
pub(super) mod identify;
pub(super) mod kad;
pub(super) mod keep;
pub(super) mod ledger;
pub(super) mod mdns;
pub(super) mod nat;
pub(super) mod peers;
pub(super) mod ping;
pub(super) mod probe;
pub(super) mod record;
pub(super) mod rendezvous;
pub(super) mod service;
pub(super) mod shard;
pub(super) mod weights;
