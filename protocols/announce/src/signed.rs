//! Signing an announcement, and believing one.

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::{
    NetworkId,
    envelope::{self, EnvelopeError, Signed},
    time::MAX_SKEW_MS,
};

use crate::message::{Announcement, DecodeError, MAX_LIFETIME_MS};

/// What the signature is bound to besides the network.
pub const DOMAIN: &str = "quelea/announce/1";

/// Bytes of a signed announcement, envelope included: small enough to gossip and to answer from memory at once.
pub const MAX_BYTES: usize = 1024;

/// The kind of envelope an announcement travels in.
const KIND: u8 = 1;

/// Why an announcement cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// It speaks for a peer whose key this is not.
    #[error("the announcement speaks for {0}, whose key this is not")]
    WrongKey(PeerId),
    /// It would be longer than [`MAX_BYTES`]; [`Announcement::shrink_to`] drops what may be dropped.
    #[error("{0} bytes signed, but an announcement has at most {MAX_BYTES}")]
    TooLarge(usize),
    /// It breaks a rule that every receiver checks.
    #[error(transparent)]
    Content(#[from] DecodeError),
    /// It does not expire after it is issued, or lives too long.
    #[error("an announcement expires after it is issued, at most ten minutes later")]
    Lifetime,
    /// The key cannot sign.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

/// Why an announcement is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Too long, malformed, or not signed for this network.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// An envelope of another kind.
    #[error("an envelope of kind {0} is not an announcement")]
    Kind(u8),
    /// The body is no announcement.
    #[error(transparent)]
    Content(#[from] DecodeError),
    /// Issued further in the future than clocks may differ.
    #[error("issued {ahead_ms} ms in the future")]
    Future {
        /// How far.
        ahead_ms: u64,
    },
    /// Its time has passed.
    #[error("expired {since_ms} ms ago")]
    Expired {
        /// How long ago.
        since_ms: u64,
    },
    /// Expires before it was issued, or more than ten minutes after.
    #[error("an announcement expires after it is issued, at most ten minutes later")]
    Lifetime,
}

impl VerifyError {
    /// Whether an honest peer can send this: its clock may be off, or the bytes were long on their way.
    #[must_use]
    pub fn is_honest(&self) -> bool {
        matches!(self, Self::Future { .. } | Self::Expired { .. })
    }
}

/// An announcement whose signature and content have been checked, with the exact bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedAnnouncement {
    announcement: Announcement,
    raw: Vec<u8>,
}

impl SignedAnnouncement {
    /// Signs `announcement` for `network`.
    ///
    /// # Errors
    /// When the key is another peer's, or every receiver would refuse the result.
    pub fn sign(keypair: &Keypair, network: &NetworkId, announcement: Announcement) -> Result<Self, SignError> {
        if announcement.peer != keypair.public().to_peer_id() {
            return Err(SignError::WrongKey(announcement.peer));
        }
        announcement.check()?;
        if !lives_as_allowed(&announcement) {
            return Err(SignError::Lifetime);
        }
        let body = announcement.encode();
        let size = body.len().saturating_add(envelope::OVERHEAD);
        if size > MAX_BYTES {
            return Err(SignError::TooLarge(size));
        }
        let signed = Signed::seal(keypair, network, DOMAIN, KIND, &body)?;
        Ok(Self { announcement, raw: signed.raw().to_vec() })
    }

    /// Checks bytes from anywhere. The signer's clock may be up to [`MAX_SKEW_MS`] ahead of `now_ms`; how far behind it is
    /// is bounded by the expiry.
    ///
    /// # Errors
    /// Says what is wrong; [`VerifyError::is_honest`] tells whether to hold it against the sender.
    pub fn verify(raw: &[u8], network: &NetworkId, now_ms: u64) -> Result<Self, VerifyError> {
        let signed = Signed::open(raw, network, DOMAIN, MAX_BYTES)?;
        if signed.kind != KIND {
            return Err(VerifyError::Kind(signed.kind));
        }
        let announcement = Announcement::decode(signed.signer, signed.body())?;
        if !lives_as_allowed(&announcement) {
            return Err(VerifyError::Lifetime);
        }
        let ahead_ms = announcement.issued_ms.saturating_sub(now_ms);
        if ahead_ms > MAX_SKEW_MS {
            return Err(VerifyError::Future { ahead_ms });
        }
        if now_ms >= announcement.expires_ms {
            return Err(VerifyError::Expired { since_ms: now_ms.saturating_sub(announcement.expires_ms) });
        }
        Ok(Self { announcement, raw: raw.to_vec() })
    }

    /// What it says.
    #[must_use]
    pub fn announcement(&self) -> &Announcement {
        &self.announcement
    }

    /// Who signed it.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.announcement.peer
    }

    /// The exact bytes that were signed; what is stored and sent on.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}

fn lives_as_allowed(announcement: &Announcement) -> bool {
    announcement.expires_ms > announcement.issued_ms
        && announcement.expires_ms.saturating_sub(announcement.issued_ms) <= MAX_LIFETIME_MS
}

/// The sequence number after `previous`: at least the clock, so that a node that lost its state does not fall behind what
/// others remember of it.
#[must_use]
pub fn next_seq(previous: u64, now_ms: u64) -> u64 {
    previous.saturating_add(1).max(now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn signed(issued: u64, expires: u64) -> Result<SignedAnnouncement, SignError> {
        let key = Keypair::ed25519_from_bytes([3; 32]).unwrap();
        let mut announcement = Announcement::new(key.public().to_peer_id(), 1, issued);
        announcement.expires_ms = expires;
        SignedAnnouncement::sign(&key, &NetworkId::from_name("main"), announcement)
    }

    fn verify(signed: &SignedAnnouncement, now: u64) -> Result<SignedAnnouncement, VerifyError> {
        SignedAnnouncement::verify(signed.raw(), &NetworkId::from_name("main"), now)
    }

    #[test]
    fn time_is_checked_on_both_sides() {
        let good = signed(NOW, NOW + MAX_LIFETIME_MS).unwrap();
        assert_eq!(verify(&good, NOW).unwrap(), good);
        assert_eq!(verify(&good, NOW - MAX_SKEW_MS).unwrap(), good);
        assert_eq!(verify(&good, NOW - MAX_SKEW_MS - 1), Err(VerifyError::Future { ahead_ms: MAX_SKEW_MS + 1 }));
        assert!(verify(&good, NOW + MAX_LIFETIME_MS - 1).is_ok());
        let late = verify(&good, NOW + MAX_LIFETIME_MS).unwrap_err();
        assert_eq!(late, VerifyError::Expired { since_ms: 0 });
        assert!(late.is_honest());
        assert!(verify(&good, u64::MAX).is_err() && verify(&good, 0).is_err());
    }

    #[test]
    fn a_lifetime_that_receivers_refuse_is_not_signed() {
        for expires in [NOW, NOW - 1, 0, NOW + MAX_LIFETIME_MS + 1, u64::MAX] {
            assert_eq!(signed(NOW, expires), Err(SignError::Lifetime), "{expires}");
        }
        // Neither is it believed from somebody who signs it all the same.
        let key = Keypair::ed25519_from_bytes([3; 32]).unwrap();
        let net = NetworkId::from_name("main");
        let mut forever = Announcement::new(key.public().to_peer_id(), 1, NOW);
        forever.expires_ms = u64::MAX;
        let raw = Signed::seal(&key, &net, DOMAIN, KIND, &forever.encode()).unwrap();
        assert_eq!(SignedAnnouncement::verify(raw.raw(), &net, NOW), Err(VerifyError::Lifetime));
    }

    #[test]
    fn nobody_speaks_for_another() {
        let key = Keypair::ed25519_from_bytes([3; 32]).unwrap();
        let other = Keypair::ed25519_from_bytes([4; 32]).unwrap().public().to_peer_id();
        let refused = SignedAnnouncement::sign(&key, &NetworkId::from_name("main"), Announcement::new(other, 1, NOW));
        assert_eq!(refused, Err(SignError::WrongKey(other)));
    }

    #[test]
    fn another_kind_in_the_same_domain_is_refused() {
        let key = Keypair::ed25519_from_bytes([3; 32]).unwrap();
        let net = NetworkId::from_name("main");
        let body = Announcement::new(key.public().to_peer_id(), 1, NOW).encode();
        let raw = Signed::seal(&key, &net, DOMAIN, 2, &body).unwrap();
        assert_eq!(SignedAnnouncement::verify(raw.raw(), &net, NOW), Err(VerifyError::Kind(2)));
    }

    #[test]
    fn sequence_numbers_grow_and_follow_the_clock() {
        assert_eq!(next_seq(0, 1000), 1000);
        assert_eq!(next_seq(2000, 1000), 2001);
        assert_eq!(next_seq(u64::MAX, 1000), u64::MAX);
    }
}
