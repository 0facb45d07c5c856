//! What a peer says of itself: where it can be dialled, and when it said so.
//!
//! ```text
//! record = [seq, signed ms, [* address bytes], agent]
//! ```
//!
//! A CBOR array in the shortest form, in an envelope of the domain [`DOMAIN`]; a decoder accepts only what its own encoder
//! would have written. The signer is not in the body: the envelope's key says who speaks.

use std::sync::Arc;

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use minicbor::{Decoder, Encoder};
use quelea_wire::{
    NetworkId,
    envelope::{self, EnvelopeError, Signed},
    time::MAX_SKEW_MS,
};

/// What the signature is bound to besides the network.
pub const DOMAIN: &str = "quelea/peer/1";
/// The kind of envelope a record travels in.
const KIND: u8 = 1;
/// Addresses in one record: TCP and QUIC on IPv4 and IPv6, as many through relays.
pub const MAX_ADDRS: usize = 8;
/// Bytes of one address. A relayed one with two peer ids has some 95.
pub const MAX_ADDR_BYTES: usize = 128;
/// Bytes of the agent's name, as in identify.
pub const MAX_AGENT_BYTES: usize = 64;
/// Bytes of a signed record, envelope included: eight addresses of 100 bytes fit. A usual one has 250.
pub const MAX_RECORD_BYTES: usize = 1024;
/// How old a record may be, in milliseconds: an hour. Peers sign anew every ten minutes; who has been gone for an hour is no
/// longer passed on.
pub const MAX_AGE_MS: u64 = 3_600_000;

/// What a peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// Who speaks; always the signer.
    pub peer: PeerId,
    /// Grows with what the peer has to say.
    pub seq: u64,
    /// When it was signed, in Unix milliseconds.
    pub signed_ms: u64,
    /// Where it can be dialled, best first; at most [`MAX_ADDRS`] of [`MAX_ADDR_BYTES`] each, none twice.
    pub addrs: Vec<Multiaddr>,
    /// How it calls itself, such as `quelea/0.1.0`; at most [`MAX_AGENT_BYTES`], no control characters.
    pub agent: String,
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not the CBOR that a record is made of.
    #[error("malformed: {0}")]
    Malformed(String),
    /// More than [`MAX_ADDRS`] addresses; none was read.
    #[error("{0} addresses, but at most {MAX_ADDRS} are accepted")]
    TooMany(u64),
    /// An address over [`MAX_ADDR_BYTES`], or the same one twice.
    #[error("an address is overlong, or there twice")]
    Address,
    /// An agent over [`MAX_AGENT_BYTES`], or with control characters.
    #[error("the agent's name is overlong or not plain text")]
    Agent,
    /// Readable, but not the one encoding of what it says.
    #[error("not in canonical form")]
    NotCanonical,
}

impl From<minicbor::decode::Error> for RecordError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Why a record cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// It speaks for a peer whose key this is not.
    #[error("the record speaks for {0}, whose key this is not")]
    WrongKey(PeerId),
    /// It breaks a rule that every receiver checks.
    #[error(transparent)]
    Content(#[from] RecordError),
    /// The key cannot sign.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

/// Why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Too long, malformed, or not signed for this network.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// An envelope of another kind.
    #[error("an envelope of kind {0} is no peer record")]
    Kind(u8),
    /// The body is no record.
    #[error(transparent)]
    Content(#[from] RecordError),
    /// Signed further in the future than clocks may differ.
    #[error("signed {0} ms in the future")]
    Future(u64),
    /// Signed too long ago.
    #[error("signed {0} ms ago")]
    Old(u64),
}

impl VerifyError {
    /// Whether an honest peer can pass this on: clocks differ, and records grow old on their way.
    #[must_use]
    pub fn is_honest(&self) -> bool {
        matches!(self, Self::Future(_) | Self::Old(_))
    }
}

impl PeerRecord {
    /// The bytes that are signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        // Writing to a vector cannot fail: minicbor's error type for it is `Infallible`.
        let _ = self.write(&mut Encoder::new(&mut out));
        out
    }

    fn write(&self, e: &mut Encoder<&mut Vec<u8>>) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        e.array(4)?.u64(self.seq)?.u64(self.signed_ms)?;
        e.array(u64::try_from(self.addrs.len()).unwrap_or(u64::MAX))?;
        for addr in &self.addrs {
            e.bytes(addr.as_ref())?;
        }
        e.str(&self.agent)?.ok()
    }

    /// Reads what `signer` signed. Nothing is allocated by a length that the bytes only claim.
    ///
    /// # Errors
    /// When the bytes are malformed, not canonical or over a limit.
    pub fn decode(signer: PeerId, body: &[u8]) -> Result<Self, RecordError> {
        let d = &mut Decoder::new(body);
        if d.array()? != Some(4) {
            return Err(RecordError::Malformed("expected an array of 4".to_owned()));
        }
        let (seq, signed_ms) = (d.u64()?, d.u64()?);
        let count = d.array()?.ok_or(RecordError::NotCanonical)?;
        if !usize::try_from(count).is_ok_and(|count| count <= MAX_ADDRS) {
            return Err(RecordError::TooMany(count));
        }
        let mut addrs = Vec::new();
        for _ in 0..count {
            let bytes = d.bytes()?;
            if bytes.len() > MAX_ADDR_BYTES {
                return Err(RecordError::Address);
            }
            addrs.push(Multiaddr::try_from(bytes.to_vec()).map_err(|e| RecordError::Malformed(e.to_string()))?);
        }
        let agent = d.str()?;
        if agent.len() > MAX_AGENT_BYTES {
            return Err(RecordError::Agent);
        }
        let read = Self { peer: signer, seq, signed_ms, addrs, agent: agent.to_owned() };
        read.check()?;
        if read.encode() == body { Ok(read) } else { Err(RecordError::NotCanonical) }
    }

    fn check(&self) -> Result<(), RecordError> {
        if self.addrs.len() > MAX_ADDRS {
            return Err(RecordError::TooMany(u64::try_from(self.addrs.len()).unwrap_or(u64::MAX)));
        }
        let twice = |(i, addr): (usize, &Multiaddr)| self.addrs.iter().take(i).any(|other| other == addr);
        if self.addrs.iter().any(|addr| addr.len() > MAX_ADDR_BYTES) || self.addrs.iter().enumerate().any(twice) {
            return Err(RecordError::Address);
        }
        if self.agent.len() > MAX_AGENT_BYTES || self.agent.chars().any(char::is_control) {
            return Err(RecordError::Agent);
        }
        Ok(())
    }
}

/// A record whose signature and content have been checked, with the exact bytes that were signed. Clones share them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    record: Arc<PeerRecord>,
    raw: Arc<[u8]>,
}

impl SignedRecord {
    /// Signs `record` for `network`. Addresses are left out from the end until it has at most [`MAX_RECORD_BYTES`].
    ///
    /// # Errors
    /// When the key is another peer's, or every receiver would refuse the result.
    pub fn sign(keypair: &Keypair, network: &NetworkId, mut record: PeerRecord) -> Result<Self, SignError> {
        if record.peer != keypair.public().to_peer_id() {
            return Err(SignError::WrongKey(record.peer));
        }
        record.check()?;
        let mut body = record.encode();
        while body.len().saturating_add(envelope::OVERHEAD) > MAX_RECORD_BYTES && record.addrs.pop().is_some() {
            body = record.encode();
        }
        let signed = Signed::seal(keypair, network, DOMAIN, KIND, &body)?;
        Ok(Self { record: Arc::new(record), raw: signed.raw().into() })
    }

    /// Checks bytes from anywhere. The signer's clock may be up to [`MAX_SKEW_MS`] ahead of `now_ms`, in Unix milliseconds.
    ///
    /// # Errors
    /// Says what is wrong; [`VerifyError::is_honest`] tells whether to hold it against who sent it.
    pub fn verify(raw: &[u8], network: &NetworkId, now_ms: u64) -> Result<Self, VerifyError> {
        let signed = Signed::open(raw, network, DOMAIN, MAX_RECORD_BYTES)?;
        if signed.kind != KIND {
            return Err(VerifyError::Kind(signed.kind));
        }
        let record = PeerRecord::decode(signed.signer, signed.body())?;
        let ahead = record.signed_ms.saturating_sub(now_ms);
        if ahead > MAX_SKEW_MS {
            return Err(VerifyError::Future(ahead));
        }
        let age = now_ms.saturating_sub(record.signed_ms);
        if age > MAX_AGE_MS {
            return Err(VerifyError::Old(age));
        }
        Ok(Self { record: Arc::new(record), raw: raw.into() })
    }

    /// What it says.
    #[must_use]
    pub fn record(&self) -> &PeerRecord {
        &self.record
    }

    /// Who signed it.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.record.peer
    }

    /// The exact bytes that were signed; what is sent on.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// How long ago it was signed, in milliseconds; 0 when the signer's clock is ahead.
    #[must_use]
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.record.signed_ms)
    }

    /// Whether this tells more than `other` of the same peer: a later number, or with the same one more addresses. A peer
    /// tells those near it addresses that lead nowhere for others, under one number.
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.record.seq, self.record.addrs.len()) > (other.record.seq, other.record.addrs.len())
    }
}
