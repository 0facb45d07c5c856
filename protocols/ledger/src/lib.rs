//! The ledger: who owes whom, kept by the two peers themselves.
//!
//! For each pair of peers and unit there are four counters of micro-credits that only grow and have one writer each:
//!
//! | counter | signed by | meaning |
//! |---|---|---|
//! | issued A→B | A, the debtor | all that A ever promised to B |
//! | issued B→A | B | the mirror |
//! | redeemed A→B | B, the creditor | how much of A's promises B says is discharged |
//! | redeemed B→A | A | the mirror |
//!
//! What A owes B is `issued − redeemed` one way less the same the other way. A counter has one writer, so two views are
//! merged by "the newer one"; messages may be lost, repeated or reordered, and nobody has to negotiate a balance. Whoever
//! would gain from hiding a counter never holds the only copy of it.
//!
//! # Parts
//!
//! [`message`] is what is signed, [`packet`] what travels, [`book`] the state machine of one node: no clock, no I/O, no
//! randomness. Its owner feeds it commands, packets and the time, makes the [`book::Write`]s of each step durable in one
//! transaction, and only then sends the [`book::Send`]s. [`behaviour`] carries packets over `/quelea/<net>/ledger/1`, and
//! [`codec`] is how they stand on a stream. [`evidence`] checks proofs against third peers. [`trust`] is
//! what dealings make a peer worth, and how much it may owe. [`overdue`] is what is due, and what follows when it is not paid.
//! [`receipt`] is what a session leaves in the hands of who paid,
//! [`fraud`] what a stage that lied leaves in the hands of who found out.
//!
//! # Messages
//!
//! Bodies of [`quelea_wire::envelope`]s in the domain `quelea/ledger/1`; integers little-endian, a peer as the 38 bytes of
//! an Ed25519 peer id, a hash 32 bytes, a hold's id 16 bytes, an optional hash one byte (0 or 1) and the hash. Nothing
//! follows the last field. At most 1,024 bytes a body.
//!
//! | kind | name | signer | fields |
//! |---|---|---|---|
//! | 1 | Grant | creditor | unit u32, debtor, gseq u64, limit u64, not_after u64 |
//! | 2 | Hold | debtor | unit, creditor, hold id, max u64, job hash, expires_at u64, due_days u16 |
//! | 3 | Result | creditor | hold id, price u64, result hash, lock? |
//! | 4 | Note | debtor | unit, creditor, seq u64, previous hash, issued u64, delta u64, hold id (or zeros), job hash, result hash, due_at u64, lock? |
//! | 5 | Ack | creditor | note hash, seq u64, preimage? |
//! | 6 | Void | either | hold id, reason u8 |
//! | 7 | Redeem | creditor | unit, debtor, seq u64, previous hash, redeemed u64, delta u64, note seq seen u64, method u8, reference |
//! | 8 | RedeemRequest | creditor | unit, debtor, amount u64, deadline u64, nonce u64 |
//! | 9 | Evidence | any | two envelopes, each u16 length and bytes |
//! | 10 | DefaultClaim | creditor | unit, debtor, overdue u64, as_of u64, redeem seq seen u64, note, ack |
//! | 11 | Voucher | debtor | hold id, epoch u32, cumulative u64 |
//!
//! Times are Unix milliseconds. `seq` is `max(previous + 1, now)`: a node that was restored from an old backup never signs
//! another content under a number that it has used.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod behaviour;
pub mod book;
pub mod codec;
pub mod evidence;
mod fields;
pub mod fraud;
pub mod message;
pub mod overdue;
pub mod packet;
mod queue;
pub mod receipt;
#[cfg(test)]
mod sim;
pub mod trust;

pub use fields::{DecodeError, Hash, HoldId, Nonce, PEER_BYTES, Raw, Unit};
