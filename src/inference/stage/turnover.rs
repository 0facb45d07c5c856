//! When somebody who was refused a place may ask again with a chance.
//!
//! With `n` sessions open that last `t` each, one ends every `t / n` (Little's law). A stage knows both: how many are open, and
//! how long those lasted that have ended. It is a guess, and bounded: nobody is told to come back in less than a fifth of a
//! second, or to stay away for more than half a minute.

use std::time::Duration;

/// Less would be hammering.
const SOONEST: Duration = Duration::from_millis(200);

/// Who has waited that long may as well ask.
const LATEST: Duration = Duration::from_secs(30);

/// What is said before any session has ended.
const UNKNOWN: Duration = Duration::from_secs(2);

/// How much of the average a session makes up that has ended just now: an eighth, so that some ten tell.
const WEIGHT: u32 = 8;

/// How long sessions last here.
#[derive(Debug, Default)]
pub(super) struct Turnover {
    lasts: Option<Duration>,
}

impl Turnover {
    /// A session is over that lasted so long.
    pub(super) fn ended(&mut self, lasted: Duration) {
        let lasted = lasted.min(LATEST.saturating_mul(WEIGHT));
        self.lasts = Some(match self.lasts {
            Some(before) => before.saturating_mul(WEIGHT - 1).saturating_add(lasted) / WEIGHT,
            None => lasted,
        });
    }

    /// When one of so many places may be free.
    pub(super) fn free_in(&self, open: usize) -> Duration {
        let open = u32::try_from(open).unwrap_or(u32::MAX).max(1);
        let one = self.lasts.map_or(UNKNOWN, |lasts| lasts.checked_div(open).unwrap_or(lasts));
        one.clamp(SOONEST, LATEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_place_is_free_sooner_where_more_are_taken_and_where_sessions_are_short() {
        let mut turnover = Turnover::default();
        assert_eq!(turnover.free_in(100), UNKNOWN);
        turnover.ended(SECOND * 8);
        assert_eq!((turnover.free_in(1), turnover.free_in(4)), (SECOND * 8, SECOND * 2));
        for _ in 0..100 {
            turnover.ended(SECOND);
        }
        let one = turnover.free_in(1);
        assert!(one >= SECOND && one < SECOND * 2, "{one:?}: the last ten tell");
    }

    #[test]
    fn nobody_is_told_to_hammer_or_to_stay_away() {
        let mut turnover = Turnover::default();
        for lasted in [Duration::ZERO, Duration::MAX] {
            for _ in 0..100 {
                turnover.ended(lasted);
            }
            for open in [0, 1, 7, usize::MAX] {
                assert!((SOONEST..=LATEST).contains(&turnover.free_in(open)), "{lasted:?} {open}");
            }
        }
    }
}
