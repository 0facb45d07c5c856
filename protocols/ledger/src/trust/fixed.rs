//! Arithmetic without floating point: two nodes, and one node before and after an update, come to the same numbers.

/// `points` times `part` over `whole`, towards zero; nothing of nothing.
pub(super) fn share(points: i64, part: u64, whole: u64) -> i64 {
    let product = i128::from(points).saturating_mul(i128::from(part)).checked_div(i128::from(whole)).unwrap_or(0);
    i64::try_from(product).unwrap_or(if product < 0 { i64::MIN } else { i64::MAX })
}

/// 2^(−n/16) in 2^−30, for n = 0..16.
const SIXTEENTHS: [i64; 16] = [
    1_073_741_824,
    1_028_218_693,
    984_625_594,
    942_880_699,
    902_905_651,
    864_625_413,
    827_968_132,
    792_865_000,
    759_250_125,
    727_060_411,
    696_235_434,
    666_717_336,
    638_450_708,
    611_382_493,
    585_461_881,
    560_640_218,
];

/// Sixteenths of a half-life that have passed.
pub(super) fn steps(passed: u64, half_life: u64) -> u64 {
    let steps = u128::from(passed).saturating_mul(16).checked_div(u128::from(half_life)).unwrap_or(0);
    u64::try_from(steps).unwrap_or(u64::MAX)
}

/// What is left of `value` after so many sixteenths of a half-life.
pub(super) fn faded(value: i32, steps: u64) -> i32 {
    let halves = u32::try_from(steps / 16).unwrap_or(u32::MAX);
    let rest = usize::try_from(steps % 16).ok().and_then(|rest| SIXTEENTHS.get(rest)).copied().unwrap_or(0);
    let scaled = i64::from(value).saturating_mul(rest) / (1 << 30);
    let left = scaled.abs().checked_shr(halves).unwrap_or(0).saturating_mul(scaled.signum());
    i32::try_from(left).unwrap_or(0)
}
