//! Frozen bytes, properties, what lengths may claim, a crowd in a simulation, and exchanges between swarms.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]

mod crowd;
mod exchange;
mod numbers;
mod preallocate;
mod prop;
mod vectors;

use libp2p::{Multiaddr, identity::Keypair};
use quelea_exchange::{PeerRecord, SignedRecord};
use quelea_wire::NetworkId;

fn net() -> NetworkId {
    NetworkId::from_name("main")
}

fn key(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

/// What the peer of this key says at this time: `addrs` addresses of its own.
fn said(key: &Keypair, seq: u64, signed_ms: u64, addrs: u16) -> SignedRecord {
    let addr = |n: u16| -> Multiaddr { format!("/ip4/192.0.2.{n}/tcp/8468").parse().unwrap() };
    let record = PeerRecord {
        peer: key.public().to_peer_id(),
        seq,
        signed_ms,
        addrs: (1..=addrs).map(addr).collect(),
        agent: "quelea/0.1.0".into(),
    };
    SignedRecord::sign(key, &net(), record).unwrap()
}
