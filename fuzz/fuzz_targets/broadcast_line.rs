//! A broadcast line from a peer: as it comes, and as the signed body of an envelope, so that runs get past the signature.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libp2p::identity::Keypair;
use quelea_broadcast::{DOMAIN, MAX_BYTES, MAX_TEXT, SignedLine};
use quelea_wire::{NetworkId, envelope::Signed};

const NOW: u64 = 1_800_000_000_000;

fuzz_target!(|data: &[u8]| {
    let network = NetworkId::from_name("main");
    let _ = SignedLine::verify(data, &network, NOW);
    let key = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes");
    let Ok(signed) = Signed::seal(&key, &network, DOMAIN, 1, data) else { return };
    if let Ok(line) = SignedLine::verify(signed.raw(), &network, NOW) {
        assert!(signed.raw().len() <= MAX_BYTES);
        assert!((1..=MAX_TEXT).contains(&line.text().len()) && !line.text().chars().any(char::is_control));
        // One text has one encoding.
        let again = SignedLine::sign(&key, &network, line.sent_ms(), line.text()).expect("it was a line");
        assert_eq!(again.raw(), signed.raw());
    }
});
