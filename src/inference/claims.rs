//! What this node has in hands against stages that it has found out: claims on disk, for whoever wants to see for himself.
//!
//! They are told to nobody. A claim holds the tokens of an answer in the clear, because nobody could compute it again without
//! them: whether to give it away is its owner's affair.

use std::path::PathBuf;

use libp2p::{PeerId, identity::Keypair};
use quelea_ledger::fraud::FraudClaim;
use quelea_wire::{NetworkId, time::unix_ms};

use crate::identity::{Existing, IdentityError, write_secret};

/// Claims that are kept: one for each peer, of no more than so many. One has 4 bytes a token and half a KiB.
const MOST: usize = 256;

/// What the files are called.
const ENDING: &str = "fraud";

/// Where claims are kept, and as whom they are signed.
#[derive(Clone)]
pub(crate) struct Claims {
    dir: PathBuf,
    keypair: Keypair,
    network: NetworkId,
}

impl Claims {
    pub(crate) fn new(dir: PathBuf, keypair: Keypair, network: NetworkId) -> Self {
        Self { dir, keypair, network }
    }

    /// Keeps what `accused` has signed and the tokens that it was about: where. Nothing where there is one against it already
    /// or too many are kept. Waits for the disk.
    ///
    /// # Errors
    /// In words, when it makes no claim or cannot be written.
    pub(crate) fn keep(&self, accused: &PeerId, commitment: &[u8], tokens: &[u32]) -> Result<Option<PathBuf>, String> {
        let path = self.dir.join(format!("{accused}.{ENDING}"));
        let kept = std::fs::read_dir(&self.dir).map_or(0, Iterator::count);
        if path.exists() || kept >= MOST {
            return Ok(None);
        }
        let file = FraudClaim::seal(&self.keypair, &self.network, commitment, tokens, unix_ms());
        let file = file.map_err(|error| error.to_string())?;
        write_secret(&path, &file, Existing::Keep).map_err(|error: IdentityError| error.to_string())?;
        Ok(Some(path))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use quelea_shard::{commitment::Commitment, frame::SessionId};
    use quelea_wire::{ModelId, Profile, SpanRange};

    use super::*;

    #[test]
    fn one_is_kept_of_each_peer_and_no_more_than_so_many() {
        let (network, dir) = (NetworkId::from_name("claims"), tempfile::tempdir().unwrap());
        let claims = Claims::new(dir.path().join("claims"), Keypair::generate_ed25519(), network);
        let liar = Keypair::generate_ed25519();
        let of = |first| Commitment {
            session: SessionId([1; 16]),
            epoch: 1,
            model: ModelId([2; 32]),
            profile: Profile::Exact,
            span: SpanRange::new(0, 3).unwrap(),
            first,
            rows: 4,
            in_root: [3; 32],
            out_root: [4; 32],
        };
        let (accused, signed) = (liar.public().to_peer_id(), of(0).seal(&liar, &network).unwrap());
        assert!(claims.keep(&accused, &of(1).seal(&liar, &network).unwrap(), &[5; 9]).is_err());
        let path = claims.keep(&accused, &signed, &[5; 9]).unwrap().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let claim = FraudClaim::open(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((claim.accused, claim.committed.out_root, claim.tokens.len()), (accused, [4; 32], 4));
        assert_eq!(claims.keep(&accused, &signed, &[5; 9]), Ok(None));
        (1..MOST).for_each(|n| std::fs::write(dir.path().join("claims").join(n.to_string()), []).unwrap());
        let other = Keypair::generate_ed25519();
        let signed = of(0).seal(&other, &network).unwrap();
        assert_eq!(claims.keep(&other.public().to_peer_id(), &signed, &[5; 9]), Ok(None));
    }
}
