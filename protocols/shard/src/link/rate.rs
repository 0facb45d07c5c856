//! How many bytes a second a neighbour takes in.

use std::time::{Duration, Instant};

/// Busy times that carried less say more about the round trip than about the line.
const LEAST_BYTES: u64 = 64 * 1024;

/// A busy time of which the round trip leaves less than one part in this many is counted as this part.
const LEAST_SHARE: u32 = 10;

/// Bytes acknowledged over the time that something was on its way.
#[derive(Debug, Default)]
pub(super) struct Rate {
    since: Option<Instant>,
    bytes: u64,
    least_rtt: Option<Duration>,
    mean: Option<u64>,
}

impl Rate {
    /// Something is sent while nothing else is on its way.
    pub(super) fn begins(&mut self, now: Instant) {
        (self.since, self.bytes) = (Some(now), 0);
    }

    /// So much has arrived, and whether nothing is on its way any more.
    pub(super) fn landed(&mut self, bytes: u32, rtt: Duration, idle: bool, now: Instant) {
        self.bytes = self.bytes.saturating_add(u64::from(bytes));
        let least = self.least_rtt.map_or(rtt, |least| least.min(rtt));
        self.least_rtt = Some(least);
        if !idle {
            return;
        }
        let Some(since) = self.since.take().filter(|_| self.bytes >= LEAST_BYTES) else { return };
        let busy = now.saturating_duration_since(since);
        let floor = busy.checked_div(LEAST_SHARE).unwrap_or_default();
        let carrying = busy.saturating_sub(least).max(floor).as_nanos().max(1);
        let rate = u128::from(self.bytes).saturating_mul(1_000_000_000).checked_div(carrying).unwrap_or_default();
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        // The mean of the last few.
        let weighed = |mean: u64| (mean / 4).saturating_mul(3).saturating_add(rate / 4);
        self.mean = Some(self.mean.map_or(rate, weighed));
    }

    /// Bytes per second, once something large enough was sent.
    pub(super) fn bytes_per_s(&self) -> Option<u64> {
        self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_and_not_the_way() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let (ms, mut now) = (Duration::from_millis, start);
        assert_eq!(rate.bytes_per_s(), None);
        for _ in 0..20 {
            // A megabyte in 32 fragments over a line of 10 MB/s, 50 ms away.
            rate.begins(now);
            for n in 1..=32_u32 {
                let at = now + ms(50) + Duration::from_micros(3200) * n;
                rate.landed(32_000, ms(50), n == 32, at);
            }
            now += ms(1000);
        }
        let measured = rate.bytes_per_s().unwrap();
        assert!((9_500_000..10_500_000).contains(&measured), "{measured}");
    }

    #[test]
    fn single_rows_say_nothing() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        rate.begins(now);
        rate.landed(8192, Duration::from_millis(50), true, now + Duration::from_millis(50));
        assert_eq!(rate.bytes_per_s(), None);
    }
}
