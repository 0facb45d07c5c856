//! Signed envelopes: how everything that outlives its connection is signed.
//!
//! ```text
//! version u8 = 1 | kind u8 | signer's Ed25519 key [32] | body length u16 LE | body | signature [64]
//! ```
//!
//! The signature covers `domain ‖ 0x00 ‖ network id ‖ kind ‖ body`, so a message of one protocol, network or kind is
//! worthless in another. It is checked with `verify_strict` over the exact bytes received, which are kept and never
//! encoded again. The signer's peer id follows from the key: nothing in the body can claim to be somebody else.

use ed25519_dalek::{Signature, VerifyingKey};
use libp2p::{PeerId, identity::Keypair};

use crate::NetworkId;

/// The only version there is.
const VERSION: u8 = 1;

/// Bytes around the body: version, kind, key, length, signature.
pub const OVERHEAD: usize = 1 + 1 + 32 + 2 + 64;

/// What is wrong with an envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Longer than the caller allows; nothing was read.
    #[error("{len} bytes, but at most {max} are accepted here")]
    TooLarge {
        /// Bytes received.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Ends before its parts do, or goes on after them.
    #[error("the parts do not add up to the length of the message")]
    Length,
    /// A version this node does not speak.
    #[error("envelope version {0} is not known here")]
    Version(u8),
    /// The key is not a point on the curve.
    #[error("not an Ed25519 public key")]
    Key,
    /// The signature is not by that key over these bytes in this domain and network.
    #[error("the signature does not match")]
    Signature,
    /// Signed by somebody else than it must be.
    #[error("signed by somebody else")]
    Signer,
    /// Only Ed25519 identities can sign.
    #[error("this identity is not Ed25519")]
    Identity,
}

/// A message whose signature has been checked (or was made here).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// Who signed.
    pub signer: PeerId,
    /// What kind of message, within its domain.
    pub kind: u8,
    raw: Vec<u8>,
}

impl Signed {
    /// Signs `body`.
    ///
    /// # Errors
    /// When the key is not Ed25519 or the body is longer than 65,535 bytes.
    pub fn seal(
        keypair: &Keypair,
        network: &NetworkId,
        domain: &str,
        kind: u8,
        body: &[u8],
    ) -> Result<Self, EnvelopeError> {
        let key = keypair.public().try_into_ed25519().map_err(|_| EnvelopeError::Identity)?.to_bytes();
        let length = u16::try_from(body.len()).map_err(|_| EnvelopeError::TooLarge { len: body.len(), max: 0xffff })?;
        let signature =
            keypair.sign(&signed_bytes(network, domain, kind, body)).map_err(|_| EnvelopeError::Identity)?;
        let mut raw = Vec::with_capacity(body.len().saturating_add(OVERHEAD));
        raw.push(VERSION);
        raw.push(kind);
        raw.extend_from_slice(&key);
        raw.extend_from_slice(&length.to_le_bytes());
        raw.extend_from_slice(body);
        raw.extend_from_slice(&signature);
        Ok(Self { signer: keypair.public().to_peer_id(), kind, raw })
    }

    /// Checks and opens `raw`, which may be at most `max` bytes long.
    ///
    /// # Errors
    /// When it is too long, malformed, or not signed as it says for this network and domain.
    pub fn open(raw: &[u8], network: &NetworkId, domain: &str, max: usize) -> Result<Self, EnvelopeError> {
        if raw.len() > max {
            return Err(EnvelopeError::TooLarge { len: raw.len(), max });
        }
        let parts = Parts::of(raw)?;
        let key = VerifyingKey::from_bytes(parts.key).map_err(|_| EnvelopeError::Key)?;
        parts.verify(&key, network, domain)?;
        Ok(Self { signer: peer_of(parts.key)?, kind: parts.kind, raw: raw.to_vec() })
    }

    /// The same for what one signer must have signed, whose key is at hand.
    ///
    /// # Errors
    /// As [`Signed::open`], and [`EnvelopeError::Signer`] when it names another signer; the signature is not looked at then.
    pub fn open_by(
        raw: &[u8],
        network: &NetworkId,
        domain: &str,
        max: usize,
        signer: &Signer,
    ) -> Result<Self, EnvelopeError> {
        if raw.len() > max {
            return Err(EnvelopeError::TooLarge { len: raw.len(), max });
        }
        let parts = Parts::of(raw)?;
        if parts.key != signer.key.as_bytes() {
            return Err(EnvelopeError::Signer);
        }
        parts.verify(&signer.key, network, domain)?;
        Ok(Self { signer: signer.peer, kind: parts.kind, raw: raw.to_vec() })
    }

    /// The exact bytes that were signed and travel.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        let end = self.raw.len().saturating_sub(64);
        self.raw.get(36..end).unwrap_or_default()
    }
}

/// Somebody whose envelopes are expected: the key's point on the curve is found once and not for each of them, which is a
/// tenth of checking a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    peer: PeerId,
    key: VerifyingKey,
}

impl Signer {
    /// The signer of this peer id.
    ///
    /// # Errors
    /// When it is not that of an Ed25519 key.
    pub fn of(peer: PeerId) -> Result<Self, EnvelopeError> {
        let bytes = peer.to_bytes();
        let key =
            bytes.strip_prefix(&PEER_PREFIX).and_then(|key| key.try_into().ok()).ok_or(EnvelopeError::Identity)?;
        Ok(Self { peer, key: VerifyingKey::from_bytes(key).map_err(|_| EnvelopeError::Key)? })
    }
}

/// The parts of an envelope, none of them checked.
struct Parts<'a> {
    kind: u8,
    key: &'a [u8; 32],
    body: &'a [u8],
    signature: &'a [u8; 64],
}

impl<'a> Parts<'a> {
    fn of(raw: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (&[version, kind], rest) = raw.split_first_chunk::<2>().ok_or(EnvelopeError::Length)?;
        if version != VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let (key, rest) = rest.split_first_chunk::<32>().ok_or(EnvelopeError::Length)?;
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(EnvelopeError::Length)?;
        let (body, signature) = rest.split_last_chunk::<64>().ok_or(EnvelopeError::Length)?;
        if usize::from(u16::from_le_bytes(*length)) != body.len() {
            return Err(EnvelopeError::Length);
        }
        Ok(Self { kind, key, body, signature })
    }

    fn verify(&self, key: &VerifyingKey, network: &NetworkId, domain: &str) -> Result<(), EnvelopeError> {
        let bytes = signed_bytes(network, domain, self.kind, self.body);
        key.verify_strict(&bytes, &Signature::from_bytes(self.signature)).map_err(|_| EnvelopeError::Signature)
    }
}

/// How the peer id of an Ed25519 key begins: identity multihash, 36 bytes: protobuf field 1 = key type 1 (Ed25519), field 2 =
/// 32 bytes, which follow.
const PEER_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The peer id of a key that is known to be one: making a key of libp2p's of it would find its point on the curve again,
/// which is a tenth of checking a signature.
fn peer_of(key: &[u8; 32]) -> Result<PeerId, EnvelopeError> {
    let mut bytes = [0; 38];
    let (head, rest) = bytes.split_at_mut(PEER_PREFIX.len());
    head.copy_from_slice(&PEER_PREFIX);
    rest.copy_from_slice(key);
    PeerId::from_bytes(&bytes).map_err(|_| EnvelopeError::Key)
}

fn signed_bytes(network: &NetworkId, domain: &str, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len().saturating_add(domain.len()).saturating_add(34));
    bytes.extend_from_slice(domain.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&network.0);
    bytes.push(kind);
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOMAIN: &str = "quelea/test/1";

    fn fixed_key() -> Keypair {
        Keypair::ed25519_from_bytes([7; 32]).unwrap()
    }

    #[test]
    fn the_wire_form_is_frozen() {
        let net = NetworkId::from_name("main");
        let signed = Signed::seal(&fixed_key(), &net, DOMAIN, 3, b"layers").unwrap();
        assert_eq!(
            hex::encode(signed.raw()),
            "0103ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c06006c6179657273fb3f82465df426b93d70069336491eeb4c0b8e54851b997cee2e080e50999be7f257f4115b8ac0602d01a40a6e9cd8cc97b765fc89306201480fd7628178570a"
        );
        assert_eq!(Signed::open(signed.raw(), &net, DOMAIN, 1024).unwrap(), signed);
        assert_eq!(signed.body(), b"layers");
    }

    #[test]
    fn another_domain_network_or_kind_is_another_message() {
        let net = NetworkId::from_name("main");
        let signed = Signed::seal(&fixed_key(), &net, DOMAIN, 3, b"layers").unwrap();
        let other = NetworkId::from_name("club");
        assert_eq!(Signed::open(signed.raw(), &other, DOMAIN, 1024), Err(EnvelopeError::Signature));
        assert_eq!(Signed::open(signed.raw(), &net, "quelea/test/2", 1024), Err(EnvelopeError::Signature));
        assert_eq!(
            Signed::open(signed.raw(), &net, DOMAIN, 20),
            Err(EnvelopeError::TooLarge { len: signed.raw().len(), max: 20 })
        );
    }

    #[test]
    fn an_expected_signer_is_checked_as_any_other() {
        let (net, club) = (NetworkId::from_name("main"), NetworkId::from_name("club"));
        let signed = Signed::seal(&fixed_key(), &net, DOMAIN, 3, b"layers").unwrap();
        let signer = Signer::of(signed.signer).unwrap();
        let open = |raw: &[u8], net, max| Signed::open_by(raw, net, DOMAIN, max, &signer);
        assert_eq!(open(signed.raw(), &net, 1024), Ok(signed.clone()));
        let other = Keypair::generate_ed25519();
        let theirs = Signed::seal(&other, &net, DOMAIN, 3, b"layers").unwrap();
        assert_eq!(open(theirs.raw(), &net, 1024), Err(EnvelopeError::Signer));
        // What names us and is not ours.
        let claimed = [&theirs.raw()[..2], &signed.raw()[2..34], &theirs.raw()[34..]].concat();
        assert_eq!(open(&claimed, &net, 1024), Err(EnvelopeError::Signature));
        assert_eq!(open(signed.raw(), &club, 1024), Err(EnvelopeError::Signature));
        assert_eq!(open(signed.raw(), &net, 20), Err(EnvelopeError::TooLarge { len: signed.raw().len(), max: 20 }));
        assert_eq!(open(&signed.raw()[..99], &net, 1024), Err(EnvelopeError::Length));
        let hashed = PeerId::from_bytes(&[&[0x12, 0x20][..], &[7; 32]].concat()).unwrap();
        assert_eq!(Signer::of(hashed), Err(EnvelopeError::Identity));
    }

    #[test]
    fn the_key_of_small_order_that_lax_checks_accept_is_refused() {
        // The identity point as key and as R, with s = 0, satisfies the cofactored equation for every message.
        let net = NetworkId::from_name("main");
        let mut raw = vec![VERSION, 0];
        let mut identity_point = [0_u8; 32];
        identity_point[0] = 1;
        raw.extend_from_slice(&identity_point);
        raw.extend_from_slice(&0_u16.to_le_bytes());
        raw.extend_from_slice(&identity_point);
        raw.extend_from_slice(&[0; 32]);
        assert!(Signed::open(&raw, &net, DOMAIN, 1024).is_err());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_refused(body in proptest::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let net = NetworkId::from_name("main");
            let signed = Signed::seal(&fixed_key(), &net, DOMAIN, 1, &body).unwrap();
            prop_assert_eq!(signed.signer, fixed_key().public().to_peer_id());
            prop_assert_eq!(&Signed::open(signed.raw(), &net, DOMAIN, 1024).unwrap(), &signed);
            let mut raw = signed.raw().to_vec();
            let i = at.index(raw.len());
            raw[i] ^= 1 << bit;
            prop_assert!(Signed::open(&raw, &net, DOMAIN, 1024).is_err());
            let signer = Signer::of(signed.signer).unwrap();
            prop_assert!(Signed::open_by(&raw, &net, DOMAIN, 1024, &signer).is_err());
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Signed::open(&raw, &NetworkId::from_name("main"), DOMAIN, 1024).is_err());
        }
    }
}
