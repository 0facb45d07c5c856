//! How fast the layers served here turn out to be: what this node claims of itself.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use quelea_engine::runner::Phase;

/// A new batch weighs one part in this many.
const WEIGHT: u64 = 16;

/// Layer-rows per second, by phase; moving averages, 0 until something was computed.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    rates: Mutex<(u64, u64)>,
}

impl Meter {
    /// `rows` rows went through `layers` layers in `took`.
    pub(crate) fn computed(&self, phase: Phase, rows: usize, layers: usize, took: Duration) {
        let done = u128::try_from(rows.saturating_mul(layers)).unwrap_or(u128::MAX);
        let nanos = took.as_nanos().max(1);
        let rate = u64::try_from(done.saturating_mul(1_000_000_000) / nanos).unwrap_or(u64::MAX);
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let mean = if phase == Phase::Decode { &mut rates.0 } else { &mut rates.1 };
        *mean = if *mean == 0 { rate } else { *mean - *mean / WEIGHT + rate / WEIGHT };
    }

    /// For decoding and for prefill.
    pub(crate) fn rows_per_s(&self) -> (u32, u32) {
        let rates = *self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let narrow = |rate: u64| u32::try_from(rate).unwrap_or(u32::MAX);
        (narrow(rates.0), narrow(rates.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_measured_apart_and_follow_what_changes() {
        let meter = Meter::default();
        assert_eq!(meter.rows_per_s(), (0, 0));
        meter.computed(Phase::Decode, 1, 8, Duration::from_millis(8));
        assert_eq!(meter.rows_per_s(), (1000, 0));
        meter.computed(Phase::Prefill, 64, 8, Duration::from_millis(8));
        assert_eq!(meter.rows_per_s(), (1000, 64_000));
        for _ in 0..200 {
            meter.computed(Phase::Decode, 1, 8, Duration::from_millis(80));
        }
        assert!((95..=120).contains(&meter.rows_per_s().0), "{:?}", meter.rows_per_s());
        meter.computed(Phase::Decode, usize::MAX, 8, Duration::ZERO);
    }
}
