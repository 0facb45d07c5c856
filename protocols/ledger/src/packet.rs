//! What travels: one packet a request.
//!
//! ```text
//! version u8 = 1 | sender's nonce [16] | receiver's nonce [16] | 0: sync, or 1: envelope u16 length and bytes
//! sync: unit u32 | notes: seq u64, hash, total u64 | redeems: the same | your note? | your redeem? | holds ≤ 64 | vouchers ≤ 8
//! ```
//!
//! The pair of nonces names a session. Only what carries the nonces of the session that both sides have synced is heard.

use std::cmp::Ordering;

use crate::{
    fields::{DecodeError, Hash, HoldId, List, Nonce, Raw, Unit, decode, encode, record},
    message::MAX_ENVELOPE,
};

/// The longest packet: a sync with all its parts has some 3 KiB.
pub const MAX_PACKET: usize = 4096;

/// The most open holds that a sync lists.
pub const MAX_HOLDS: usize = 64;

/// The most vouchers that a sync carries.
pub const MAX_VOUCHERS: usize = 8;

const VERSION: u8 = 1;

/// The kind of a request to pay.
const REDEEM_REQUEST: u8 = 8;

record! {
    /// The newest step of a counter. Zero where there is none.
    pub struct Head {
        /// Its number.
        pub seq: u64,
        /// Its name.
        pub hash: Hash,
        /// The counter, in micro-credits.
        pub total: u64,
    }

    struct SyncFields {
        unit: Unit,
        notes: Head,
        redeems: Head,
        your_note: Option<Raw>,
        your_redeem: Option<Raw>,
        holds: List<HoldId, MAX_HOLDS>,
        vouchers: List<Raw, MAX_VOUCHERS>,
    }

    struct Frame {
        version: u8,
        from: Nonce,
        to: Nonce,
        tag: u8,
    }
}

impl Copy for Head {}

impl Head {
    /// No step yet.
    pub const NONE: Self = Self { seq: 0, hash: Hash::ZERO, total: 0 };
}

/// Where the sender stands, and what it holds of the receiver's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// Of which account.
    pub unit: Unit,
    /// The sender's own newest note.
    pub notes: Head,
    /// The sender's own newest redeem.
    pub redeems: Head,
    /// The receiver's newest note that the sender has.
    pub your_note: Option<Raw>,
    /// The receiver's newest redeem that the sender has.
    pub your_redeem: Option<Raw>,
    /// The receiver's holds that are open at the sender.
    pub holds: Vec<HoldId>,
    /// The receiver's newest vouchers for them.
    pub vouchers: Vec<Raw>,
}

/// What a packet brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The opening of a session.
    Sync(Box<Sync>),
    /// A message of the session.
    Signed(Raw),
}

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The sender's nonce.
    pub from: Nonce,
    /// The receiver's, as the sender last heard it; zero at first.
    pub to: Nonce,
    /// What it brings.
    pub content: Content,
}

/// Whether these are the bytes of a packet with a [`crate::message::RedeemRequest`], of whomever: nothing is checked.
#[must_use]
pub fn asks_to_pay(packet: &[u8]) -> bool {
    // An envelope begins with its version and its kind.
    matches!(Packet::decode(packet), Ok(Packet { content: Content::Signed(raw), .. }) if raw.0.get(1) == Some(&REDEEM_REQUEST))
}

impl Packet {
    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let tag = u8::from(matches!(self.content, Content::Signed(_)));
        let mut out = encode(&Frame { version: VERSION, from: self.from, to: self.to, tag });
        match &self.content {
            Content::Signed(raw) => {
                let sent = raw.0.get(..MAX_ENVELOPE).unwrap_or(&raw.0);
                out.extend(u16::try_from(sent.len()).unwrap_or(0).to_le_bytes());
                out.extend_from_slice(sent);
            }
            Content::Sync(sync) => out.extend(encode(&SyncFields {
                unit: sync.unit,
                notes: sync.notes,
                redeems: sync.redeems,
                your_note: sync.your_note.clone(),
                your_redeem: sync.your_redeem.clone(),
                holds: List(sync.holds.clone()),
                vouchers: List(sync.vouchers.clone()),
            })),
        }
        out
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// When it is longer than [`MAX_PACKET`], of another version, or not in its one form.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_PACKET {
            return Err(DecodeError::Long);
        }
        let (head, rest) = bytes.split_at_checked(34).ok_or(DecodeError::Short)?;
        let Frame { version, from, to, tag } = decode(head)?;
        if version != VERSION {
            return Err(DecodeError::Field("version"));
        }
        let content = match tag {
            0 => {
                let fields: SyncFields = decode(rest)?;
                Content::Sync(Box::new(Sync {
                    unit: fields.unit,
                    notes: fields.notes,
                    redeems: fields.redeems,
                    your_note: fields.your_note,
                    your_redeem: fields.your_redeem,
                    holds: fields.holds.0,
                    vouchers: fields.vouchers.0,
                }))
            }
            1 => Content::Signed(envelope(rest)?),
            other => return Err(DecodeError::Kind(other)),
        };
        Ok(Self { from, to, content })
    }
}

/// An envelope that takes all of `bytes` after its length. It may be as long as any: a proof has two others within it.
fn envelope(bytes: &[u8]) -> Result<Raw, DecodeError> {
    let (length, envelope) = bytes.split_first_chunk::<2>().ok_or(DecodeError::Short)?;
    let length = usize::from(u16::from_le_bytes(*length));
    if length > MAX_ENVELOPE {
        return Err(DecodeError::Field("envelope"));
    }
    match envelope.len().cmp(&length) {
        Ordering::Less => Err(DecodeError::Short),
        Ordering::Equal => Ok(Raw(envelope.to_vec())),
        Ordering::Greater => Err(DecodeError::Long),
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use quelea_wire::NetworkId;

    use super::*;
    use crate::message::{RedeemRequest, SignedMessage, Voucher};

    #[test]
    fn a_request_to_pay_is_known_by_its_bytes() {
        let (keypair, network) = (Keypair::generate_ed25519(), NetworkId::from_name("test"));
        let debtor = Keypair::generate_ed25519().public().to_peer_id();
        let request = RedeemRequest { unit: Unit::CREDIT, debtor, amount: 1, deadline: 2, nonce: 3 };
        let request = SignedMessage::sign(&keypair, &network, request).unwrap();
        let other = Voucher { hold: HoldId([1; 16]), epoch: 0, cumulative: 8 };
        let other = SignedMessage::sign(&keypair, &network, other).unwrap();
        let packet = |raw| Packet { from: Nonce([1; 16]), to: Nonce([2; 16]), content: Content::Signed(raw) }.encode();
        assert!(asks_to_pay(&packet(request.raw())));
        assert!(!asks_to_pay(&packet(other.raw())) && !asks_to_pay(&[]) && !asks_to_pay(&packet(Raw(Vec::new()))));
    }
}
