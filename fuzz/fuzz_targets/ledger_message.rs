//! Packets and messages of the ledger: as they come, as they stand on a stream, and as the signed body of an envelope, so that
//! runs get past the signature.

#![no_main]

use futures::{executor::block_on, io::Cursor};
use libfuzzer_sys::fuzz_target;
use libp2p::identity::Keypair;
use quelea_ledger::{
    codec::{Answer, Request},
    evidence,
    message::{DOMAIN, MAX_BODY, MAX_ENVELOPE, SignedMessage},
    packet::{Content, MAX_HOLDS, MAX_PACKET, MAX_VOUCHERS, Packet},
};
use quelea_wire::{NetworkId, envelope::Signed};

fuzz_target!(|data: &[u8]| {
    let network = NetworkId::from_name("main");
    if let Ok(packet) = Packet::decode(data) {
        assert!(data.len() <= MAX_PACKET);
        assert_eq!(packet.encode(), data, "one packet has one encoding");
        if let Content::Sync(sync) = &packet.content {
            assert!(sync.holds.len() <= MAX_HOLDS && sync.vouchers.len() <= MAX_VOUCHERS);
        }
    }
    if let Ok(given @ Request::Packet(_)) = block_on(Request::read(&mut Cursor::new(data))) {
        assert!(data.starts_with(&given.encode().expect("it was a packet")), "one request has one encoding");
    }
    if let Ok(given) = block_on(Answer::read(&mut Cursor::new(data))) {
        assert!(data.starts_with(&given.encode()), "one answer has one encoding");
    }
    let _ = SignedMessage::open(data, &network);
    let Some((kind, body)) = data.split_first().filter(|(_, body)| body.len() <= MAX_BODY) else { return };
    let key = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes");
    let Ok(signed) = Signed::seal(&key, &network, DOMAIN, *kind, body) else { return };
    if let Ok(opened) = SignedMessage::open(signed.raw(), &network) {
        assert!(signed.raw().len() <= MAX_ENVELOPE);
        let again = SignedMessage::sign(&key, &network, opened.message.clone()).expect("it was a message");
        assert_eq!(again.raw().0, signed.raw(), "one message has one encoding");
        assert!(evidence::check(signed.raw(), signed.raw(), &network).is_err(), "nobody contradicts himself with one");
    }
});
