//! One message of each kind, and who signs them.

use libp2p::{PeerId, identity::Keypair};
use quelea_ledger::{
    Hash, HoldId, Unit,
    message::{
        Ack, DefaultClaim, Evidence, Grant, Hold, JobResult, Message, Note, Redeem, RedeemRequest, SignedMessage, Void,
        Voucher,
    },
};
use quelea_wire::NetworkId;

pub fn network() -> NetworkId {
    NetworkId::from_name("ledger")
}

pub fn keypair(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

pub fn peer(n: u8) -> PeerId {
    keypair(n).public().to_peer_id()
}

pub fn signed(n: u8, message: impl Into<Message>) -> SignedMessage {
    SignedMessage::sign(&keypair(n), &network(), message).unwrap()
}

/// A note of 1 to 2.
pub fn note(seq: u64, prev: Hash, issued: u64, delta: u64) -> Note {
    Note {
        unit: Unit::CREDIT,
        creditor: peer(2),
        seq,
        prev,
        issued,
        delta,
        hold: HoldId([7; 16]),
        job_hash: Hash([8; 32]),
        result_hash: Hash([9; 32]),
        due_at: 1_800_000_000_000,
        lock: Some(Hash([10; 32])),
    }
}

/// A redeem by 1 of what 2 has promised.
pub fn redeem(seq: u64, prev: Hash, redeemed: u64, delta: u64) -> Redeem {
    Redeem {
        unit: Unit::CREDIT,
        debtor: peer(2),
        seq,
        prev,
        redeemed,
        delta,
        note_seq_seen: 5,
        method: 1,
        reference: Hash([11; 32]),
    }
}

/// One of each kind, by name; all signed by 1, about 2.
pub fn all() -> Vec<(&'static str, Message)> {
    let (unit, other, hold) = (Unit::CREDIT, peer(2), HoldId([7; 16]));
    let first = signed(1, note(3, Hash::ZERO, 40, 40));
    let acked = signed(2, Ack { note: first.id(), seq: 3, preimage: Some(Hash([12; 32])) });
    vec![
        ("grant", Grant { unit, debtor: other, gseq: 1, limit: 1_000_000, not_after: 1_800_000_000_000 }.into()),
        (
            "hold",
            Hold {
                unit,
                creditor: other,
                hold,
                max: 250,
                job_hash: Hash([8; 32]),
                expires_at: 1_800_000_000_000,
                due_days: 30,
            }
            .into(),
        ),
        ("result", JobResult { hold, price: 200, result_hash: Hash([9; 32]), lock: None }.into()),
        ("note", note(3, Hash::ZERO, 40, 40).into()),
        ("ack", Ack { note: first.id(), seq: 3, preimage: None }.into()),
        ("void", Void { hold, reason: 1 }.into()),
        ("redeem", redeem(4, Hash([13; 32]), 60, 20).into()),
        ("redeem request", RedeemRequest { unit, debtor: other, amount: 5, deadline: 6, nonce: 7 }.into()),
        ("evidence", Evidence { a: first.raw(), b: signed(1, note(3, Hash::ZERO, 41, 41)).raw() }.into()),
        (
            "default claim",
            DefaultClaim {
                unit,
                debtor: other,
                overdue: 9,
                as_of: 10,
                redeem_seq_seen: 11,
                note: signed(2, Note { creditor: peer(1), ..note(3, Hash::ZERO, 40, 40) }).raw(),
                ack: acked.raw(),
            }
            .into(),
        ),
        ("voucher", Voucher { hold, epoch: 2, cumulative: 128 }.into()),
    ]
}
