//! When a worker or the caller goes away in the middle of an answer: nothing hangs, and the error names who is missing.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{DEMO, Daemon, Ended, Launch, Process, Swarm, ids, route, streaming, swarm};

/// The `--timeout` of requests here, what looking for another worker takes when there is none, and what a busy machine may
/// add to both.
const TIMEOUT: &str = "3s";
const WITHIN: Duration = Duration::from_secs(3 + 2 + 5);

const SPANS: [&str; 3] = ["0..2", "2..4", "4..6"];

/// A request through all of [`SPANS`] is under way; `worker` gets `signal`. How the request ends.
async fn interrupted_by(swarm: &Swarm, worker: &Daemon, signal: Signal) -> Ended {
    let asking = swarm.streaming(DEMO, &["--timeout", TIMEOUT]).await;
    worker.signal(signal);
    let ended = asking.end().await;
    assert!(ended.took <= WITHIN, "it took {:?}", ended.took);
    ended
}

/// Ends in an error that names the worker and its layers.
fn assert_names(ended: Ended, worker: &Daemon, span: &str) {
    let named = format!("peer {} (layers {span})", worker.peer());
    let ended = ended.expect(6).says(&[&named, "QUE-", "it goes on with: quelea infer --resume "]);
    let first = ended.stderr.find("peer ").map(|at| &ended.stderr[at..]).unwrap();
    assert!(first.starts_with(&named), "another peer is blamed first: {}", ended.stderr);
}

async fn assert_idle(workers: impl IntoIterator<Item = &Daemon>) {
    for worker in workers {
        worker.until_sessions(0).await;
    }
}

async fn assert_answers(swarm: &Swarm) -> Vec<(String, String)> {
    let answer = swarm.ask(DEMO, &["--max-tokens", "8", "--ignore-eos", "What is a relay?"]).await.expect(0).json();
    assert_eq!(ids(&answer).len(), 8);
    route(&answer)
}

/// The worker at `at` dies; the others go on, with a new one in its place.
async fn killed(at: usize) {
    let mut swarm = swarm(DEMO, &SPANS).await;
    let ended = interrupted_by(&swarm, &swarm.workers[at], Signal::KILL).await;
    let dead = swarm.workers.remove(at);
    assert_names(ended, &dead, SPANS[at]);
    assert_idle(&swarm.workers).await;

    let replacement = Launch::new().bootstrap(&swarm.boot).serve(DEMO, SPANS[at]).start().await;
    let stages = assert_answers(&swarm).await;
    assert_eq!(stages[at], (replacement.peer().to_owned(), SPANS[at].to_owned()));
    assert!(swarm.workers.iter().all(|worker| stages.iter().any(|(peer, _)| peer == worker.peer())));
}

/// The worker at `at` falls silent; everything goes on when it is back, and while it is not, with a new one in its place.
async fn silent(at: usize) {
    let swarm = swarm(DEMO, &SPANS).await;
    let worker = &swarm.workers[at];
    let ended = interrupted_by(&swarm, worker, Signal::STOP).await;
    assert_names(ended, worker, SPANS[at]);
    assert_idle(swarm.workers.iter().filter(|other| other.peer() != worker.peer())).await;
    let without = swarm.ask(DEMO, &["What is a relay?"]).await.expect(6);
    without.says(&[&format!("short of layers {}", SPANS[at]), worker.peer(), "has not answered"]);

    let replacement = Launch::new().bootstrap(&swarm.boot).serve(DEMO, SPANS[at]).start().await;
    let stages = assert_answers(&swarm).await;
    assert_eq!(stages[at].0, replacement.peer(), "the silent one is passed over");

    worker.signal(Signal::CONT);
    assert_idle([worker]).await;
    assert_answers(&swarm).await;
}

#[tokio::test]
async fn the_first_worker_is_killed() {
    killed(0).await;
}

#[tokio::test]
async fn a_worker_in_the_middle_is_killed() {
    killed(1).await;
}

#[tokio::test]
async fn the_last_worker_is_killed() {
    killed(2).await;
}

#[tokio::test]
async fn the_first_worker_falls_silent() {
    silent(0).await;
}

#[tokio::test]
async fn a_worker_in_the_middle_falls_silent() {
    silent(1).await;
}

#[tokio::test]
async fn the_last_worker_falls_silent() {
    silent(2).await;
}

/// A request is under way, and its caller gets `signal`.
async fn caller_gets(signal: Signal, swarm: &Swarm, asking: Process) -> Ended {
    for worker in &swarm.workers {
        worker.until_sessions(1).await;
    }
    asking.signal(signal);
    let ended = asking.end().await;
    assert_idle(&swarm.workers).await;
    ended
}

#[tokio::test]
async fn a_caller_who_interrupts_or_dies_leaves_no_session_behind() {
    let swarm = swarm(DEMO, &SPANS).await;
    let interrupted = caller_gets(Signal::INT, &swarm, swarm.streaming(DEMO, &[]).await).await;
    interrupted.expect(130).says(&["cancelled"]);
    let killed = caller_gets(Signal::KILL, &swarm, swarm.streaming(DEMO, &[]).await).await;
    assert_eq!(killed.code, None, "by the signal");
    assert_answers(&swarm).await;
}

#[tokio::test]
async fn a_caller_of_a_daemon_who_interrupts_or_dies_leaves_no_session_behind() {
    let swarm = swarm(DEMO, &SPANS).await;
    let through_daemon = ["--data-dir", swarm.workers[0].home()];
    let interrupted = caller_gets(Signal::INT, &swarm, streaming(&through_daemon).await).await;
    interrupted.expect(130).says(&["cancelled"]);
    let killed = caller_gets(Signal::KILL, &swarm, streaming(&through_daemon).await).await;
    assert_eq!(killed.code, None, "by the signal");
    assert_answers(&swarm).await;
}

#[tokio::test]
async fn a_caller_loses_the_daemon_it_asks_through() {
    let swarm = swarm(DEMO, &SPANS).await;
    let coordinator = Launch::new().bootstrap(&swarm.boot).start().await;
    let asking = streaming(&["--data-dir", coordinator.home()]).await;
    coordinator.signal(Signal::KILL);
    asking.end().await.expect(3).says(&["stopped answering", "QUE-1003"]);
    assert_idle(&swarm.workers).await;
}

#[tokio::test]
async fn a_worker_that_leaves_finishes_its_sessions_and_is_not_used_again() {
    let swarm = swarm(DEMO, &["0..3", "3..6", "3..6"]).await;
    let asking = swarm.streaming(DEMO, &[]).await;
    let mut busy = Vec::new();
    for worker in &swarm.workers[1..] {
        busy.push(worker.sessions().await);
    }
    assert_eq!(busy.iter().sum::<u64>(), 1, "one of the two is used");
    let at = 1 + busy.iter().position(|sessions| *sessions == 1).unwrap();
    let Swarm { boot, mut workers } = swarm;
    let leaving = workers.remove(at);
    leaving.signal(Signal::TERM);
    let (answered, left) = tokio::join!(asking.end(), leaving.end());
    answered.expect(0);
    left.expect(0);
    let staying = workers[1].peer().to_owned();
    let stages = assert_answers(&Swarm { boot, workers }).await;
    assert_eq!(stages[1].0, staying);
}
