//! Bytes have one form, and nothing else is read.

use libp2p::identity::Keypair;
use proptest::prelude::*;
use quelea_ledger::{
    DecodeError, Hash, HoldId, Nonce, Raw, Unit,
    message::{Grant, MAX_ENVELOPE, MessageError, SignedMessage},
    packet::{Content, Head, MAX_HOLDS, MAX_PACKET, MAX_VOUCHERS, Packet, Sync},
};
use quelea_wire::{
    NetworkId,
    envelope::{EnvelopeError, Signed},
};

use crate::samples::{all, keypair, network, peer, signed};

#[test]
fn a_body_that_ends_early_or_late_is_refused() {
    for (name, message) in all() {
        let kind = message.kind();
        let raw = signed(1, message).raw().0;
        let body =
            Signed::open(&raw, &network(), quelea_ledger::message::DOMAIN, MAX_ENVELOPE).unwrap().body().to_vec();
        let mut others: Vec<Vec<u8>> = (0..body.len()).map(|end| body[..end].to_vec()).collect();
        others.push([body.as_slice(), &[0]].concat());
        for other in others {
            let sealed = Signed::seal(&keypair(1), &network(), quelea_ledger::message::DOMAIN, kind, &other).unwrap();
            let opened = SignedMessage::open(sealed.raw(), &network());
            assert!(matches!(opened, Err(MessageError::Decode(_))), "{name} of {} bytes: {opened:?}", other.len());
        }
    }
}

#[test]
fn every_bit_counts() {
    for (name, message) in all() {
        let raw = signed(1, message).raw().0;
        for bit in 0..raw.len() * 8 {
            let mut other = raw.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedMessage::open(&other, &network()).is_err(), "{name}: bit {bit}");
        }
    }
}

#[test]
fn a_signature_holds_in_its_network_for_its_kind_and_in_its_domain() {
    let (_, grant) = all().swap_remove(0);
    let raw = signed(1, grant.clone()).raw().0;
    let elsewhere = SignedMessage::open(&raw, &NetworkId::from_name("another"));
    assert_eq!(elsewhere, Err(MessageError::Envelope(EnvelopeError::Signature)));
    let body = Signed::open(&raw, &network(), quelea_ledger::message::DOMAIN, MAX_ENVELOPE).unwrap().body().to_vec();
    let foreign = Signed::seal(&keypair(1), &network(), "quelea/announce/1", grant.kind(), &body).unwrap();
    assert_eq!(SignedMessage::open(foreign.raw(), &network()), Err(MessageError::Envelope(EnvelopeError::Signature)));
    let unknown = Signed::seal(&keypair(1), &network(), quelea_ledger::message::DOMAIN, 12, &body).unwrap();
    let opened = SignedMessage::open(unknown.raw(), &network());
    assert_eq!(opened, Err(MessageError::Decode(DecodeError::Kind(12))));
}

#[test]
fn nobody_has_an_account_with_himself_and_only_ed25519_has_one() {
    let own = Grant { unit: Unit::CREDIT, debtor: peer(1), gseq: 0, limit: 0, not_after: 0 };
    assert_eq!(SignedMessage::sign(&keypair(1), &network(), own), Err(MessageError::OwnAccount));
    let stranger = libp2p::PeerId::random();
    let to = Grant { unit: Unit::CREDIT, debtor: stranger, gseq: 0, limit: 0, not_after: 0 };
    // Encodes to something; reads as nothing.
    let sealed = SignedMessage::sign(&keypair(1), &network(), to);
    assert!(sealed.is_err() || SignedMessage::open(&sealed.unwrap().raw().0, &network()).is_err());
    assert!(SignedMessage::sign(&Keypair::generate_ed25519(), &network(), all().swap_remove(1).1).is_ok());
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_kept() {
    let sync = Sync {
        unit: Unit::CREDIT,
        notes: Head::NONE,
        redeems: Head::NONE,
        your_note: None,
        your_redeem: None,
        holds: vec![HoldId([1; 16]); MAX_HOLDS],
        vouchers: vec![Raw(vec![1; 200]); MAX_VOUCHERS],
    };
    let packet = Packet { from: Nonce([1; 16]), to: Nonce([2; 16]), content: Content::Sync(Box::new(sync)) };
    let bytes = packet.encode();
    assert!(bytes.len() <= MAX_PACKET);
    assert_eq!(Packet::decode(&bytes).unwrap(), packet);
    // Behind version, nonces, tag, unit, two heads and two absent envelopes stands the number of holds.
    let holds = 1 + 32 + 1 + 4 + 2 * 48 + 2;
    for (at, value) in [(0, 2), (33, 2), (holds, 65), (holds, 255), (holds + 1 + 64 * 16, 9), (holds - 1, 2)] {
        let mut other = bytes.clone();
        other[at] = value;
        assert!(Packet::decode(&other).is_err(), "{value} at {at}");
    }
    let envelope = |len: u16| [&bytes[..33], &[1], &len.to_le_bytes()[..], &[0; 500]].concat();
    assert!(matches!(Packet::decode(&envelope(MAX_ENVELOPE as u16 + 1)), Err(DecodeError::Field("envelope"))));
    assert!(matches!(Packet::decode(&vec![1; MAX_PACKET + 1]), Err(DecodeError::Long)));
}

fn head() -> impl Strategy<Value = Head> {
    any::<(u64, [u8; 32], u64)>().prop_map(|(seq, hash, total)| Head { seq, hash: Hash(hash), total })
}

fn raw() -> impl Strategy<Value = Raw> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Raw)
}

proptest! {
    #[test]
    fn a_sync_is_read_as_it_was_written(
        (from, to, unit) in any::<([u8; 16], [u8; 16], u32)>(),
        (notes, redeems) in (head(), head()),
        (your_note, your_redeem) in (prop::option::of(raw()), prop::option::of(raw())),
        holds in prop::collection::vec(any::<[u8; 16]>().prop_map(HoldId), 0..=MAX_HOLDS),
        vouchers in prop::collection::vec(raw(), 0..=4),
    ) {
        let sync = Sync { unit: Unit(unit), notes, redeems, your_note, your_redeem, holds, vouchers };
        let packet = Packet { from: Nonce(from), to: Nonce(to), content: Content::Sync(Box::new(sync)) };
        prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
    }

    #[test]
    fn what_is_read_has_that_form(bytes in prop::collection::vec(any::<u8>(), 0..600), start in 0_usize..3) {
        // Random bytes rarely get past the first field; these have a likely beginning.
        let begun = [&[1_u8][..], &[0; 32], &[u8::try_from(start).unwrap()], &bytes].concat();
        for bytes in [bytes, begun] {
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(packet.encode(), bytes.as_slice());
            }
            let _ = SignedMessage::open(&bytes, &network());
        }
    }
}
