//! Which of the lines that nobody needs are closed: a pure function of how long each has not been used.
//!
//! A line is a connection that this node has dialled. Spare are those that it does not hold on to: not chosen, not named by the
//! operator, not carrying sessions, circuits or the only gossip of a topic; in short, what lookups leave behind. The more of
//! them there are, the sooner they go:
//!
//! | spare lines | close when not used for |
//! |---|---|
//! | up to [`SPARE`] | the idle timeout of the node, a minute |
//! | up to [`CROWDED`] | [`ANSWER`] |
//! | more | [`FRESH`] |

use std::{cmp::Reverse, time::Duration};

use crate::kad::REQUEST_TIMEOUT;

/// Spare lines that may wait a minute for their next use. A lookup keeps up to nine requests in flight (alpha = 3 on three
/// paths) and its user asks again at the same peers; more than these would be kept for nothing.
pub const SPARE: usize = 16;
/// Spare lines at which even those go that were just used. Half of
/// [`ESTABLISHED_OUTBOUND`](crate::config::ESTABLISHED_OUTBOUND): the rest is for chosen ones, sessions and dials.
pub const CROWDED: usize = 48;
/// How long a request may be under way on a line. Whatever was asked has been answered by then, or has failed.
pub const ANSWER: Duration = REQUEST_TIMEOUT;
/// How long a line stays in any case: it was dialled for something.
pub const FRESH: Duration = Duration::from_secs(1);
/// Lines closed at one look, unless there are too many. A third of a gossip mesh, which mends itself before the next look.
pub const AT_ONCE: usize = 4;

/// A spare line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<K> {
    /// Its name.
    pub key: K,
    /// How long it has not been used.
    pub unused: Duration,
}

/// Which lines to close now, the one that has not been used for longest first. `idle` is how long few of them may be unused.
#[must_use]
pub fn overdue<K: Copy + Ord>(mut spare: Vec<Line<K>>, idle: Duration) -> Vec<K> {
    spare.sort_unstable_by_key(|line| (Reverse(line.unused), line.key));
    let mut left = spare.len();
    let mut over = Vec::new();
    for line in spare {
        if line.unused < patience(left, idle) || (over.len() >= AT_ONCE && left <= CROWDED) {
            break;
        }
        over.push(line.key);
        left = left.saturating_sub(1);
    }
    over
}

/// How long one of so many may be unused.
fn patience(lines: usize, idle: Duration) -> Duration {
    if lines <= SPARE {
        idle
    } else if lines <= CROWDED {
        idle.min(ANSWER)
    } else {
        idle.min(FRESH)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn lines() -> impl Strategy<Value = Vec<Line<usize>>> {
        prop::collection::vec(0_u64..90_000, 0..120).prop_map(|unused| {
            unused.iter().enumerate().map(|(key, ms)| Line { key, unused: Duration::from_millis(*ms) }).collect()
        })
    }

    proptest! {
        #[test]
        fn the_oldest_go_and_none_before_its_time(spare in lines()) {
            let over = overdue(spare.clone(), IDLE);
            let gone: Vec<Duration> = over.iter().map(|key| spare[*key].unused).collect();
            prop_assert!(gone.is_sorted_by(|a, b| a >= b));
            let stay = spare.iter().filter(|line| !over.contains(&line.key));
            prop_assert!(stay.clone().all(|line| gone.iter().all(|gone| line.unused <= *gone)));
            for (nth, unused) in gone.iter().enumerate() {
                let left = spare.len() - nth;
                prop_assert!(*unused >= FRESH);
                prop_assert!(left > CROWDED || *unused >= ANSWER);
                prop_assert!(left > SPARE || *unused >= IDLE);
            }
        }

        #[test]
        fn looks_end_with_few_and_after_a_minute_with_none(mut spare in lines()) {
            let look = |spare: &mut Vec<Line<usize>>| {
                let over = overdue(spare.clone(), IDLE);
                spare.retain(|line| !over.contains(&line.key));
                over.len()
            };
            let first = look(&mut spare);
            let fresh = spare.iter().filter(|line| line.unused < FRESH).count();
            prop_assert!(spare.len() <= CROWDED.max(fresh));
            prop_assert!(first <= AT_ONCE || spare.len() <= CROWDED.max(fresh));
            while look(&mut spare) > 0 {}
            let busy = spare.iter().filter(|line| line.unused < ANSWER).count();
            prop_assert!(spare.len() <= SPARE.max(busy));
            spare.iter_mut().for_each(|line| line.unused += IDLE);
            while look(&mut spare) > 0 {}
            prop_assert!(spare.is_empty());
        }
    }

    #[test]
    fn a_burst_does_not_take_the_mesh_with_it() {
        let spare = |n| (0..n).map(|key| Line { key, unused: IDLE }).collect::<Vec<_>>();
        assert_eq!(overdue(spare(CROWDED), IDLE), [0, 1, 2, 3]);
        assert_eq!(overdue(spare(CROWDED + 10), IDLE).len(), 10, "too many go at once");
        assert!(overdue(Vec::<Line<usize>>::new(), IDLE).is_empty());
    }
}
