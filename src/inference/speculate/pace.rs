//! How many tokens to guess: as many as pay, by what passes take and how often guesses were right.

use std::time::Duration;

/// The part of a new figure in a mean.
const WEIGHT: f64 = 0.125;

/// What is believed before anything was measured: how likely a guess is right, and what a further row of a pass costs, in
/// passes of one row.
const LIKELY: f64 = 0.5;
const ROW_COST: f64 = 0.25;

/// No guess is held for less likely, so that a text that begins to repeat itself is noticed after a few tries.
const LIKELY_MIN: f64 = 0.02;

/// Where guessing does not pay, one guess is tried all the same after so many chances, twice as many each time that it is
/// wrong: below one row in a hundred, in the end.
const TRY_AFTER: u32 = 8;
const TRY_AFTER_MAX: u32 = 256;

/// What is known of the guesses of one source.
#[derive(Debug)]
pub(super) struct Pace {
    likely: f64,
    /// Seconds of a pass of one row, and those that each further row adds.
    one: Option<f64>,
    more: Option<f64>,
    passed_over: u32,
    try_after: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { likely: LIKELY, one: None, more: None, passed_over: 0, try_after: TRY_AFTER }
    }
}

fn mean(old: Option<f64>, new: f64) -> Option<f64> {
    Some(old.map_or(new, |old| old + (new - old) * WEIGHT))
}

impl Pace {
    /// How many tokens to guess, `most` at most: those that give most tokens for the time.
    pub(super) fn guesses(&mut self, most: usize) -> usize {
        let one = self.one.unwrap_or(1.0).max(f64::MIN_POSITIVE);
        let more = self.more.filter(|_| self.one.is_some()).unwrap_or(one * ROW_COST);
        let (mut tokens, mut right, mut time) = (1.0, 1.0, one);
        let mut best = (tokens / time, 0);
        for n in 1..=most {
            right *= self.likely;
            tokens += right;
            time += more;
            if tokens / time > best.0 {
                best = (tokens / time, n);
            }
        }
        if best.1 > 0 || most == 0 {
            return best.1;
        }
        self.passed_over += 1;
        if self.passed_over < self.try_after {
            return 0;
        }
        self.passed_over = 0;
        self.try_after = (self.try_after * 2).min(TRY_AFTER_MAX);
        1
    }

    /// A pass of so many rows took this long.
    pub(super) fn ran(&mut self, rows: usize, time: Duration) {
        let time = time.as_secs_f64();
        if rows <= 1 {
            self.one = mean(self.one, time);
        } else if let (Some(one), Ok(further)) = (self.one, u32::try_from(rows - 1)) {
            self.more = mean(self.more, ((time - one) / f64::from(further)).max(0.0));
        }
    }

    /// Of so many guesses the first `right` were.
    pub(super) fn judged(&mut self, proposed: usize, right: usize) {
        for at in 0..proposed.min(right + 1) {
            let outcome = if at < right { 1.0 } else { 0.0 };
            self.likely += (outcome - self.likely) * WEIGHT;
        }
        self.likely = self.likely.max(LIKELY_MIN);
        if right > 0 {
            self.try_after = TRY_AFTER;
            self.passed_over = TRY_AFTER - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn guesses_are_as_many_as_pay() {
        let mut pace = Pace::default();
        pace.ran(1, 100 * MS);
        pace.ran(5, 104 * MS);
        for _ in 0..20 {
            pace.judged(7, 7);
        }
        assert_eq!(pace.guesses(7), 7, "a long way makes rows cheap");
        assert_eq!(pace.guesses(0), 0);
        let mut dear = Pace::default();
        dear.ran(1, 10 * MS);
        dear.ran(2, 19 * MS);
        dear.judged(4, 1);
        assert_eq!(dear.guesses(0), 0);
        assert!(dear.guesses(7) <= 1);
    }

    #[test]
    fn wrong_guesses_cost_little_and_right_ones_are_noticed() {
        let mut pace = Pace::default();
        pace.ran(1, 10 * MS);
        let mut tried = 0;
        for _ in 0..4000 {
            let n = pace.guesses(7);
            pace.ran(1 + n, 10 * MS + 5 * MS * u32::try_from(n).unwrap());
            pace.judged(n, 0);
            tried += n;
        }
        assert!(tried <= 40, "{tried} rows in vain in 4000 passes");
        let mut passes = 0;
        while pace.guesses(7) < 4 {
            pace.judged(1, 1);
            passes += 1;
            assert!(passes < 40);
        }
    }
}
