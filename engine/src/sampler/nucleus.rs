//! Top-p: the fewest of the most likely tokens whose weights reach a sum.

use std::cmp::Ordering;

use super::cut::{Candidate, likely_first};

/// Intervals of logits whose weights are summed apart. Real vocabularies leave a few hundred tokens in the one that the
/// nucleus ends in, which alone has to be ordered; the sums fit the first cache.
const INTERVALS: usize = 1024;

/// Logits so far below the highest, in units of the temperature, have no weight.
const RANGE: f32 = 28.0;

/// Sums of weights by interval of the logit.
#[derive(Clone, Debug)]
pub(super) struct Nucleus {
    sums: Vec<u64>,
    /// Candidates of one interval, to be ordered.
    some: Vec<Candidate>,
}

impl Default for Nucleus {
    fn default() -> Self {
        Self { sums: vec![0; INTERVALS], some: Vec::new() }
    }
}

/// Which interval a logit falls into: the further below the highest, the later. Rounding keeps the order, so a token in an
/// earlier interval is always the likelier one, and equals are in the same.
#[derive(Clone, Copy, Debug)]
struct Intervals {
    highest: f32,
    per_logit: f32,
}

impl Intervals {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "never negative; what is beyond saturates"
    )]
    fn of(self, logit: f32) -> usize {
        // Infinity times zero, with a temperature next to nothing, becomes 0: right, since that is the highest itself.
        (((self.highest - logit) * self.per_logit) as usize).min(INTERVALS - 1)
    }
}

impl Nucleus {
    /// Puts the tokens of the nucleus into `kept`, in the order of ids: of those with a weight of at least 1 the fewest of
    /// the most likely whose weights reach `wanted`, which is at most the sum of all, and of these the ones with a weight
    /// of at least `least`.
    ///
    /// Looks at every token twice and orders only those of one interval, however flat they are.
    pub(super) fn collect(
        &mut self,
        (logits, weights): (&[f32], &[u64]),
        (highest, temperature): (f32, f32),
        (wanted, least): (u64, u64),
        kept: &mut Vec<Candidate>,
    ) {
        #[expect(clippy::cast_precision_loss, reason = "a power of two")]
        let intervals = Intervals { highest, per_logit: INTERVALS as f32 / (RANGE * temperature) };
        self.sums.fill(0);
        for (logit, weight) in logits.iter().zip(weights) {
            if let Some(sum) = self.sums.get_mut(intervals.of(*logit)) {
                *sum += *weight;
            }
        }
        let mut missing = wanted;
        let reaches = |sum: &u64| match missing.checked_sub(*sum) {
            Some(left) if left > 0 => {
                missing = left;
                false
            }
            _ => true,
        };
        let end = self.sums.iter().position(reaches).unwrap_or(INTERVALS - 1);

        let each = || {
            let all = (0..).zip(logits).zip(weights).filter(|(_, weight)| **weight > 0);
            all.map(|((id, logit), weight)| Candidate { id, logit: *logit, weight: *weight })
        };
        self.some.clear();
        self.some.extend(each().filter(|c| intervals.of(c.logit) == end));
        let last = last_of_nucleus(&mut self.some, missing);
        let inside = |c: &Candidate| match intervals.of(c.logit).cmp(&end) {
            Ordering::Less => true,
            Ordering::Equal => last.is_none_or(|last| likely_first(c, &last) != Ordering::Greater),
            Ordering::Greater => false,
        };
        kept.clear();
        kept.extend(each().filter(|c| c.weight >= least && inside(c)));
    }
}

/// The last of the fewest most likely candidates whose weights reach `wanted`. Halves the candidates that are in
/// question each time, so that it takes a few passes over them, however flat they are.
pub(super) fn last_of_nucleus(mut candidates: &mut [Candidate], mut wanted: u64) -> Option<Candidate> {
    while candidates.len() > 1 {
        let half = candidates.len() / 2;
        candidates.select_nth_unstable_by(half, likely_first);
        let (likely, rest) = candidates.split_at_mut(half);
        let weight: u64 = likely.iter().map(|c| c.weight).sum();
        if weight >= wanted {
            candidates = likely;
        } else {
            wanted -= weight;
            candidates = rest;
        }
    }
    candidates.first().copied()
}
