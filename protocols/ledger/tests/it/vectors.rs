//! Frozen bytes: whoever changes them speaks another protocol.

use quelea_ledger::{
    Hash, HoldId, Nonce, Unit,
    message::SignedMessage,
    packet::{Content, Head, Packet, Sync},
};

use crate::samples::{all, network, note, signed};

/// Name, id and envelope of each message, and of a packet of each sort its bytes.
const FROZEN: &str = include_str!("../data/vectors.txt");

fn sync() -> Packet {
    let (mine, theirs) = (signed(1, note(3, Hash::ZERO, 40, 40)), signed(2, all()[10].1.clone()));
    let sync = Sync {
        unit: Unit::CREDIT,
        notes: Head { seq: 3, hash: mine.id(), total: 40 },
        redeems: Head::NONE,
        your_note: Some(mine.raw()),
        your_redeem: None,
        holds: vec![HoldId([7; 16]), HoldId([8; 16])],
        vouchers: vec![theirs.raw()],
    };
    Packet { from: Nonce([1; 16]), to: Nonce([2; 16]), content: Content::Sync(Box::new(sync)) }
}

fn now() -> String {
    let mut lines = String::new();
    for (name, message) in all() {
        let signed = signed(1, message);
        lines += &format!("{name}: {} {}\n", hex::encode(signed.id().0), hex::encode(signed.raw().0));
    }
    let carried = signed(1, all()[0].1.clone()).raw();
    let packet = Packet { from: Nonce([1; 16]), to: Nonce::default(), content: Content::Signed(carried) };
    lines += &format!("packet: {}\nsync: {}\n", hex::encode(packet.encode()), hex::encode(sync().encode()));
    lines
}

#[test]
fn the_bytes_are_what_they_were() {
    for (frozen, now) in FROZEN.lines().zip(now().lines()) {
        assert_eq!(frozen, now);
    }
    assert_eq!(FROZEN, now());
}

#[test]
fn what_was_written_then_is_read_now() {
    for ((name, message), line) in all().into_iter().zip(FROZEN.lines()) {
        let raw = hex::decode(line.rsplit(' ').next().unwrap()).unwrap();
        let opened = SignedMessage::open(&raw, &network()).unwrap();
        assert_eq!((opened.message.clone(), opened.raw().0.as_slice()), (message, raw.as_slice()), "{name}");
    }
    assert_eq!(Packet::decode(&sync().encode()).unwrap(), sync());
}
