//! libp2p's signed peer record: who is where, in an envelope that the peer signed.

use libp2p::{
    Multiaddr, PeerId,
    core::{PeerRecord, SignedEnvelope},
    identity::Keypair,
};

/// Bytes of a record in its envelope. Eight addresses of 95 bytes, a key and a signature have some 950.
pub const MAX_RECORD_BYTES: usize = 1024;
/// Addresses in a record of ours, and taken from one of others.
pub const MAX_ADDRS: usize = 8;
/// Bytes of one address: a relayed one with two peer ids has some 95.
pub const MAX_ADDR_BYTES: usize = 128;

/// libp2p signs records in two forms. Both are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As libp2p's Rust implementation does, and its points want.
    #[default]
    Rust,
    /// As the specification says, and Go and JavaScript do.
    Standard,
}

/// Why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It has more than [`MAX_RECORD_BYTES`].
    #[error("a record of {0} bytes")]
    TooLong(usize),
    /// It is no envelope, or its signature is not of the peer that it speaks for.
    #[error("the record is not signed by its peer: {0}")]
    Envelope(String),
    /// More than [`MAX_ADDRS`] addresses, none, or one past [`MAX_ADDR_BYTES`].
    #[error("the record has no address, too many, or an overlong one")]
    Addresses,
}

/// A record whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    peer: PeerId,
    seq: u64,
    addrs: Vec<Multiaddr>,
    raw: Vec<u8>,
}

impl Record {
    /// Signs where the peer of `keypair` is.
    ///
    /// # Errors
    /// When the addresses are none, too many or overlong, or the key cannot sign.
    pub fn sign(keypair: &Keypair, addrs: Vec<Multiaddr>, form: Form) -> Result<Self, RecordError> {
        let signed = match form {
            Form::Rust => PeerRecord::new(keypair, addrs),
            Form::Standard => PeerRecord::new_interop(keypair, addrs),
        };
        let signed = signed.map_err(|e| RecordError::Envelope(e.to_string()))?;
        let raw = signed.to_signed_envelope().into_protobuf_encoding();
        Self::checked(signed.peer_id(), signed.seq(), signed.addresses(), raw)
    }

    /// Reads a record and checks its signature: some 60 µs.
    ///
    /// # Errors
    /// Says why it is not believed.
    pub fn verify(raw: &[u8]) -> Result<Self, RecordError> {
        if raw.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong(raw.len()));
        }
        let envelope = SignedEnvelope::from_protobuf_encoding(raw).map_err(|e| RecordError::Envelope(e.to_string()))?;
        // The envelope names the form, so the wrong one is refused before its signature is checked.
        let record = PeerRecord::from_signed_envelope(envelope.clone())
            .or_else(|_| PeerRecord::from_signed_envelope_interop(envelope))
            .map_err(|e| RecordError::Envelope(e.to_string()))?;
        Self::checked(record.peer_id(), record.seq(), record.addresses(), raw.to_vec())
    }

    fn checked(peer: PeerId, seq: u64, addrs: &[Multiaddr], raw: Vec<u8>) -> Result<Self, RecordError> {
        if raw.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong(raw.len()));
        }
        if addrs.is_empty() || addrs.len() > MAX_ADDRS || addrs.iter().any(|addr| addr.len() > MAX_ADDR_BYTES) {
            return Err(RecordError::Addresses);
        }
        Ok(Self { peer, seq, addrs: addrs.to_vec(), raw })
    }

    /// Whom it speaks for, and who signed it.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Its place among the peer's records: seconds since 1970, by the peer's clock, or whatever it says.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Where the peer can be dialled, by its own word.
    #[must_use]
    pub fn addrs(&self) -> &[Multiaddr] {
        &self.addrs
    }

    /// The bytes that were signed, in their envelope.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}
