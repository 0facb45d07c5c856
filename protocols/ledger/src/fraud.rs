//! Fraud claims: what whoever computed again has in hands against a stage, for others to compute again themselves.
//!
//! A claim proves nothing to somebody who has not done so, and must change nothing there: it says *where to look*. With the
//! model, the tokens in it and the stage's own signature over what it took in and gave on, anybody sees whether the stage
//! was given the rows that these tokens make, and gave on others than the model computes. Both have to be: then nobody but
//! the stage can have made them differ, because only the stage signs for both roots.
//!
//! Rows that a stage took over from another session (`first` above 0) make no claim: what they were made of is the
//! coordinator's word, who could have named other tokens.
//!
//! ```text
//! file:   "quelea fraud 1\n" | network id [32] | envelope of the finder, domain quelea/fraud/1, kind 1 | tokens, u32 each
//! body:   commitment (u16 length, envelope of the accused) | BLAKE3 of the tokens [32] | unix ms u64
//! ```
//!
//! Envelopes are those of [`quelea_wire::envelope`]; numbers little-endian, nothing behind the last token. There are exactly
//! as many tokens as the commitment has rows. The commitment is `quelea_shard::commitment`'s, domain `quelea/commitment/1`.

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::{
    ModelId, NetworkId, Profile, SpanRange,
    envelope::{self, EnvelopeError, Signed},
};

use crate::fields::{DecodeError, Hash, Raw, decode, encode, record};

/// What separates claims from everything else that a node signs.
pub const DOMAIN: &str = "quelea/fraud/1";

/// The only kind of envelope in that domain.
const KIND: u8 = 1;

/// What a file begins with.
pub const MAGIC: &[u8] = b"quelea fraud 1\n";

/// The domain of commitments, and their only kind.
const COMMITMENTS: (&str, u8) = ("quelea/commitment/1", 1);

/// The longest commitment: its fields have 130 bytes.
const MAX_COMMITMENT: usize = 256;

/// The longest envelope of a claim: a commitment with its length, a hash and a time.
pub const MAX_ENVELOPE: usize = envelope::OVERHEAD + 2 + MAX_COMMITMENT + 32 + 8;

/// Tokens of a claim at most: longer than any context that is served.
pub const MAX_TOKENS: usize = 1 << 20;

/// The longest file, in bytes: 4 MiB and a little.
pub const MAX_FILE: usize = MAGIC.len() + 32 + MAX_ENVELOPE + 4 * MAX_TOKENS;

record! {
    /// What the accused has signed.
    pub struct Committed {
        /// The session.
        pub session: [u8; 16],
        /// Its epoch then.
        pub epoch: u32,
        /// Of which model.
        pub model: ModelId,
        /// With which arithmetic.
        pub profile: Profile,
        /// Which layers.
        pub span: SpanRange,
        /// The first row; 0 in every claim.
        pub first: u32,
        /// How many rows.
        pub rows: u32,
        /// Root over what it took in.
        pub in_root: [u8; 32],
        /// Root over what it gave on.
        pub out_root: [u8; 32],
    }

    struct Body {
        commitment: Raw,
        tokens: Hash,
        at: u64,
    }
}

/// Why bytes are no claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The file begins differently.
    #[error("this is not a fraud claim")]
    Magic,
    /// An envelope.
    #[error("{0}")]
    Envelope(#[from] EnvelopeError),
    /// Another kind of envelope.
    #[error("kind {0} is not known here")]
    Kind(u8),
    /// The fields.
    #[error("{0}")]
    Fields(#[from] DecodeError),
    /// Not as many tokens as rows, more than a claim holds, or others than the finder signed for.
    #[error("the tokens are not those that the stage has signed rows for")]
    Tokens,
    /// Of such rows nobody but the two knows what they were made of.
    #[error("the stage took over rows that it has not signed for; what they were made of cannot be shown")]
    TakenOver,
    /// Who accuses itself wants something else.
    #[error("the finder and the accused are the same peer")]
    Oneself,
}

/// A claim whose signatures are right. Whether it is true has yet to be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FraudClaim {
    /// The network that its signatures are for.
    pub network: NetworkId,
    /// Who says so.
    pub finder: PeerId,
    /// The stage.
    pub accused: PeerId,
    /// What it has signed.
    pub committed: Committed,
    /// The prompt's and the answer's, one for each row.
    pub tokens: Vec<u32>,
    /// When it was found, in Unix milliseconds of the finder's clock.
    pub at: u64,
}

fn bytes_of(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

fn hash_of(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// Reads what the accused has signed.
fn committed(raw: &[u8], network: &NetworkId) -> Result<(PeerId, Committed), ClaimError> {
    let signed = Signed::open(raw, network, COMMITMENTS.0, MAX_COMMITMENT)?;
    if signed.kind != COMMITMENTS.1 {
        return Err(ClaimError::Kind(signed.kind));
    }
    let of: Committed = decode(signed.body())?;
    if of.first != 0 {
        return Err(ClaimError::TakenOver);
    }
    Ok((signed.signer, of))
}

impl FraudClaim {
    /// Signs a claim: the file's bytes. `commitment` is the accused's, as it came; of `tokens` as many are taken as it has
    /// rows.
    ///
    /// # Errors
    /// When the commitment is none or makes no claim, there are too few tokens, or the key is not Ed25519.
    pub fn seal(
        keypair: &Keypair,
        network: &NetworkId,
        commitment: &[u8],
        tokens: &[u32],
        at: u64,
    ) -> Result<Vec<u8>, ClaimError> {
        let (accused, of) = committed(commitment, network)?;
        if accused == keypair.public().to_peer_id() {
            return Err(ClaimError::Oneself);
        }
        let rows = usize::try_from(of.rows).unwrap_or(usize::MAX);
        let tokens = tokens.get(..rows).filter(|_| (1..=MAX_TOKENS).contains(&rows)).ok_or(ClaimError::Tokens)?;
        let tokens = bytes_of(tokens);
        let body = Body { commitment: Raw(commitment.to_vec()), tokens: hash_of(&tokens), at };
        let signed = Signed::seal(keypair, network, DOMAIN, KIND, &encode(&body))?;
        Ok([MAGIC, &network.0, signed.raw(), &tokens].concat())
    }

    /// Reads a file and checks its signatures, and that the tokens are those that the finder signed for.
    ///
    /// # Errors
    /// When it is no claim, or was changed since it was signed.
    pub fn open(file: &[u8]) -> Result<Self, ClaimError> {
        let rest = file.strip_prefix(MAGIC).ok_or(ClaimError::Magic)?;
        let (network, rest) = rest.split_first_chunk::<32>().ok_or(DecodeError::Short)?;
        let network = NetworkId(*network);
        // Version, kind and key come before the length of the body.
        let length = rest.get(34..36).and_then(|bytes| bytes.first_chunk::<2>()).ok_or(DecodeError::Short)?;
        let length = usize::from(u16::from_le_bytes(*length)).saturating_add(envelope::OVERHEAD);
        let (raw, tokens) = rest.split_at_checked(length).ok_or(DecodeError::Short)?;
        let signed = Signed::open(raw, &network, DOMAIN, MAX_ENVELOPE)?;
        if signed.kind != KIND {
            return Err(ClaimError::Kind(signed.kind));
        }
        let Body { commitment, tokens: hash, at } = decode(signed.body())?;
        let (accused, committed) = committed(&commitment.0, &network)?;
        if accused == signed.signer {
            return Err(ClaimError::Oneself);
        }
        let rows = usize::try_from(committed.rows).unwrap_or(usize::MAX);
        if !(1..=MAX_TOKENS).contains(&rows) || tokens.len() != rows.saturating_mul(4) || hash_of(tokens) != hash {
            return Err(ClaimError::Tokens);
        }
        let (words, _) = tokens.as_chunks::<4>();
        let tokens = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Ok(Self { network, finder: signed.signer, accused, committed, tokens, at })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network() -> NetworkId {
        NetworkId::from_name("fraud-tests")
    }

    fn key(n: u8) -> Keypair {
        Keypair::ed25519_from_bytes([n; 32]).unwrap()
    }

    fn commitment(n: u8, first: u32, rows: u32) -> Vec<u8> {
        let of = Committed {
            session: [1; 16],
            epoch: 2,
            model: ModelId([3; 32]),
            profile: Profile::Exact,
            span: SpanRange::new(0, 8).unwrap(),
            first,
            rows,
            in_root: [4; 32],
            out_root: [5; 32],
        };
        let body = encode(&of);
        assert_eq!(body.len(), 130);
        Signed::seal(&key(n), &network(), COMMITMENTS.0, COMMITMENTS.1, &body).unwrap().raw().to_vec()
    }

    fn sample() -> Vec<u8> {
        FraudClaim::seal(&key(1), &network(), &commitment(2, 0, 3), &[7, 8, 9, 10], 1_800_000_000_000).unwrap()
    }

    #[test]
    fn the_bytes_are_frozen() {
        assert_eq!(hex::encode(sample()), include_str!("fraud.txt").trim());
        let claim = FraudClaim::open(&hex::decode(include_str!("fraud.txt").trim()).unwrap()).unwrap();
        assert_eq!((claim.finder, claim.accused), (key(1).public().to_peer_id(), key(2).public().to_peer_id()));
        assert_eq!((claim.tokens.as_slice(), claim.committed.rows, claim.at), (&[7, 8, 9][..], 3, 1_800_000_000_000));
    }

    #[test]
    fn what_shows_nothing_is_no_claim() {
        let seal =
            |by: u8, commitment: &[u8], tokens: &[u32]| FraudClaim::seal(&key(by), &network(), commitment, tokens, 1);
        assert_eq!(seal(1, &commitment(2, 1, 3), &[7, 8, 9]), Err(ClaimError::TakenOver));
        assert_eq!(seal(2, &commitment(2, 0, 3), &[7, 8, 9]), Err(ClaimError::Oneself));
        assert_eq!(seal(1, &commitment(2, 0, 3), &[7, 8]), Err(ClaimError::Tokens));
        assert_eq!(seal(1, &commitment(2, 0, 0), &[7, 8]), Err(ClaimError::Tokens));
        assert!(matches!(seal(1, &[0; 200], &[7]), Err(ClaimError::Envelope(_))));
        assert_eq!(FraudClaim::open(b"quelea receipt 1\n"), Err(ClaimError::Magic));
    }

    #[test]
    fn a_length_takes_no_memory_that_was_not_sent() {
        // Rows without end, and no tokens.
        let body = Body { commitment: Raw(commitment(2, 0, u32::MAX)), tokens: hash_of(&[]), at: 1 };
        let signed = Signed::seal(&key(1), &network(), DOMAIN, KIND, &encode(&body)).unwrap();
        let file = [MAGIC, &network().0, signed.raw()].concat();
        assert_eq!(FraudClaim::open(&file), Err(ClaimError::Tokens));
        // An envelope that says that it is longer than the file.
        let mut file = sample();
        let at = MAGIC.len() + 32 + 34;
        file[at..at + 2].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(FraudClaim::open(&file), Err(ClaimError::Fields(DecodeError::Short)));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let file = sample();
        for bit in 0..file.len() * 8 {
            let mut file = file.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            assert!(FraudClaim::open(&file).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn a_body_has_one_form(body in proptest::collection::vec(any::<u8>(), 0..400), tokens in proptest::collection::vec(any::<u8>(), 0..40)) {
            let signed = Signed::seal(&key(1), &network(), DOMAIN, KIND, &body).unwrap();
            let file = [MAGIC, &network().0, signed.raw(), &tokens].concat();
            prop_assert!(FraudClaim::open(&file).is_err(), "nobody has signed a commitment in it");
        }

        #[test]
        fn what_is_sealed_is_read_as_it_was(tokens in proptest::collection::vec(any::<u32>(), 1..300), at: u64) {
            let raw = commitment(2, 0, u32::try_from(tokens.len()).unwrap());
            let file = FraudClaim::seal(&key(1), &network(), &raw, &tokens, at).unwrap();
            let claim = FraudClaim::open(&file).unwrap();
            prop_assert_eq!((&claim.tokens, claim.at), (&tokens, at));
            prop_assert_eq!(FraudClaim::seal(&key(1), &network(), &raw, &claim.tokens, claim.at).unwrap(), file);
        }

        #[test]
        fn a_cut_or_longer_file_is_refused(keep in any::<prop::sample::Index>(), more in 1_usize..20) {
            let file = sample();
            prop_assert!(FraudClaim::open(&file[..keep.index(file.len())]).is_err());
            prop_assert!(FraudClaim::open(&[file, vec![0; more]].concat()).is_err());
        }
    }
}
