//! Receipts: as they come, as the signed body of one, and as the signed body of a stage's part.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libp2p::identity::Keypair;
use quelea_ledger::receipt::{DOMAIN, MAX_FILE, MAX_PART, Part, Receipt, verify};
use quelea_wire::{NetworkId, envelope::Signed};

fuzz_target!(|data: &[u8]| {
    let network = NetworkId::from_name("main");
    let key = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes");
    let _ = verify(data);
    let _ = Part::open(data, &network);
    if let Ok(signed) = Signed::seal(&key, &network, DOMAIN, 1, data)
        && let Ok((_, part)) = Part::open(signed.raw(), &network)
    {
        assert!(signed.raw().len() <= MAX_PART);
        assert_eq!(part.seal(&key, &network).expect("it was one"), signed.raw(), "one part has one encoding");
    }
    if let Ok(signed) = Signed::seal(&key, &network, DOMAIN, 2, data) {
        let file = [&b"quelea receipt 1\n"[..], &network.0, signed.raw()].concat();
        assert!(file.len() <= MAX_FILE);
        if let Ok(receipt) = Receipt::open(&file) {
            let report = receipt.verify();
            // Whatever adds up is written again as it was.
            if let Ok(again) = Receipt::seal(&key, &network, receipt.about, receipt.entries, receipt.lost)
                && report.holds()
            {
                assert_eq!(again, file, "one receipt has one encoding");
            }
        }
    }
});
