//! A commitment of a stage: as it comes, as the signed body of an envelope, and judged by a witness.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libp2p::identity::Keypair;
use quelea_shard::{
    commitment::{Commitment, DOMAIN, Terms, Witness},
    frame::{MAX_COMMITMENT, SessionId},
};
use quelea_wire::{ModelId, NetworkId, Profile, SpanRange, envelope::Signed};

fuzz_target!(|data: &[u8]| {
    let network = NetworkId::from_name("main");
    let key = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes");
    let peer = key.public().to_peer_id();
    let _ = Commitment::open(data, &network);
    let Ok(signed) = Signed::seal(&key, &network, DOMAIN, 1, data) else { return };
    let Ok((signer, of)) = Commitment::open(signed.raw(), &network) else { return };
    assert!(signer == peer && of.rows > of.first && signed.raw().len() <= MAX_COMMITMENT);
    // One commitment has one encoding.
    assert_eq!(of.seal(&key, &network).expect("it was one"), signed.raw());

    let (session, model, span) = (SessionId([0; 16]), ModelId([0; 32]), SpanRange::new(0, 4).expect("a span"));
    let terms = Terms { session, model, profile: Profile::Exact, exact: true, first: of.first % 64, max_rows: 512 };
    let mut witness = Witness::new(terms);
    witness.arrange(1, &[(peer, span)]);
    witness.sent(terms.first, false, &[[1; 32]; 40]);
    let _ = witness.received(terms.first, &[[2; 32]; 40]);
    let ours = Commitment { session, model, span, profile: Profile::Exact, ..of.clone() };
    let ours = Commitment { epoch: 1, first: terms.first, rows: terms.first + of.rows % 41, ..ours };
    for of in [of, ours] {
        let _ = witness.claim(peer, &of, signed.raw());
        if let Some(kept) = witness.latest(&peer) {
            assert!(kept.rows <= terms.first + 40);
        }
    }
});
