//! The thread: see the order of a tick in the module's documentation.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use super::{
    JobError, Output, Phase,
    state::{Next, Shared, Taken},
};
use crate::{BackendError, StageError};

pub(super) fn run(shared: &Shared) {
    loop {
        match shared.next() {
            Next::Orphans(jobs) => jobs.into_iter().for_each(|job| (job.reply)(Err(JobError::Closed))),
            Next::Stop(jobs) => {
                jobs.into_iter().for_each(|job| (job.reply)(Err(JobError::Closed)));
                return;
            }
            Next::Tick => {
                for _ in 0..shared.decodes() {
                    let Some(taken) = shared.take(Phase::Decode) else { break };
                    answer(shared, taken);
                }
                if let Some(taken) = shared.take(Phase::Prefill) {
                    answer(shared, taken);
                }
            }
        }
    }
}

/// Computes one job and answers it. The session is whole again, and its job counted as answered, before the reply hears
/// of it: a reply may lead to the next job at once.
fn answer(shared: &Shared, taken: Taken) {
    let Taken { pending, mut cache } = taken;
    let job = pending.job;
    let start = Instant::now();
    let result = if start >= job.deadline {
        Err(JobError::DeadlinePassed)
    } else if cache.len() != job.pos as usize {
        // A cache holds no more rows than it was opened for, a u32.
        Err(JobError::Position { expected: u32::try_from(cache.len()).unwrap_or(u32::MAX), found: job.pos })
    } else {
        let before = cache.len();
        // A panic in a backend must cost one job, not the thread and every session with it.
        let computed = catch_unwind(AssertUnwindSafe(|| shared.stage.forward(&mut cache, before, &job.rows)));
        let computed = computed.unwrap_or_else(|_| {
            cache.truncate_layers(before);
            Err(StageError::Backend(BackendError("the computation panicked".to_owned())))
        });
        computed.map_err(JobError::from).map(|rows| Output {
            rows,
            compute: start.elapsed(),
            queued: start.saturating_duration_since(pending.since),
        })
    };
    shared.give_back(job.session, cache);
    (job.reply)(result);
}
