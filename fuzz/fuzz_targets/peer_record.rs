//! A peer record from the DHT: as it comes, and as the signed body of an envelope, so that runs get past the signature.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libp2p::identity::Keypair;
use quelea_record::{DOMAIN, MAX_ADDRS, MAX_BYTES, MAX_LIFETIME_MS, PeerRecord, peer_key};
use quelea_wire::{NetworkId, envelope::Signed};

const NOW: u64 = 1_800_000_000_000;

fuzz_target!(|data: &[u8]| {
    let network = NetworkId::from_name("main");
    let key = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes");
    let at = peer_key(&key.public().to_peer_id());
    let _ = PeerRecord::open(&at, data, &network, NOW);
    // As a key, too.
    let _ = PeerRecord::open(data, data, &network, NOW);
    let Ok(signed) = Signed::seal(&key, &network, DOMAIN, 1, data) else { return };
    if let Ok(record) = PeerRecord::open(&at, signed.raw(), &network, NOW) {
        assert!(signed.raw().len() <= MAX_BYTES && record.addrs.len() <= MAX_ADDRS);
        let lives = record.expires_ms - record.seq;
        assert!(record.expires_ms > NOW && lives <= MAX_LIFETIME_MS);
        // One record has one encoding.
        let last = record.seq.saturating_sub(1);
        let (_, again) = PeerRecord::sign(&key, &network, &record.addrs, last, 0, lives).expect("it was a record");
        assert!(record.seq == 0 || again == signed.raw());
    }
});
