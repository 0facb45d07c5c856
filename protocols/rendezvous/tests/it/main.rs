//! Frozen bytes, properties, what lengths and numbers may claim, and swarms, those of libp2p's own implementation among them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]

mod numbers;
mod preallocate;
mod prop;
mod swarms;
mod vectors;

use libp2p::{Multiaddr, identity::Keypair};
use quelea_rendezvous::{Form, Record};

fn key(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

fn addr(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

/// The record of the peer of this key, with so many addresses.
fn said(key: &Keypair, addrs: u8) -> Record {
    let addrs = (1..=addrs).map(|n| addr(&format!("/ip4/192.0.2.{n}/tcp/8468"))).collect();
    Record::sign(key, addrs, Form::Rust).unwrap()
}
