//! Many answers at once.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use quelea_engine::{
    runner::{Input, Job, JobError, Output, Phase, Runner, RunnerConfig, SessionId, Want, pages_for},
    sampler::Sampler,
};
use quelea_wire::ErrorCode;

use super::{Bench, Plan, TestReport, runs};
use crate::inference::InferError;

/// A step that takes longer than this ends the measurement.
const STEP: Duration = Duration::from_secs(60);

/// Measures every number of sessions with every length.
pub(super) fn measure(plan: &Plan, bench: Bench, mut started: impl FnMut(&str)) -> Result<Vec<TestReport>, InferError> {
    let (Some(most), Some(longest)) = (plan.sessions.iter().max(), plan.tg.iter().max()) else { return Ok(Vec::new()) };
    let prompts: Vec<u32> = (0..).take(*most).filter_map(|session| bench.tokens(session, 1).first().copied()).collect();
    let rows = u32::try_from(*longest).unwrap_or(u32::MAX);
    let sessions = u32::try_from(*most).unwrap_or(u32::MAX);
    let config = RunnerConfig {
        kv_pages: pages_for(rows).saturating_mul(sessions),
        max_sessions: *most,
        queue: *most,
        grace: STEP,
    };
    let Bench { stage, sampler } = bench;
    let runner = Runner::spawn(stage, config).map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?;
    let sampler = Sampler::new(sampler, &[])?;
    let mut results = Vec::new();
    for &n in &plan.tg {
        for &count in &plan.sessions {
            let test = format!("tg{n}x{count}");
            started(&test);
            let before = runner.load().totals;
            let first = prompts.get(..count).unwrap_or_default();
            let (cold, rates) = runs(plan, n * count, || answers(&runner, &sampler, first, n))?;
            let after = runner.load().totals;
            #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
            let per_batch = (after.rows - before.rows) as f64 / (after.batches - before.batches).max(1) as f64;
            results.push(TestReport { tokens_per_batch: Some(per_batch), ..TestReport::new(test, cold, rates) });
        }
    }
    Ok(results)
}

/// One of the answers.
struct Answer {
    session: SessionId,
    sampler: Sampler,
    /// Tokens given to the stage.
    pos: u32,
}

type Outcome = (usize, Result<Output, JobError>);

/// Writes `n` tokens after each of the `first`, all at once.
fn answers(runner: &Runner, sampler: &Sampler, first: &[u32], n: usize) -> Result<(), InferError> {
    let rows = u32::try_from(n).unwrap_or(u32::MAX);
    // Each has one job at most, so a reply never waits.
    let (reply, outcomes) = sync_channel(first.len());
    let mut answers = Vec::new();
    for _ in first {
        answers.push(Answer { session: runner.open(rows)?, sampler: sampler.clone(), pos: 0 });
    }
    let result = write(runner, &mut answers, first, rows, &reply, &outcomes);
    answers.iter().for_each(|answer| runner.close(answer.session));
    result
}

fn write(
    runner: &Runner,
    answers: &mut [Answer],
    first: &[u32],
    rows: u32,
    reply: &SyncSender<Outcome>,
    outcomes: &Receiver<Outcome>,
) -> Result<(), InferError> {
    let submit = |index: usize, answer: &mut Answer, id: u32| {
        let reply = reply.clone();
        let job = Job {
            session: answer.session,
            pos: answer.pos,
            input: Input::Tokens(vec![id]),
            want: Want::Logits,
            phase: Phase::Decode,
            deadline: Instant::now() + STEP,
            reply: Box::new(move |outcome| drop(reply.try_send((index, outcome)))),
        };
        answer.pos += 1;
        runner.submit(job)
    };
    for (index, (answer, id)) in answers.iter_mut().zip(first).enumerate() {
        submit(index, answer, *id)?;
    }
    let mut running = answers.len();
    while running > 0 {
        let (index, outcome) = outcomes
            .recv_timeout(STEP)
            .map_err(|e| InferError::new(ErrorCode::DeadlineExceeded, format!("the stage does not answer: {e}")))?;
        let Some(answer) = answers.get_mut(index) else { continue };
        let id = answer.sampler.sample(&outcome?.rows)?;
        if answer.pos < rows {
            submit(index, answer, id)?;
        } else {
            running -= 1;
        }
    }
    Ok(())
}
