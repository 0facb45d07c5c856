//! Names for the beginnings of prompts.
//!
//! A prompt is cut into blocks of [`KV_PAGE_ROWS`] tokens. A block's key is a hash over everything that its keys and
//! values depend on: BLAKE3 keyed with a salt, of `domain ‖ model ‖ profile ‖ key of the block before ‖ the block's token
//! ids`. The salt is a tenant's secret, so nobody else can make or guess a key, and a stage that is given keys learns
//! nothing of the tokens. A runner scopes the keys that it is given once more, by the group and the layers of the session
//! ([`Scope`]): a key that became known is of no use to another group.

use crate::KV_PAGE_ROWS;

/// The most blocks of a prompt that are named: the first 4,096 tokens.
pub const MAX_PREFIX_BLOCKS: usize = 128;

/// The name of a block and of all before it.
pub type PrefixKey = [u8; 32];

const DOMAIN: &[u8] = b"quelea.prefix/v1";
const SCOPE: &[u8] = b"quelea.prefix.scope/v1";

/// The keys of a prompt's whole blocks, from the first on, and how many rows of them may be taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrefixKeys {
    keys: Vec<PrefixKey>,
    reuse_rows: u32,
}

impl PrefixKeys {
    /// Names the beginning of a prompt, at most [`MAX_PREFIX_BLOCKS`] blocks. The prompt's last row is never taken over:
    /// it must be computed for the answer to begin.
    pub fn new(salt: &[u8; 32], model: &[u8; 32], profile: &str, ids: &[u32]) -> Self {
        let mut keys: Vec<PrefixKey> = Vec::new();
        for block in ids.chunks_exact(KV_PAGE_ROWS).take(MAX_PREFIX_BLOCKS) {
            let mut hasher = blake3::Hasher::new_keyed(salt);
            hasher.update(DOMAIN).update(model);
            hasher.update(&(profile.len() as u64).to_le_bytes()).update(profile.as_bytes());
            hasher.update(keys.last().unwrap_or(&[0; 32]));
            for id in block {
                hasher.update(&id.to_le_bytes());
            }
            keys.push(*hasher.finalize().as_bytes());
        }
        let reuse_rows = u32::try_from(ids.len().saturating_sub(1)).unwrap_or(u32::MAX);
        Self::from_keys(keys, reuse_rows)
    }

    /// Keys that somebody else made. Those past [`MAX_PREFIX_BLOCKS`] are left out; at most `reuse_rows` rows are taken
    /// over, in whole blocks.
    pub fn from_keys(mut keys: Vec<PrefixKey>, reuse_rows: u32) -> Self {
        keys.truncate(MAX_PREFIX_BLOCKS);
        Self { keys, reuse_rows }
    }

    /// The keys.
    pub fn keys(&self) -> &[PrefixKey] {
        &self.keys
    }

    /// Rows that may be taken over at most.
    pub fn reuse_rows(&self) -> u32 {
        self.reuse_rows
    }

    /// Blocks that may be taken over at most.
    pub fn reuse_blocks(&self) -> usize {
        self.keys.len().min((self.reuse_rows as usize) / KV_PAGE_ROWS)
    }

    /// The keys within a scope, hashed as they are taken.
    pub(super) fn scoped(&self, scope: Scope) -> impl Iterator<Item = PrefixKey> {
        let Scope { group, first, layers } = scope;
        let scoped = move |key: &PrefixKey| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(SCOPE);
            for n in [group, first as u64, layers as u64] {
                hasher.update(&n.to_le_bytes());
            }
            *hasher.update(key).finalize().as_bytes()
        };
        self.keys.iter().map(scoped)
    }
}

/// What a runner tells apart beside the keys: who asks, and which layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    pub(super) group: u64,
    pub(super) first: usize,
    pub(super) layers: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(salt: u8, ids: &[u32]) -> PrefixKeys {
        PrefixKeys::new(&[salt; 32], &[1; 32], "exact", ids)
    }

    #[test]
    fn a_key_names_all_tokens_up_to_its_block() {
        let ids: Vec<u32> = (0..100).collect();
        let whole = keys(1, &ids);
        assert_eq!((whole.keys().len(), whole.reuse_rows(), whole.reuse_blocks()), (3, 99, 3));
        assert_eq!(keys(1, &ids[..64]).keys(), &whole.keys()[..2]);
        let mut other = ids.clone();
        other[0] = 7;
        assert!(keys(1, &other).keys().iter().zip(whole.keys()).all(|(a, b)| a != b));
        other = ids.clone();
        other[40] = 7;
        let changed = keys(1, &other);
        assert_eq!(changed.keys()[0], whole.keys()[0]);
        assert_ne!(changed.keys()[1..], whole.keys()[1..]);
    }

    #[test]
    fn salt_model_profile_and_scope_tell_apart() {
        let ids: Vec<u32> = (0..32).collect();
        let key = |keys: &PrefixKeys| keys.keys()[0];
        let this = keys(1, &ids);
        let others = [
            key(&keys(2, &ids)),
            key(&PrefixKeys::new(&[1; 32], &[2; 32], "exact", &ids)),
            key(&PrefixKeys::new(&[1; 32], &[1; 32], "exact-kv-q8", &ids)),
        ];
        assert!(others.iter().all(|other| *other != key(&this)));
        let scope = Scope { group: 1, first: 0, layers: 4 };
        let scoped = |scope| this.scoped(scope).next();
        assert_eq!(scoped(scope), scoped(scope));
        for other in [Scope { group: 2, ..scope }, Scope { first: 1, ..scope }, Scope { layers: 3, ..scope }] {
            assert_ne!(scoped(other), scoped(scope));
        }
    }

    #[test]
    fn the_last_row_is_always_computed_and_the_number_of_keys_bounded() {
        let ids: Vec<u32> = (0..64).collect();
        assert_eq!(keys(1, &ids).reuse_blocks(), 1, "the second block ends the prompt");
        assert_eq!(keys(1, &[]).reuse_blocks(), 0);
        assert_eq!(keys(1, &vec![0; 200 * KV_PAGE_ROWS]).keys().len(), MAX_PREFIX_BLOCKS);
    }

    /// Peers exchange keys only as opaque names, but what stages have kept under them outlives an update of this node.
    #[test]
    fn a_key_is_frozen() {
        let ids: Vec<u32> = (0..32).collect();
        assert_eq!(
            hex::encode(keys(1, &ids).keys()[0]),
            "cca3991b6597072379af61687db71dd25b454c409879d03ceb5737c3f9d615f4"
        );
    }
}
