//! The thread: see the order of a tick in the module's documentation.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use super::{
    Input, JobError, Output, Want,
    pace::Stopwatch,
    session::Pending,
    sessions::{Done, Taken},
    state::{Next, Shared},
};
use crate::{BackendError, Cache, MAX_ROWS, Segment, Stage, StageError};

pub(super) fn run(shared: &Shared) {
    loop {
        match shared.next() {
            Next::Orphans(jobs) => jobs.into_iter().for_each(|job| (job.reply)(Err(JobError::Closed))),
            Next::Stop(jobs) => {
                jobs.into_iter().for_each(|job| (job.reply)(Err(JobError::Closed)));
                return;
            }
            Next::Tick(sessions) if shared.stage.is_exact() => {
                answer(shared, sessions.into_iter().filter_map(|id| shared.take(id)).collect());
            }
            Next::Tick(sessions) => {
                for id in sessions {
                    answer(shared, shared.take(id).into_iter().collect());
                }
            }
        }
    }
}

/// A job on its way through a batch.
struct Running {
    pending: Pending,
    cache: Cache,
    /// What has become of the job's rows so far.
    rows: Vec<f32>,
    error: Option<JobError>,
}

/// Computes jobs together and answers them. The sessions are whole again, and the jobs counted as answered, before any
/// reply is called: a reply may lead to the next job at once.
fn answer(shared: &Shared, taken: Vec<Taken<Cache>>) {
    if taken.is_empty() {
        return;
    }
    let stage = &shared.stage;
    let watch = Stopwatch::start();
    let start = watch.start;
    let mut batch: Vec<Running> = taken.into_iter().map(|taken| begin(stage, taken, start)).collect();
    let good = batch.iter().filter(|running| running.error.is_none());
    let total: usize = good.map(|running| running.pending.rows).sum();
    layers(stage, &mut batch);
    logits(stage, &mut batch);
    let spent = watch.stop();

    let (mut caches, mut answers) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
    for Running { pending, cache, rows, error } in batch {
        caches.push(Done { session: pending.job.session, cache, ok: error.is_none() });
        let compute = share(spent.wall, pending.rows, total);
        let queued = start.saturating_duration_since(pending.since);
        answers.push((pending.job.reply, error.map_or(Ok(Output { rows, compute, queued }), Err)));
    }
    shared.bring_back(caches, total, spent);
    answers.into_iter().for_each(|(reply, answer)| reply(answer));
}

/// The time of `rows` of the `total` rows of a batch.
fn share(time: Duration, rows: usize, total: usize) -> Duration {
    let (rows, total) = (u32::try_from(rows).unwrap_or(u32::MAX), u32::try_from(total).unwrap_or(u32::MAX));
    time.saturating_mul(rows).checked_div(total).unwrap_or_default()
}

/// Checks a job whose turn has come, and looks its tokens up.
fn begin(stage: &Stage, Taken { mut pending, cache }: Taken<Cache>, now: Instant) -> Running {
    let job = &mut pending.job;
    // A cache holds no more rows than it was opened for, a u32.
    let expected = u32::try_from(cache.len()).unwrap_or(u32::MAX);
    let input = std::mem::replace(&mut job.input, Input::Rows(Vec::new()));
    let rows = if now >= job.deadline {
        Err(JobError::DeadlinePassed)
    } else if cache.layers() > 0 && expected != job.pos {
        Err(JobError::Position { expected, found: job.pos })
    } else {
        match input {
            Input::Rows(rows) => Ok(rows),
            Input::Tokens(ids) => guarded(|| stage.embed(&ids)).map_err(JobError::from),
        }
    };
    match rows {
        Ok(rows) => Running { pending, cache, rows, error: None },
        Err(error) => Running { pending, cache, rows: Vec::new(), error: Some(error) },
    }
}

/// Runs the rows of all jobs through their sessions' layers, together.
fn layers(stage: &Stage, batch: &mut [Running]) {
    let has_layers = |running: &&mut Running| running.error.is_none() && running.cache.layers() > 0;
    let mut jobs: Vec<&mut Running> = batch.iter_mut().filter(has_layers).collect();
    together(stage, &mut jobs);
    if jobs.len() > 1 {
        // What failed together may be the doing of one: the others shall not suffer for it.
        for job in jobs {
            if job.error.take_if(|error| matches!(error, JobError::Stage(StageError::Backend(_)))).is_some() {
                together(stage, &mut [job]);
            }
        }
    }
}

fn together(stage: &Stage, jobs: &mut [&mut Running]) {
    let before: Vec<usize> = jobs.iter().map(|job| job.cache.len()).collect();
    let computed = {
        let mut segments: Vec<Segment<'_>> = jobs
            .iter_mut()
            .zip(&before)
            .map(|(job, pos)| Segment { cache: &mut job.cache, pos: *pos, rows: &job.rows })
            .collect();
        catch_unwind(AssertUnwindSafe(|| stage.forward_batch(&mut segments)))
    };
    match computed {
        Ok(results) => {
            for (job, result) in jobs.iter_mut().zip(results) {
                match result {
                    Ok(rows) => job.rows = rows,
                    Err(error) => job.error = Some(error.into()),
                }
            }
        }
        Err(_) => {
            for (job, rows) in jobs.iter_mut().zip(before) {
                job.cache.truncate_layers(rows);
                job.error = Some(JobError::Stage(panicked()));
            }
        }
    }
}

/// Runs the rows of the jobs that want logits through the head, together: all of them, or each job's last.
fn logits(stage: &Stage, batch: &mut [Running]) {
    let wants = |running: &&mut Running| running.error.is_none() && running.pending.job.want != Want::Rows;
    let mut jobs: Vec<&mut Running> = batch.iter_mut().filter(wants).collect();
    let hidden = stage.hidden();
    for job in jobs.iter_mut().filter(|job| job.pending.job.want == Want::Logits) {
        let start = job.rows.len().saturating_sub(hidden);
        job.rows.drain(..start);
    }
    let mut rest = jobs.as_mut_slice();
    while !rest.is_empty() {
        let mut values = 0usize;
        let fits = |job: &&&mut Running| {
            values = values.saturating_add(job.rows.len());
            values <= MAX_ROWS.saturating_mul(hidden)
        };
        // A job's rows are MAX_ROWS at most.
        let n = rest.iter().take_while(fits).count().max(1);
        let Some((now, later)) = rest.split_at_mut_checked(n) else { return };
        head(stage, now);
        rest = later;
    }
}

/// The logits after the rows of these jobs, which are [`MAX_ROWS`] together at most.
fn head(stage: &Stage, jobs: &mut [&mut Running]) {
    let rows: Vec<f32> = jobs.iter().flat_map(|job| job.rows.iter().copied()).collect();
    match guarded(|| stage.logits(&rows)) {
        Ok(logits) => {
            let mut logits = logits.into_iter();
            for job in jobs {
                let n = job.rows.len().checked_div(stage.hidden()).unwrap_or(0);
                job.rows = logits.by_ref().take(n.saturating_mul(stage.vocab())).collect();
            }
        }
        Err(error) => {
            if let [only] = jobs {
                only.error = Some(error.into());
                return;
            }
            // As above: each for itself.
            for job in jobs {
                match guarded(|| stage.logits(&job.rows)) {
                    Ok(logits) => job.rows = logits,
                    Err(error) => job.error = Some(error.into()),
                }
            }
        }
    }
}

/// A panic in a backend must cost the jobs it computes, not the thread and every session with it.
fn guarded<T>(compute: impl FnOnce() -> Result<T, StageError>) -> Result<T, StageError> {
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> StageError {
    StageError::Backend(BackendError("the computation panicked".to_owned()))
}
