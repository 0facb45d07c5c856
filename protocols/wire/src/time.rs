//! Instants on the wire: Unix milliseconds, only inside signed things, and believed only near our own clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// How far another node's clock may be from ours: two minutes covers home machines without NTP and still bounds replay.
pub const MAX_SKEW_MS: u64 = 120_000;

/// Now, in milliseconds since 1970. A clock set before 1970 reads as 0.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Whether `instant_ms` is within [`MAX_SKEW_MS`] of `now_ms`, on either side.
#[must_use]
pub fn within_skew(instant_ms: u64, now_ms: u64) -> bool {
    instant_ms.abs_diff(now_ms) <= MAX_SKEW_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_symmetric_and_safe_at_the_ends() {
        assert!(within_skew(1_000_000, 1_000_000 + MAX_SKEW_MS));
        assert!(within_skew(1_000_000 + MAX_SKEW_MS, 1_000_000));
        assert!(!within_skew(0, u64::MAX));
        assert!(!within_skew(u64::MAX, 0));
        assert!(unix_ms() > 1_700_000_000_000);
    }
}
