//! One Bloom filter: k = 20 positions of an id, from one keyed SipHash.

use siphasher::sip128::SipHasher13;

use super::Id;

/// Bits for one id, in thousandths: `-log2(10⁻⁶) / ln 2 = 28.755`, the least with which a full filter errs once in 10⁶.
const MILLIBITS: usize = 28_756;

/// Positions of an id: `bits per id × ln 2 = 19.93`.
const POSITIONS: u32 = 20;

/// Bits of a word.
const WORD: usize = 64;

/// A filter and how full it is.
#[derive(Debug)]
pub(super) struct Filter {
    words: Vec<u64>,
    ids: usize,
    ones: usize,
    /// Whether it got an id since the last call of [`Filter::aged`].
    fresh: bool,
}

impl Filter {
    /// For so many ids: 3.4 MiB for a million.
    pub(super) fn new(ids: usize) -> Self {
        let bits = ids.saturating_mul(MILLIBITS).div_ceil(1000).max(WORD);
        Self { words: vec![0; bits.div_ceil(WORD)], ids: 0, ones: 0, fresh: false }
    }

    /// The same, empty.
    pub(super) fn cleared(mut self) -> Self {
        self.words.fill(0);
        Self { words: self.words, ids: 0, ones: 0, fresh: false }
    }

    pub(super) fn insert(&mut self, key: &[u8; 16], id: &Id) {
        for position in positions(key, id, self.bits()) {
            let (word, bit) = place(position);
            if let Some(word) = self.words.get_mut(word) {
                self.ones = self.ones.saturating_add(usize::from(*word & bit == 0));
                *word |= bit;
            }
        }
        self.ids = self.ids.saturating_add(1);
        self.fresh = true;
    }

    /// A period has passed. Whether the filter got an id in it.
    pub(super) fn aged(&mut self) -> bool {
        std::mem::take(&mut self.fresh)
    }

    pub(super) fn contains(&self, key: &[u8; 16], id: &Id) -> bool {
        positions(key, id, self.bits()).all(|position| {
            let (word, bit) = place(position);
            self.words.get(word).is_some_and(|word| word & bit != 0)
        })
    }

    /// Ids put in.
    pub(super) fn ids(&self) -> usize {
        self.ids
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.words.len().saturating_mul(WORD / 8)
    }

    /// Share of the bits that are set.
    #[expect(clippy::cast_precision_loss, reason = "a share of some 10⁷ bits")]
    pub(super) fn fill(&self) -> f64 {
        self.ones as f64 / self.bits() as f64
    }

    /// The likelihood that all positions of a fresh id are set.
    pub(super) fn false_positives(&self) -> f64 {
        self.fill().powf(f64::from(POSITIONS))
    }

    fn bits(&self) -> usize {
        self.words.len().saturating_mul(WORD)
    }
}

/// What the step grows by, times 0, 1, 2, …: 2^64 over the golden ratio, so that the positions spread over any filter.
const GROWTH: u64 = 0x9E37_79B9_7F4A_7C15;

/// Double hashing with a step that grows: the i-th position is `a + i·b + (i³ − 3i² + 2i)/6 · `[`GROWTH`], scaled from 64 bits to
/// the filter's length. Without the growth one id of 2^64 over a few times the length has all its positions next to each other.
fn positions(key: &[u8; 16], id: &Id, bits: usize) -> impl Iterator<Item = usize> {
    let hash = SipHasher13::new_with_key(key).hash(id);
    let (mut at, mut step) = (hash.h1, hash.h2 | 1);
    (0..u64::from(POSITIONS)).map(move |i| {
        let scaled = u128::from(at).saturating_mul(bits as u128) >> 64;
        at = at.wrapping_add(step);
        step = step.wrapping_add(i.wrapping_mul(GROWTH));
        // Below `bits`, which is a usize.
        usize::try_from(scaled).unwrap_or(0)
    })
}

fn place(position: usize) -> (usize, u64) {
    (position / WORD, 1_u64.rotate_left(u32::try_from(position % WORD).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_ids_take_three_and_a_half_mebibytes() {
        let bytes = Filter::new(1_000_000).bytes();
        assert!((3_590_000..3_600_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn positions_are_within_and_spread() {
        let bits = 28_756_032;
        let mut buckets = [0_u32; 16];
        for n in 0..2000_u64 {
            let mut id = [0; 20];
            id[..8].copy_from_slice(&n.to_le_bytes());
            let all: Vec<usize> = positions(&[7; 16], &id, bits).collect();
            assert!(all.len() == 20 && all.iter().all(|p| *p < bits));
            for position in all {
                buckets[position * 16 / bits] += 1;
            }
        }
        // 2,500 each; six standard deviations are 300.
        assert!(buckets.iter().all(|n| n.abs_diff(2500) < 300), "{buckets:?}");
    }

    #[test]
    fn another_key_puts_an_id_elsewhere() {
        let id = [9; 20];
        let [a, b] = [[1; 16], [2; 16]].map(|key| positions(&key, &id, 1 << 20).collect::<Vec<_>>());
        assert_ne!(a, b);
    }
}
