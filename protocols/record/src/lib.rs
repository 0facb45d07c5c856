//! The signed values that Quelea keeps in its DHT.
//!
//! A value in a namespace of ours is worth something only when its holder cannot have made it up: it is an
//! [`quelea_wire::envelope`] of whoever the key names, with a sequence number that only grows. Holders check it
//! before they keep it, and those who ask check it again; the highest sequence number wins.
//!
//! There is one kind so far, the [`PeerRecord`]: where a peer can be dialled. It is how a node behind NAT is found by its
//! id, because lookups end at those who serve the DHT, and it does not.
//!
//! ```text
//! key    "/quelea/peer/" ‖ the peer id as text
//! value  envelope, domain "quelea/record/1", kind 1, with the body
//!        seq u64 LE | expires u64 LE (Unix ms) | addresses u8 ≤ 4 | each: length u8 (1 to 128), multiaddr
//! ```
//!
//! Nothing may follow the last address. `seq` is the Unix time of signing in milliseconds, or one more than the last. An
//! address is in its binary form, which is the only one that decodes to it.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use quelea_wire::{
    NetworkId,
    envelope::{self, EnvelopeError, Signed},
    time::MAX_SKEW_MS,
};

/// What the signature covers besides the body.
pub const DOMAIN: &str = "quelea/record/1";

/// Keys of peer records start with this; the peer id follows, as text.
pub const PEER_PREFIX: &str = "/quelea/peer/";

/// The kind of a peer record.
const KIND_PEER: u8 = 1;

/// Addresses of one peer: TCP and QUIC on two networks, or a relayed one on two relays.
pub const MAX_ADDRS: usize = 4;

/// Bytes of one address; a relayed one with two peer ids has some 95.
pub const MAX_ADDR_BYTES: usize = 128;

/// Bytes of a value: the envelope, and 17 + 4 x 129 of body.
pub const MAX_BYTES: usize = envelope::OVERHEAD + 17 + MAX_ADDRS * (1 + MAX_ADDR_BYTES);

/// How long a record may say that it lives, counted from its sequence number. A day, as any value of the DHT.
pub const MAX_LIFETIME_MS: u64 = 24 * 3600 * 1000;

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The key is not that of a peer record.
    #[error("not the key of a peer record")]
    Key,
    /// Signed by somebody else than the key names.
    #[error("signed by another peer than the key names")]
    Signer,
    /// A kind of record that this version does not know.
    #[error("record kind {0} is not known here")]
    Kind(u8),
    /// The body is not in the one form there is.
    #[error("the body is malformed")]
    Body,
    /// Signed in the future, or said to live for longer than a day.
    #[error("its times cannot be right")]
    Times,
    /// No longer valid.
    #[error("expired")]
    Expired,
    /// More addresses than fit, or one that is too long.
    #[error("at most {MAX_ADDRS} addresses of {MAX_ADDR_BYTES} bytes fit into a record")]
    Addresses,
}

/// Where a peer says that it can be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// Who says so.
    pub peer: PeerId,
    /// Higher is newer.
    pub seq: u64,
    /// Until when it is valid, in Unix milliseconds.
    pub expires_ms: u64,
    /// Where, best first.
    pub addrs: Vec<Multiaddr>,
}

/// The key under which `peer`'s record is kept.
#[must_use]
pub fn peer_key(peer: &PeerId) -> Vec<u8> {
    format!("{PEER_PREFIX}{peer}").into_bytes()
}

/// The peer whose record has this key; `None` for every other key, and for other spellings of the id.
#[must_use]
pub fn peer_of_key(key: &[u8]) -> Option<PeerId> {
    let text = std::str::from_utf8(key).ok()?.strip_prefix(PEER_PREFIX)?;
    let peer: PeerId = text.parse().ok()?;
    (peer.to_string() == text).then_some(peer)
}

impl PeerRecord {
    /// Signs a record of our own: valid for `lifetime_ms` from `now_ms`, with a sequence number above `last_seq`. Returns
    /// the value that is put under [`peer_key`].
    ///
    /// # Errors
    /// When the addresses do not fit, or the identity is not Ed25519.
    pub fn sign(
        keypair: &Keypair,
        network: &NetworkId,
        addrs: &[Multiaddr],
        last_seq: u64,
        now_ms: u64,
        lifetime_ms: u64,
    ) -> Result<(Self, Vec<u8>), RecordError> {
        let seq = now_ms.max(last_seq.saturating_add(1));
        let expires_ms = seq.saturating_add(lifetime_ms.min(MAX_LIFETIME_MS));
        let record = Self { peer: keypair.public().to_peer_id(), seq, expires_ms, addrs: addrs.to_vec() };
        let value = Signed::seal(keypair, network, DOMAIN, KIND_PEER, &record.body()?)?;
        Ok((record, value.raw().to_vec()))
    }

    /// Opens the `value` under `key`, and checks everything there is to check at `now_ms`. The cheap checks come first.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn open(key: &[u8], value: &[u8], network: &NetworkId, now_ms: u64) -> Result<Self, RecordError> {
        let peer = peer_of_key(key).ok_or(RecordError::Key)?;
        let signed = Signed::open(value, network, DOMAIN, MAX_BYTES)?;
        if signed.kind != KIND_PEER {
            return Err(RecordError::Kind(signed.kind));
        }
        if signed.signer != peer {
            return Err(RecordError::Signer);
        }
        let record = Self::decode(peer, signed.body())?;
        let lives = record.expires_ms.checked_sub(record.seq).ok_or(RecordError::Times)?;
        if lives > MAX_LIFETIME_MS || record.seq > now_ms.saturating_add(MAX_SKEW_MS) {
            return Err(RecordError::Times);
        }
        if record.expires_ms <= now_ms {
            return Err(RecordError::Expired);
        }
        Ok(record)
    }

    fn body(&self) -> Result<Vec<u8>, RecordError> {
        let count = u8::try_from(self.addrs.len()).ok().filter(|n| usize::from(*n) <= MAX_ADDRS);
        let mut body = Vec::with_capacity(MAX_BYTES);
        body.extend_from_slice(&self.seq.to_le_bytes());
        body.extend_from_slice(&self.expires_ms.to_le_bytes());
        body.push(count.ok_or(RecordError::Addresses)?);
        for addr in &self.addrs {
            let len = u8::try_from(addr.len()).ok().filter(|n| (1..=MAX_ADDR_BYTES).contains(&usize::from(*n)));
            body.push(len.ok_or(RecordError::Addresses)?);
            body.extend_from_slice(addr.as_ref());
        }
        Ok(body)
    }

    fn decode(peer: PeerId, body: &[u8]) -> Result<Self, RecordError> {
        let (seq, rest) = body.split_first_chunk::<8>().ok_or(RecordError::Body)?;
        let (expires, rest) = rest.split_first_chunk::<8>().ok_or(RecordError::Body)?;
        let (&count, mut rest) = rest.split_first().ok_or(RecordError::Body)?;
        if usize::from(count) > MAX_ADDRS {
            return Err(RecordError::Body);
        }
        let mut addrs = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (&len, after) = rest.split_first().ok_or(RecordError::Body)?;
            if !(1..=MAX_ADDR_BYTES).contains(&usize::from(len)) {
                return Err(RecordError::Body);
            }
            let (raw, after) = after.split_at_checked(usize::from(len)).ok_or(RecordError::Body)?;
            let addr = Multiaddr::try_from(raw.to_vec()).map_err(|_| RecordError::Body)?;
            // Parts written in another way than the canonical one (an overlong length) would decode all the same.
            let canonical: Multiaddr = addr.iter().collect();
            if canonical != addr {
                return Err(RecordError::Body);
            }
            addrs.push(addr);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(RecordError::Body);
        }
        let (seq, expires_ms) = (u64::from_le_bytes(*seq), u64::from_le_bytes(*expires));
        Ok(Self { peer, seq, expires_ms, addrs })
    }
}

#[cfg(test)]
mod tests;
