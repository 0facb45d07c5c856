//! The stage loop: order, admission, deadlines, endings.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use quelea_engine::{
    KV_PAGE_ROWS, MAX_ROWS, Runner, Span, Stage, StageError,
    runner::{AdmissionError, Input, Job, JobError, Output, Phase, RunnerConfig, SessionId, SubmitError, Want},
};

use crate::support::{HIDDEN, LAYERS, model, noise};

const CONFIG: RunnerConfig = RunnerConfig { kv_pages: 64, max_sessions: 4, queue: 16, grace: Duration::ZERO };
/// Longer than any test computes.
const PATIENCE: Duration = Duration::from_secs(60);

fn stage() -> Stage {
    Stage::load(&model("llama").open(), Span::layers(0..LAYERS)).unwrap()
}

fn runner() -> Runner {
    Runner::spawn(stage(), CONFIG).unwrap()
}

fn rows(n: usize) -> Vec<f32> {
    (0..n * HIDDEN).map(|i| noise(5, i)).collect()
}

type Answer = Result<Output, JobError>;

fn job(session: SessionId, pos: usize, n: usize, phase: Phase, reply: impl FnOnce(Answer) + Send + 'static) -> Job {
    let (input, deadline) = (Input::Rows(rows(n)), Instant::now() + PATIENCE);
    Job { session, pos: pos as u32, input, want: Want::Rows, phase, deadline, reply: Box::new(reply) }
}

/// Runs one job and waits for its answer.
fn ask(runner: &Runner, session: SessionId, pos: usize, n: usize, phase: Phase) -> Answer {
    let (tx, rx) = sync_channel(1);
    runner.submit(job(session, pos, n, phase, move |answer| tx.send(answer).unwrap())).unwrap();
    rx.recv_timeout(PATIENCE).unwrap()
}

/// Holds the runner's thread inside a reply until the sender is dropped, so that everything submitted meanwhile waits.
fn hold(runner: &Runner, session: SessionId) -> SyncSender<()> {
    let (release, wait) = sync_channel::<()>(0);
    let (reached, there) = sync_channel(1);
    let blocked = job(session, 0, 1, Phase::Prefill, move |answer| {
        answer.unwrap();
        reached.send(()).unwrap();
        wait.recv().unwrap_err();
    });
    runner.submit(blocked).unwrap();
    there.recv_timeout(PATIENCE).unwrap();
    release
}

/// Submits jobs whose answers are sent with a name.
fn named(tx: &SyncSender<(&'static str, Answer)>, name: &'static str) -> impl FnOnce(Answer) + Send + 'static {
    let tx = tx.clone();
    move |answer| tx.send((name, answer)).unwrap()
}

fn order(rx: &Receiver<(&'static str, Answer)>, n: usize) -> Vec<&'static str> {
    (0..n)
        .map(|_| {
            let (name, answer) = rx.recv_timeout(PATIENCE).unwrap();
            answer.unwrap();
            name
        })
        .collect()
}

#[test]
fn the_runner_computes_what_the_stage_computes() {
    let stage = stage();
    let mut cache = stage.new_cache();
    let first = stage.forward(&mut cache, 0, &rows(5)).unwrap();
    let second = stage.forward(&mut cache, 5, &rows(1)).unwrap();

    let runner = runner();
    let session = runner.open(64).unwrap();
    assert_eq!(ask(&runner, session, 0, 5, Phase::Prefill).unwrap().rows, first);
    assert_eq!(ask(&runner, session, 5, 1, Phase::Decode).unwrap().rows, second);
    runner.trim(session, 5);
    let output = ask(&runner, session, 5, 1, Phase::Decode).unwrap();
    assert_eq!(output.rows, second);
    assert!(output.compute > Duration::ZERO);
    assert_eq!(runner.load().queued, 0);
    assert_eq!(runner.stage().hidden(), HIDDEN);
}

#[test]
fn decode_is_not_starved_by_a_long_prompt_nor_one_prompt_by_another() {
    let runner = runner();
    let [long, other, decoding] = [0; 3].map(|_| runner.open(512).unwrap());
    let (tx, rx) = sync_channel(16);
    ask(&runner, decoding, 0, 1, Phase::Prefill).unwrap();
    let release = hold(&runner, long);
    for i in 0..3 {
        runner.submit(job(long, 1 + i * MAX_ROWS, MAX_ROWS, Phase::Prefill, named(&tx, "long"))).unwrap();
    }
    runner.submit(job(other, 0, 2, Phase::Prefill, named(&tx, "other"))).unwrap();
    for pos in 1..3 {
        runner.submit(job(decoding, pos, 1, Phase::Decode, named(&tx, "decode"))).unwrap();
    }
    assert_eq!(runner.load().queued, 6);
    drop(release);
    assert_eq!(order(&rx, 6), ["decode", "other", "decode", "long", "long", "long"]);
}

/// A coordinator with many sessions takes nothing from one that has a single session, and that one takes no places in a
/// batch that it has nothing for.
#[test]
fn groups_have_turns_whatever_they_queue() {
    let runner = Runner::spawn(stage(), RunnerConfig { max_sessions: 8, queue: 64, ..CONFIG }).unwrap();
    let open = |group| runner.open_in(group, 0..LAYERS, 64).unwrap();
    let many = [1; 4].map(open);
    let one = open(2);
    for phase in [Phase::Decode, Phase::Prefill] {
        let (tx, rx) = sync_channel(64);
        let blocker = open(3);
        let release = hold(&runner, blocker);
        let start = if phase == Phase::Decode { 0 } else { 4 };
        for pos in start..start + 4 {
            for session in many {
                runner.submit(job(session, pos, 1, phase, named(&tx, "many"))).unwrap();
            }
        }
        for pos in start / 2..start / 2 + 2 {
            runner.submit(job(one, pos, 1, phase, named(&tx, "one"))).unwrap();
        }
        drop(release);
        let order = order(&rx, 18);
        let turns: Vec<usize> = (0..18).filter(|at| order[*at] == "one").collect();
        // A batch of decodes holds one of each session, a tick of prefills a single job.
        let in_tick = if phase == Phase::Decode { many.len() + 1 } else { 2 };
        assert!(turns[0] <= 1 && turns[1] <= in_tick + 1, "{phase:?}: {order:?}");
        runner.close(blocker);
    }
}

#[test]
fn decodes_run_in_the_order_they_came() {
    let runner = runner();
    let [a, b, c] = [0; 3].map(|_| runner.open(64).unwrap());
    let (tx, rx) = sync_channel(16);
    let release = hold(&runner, c);
    runner.submit(job(b, 0, 1, Phase::Decode, named(&tx, "b"))).unwrap();
    runner.submit(job(c, 1, 1, Phase::Decode, named(&tx, "c"))).unwrap();
    runner.submit(job(a, 0, 1, Phase::Decode, named(&tx, "a"))).unwrap();
    drop(release);
    assert_eq!(order(&rx, 3), ["b", "c", "a"]);
}

#[test]
fn admission_is_by_pages_and_close_gives_them_back() {
    let runner = runner();
    let pages = |n: u32| n * KV_PAGE_ROWS as u32;
    let session = runner.open(pages(60)).unwrap();
    assert_eq!(runner.open(pages(4) + 1).unwrap_err(), AdmissionError::Pages { needed_pages: 5, free_pages: 4 });
    let small = runner.open(1).unwrap();
    let load = runner.load();
    assert_eq!((load.kv_pages_free, load.kv_pages_total, load.sessions), (3, 64, 2));
    runner.close(session);
    runner.close(session);
    assert_eq!(runner.load().kv_pages_free, 63);
    assert!(matches!(
        runner.submit(job(session, 0, 1, Phase::Decode, |_| ())).unwrap_err(),
        SubmitError::UnknownSession { session: s } if s == session
    ));
    for _ in 0..3 {
        runner.open(1).unwrap();
    }
    assert_eq!(runner.open(1).unwrap_err(), AdmissionError::Sessions { max: 4 });
    runner.close(small);
    assert_eq!(runner.open(5000).unwrap_err(), AdmissionError::Context { max_rows: 5000, context: 4096 });
}

#[test]
fn a_session_closed_while_it_computes_answers_everything_and_frees_its_pages() {
    let runner = runner();
    let [busy, other] = [0; 2].map(|_| runner.open(64).unwrap());
    let (tx, rx) = sync_channel(16);
    let release = hold(&runner, other);
    runner.submit(job(busy, 0, 1, Phase::Prefill, named(&tx, "prefill"))).unwrap();
    runner.submit(job(busy, 1, 1, Phase::Decode, named(&tx, "decode"))).unwrap();
    runner.close(busy);
    runner.trim(busy, 0);
    assert_eq!(runner.load().kv_pages_free, 62);
    drop(release);
    for _ in 0..2 {
        assert!(matches!(rx.recv_timeout(PATIENCE).unwrap().1.unwrap_err(), JobError::Closed));
    }
    assert_eq!(runner.load().queued, 0);
}

#[test]
fn wrong_positions_and_limits_are_answered() {
    let runner = runner();
    let session = runner.open(8).unwrap();
    ask(&runner, session, 0, 3, Phase::Prefill).unwrap();
    let wrong = ask(&runner, session, 5, 1, Phase::Decode).unwrap_err();
    assert!(matches!(wrong, JobError::Position { expected: 3, found: 5 }));
    let long = ask(&runner, session, 3, 6, Phase::Prefill).unwrap_err();
    assert!(matches!(long, JobError::Stage(StageError::Context { end: 9, limit: 8 })));
    let submit = |values: usize| {
        let mut job = job(session, 3, 1, Phase::Decode, |_| ());
        job.input = Input::Rows(vec![0.0; values]);
        runner.submit(job).unwrap_err()
    };
    for values in [0, 1, HIDDEN + 1, (MAX_ROWS + 1) * HIDDEN] {
        assert_eq!(submit(values), SubmitError::Rows { values, width: HIDDEN });
    }
    ask(&runner, session, 3, 5, Phase::Prefill).unwrap();
}

#[test]
fn a_passed_deadline_is_answered_without_computing() {
    let runner = runner();
    let session = runner.open(64).unwrap();
    let (tx, rx) = sync_channel(1);
    let mut late = job(session, 0, 4, Phase::Prefill, move |answer| tx.send(answer).unwrap());
    late.deadline = Instant::now();
    runner.submit(late).unwrap();
    assert!(matches!(rx.recv_timeout(PATIENCE).unwrap().unwrap_err(), JobError::DeadlinePassed));
    ask(&runner, session, 0, 1, Phase::Decode).unwrap();
}

#[test]
fn the_queue_is_bounded_and_submit_never_waits() {
    let runner = runner();
    let session = runner.open(512).unwrap();
    let release = hold(&runner, session);
    let (tx, rx) = sync_channel(CONFIG.queue);
    for pos in 0..CONFIG.queue {
        runner.submit(job(session, 1 + pos, 1, Phase::Decode, named(&tx, "queued"))).unwrap();
    }
    let full = runner.submit(job(session, 17, 1, Phase::Decode, named(&tx, "refused"))).unwrap_err();
    assert_eq!(full, SubmitError::QueueFull { bound: CONFIG.queue });
    drop(release);
    assert!(order(&rx, CONFIG.queue).iter().all(|name| *name == "queued"));
}

/// Trims happen in the order of the jobs around them.
#[test]
fn a_trim_waits_for_the_jobs_before_it() {
    let runner = runner();
    let session = runner.open(64).unwrap();
    let release = hold(&runner, session);
    let (tx, rx) = sync_channel(16);
    runner.submit(job(session, 1, 3, Phase::Prefill, named(&tx, "four rows"))).unwrap();
    runner.trim(session, 3);
    runner.trim(session, 2);
    runner.submit(job(session, 2, 1, Phase::Decode, named(&tx, "third row"))).unwrap();
    drop(release);
    assert_eq!(order(&rx, 2), ["four rows", "third row"]);
}

#[test]
fn dropping_the_last_handle_answers_what_waits() {
    let runner = runner();
    let session = runner.open(64).unwrap();
    let release = hold(&runner, session);
    let (tx, rx) = sync_channel(16);
    runner.submit(job(session, 1, 1, Phase::Decode, named(&tx, "waiting"))).unwrap();
    let clone = runner.clone();
    drop(runner);
    assert_eq!(clone.load().sessions, 1, "a clone keeps it alive");
    drop(clone);
    drop(release);
    assert!(matches!(rx.recv_timeout(PATIENCE).unwrap().1.unwrap_err(), JobError::Closed));
    drop(tx);
    assert!(rx.recv_timeout(PATIENCE).is_err(), "the thread has let go of everything");
}
