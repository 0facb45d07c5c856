//! Which peers the asker knows: a Bloom filter with a wire form of its own.
//!
//! ```text
//! m u32 LE (bits, a multiple of 8) | k u8 | seed u64 LE | bits [m / 8]
//! ```
//!
//! Bit `i` is bit `i mod 8` (the lowest is 0) of byte `i / 8`. A peer id sets the bits `(h1 + j * h2) mod m` for `j` from 0
//! to `k - 1`, where `h1` and `h2` are the first and second 8 bytes, read as u64 LE, of the keyed BLAKE3 hash of the id's
//! bytes, with `h2` made odd and all sums wrapping; the key is derived from the seed. The hash is part of the protocol:
//! frozen bytes in the tests hold it in place.
//!
//! At 9.6 bits a peer and seven hashes, one peer in a hundred seems known and is not. It is missed in this round only: each
//! round has a fresh seed. Memory is 8 KiB at most, whatever is asked for.

use libp2p::PeerId;

/// What keys derived for filters are for.
const KEY_DOMAIN: &str = "quelea exchange filter v1";

/// Bits set by one peer: the best number for 9.6 bits each, `9.6 * ln 2 = 6.65`, rounded up.
pub const HASHES: u8 = 7;
/// More hashes than this serve nobody who wants fewer false positives than one in 65,536.
const MAX_HASHES: u8 = 16;
/// The smallest filter: eight bytes hold six peers.
pub const MIN_BITS: u32 = 64;
/// The largest filter: 8 KiB, for [`MAX_KEYS`] peers. It travels every half minute to a few neighbours.
pub const MAX_BITS: u32 = 65_536;
/// Peers that fit into [`MAX_BITS`] at one false positive in a hundred: `65,536 / 9.6`.
pub const MAX_KEYS: usize = 6_826;
/// Bytes before the bits.
pub(crate) const HEADER: usize = 4 + 1 + 8;

/// Why bytes are no filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A number of bits that no filter has.
    #[error("a filter of {0} bits: it has {MIN_BITS} to {MAX_BITS}, a multiple of 8")]
    Bits(u32),
    /// A number of hashes that no filter has.
    #[error("a filter of {0} hashes: it has 1 to {MAX_HASHES}")]
    Hashes(u8),
    /// More or fewer bytes than the header says.
    #[error("the filter has not the length that it says")]
    Length,
}

/// A set of peer ids that may seem to hold a few more than it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    m: u32,
    k: u8,
    seed: u64,
    key: [u8; 32],
    bits: Vec<u8>,
}

impl Filter {
    /// An empty filter with room for `keys` peers at one false positive in a hundred, or for [`MAX_KEYS`] if that is less.
    #[must_use]
    pub fn new(keys: usize, seed: u64) -> Self {
        // 9.6 bits a peer, up to a whole byte: at most 65,536.
        let keys = u32::try_from(keys.min(MAX_KEYS)).unwrap_or(u32::MAX);
        let bytes = keys.saturating_mul(6).div_ceil(5).clamp(MIN_BITS / 8, MAX_BITS / 8);
        Self::empty(bytes.saturating_mul(8), HASHES, seed)
    }

    fn empty(m: u32, k: u8, seed: u64) -> Self {
        let bits = vec![0; usize::try_from(m / 8).unwrap_or_default()];
        Self { m, k, seed, key: blake3::derive_key(KEY_DOMAIN, &seed.to_le_bytes()), bits }
    }

    /// Takes a peer in.
    pub fn insert(&mut self, peer: &PeerId) {
        for (byte, mask) in self.places(peer) {
            if let Some(byte) = self.bits.get_mut(byte) {
                *byte |= mask;
            }
        }
    }

    /// Whether a peer was taken in. Wrong for one in a hundred that was not.
    #[must_use]
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.places(peer).all(|(byte, mask)| self.bits.get(byte).is_some_and(|byte| byte & mask != 0))
    }

    fn places(&self, peer: &PeerId) -> impl Iterator<Item = (usize, u8)> + use<> {
        let hash = blake3::keyed_hash(&self.key, &peer.to_bytes());
        let half = |from: usize| {
            let bytes = hash.as_bytes().get(from..from.saturating_add(8)).and_then(|b| <[u8; 8]>::try_from(b).ok());
            u64::from_le_bytes(bytes.unwrap_or_default())
        };
        let (h1, h2, m) = (half(0), half(8) | 1, u64::from(self.m));
        (0..u64::from(self.k)).map(move |j| {
            // `m` is at least 64.
            let bit = h1.wrapping_add(j.wrapping_mul(h2)).checked_rem(m).unwrap_or_default();
            let (byte, bit) = (usize::try_from(bit / 8).unwrap_or_default(), bit % 8);
            (byte, 1_u8.wrapping_shl(u32::try_from(bit).unwrap_or_default()))
        })
    }

    /// Bits there are.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.m
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        HEADER.saturating_add(self.bits.len())
    }

    /// Writes the wire form to the end of `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.m.to_le_bytes());
        out.push(self.k);
        out.extend_from_slice(&self.seed.to_le_bytes());
        out.extend_from_slice(&self.bits);
    }

    /// How many bytes of bits follow a header.
    ///
    /// # Errors
    /// When no filter has this header. Nothing has been allocated then.
    pub(crate) fn bytes_after(header: &[u8; HEADER]) -> Result<usize, FilterError> {
        let (m, k, _) = split(header);
        if !(MIN_BITS..=MAX_BITS).contains(&m) || m % 8 != 0 {
            return Err(FilterError::Bits(m));
        }
        if k == 0 || k > MAX_HASHES {
            return Err(FilterError::Hashes(k));
        }
        usize::try_from(m / 8).map_err(|_| FilterError::Bits(m))
    }

    /// A filter from its header and as many bytes as [`Filter::bytes_after`] says.
    pub(crate) fn from_parts(header: &[u8; HEADER], bits: Vec<u8>) -> Result<Self, FilterError> {
        if Self::bytes_after(header)? != bits.len() {
            return Err(FilterError::Length);
        }
        let (m, k, seed) = split(header);
        Ok(Self { m, k, seed, key: blake3::derive_key(KEY_DOMAIN, &seed.to_le_bytes()), bits })
    }

    /// Reads the wire form, which must be all of `bytes`.
    ///
    /// # Errors
    /// Says what is wrong. What the header claims is checked before anything is allocated.
    pub fn decode(bytes: &[u8]) -> Result<Self, FilterError> {
        let (header, bits) = bytes.split_first_chunk::<HEADER>().ok_or(FilterError::Length)?;
        if Self::bytes_after(header)? != bits.len() {
            return Err(FilterError::Length);
        }
        Self::from_parts(header, bits.to_vec())
    }
}

fn split(header: &[u8; HEADER]) -> (u32, u8, u64) {
    let [m0, m1, m2, m3, k, seed @ ..] = *header;
    (u32::from_le_bytes([m0, m1, m2, m3]), k, u64::from_le_bytes(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u32) -> PeerId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        libp2p::identity::Keypair::ed25519_from_bytes(key).unwrap().public().to_peer_id()
    }

    #[test]
    fn one_in_a_hundred_seems_known_at_every_size() {
        let known: Vec<PeerId> = (0..2_000).map(|_| PeerId::random()).collect();
        for size in [60, 500, 2_000] {
            let mut filter = Filter::new(size, 7);
            known.iter().take(size).for_each(|peer| filter.insert(peer));
            assert!(known.iter().take(size).all(|peer| filter.contains(peer)));
            let wrong = (0..20_000).filter(|_| filter.contains(&PeerId::random())).count();
            // 200 expected; the chance of more than 320 is one in 10^14.
            assert!((60..320).contains(&wrong), "{wrong} of 20,000 at {size} peers");
        }
    }

    #[test]
    fn another_seed_errs_elsewhere() {
        let known: Vec<PeerId> = (0..300).map(|_| PeerId::random()).collect();
        let filters = [1, 2].map(|seed| {
            let mut filter = Filter::new(known.len(), seed);
            known.iter().for_each(|peer| filter.insert(peer));
            filter
        });
        let both = (0..20_000).map(|_| PeerId::random()).filter(|p| filters.iter().all(|f| f.contains(p))).count();
        assert!(both < 30, "{both} of 20,000 are hidden by both seeds");
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(Filter::new(0, 0).bits(), MIN_BITS);
        assert_eq!(Filter::new(100, 0).bits(), 960);
        assert_eq!(Filter::new(MAX_KEYS, 0).bits(), MAX_BITS);
        assert_eq!(Filter::new(usize::MAX, 0).bits(), MAX_BITS);
    }

    #[test]
    fn the_hash_is_frozen() {
        let mut filter = Filter::new(6, 0x0123_4567_89ab_cdef);
        filter.insert(&peer(1));
        filter.insert(&peer(2));
        let mut bytes = Vec::new();
        filter.encode(&mut bytes);
        assert_eq!(hex::encode(&bytes), "4000000007efcdab896745230140014402329008a4");
        assert_eq!(Filter::decode(&bytes).unwrap(), filter);
    }
}
