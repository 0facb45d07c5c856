//! Commitments: what a stage signs to the coordinator about the rows that it took in and gave out.
//!
//! The *digest* of a row is the BLAKE3 of its values as little-endian f32. Roots chain digests: `root(first)` is
//! `derive_key("quelea shard roots v1", first as u32 LE)`, and `root(p + 1) = BLAKE3(root(p) ‖ digest of row p)`, 32 bytes
//! each. Two roots that begin with the same row are equal exactly when all rows between are, so the out-root of one stage and
//! the in-root of the next can be compared without the rows.
//!
//! ```text
//! envelope (quelea_wire::envelope), domain quelea/commitment/1, kind 1, whose body has 130 bytes:
//! session [16] | epoch u32 | model [32] | profile u16 | span u16 u16 | first u32 | rows u32 | in-root [32] | out-root [32]
//! ```
//!
//! Little-endian numbers. `rows` is the position behind the last row, always above `first`. A commitment holds for the rows
//! that the stage has at that moment: a coordinator may have it go back and compute others in their place, so two
//! commitments of one signer that differ prove nothing to somebody who does not know what the signer was given.
//!
//! [`Chain`] is what both ends keep, [`Roots`] says when a stage commits, [`Witness`] what a coordinator makes of it all.

mod chain;
mod roots;
mod witness;

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::{
    ModelId, NetworkId, Profile, SpanRange,
    envelope::{EnvelopeError, Signed},
};

pub use self::{
    chain::{Chain, Digest, Root, digests, seed},
    roots::{Point, Roots},
    witness::{Committed, Finding, Heard, Terms, Witness},
};
use crate::frame::{MAX_COMMITMENT, SessionId};

/// What separates commitments from everything else that a node signs.
pub const DOMAIN: &str = "quelea/commitment/1";

/// The only kind of message in that domain.
const KIND: u8 = 1;

/// A stage commits at the multiples of this: a token's share of a signature is then a sixteenth of some 20 µs.
pub const EVERY: u32 = 16;

/// Rows that have to follow before a stage commits, since those that were guessed may be taken back: a coordinator sends
/// eight at once at most, and the first of them stays.
pub const SETTLED: u32 = 8;

// A commitment fits into its frame.
const _: () = assert!(Commitment::LEN + quelea_wire::envelope::OVERHEAD <= MAX_COMMITMENT);

/// The last position at which a stage that has rows up to `end` commits of itself.
#[must_use]
pub fn due(end: u32) -> u32 {
    let settled = end.saturating_sub(SETTLED);
    settled.saturating_sub(settled.checked_rem(EVERY).unwrap_or(0))
}

/// What a stage says that it has computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commitment {
    /// The session.
    pub session: SessionId,
    /// The epoch in which it was signed.
    pub epoch: u32,
    /// The model.
    pub model: ModelId,
    /// The numeric profile.
    pub profile: Profile,
    /// The layers.
    pub span: SpanRange,
    /// Position of the first row that the roots are over.
    pub first: u32,
    /// The position behind the last.
    pub rows: u32,
    /// Root over the rows that came in.
    pub in_root: Root,
    /// Root over the rows that were computed of them.
    pub out_root: Root,
}

/// Why bytes are not a commitment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitmentError {
    /// The envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Another kind of message.
    #[error("kind {0} is not known here")]
    Kind(u8),
    /// A field.
    #[error("the body is not that of a commitment: {0}")]
    Field(&'static str),
}

impl Commitment {
    /// Bytes of the signed body.
    pub const LEN: usize = 16 + 4 + 32 + 2 + 4 + 4 + 4 + 32 + 32;

    /// Signs it; the envelope's bytes, at most [`MAX_COMMITMENT`].
    ///
    /// # Errors
    /// When the key is not Ed25519.
    pub fn seal(&self, keypair: &Keypair, network: &NetworkId) -> Result<Vec<u8>, EnvelopeError> {
        Ok(Signed::seal(keypair, network, DOMAIN, KIND, &self.body())?.raw().to_vec())
    }

    /// Checks an envelope's signature and reads it: who signed what.
    ///
    /// # Errors
    /// When it is too long, malformed, or not signed for this network as a commitment.
    pub fn open(raw: &[u8], network: &NetworkId) -> Result<(PeerId, Self), CommitmentError> {
        let signed = Signed::open(raw, network, DOMAIN, MAX_COMMITMENT)?;
        if signed.kind != KIND {
            return Err(CommitmentError::Kind(signed.kind));
        }
        Ok((signed.signer, Self::from_body(signed.body())?))
    }

    fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(Self::LEN);
        body.extend_from_slice(&self.session.0);
        body.extend_from_slice(&self.epoch.to_le_bytes());
        body.extend_from_slice(&self.model.0);
        for n in [self.profile.to_u16(), self.span.start(), self.span.end()] {
            body.extend_from_slice(&n.to_le_bytes());
        }
        for n in [self.first, self.rows] {
            body.extend_from_slice(&n.to_le_bytes());
        }
        body.extend_from_slice(&self.in_root);
        body.extend_from_slice(&self.out_root);
        body
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is not exactly as [`Commitment::seal`] writes it.
    pub fn from_body(body: &[u8]) -> Result<Self, CommitmentError> {
        let mut rest = body;
        let session = SessionId(array(&mut rest)?);
        let epoch = u32::from_le_bytes(array(&mut rest)?);
        let model = ModelId(array(&mut rest)?);
        let profile = Profile::from_u16(u16::from_le_bytes(array(&mut rest)?));
        let [start, end] = [u16::from_le_bytes(array(&mut rest)?), u16::from_le_bytes(array(&mut rest)?)];
        let span = SpanRange::new(start, end).map_err(|_| CommitmentError::Field("span"))?;
        let [first, rows] = [u32::from_le_bytes(array(&mut rest)?), u32::from_le_bytes(array(&mut rest)?)];
        if rows <= first {
            return Err(CommitmentError::Field("rows"));
        }
        let (in_root, out_root) = (array(&mut rest)?, array(&mut rest)?);
        if !rest.is_empty() {
            return Err(CommitmentError::Field("length"));
        }
        Ok(Self { session, epoch, model, profile, span, first, rows, in_root, out_root })
    }
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], CommitmentError> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or(CommitmentError::Field("length"))?;
    *rest = after;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Commitment {
        Commitment {
            session: SessionId([1; 16]),
            epoch: 2,
            model: ModelId([3; 32]),
            profile: Profile::Exact,
            span: SpanRange::new(4, 8).unwrap(),
            first: 32,
            rows: 48,
            in_root: seed(32),
            out_root: [6; 32],
        }
    }

    #[test]
    fn the_signed_bytes_are_frozen() {
        let key = Keypair::ed25519_from_bytes([7; 32]).unwrap();
        let network = NetworkId::from_name("main");
        let raw = sample().seal(&key, &network).unwrap();
        assert_eq!(raw.len(), 230);
        assert_eq!(hex::encode(&raw), include_str!("commitment/vector.txt").trim());
        let (signer, read) = Commitment::open(&raw, &network).unwrap();
        assert_eq!((signer, read), (key.public().to_peer_id(), sample()));
        // What a chain is made of, too.
        let mut chain = Chain::new(32);
        chain.append(32, &digests(&[1.0, -0.5, 0.0, 2.0], 2));
        assert_eq!(
            hex::encode(chain.root(32, 34).unwrap()),
            "1f52e96b7ada5c5f909776ff991b254272b944223a19cfb0a69ff7496de54724"
        );
        let other = NetworkId::from_name("club");
        assert_eq!(Commitment::open(&raw, &other), Err(EnvelopeError::Signature.into()));
        let kind = Signed::seal(&key, &network, DOMAIN, 2, &sample().body()).unwrap();
        assert_eq!(Commitment::open(kind.raw(), &network), Err(CommitmentError::Kind(2)));
    }

    #[test]
    fn a_commitment_is_of_some_rows_and_layers() {
        let field = |of: Commitment| Commitment::from_body(&of.body()).unwrap_err();
        assert_eq!(field(Commitment { rows: 32, ..sample() }), CommitmentError::Field("rows"));
        let mut body = sample().body();
        body[54..58].fill(9);
        assert_eq!(Commitment::from_body(&body), Err(CommitmentError::Field("span")));
    }

    #[test]
    fn commitments_are_due_once_enough_rows_follow() {
        let all: Vec<u32> = [0, 15, 16, 23, 24, 39, 40, u32::MAX].into_iter().map(due).collect();
        assert_eq!(all, [0, 0, 0, 0, 16, 16, 32, u32::MAX - 15]);
    }

    proptest! {
        #[test]
        fn a_body_has_one_form(body in proptest::collection::vec(any::<u8>(), 0..=Commitment::LEN + 2)) {
            if let Ok(read) = Commitment::from_body(&body) {
                prop_assert_eq!(read.body(), body);
            }
        }

        #[test]
        fn whatever_is_signed_is_read(
            session: [u8; 16], epoch: u32, model: [u8; 32], profile: u16, start in 0..100_u16, layers in 1..100_u16,
            first in 0..1000_u32, rows in 1..1000_u32, in_root: [u8; 32], out_root: [u8; 32], cut: prop::sample::Index,
        ) {
            let (session, model) = (SessionId(session), ModelId(model));
            let (profile, span) = (Profile::from_u16(profile), SpanRange::new(start, start + layers).unwrap());
            let of = Commitment { session, epoch, model, profile, span, first, rows: first + rows, in_root, out_root };
            let body = of.body();
            prop_assert_eq!(body.len(), Commitment::LEN);
            prop_assert_eq!(Commitment::from_body(&body), Ok(of));
            prop_assert!(Commitment::from_body(&body[..cut.index(Commitment::LEN)]).is_err());
        }
    }
}
