//! Names of prompts' beginnings: the secret that they are made with, and their form on the wire.
//!
//! What a name is made of stands in [`quelea_engine::runner::PrefixKeys`]. Stages get half of each name, which is all that
//! they need to tell one from another.

use libp2p::identity::Keypair;
use quelea_engine::{
    KV_PAGE_ROWS,
    runner::{MAX_PREFIX_BLOCKS, PrefixKey, PrefixKeys},
};
use quelea_shard::frame::{BLOCK_ROWS, BlockKey, MAX_KEYS, Prefix};

// What is a block to peers is a page here.
const _: () = assert!(BLOCK_ROWS as usize == KV_PAGE_ROWS && MAX_KEYS == MAX_PREFIX_BLOCKS);

/// The tenant whose requests are those of the node's own user.
pub(crate) const OWN_TENANT: &str = "own";

/// The secret that the names of a tenant's prompts are made with. It comes from the node's key, so that names are the same
/// after a restart, for stages that have kept blocks meanwhile; and nobody else can make or test them.
pub(crate) fn salt(keypair: &Keypair, tenant: &str) -> [u8; 32] {
    let domain = format!("quelea.prefix.salt/v1/{tenant}");
    // Keys of a kind that nothing can be derived from have a secret for each start.
    keypair.derive_secret(domain.as_bytes()).unwrap_or_else(rand::random)
}

/// As a coordinator sends it.
pub(crate) fn to_wire(keys: &PrefixKeys) -> Prefix {
    let reuse = u8::try_from(keys.reuse_blocks()).unwrap_or(u8::MAX);
    let half = |key: &PrefixKey| BlockKey(std::array::from_fn(|i| key[i]));
    Prefix { keys: keys.keys().iter().map(half).collect(), reuse }
}

/// As a stage's runner takes it.
pub(crate) fn from_wire(prefix: &Prefix) -> PrefixKeys {
    PrefixKeys::from_keys(keys_from_wire(&prefix.keys), prefix.reuse_rows())
}

/// The same, of keys alone.
pub(crate) fn keys_from_wire(keys: &[BlockKey]) -> Vec<PrefixKey> {
    let whole = |key: &BlockKey| std::array::from_fn(|i| key.0.get(i).copied().unwrap_or_default());
    keys.iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_one_tenants_of_one_node_and_stays() {
        let node = |n: u8| Keypair::ed25519_from_bytes([n; 32]).unwrap();
        let this = salt(&node(1), OWN_TENANT);
        assert_eq!(salt(&node(1), OWN_TENANT), this);
        assert_ne!(salt(&node(2), OWN_TENANT), this);
        assert_ne!(salt(&node(1), "another"), this);
        // Kept blocks are found again only while this stays.
        assert_eq!(hex::encode(this), "daf6fef725c1c6a19e121cd2ca5683e503ef530cf3d57004d2f835f158de1241");
    }

    #[test]
    fn names_travel_by_half() {
        let ids: Vec<u32> = (0..100).collect();
        let keys = PrefixKeys::new(&[1; 32], &[2; 32], "exact", &ids);
        let sent = to_wire(&keys);
        assert_eq!((sent.keys.len(), sent.reuse), (3, 3));
        assert!(sent.keys.iter().zip(keys.keys()).all(|(half, whole)| half.0[..] == whole[..16]));
        let taken = from_wire(&sent);
        assert_eq!((taken.keys().len(), taken.reuse_rows()), (3, 96));
        assert!(
            taken.keys().iter().zip(&sent.keys).all(|(whole, half)| whole[..16] == half.0 && whole[16..] == [0; 16])
        );
        // The last row is computed: a block that ends the prompt is named, not taken over.
        let whole = to_wire(&PrefixKeys::new(&[1; 32], &[2; 32], "exact", &ids[..64]));
        assert_eq!((whole.keys.len(), whole.reuse), (2, 1));
    }
}
