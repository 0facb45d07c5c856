//! The generator: random numbers by seed and position.

/// The odd constant of SplitMix64, 2⁶⁴ divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64 random bits that depend on seed and position only: SplitMix64 as a counter. The seed is mixed first, so that
/// neighbouring seeds do not give each other's sequences one step apart; output n of the stream is the mix of
/// start + (n + 1) · γ. Frozen by the tests: changing it changes every seeded answer.
fn random(seed: u64, position: u64) -> u64 {
    mix(mix(seed.wrapping_add(GAMMA)).wrapping_add(GAMMA.wrapping_mul(position.wrapping_add(1))))
}

/// A random number below `total`, or 0 where there is none.
pub(super) fn below(seed: u64, position: u64, total: u64) -> u64 {
    // The upper half of the product: below `total`, each value equally often but for one part in 2⁶⁴ / total.
    let product = u128::from(random(seed, position)) * u128::from(total);
    u64::try_from(product >> 64).unwrap_or_default()
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors() {
        // The mixer's published values: SplitMix64 from state 0.
        assert_eq!(
            [1, 2, 3].map(|n: u64| mix(GAMMA.wrapping_mul(n))),
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]
        );
        let frozen = [(0, 0), (0, 1), (1, 0), (42, 7), (u64::MAX, u64::MAX)].map(|(s, p)| random(s, p) >> 11);
        assert_eq!(
            frozen,
            [0x14_e0db_a5e9_a32f, 0x16_7054_60be_8829, 0x0b_c835_610e_872c, 0x17_82d4_7a99_890c, 0x08_8a03_1c60_b021]
        );
    }

    #[test]
    fn draws_stay_below_the_total() {
        for position in 0..1000 {
            assert!(below(3, position, 7) < 7);
            assert_eq!(below(3, position, 1), 0);
            assert!(below(3, position, u64::MAX) < u64::MAX);
        }
        assert_eq!(below(3, 0, 0), 0);
    }
}
