//! BLAKE3 of a run of bytes, with the chaining value of each chunk of 1 MiB: what lets a chunk be checked alone.
//!
//! BLAKE3 is a tree, and an aligned 1 MiB is one of its subtrees. The hash of the whole is what it always was; the chaining
//! values below it are checked against it once, and each chunk against its own as it arrives.

use blake3::{
    Hasher,
    hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root},
};

/// Bytes of a chunk; the last of a run may be shorter. A power of two, as a subtree is.
pub const CHUNK: u64 = 1 << 20;

/// A run of bytes by its hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    hash: [u8; 32],
    bytes: u64,
    /// One for each chunk; none where there is one chunk only, whose hash is `hash`.
    chunks: Vec<ChainingValue>,
}

impl Tree {
    /// Hashes `bytes` bytes that come in pieces.
    pub fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, bytes: u64) -> Self {
        if bytes <= CHUNK {
            let mut hasher = Hasher::new();
            for piece in pieces {
                hasher.update(piece);
            }
            return Self { hash: *hasher.finalize().as_bytes(), bytes, chunks: Vec::new() };
        }
        let mut chunks = Vec::new();
        let mut hasher = Hasher::new();
        let (mut offset, mut filled) = (0_u64, 0_u64);
        for mut piece in pieces {
            while !piece.is_empty() {
                let room = usize::try_from(CHUNK.saturating_sub(filled)).unwrap_or(usize::MAX);
                let (now, rest) = piece.split_at_checked(room).unwrap_or((piece, &[]));
                hasher.update(now);
                filled = filled.saturating_add(now.len() as u64);
                piece = rest;
                if filled == CHUNK {
                    chunks.push(hasher.finalize_non_root());
                    offset = offset.saturating_add(CHUNK);
                    hasher = Hasher::new();
                    hasher.set_input_offset(offset);
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            chunks.push(hasher.finalize_non_root());
        }
        let hash = root(&chunks).unwrap_or_default();
        Self { hash, bytes, chunks }
    }

    /// Takes over hashes that somebody tells, if they agree: the chaining values must make up `hash`.
    pub fn from_parts(hash: [u8; 32], bytes: u64, chunks: Vec<ChainingValue>) -> Option<Self> {
        let tree = Self { hash, bytes, chunks };
        let agrees = match tree.count() {
            0 => false,
            1 => tree.chunks.is_empty(),
            n => tree.chunks.len() as u64 == n && root(&tree.chunks) == Some(hash),
        };
        agrees.then_some(tree)
    }

    /// BLAKE3 of all bytes.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The chunks' chaining values; none where there is one chunk only.
    pub fn values(&self) -> &[ChainingValue] {
        &self.chunks
    }

    /// How many chunks there are.
    pub fn count(&self) -> u64 {
        self.bytes.div_ceil(CHUNK)
    }

    /// Bytes of a chunk; 0 where there is none of that number.
    pub fn chunk_len(&self, index: u64) -> u64 {
        self.bytes.saturating_sub(index.saturating_mul(CHUNK)).min(CHUNK)
    }

    /// Whether these are the bytes of a chunk.
    pub fn check(&self, index: u64, bytes: &[u8]) -> bool {
        if bytes.is_empty() || bytes.len() as u64 != self.chunk_len(index) {
            return false;
        }
        if self.chunks.is_empty() {
            return *blake3::hash(bytes).as_bytes() == self.hash;
        }
        let mut hasher = Hasher::new();
        hasher.set_input_offset(index.saturating_mul(CHUNK)).update(bytes);
        let known = usize::try_from(index).ok().and_then(|index| self.chunks.get(index));
        known == Some(&hasher.finalize_non_root())
    }
}

/// The hash of the whole, from two chaining values or more.
fn root(values: &[ChainingValue]) -> Option<[u8; 32]> {
    let (left, right) = halves(values)?;
    Some(*merge_subtrees_root(&subtree(left)?, &subtree(right)?, Mode::Hash).as_bytes())
}

fn subtree(values: &[ChainingValue]) -> Option<ChainingValue> {
    if let [only] = values {
        return Some(*only);
    }
    let (left, right) = halves(values)?;
    Some(merge_subtrees_non_root(&subtree(left)?, &subtree(right)?, Mode::Hash))
}

/// BLAKE3's left subtree is the largest that is whole and leaves something to the right.
fn halves(values: &[ChainingValue]) -> Option<(&[ChainingValue], &[ChainingValue])> {
    let left = 1_usize.checked_shl(values.len().saturating_sub(1).checked_ilog2()?)?;
    values.split_at_checked(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    #[test]
    fn the_hash_is_plain_blake3_whatever_the_pieces() {
        let mib = 1 << 20;
        for len in [1, 1024, mib - 1, mib, mib + 1, 2 * mib, 3 * mib + 5, 7 * mib, 8 * mib + 1] {
            let bytes = data(len);
            for piece in [len, 4096, mib + 77] {
                let tree = Tree::of(bytes.chunks(piece), len as u64);
                assert_eq!(tree.hash(), blake3::hash(&bytes).as_bytes(), "{len} bytes in pieces of {piece}");
                assert_eq!(tree.values().len() as u64, if len > mib { tree.count() } else { 0 });
            }
        }
    }

    #[test]
    fn each_chunk_is_checked_alone_and_nothing_else_passes() {
        let bytes = data((3 << 20) + 100);
        let tree = Tree::of([&bytes[..]], bytes.len() as u64);
        for (i, chunk) in bytes.chunks(1 << 20).enumerate() {
            assert!(tree.check(i as u64, chunk));
            assert!(!tree.check(i as u64 + 1, chunk), "in another's place");
            let mut other = chunk.to_vec();
            other[17] ^= 1;
            assert!(!tree.check(i as u64, &other));
            assert!(!tree.check(i as u64, &chunk[1..]));
        }
        assert!(!tree.check(0, &[]) && !tree.check(4, &[]) && !tree.check(u64::MAX, &[1]));
    }

    #[test]
    fn told_values_must_make_up_the_hash() {
        let bytes = data((2 << 20) + 1);
        let tree = Tree::of([&bytes[..]], bytes.len() as u64);
        let told = |hash, len, values| Tree::from_parts(hash, len, values);
        assert_eq!(told(tree.hash, tree.bytes, tree.chunks.clone()), Some(tree.clone()));
        let mut swapped = tree.chunks.clone();
        swapped.swap(0, 1);
        assert_eq!(told(tree.hash, tree.bytes, swapped), None);
        assert_eq!(told(tree.hash, tree.bytes, tree.chunks[..2].to_vec()), None);
        assert_eq!(told(tree.hash, 1 << 20, tree.chunks.clone()), None, "values where none are needed");
        assert_eq!(told(tree.hash, 0, Vec::new()), None);
        assert_eq!(told(tree.hash, u64::MAX, Vec::new()), None);
    }
}
