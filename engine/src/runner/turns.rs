//! Whose jobs are computed next: a pure rule over what waits.

use std::{collections::BTreeMap, ops::Bound};

/// A job that could be next in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready<K> {
    pub(super) key: K,
    pub(super) group: u64,
    /// Its place within the group: the least goes first.
    pub(super) rank: (u64, u64),
    /// Its rows.
    pub(super) rows: usize,
}

/// The jobs to compute now, in the order of their turns: round by round, each group that has one left gives one, in
/// turns that begin after the group `last`. No more than `max_jobs`, nor than `max_rows` rows in all unless the first
/// alone has more. So no group gets less than another while it has jobs waiting, but for one, and the share that a group
/// has no jobs for goes to the others.
pub(super) fn in_turns<K: Copy>(
    ready: impl IntoIterator<Item = Ready<K>>,
    last: Option<u64>,
    max_jobs: usize,
    max_rows: usize,
) -> Vec<Ready<K>> {
    let mut groups = BTreeMap::<u64, Vec<Ready<K>>>::new();
    for job in ready {
        groups.entry(job.group).or_default().push(job);
    }
    for jobs in groups.values_mut() {
        jobs.sort_by_key(|job| job.rank);
    }
    let rounds = groups.values().map(Vec::len).max().unwrap_or(0);
    let after = |last| (Bound::Excluded(last), Bound::Unbounded);
    let order: Vec<&Vec<Ready<K>>> = match last {
        Some(last) => groups.range(after(last)).chain(groups.range(..=last)).map(|(_, jobs)| jobs).collect(),
        None => groups.values().collect(),
    };
    let (mut taken, mut rows) = (Vec::new(), 0usize);
    for job in (0..rounds).flat_map(|round| order.iter().filter_map(move |jobs| jobs.get(round))) {
        rows = rows.saturating_add(job.rows);
        if taken.len() >= max_jobs || (rows > max_rows && !taken.is_empty()) {
            break;
        }
        taken.push(*job);
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ready(key: usize, group: u64, rank: u64, rows: usize) -> Ready<usize> {
        Ready { key, group, rank: (0, rank), rows }
    }

    fn keys(jobs: &[Ready<usize>]) -> Vec<usize> {
        jobs.iter().map(|job| job.key).collect()
    }

    #[test]
    fn groups_take_turns_and_the_oldest_goes_first() {
        let jobs = [ready(0, 5, 9, 1), ready(1, 5, 2, 1), ready(2, 7, 4, 1), ready(3, 5, 3, 1)];
        assert_eq!(keys(&in_turns(jobs, None, 9, 9)), [1, 2, 3, 0]);
        assert_eq!(keys(&in_turns(jobs, Some(5), 9, 9)), [2, 1, 3, 0]);
        assert_eq!(keys(&in_turns(jobs, Some(5), 2, 9)), [2, 1]);
        assert_eq!(keys(&in_turns([jobs[0], jobs[1], jobs[3]], Some(5), 9, 9)), [1, 3, 0]);
    }

    #[test]
    fn one_session_does_not_hold_another_groups_eight_to_one_row() {
        let jobs = (0..9).map(|key| ready(key, u64::from(key > 0), key as u64, 1));
        assert_eq!(keys(&in_turns(jobs, None, 64, 64)), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn the_bounds_hold_but_never_for_the_first() {
        let jobs = [ready(0, 1, 0, 8), ready(1, 1, 1, 1)];
        assert_eq!(keys(&in_turns(jobs, None, 9, 4)), [0]);
        assert_eq!(keys(&in_turns(jobs, None, 1, 99)), [0]);
        assert!(in_turns::<usize>([], None, 9, 9).is_empty());
    }

    proptest! {
        /// Whatever the others queue, a job that waits is computed after at most as many ticks as there are jobs before
        /// it in its group and groups beside it; batches are as full as they can be; and over a stretch in which all
        /// sessions always have work no group gets more jobs than another that had some waiting every time, but for
        /// one.
        #[test]
        fn nobody_starves(sizes in proptest::collection::vec(1..6usize, 1..6), max_jobs in 1..8usize) {
            // Every session of every group always has a next job: the hardest load.
            let mut waiting = BTreeMap::new();
            for (group, n) in sizes.iter().enumerate() {
                waiting.extend((0..*n).map(|s| ((group, s), 0_u64)));
            }
            let (mut number, mut last) = (0, None);
            let mut done: BTreeMap<(usize, usize), usize> = BTreeMap::new();
            // Whether a group never had jobs left over.
            let mut all_taken = vec![true; sizes.len()];
            let ticks = 240;
            for _ in 0..ticks {
                let jobs = waiting.iter().map(|(key, rank)| Ready { key: *key, group: key.0 as u64, rank: (0, *rank), rows: 1 });
                let taken = in_turns(jobs, last, max_jobs, 64);
                prop_assert_eq!(taken.len(), max_jobs.min(waiting.len()));
                for (group, n) in sizes.iter().enumerate() {
                    all_taken[group] &= taken.iter().filter(|job| job.key.0 == group).count() == *n;
                }
                for job in &taken {
                    number += 1;
                    waiting.insert(job.key, number);
                    *done.entry(job.key).or_default() += 1;
                }
                last = taken.last().map(|job| job.group);
            }
            let total = |group: usize| done.iter().filter(|(key, _)| key.0 == group).map(|(_, n)| n).sum::<usize>();
            let totals: Vec<usize> = (0..sizes.len()).map(total).collect();
            let most = totals.iter().max().unwrap();
            for (total, _) in totals.iter().zip(&all_taken).filter(|(_, all)| !**all) {
                prop_assert!(most - total <= 1, "{totals:?}");
            }
            for (group, n) in sizes.iter().enumerate() {
                let shares: Vec<usize> = (0..*n).map(|s| done.get(&(group, s)).copied().unwrap_or(0)).collect();
                prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
            }
        }
    }
}
