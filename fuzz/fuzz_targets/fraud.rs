//! Fraud claims: as they come, and as the signed body of one with tokens behind it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libp2p::identity::Keypair;
use quelea_ledger::fraud::{DOMAIN, FraudClaim, MAGIC, MAX_FILE, MAX_TOKENS};
use quelea_wire::{NetworkId, envelope::Signed};

fuzz_target!(|data: &[u8]| {
    let network = NetworkId::from_name("main");
    let key = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes");
    let check = |file: &[u8]| {
        if let Ok(claim) = FraudClaim::open(file) {
            assert!(file.len() <= MAX_FILE && claim.tokens.len() <= MAX_TOKENS);
            assert_eq!(claim.tokens.len(), claim.committed.rows as usize, "a token for each row");
            assert_eq!(claim.committed.first, 0);
        }
    };
    check(data);
    let (body, tokens) = data.split_at(data.len().min(280));
    if let Ok(signed) = Signed::seal(&key, &network, DOMAIN, 1, body) {
        check(&[MAGIC, &network.0, signed.raw(), tokens].concat());
    }
});
