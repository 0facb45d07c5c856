//! In the simulator a signature is a table entry: ten thousand runs sign and check some ten million times.
//!
//! What was signed here is known here; everything else goes the ordinary way, and fails.

use std::{cell::RefCell, collections::HashMap};

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::NetworkId;

use crate::message::{Message, SignedMessage};

thread_local! {
    static KNOWN: RefCell<Option<HashMap<Vec<u8>, SignedMessage>>> = const { RefCell::new(None) };
}

/// From now on signatures on this thread are table entries.
pub(crate) fn begin() {
    KNOWN.with(|known| *known.borrow_mut() = Some(HashMap::new()));
}

pub(crate) fn made(keypair: &Keypair, network: &NetworkId, message: &Message, body: &[u8]) -> Option<SignedMessage> {
    KNOWN.with(|known| {
        let mut known = known.borrow_mut();
        let known = known.as_mut()?;
        let signer: PeerId = keypair.public().to_peer_id();
        let raw = [&[message.kind()], signer.to_bytes().as_slice(), body].concat();
        let signed = SignedMessage::of((signer, &raw, body), network, message.clone()).ok()?;
        known.insert(raw, signed.clone());
        Some(signed)
    })
}

pub(crate) fn known(raw: &[u8]) -> Option<SignedMessage> {
    KNOWN.with(|known| known.borrow().as_ref()?.get(raw).cloned())
}
