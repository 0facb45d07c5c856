//! When a worker goes away in the middle of an answer and another has its layers: the answer goes on with the same tokens,
//! and those who are left compute nothing again.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Asking, DEMO, Daemon, Ended, Launch, Swarm, ids, numbers, quelea, swarm, swarm_of, until};

const SPANS: [&str; 3] = ["0..2", "2..4", "4..6"];

/// As [`crate::harness::streaming`] asks.
const LONG: [&str; 6] = ["--raw", "--ignore-eos", "--max-tokens", "480", "Once", "--model"];

/// The answer in one piece: what is printed, and how many rows every stage computes for it.
async fn unsplit(more: &[&str]) -> (String, f64) {
    let args = [&["infer", "--route", "local"], &LONG[..], &[DEMO], more].concat();
    let plain = quelea(&args).await.expect(0).stdout;
    let json: Value = quelea(&[&args[..], &["--json"]].concat()).await.expect(0).json();
    (plain, (numbers(&json["prompt_ids"]).len() + 480 - 1) as f64)
}

async fn rows(worker: &Daemon) -> f64 {
    worker.metric("quelea_stage_rows_total", "").await
}

async fn until_rows(worker: &Daemon, wanted: f64) {
    let what = format!("{wanted} rows at {}", worker.peer());
    until(&what, async || (rows(worker).await == wanted).then_some(())).await;
}

/// The one of two workers with the same layers that a session uses, and the other.
async fn in_use(workers: &[Daemon], one: usize, other: usize) -> (usize, usize) {
    until("one of two is used", async || match (workers[one].sessions().await, workers[other].sessions().await) {
        (1, 0) => Some((one, other)),
        (0, 1) => Some((other, one)),
        _ => None,
    })
    .await
}

/// A long answer through all of [`SPANS`], each of `at` held twice; those in use get `signal` once some text has come.
async fn goes_on(at: &[usize], signal: Signal) {
    goes_on_asked(at, signal, &[]).await;
}

/// The same of somebody who asks with more arguments.
pub async fn goes_on_asked(at: &[usize], signal: Signal, args: &[&str]) {
    goes_on_with(at, signal, args, &[]).await;
}

/// The same of workers that are started with more arguments.
async fn goes_on_with(at: &[usize], signal: Signal, args: &[&str], more: &[&str]) {
    let (text, all_rows) = unsplit(args).await;
    let twice: Vec<&str> = SPANS.into_iter().chain(at.iter().map(|at| SPANS[*at])).collect();
    let Swarm { boot, mut workers } = swarm_of(DEMO, &twice, more).await;
    let spills = !more.is_empty();
    let swarm = Swarm { boot, workers: Vec::new() };
    let asking = swarm.streaming(DEMO, &[&["--timeout", "20s"], args].concat()).await;
    let mut lost = Vec::new();
    for (n, at) in at.iter().enumerate() {
        lost.push(in_use(&workers, *at, SPANS.len() + n).await);
    }
    if spills {
        // Far more than memory may hold: most of what the others are to be given is read from there.
        let disk = async |worker: &Daemon| worker.metric("quelea_failover_log_disk_bytes", "").await;
        for (_, other) in &lost {
            for worker in workers.iter().filter(|worker| worker.peer() != workers[*other].peer()) {
                let full = async || (worker.sessions().await == 0 || disk(worker).await > 60_000.0).then_some(());
                until("rows are on disk", full).await;
            }
        }
    }
    for (gone, _) in &lost {
        workers[*gone].signal(signal);
    }
    let Ended { stdout, .. } = asking.end().await.expect(0);
    assert_eq!(stdout, text, "another answer than in one piece");

    // Every row once: those that the lost ones had were computed by others, all others by who had them.
    for (n, worker) in workers.iter().enumerate() {
        if lost.iter().all(|(gone, _)| *gone != n) {
            until_rows(worker, all_rows).await;
            worker.until_sessions(0).await;
            for kept in ["quelea_failover_log_bytes", "quelea_failover_log_disk_bytes"] {
                let empty = async || (worker.metric(kept, "").await == 0.0).then_some(());
                until("no rows are kept of what is over", empty).await;
            }
        }
    }
    if signal == Signal::STOP {
        for (gone, _) in &lost {
            workers[*gone].signal(Signal::CONT);
            workers[*gone].until_sessions(0).await;
        }
    } else {
        lost.sort_by_key(|(gone, _)| std::cmp::Reverse(*gone));
        for (gone, _) in lost {
            drop(workers.remove(gone));
        }
    }
}

#[tokio::test]
async fn another_takes_the_place_of_the_first_worker_when_it_is_killed() {
    goes_on(&[0], Signal::KILL).await;
}

#[tokio::test]
async fn another_takes_the_place_of_a_worker_in_the_middle_when_it_is_killed() {
    goes_on(&[1], Signal::KILL).await;
}

#[tokio::test]
async fn another_takes_the_place_of_the_last_worker_when_it_is_killed() {
    goes_on(&[2], Signal::KILL).await;
}

#[tokio::test]
async fn others_take_the_places_of_two_neighbours_killed_at_once() {
    goes_on(&[1, 2], Signal::KILL).await;
}

#[tokio::test]
async fn another_takes_the_place_of_the_first_worker_when_it_falls_silent() {
    goes_on(&[0], Signal::STOP).await;
}

#[tokio::test]
async fn another_takes_the_place_of_a_worker_in_the_middle_when_it_falls_silent() {
    goes_on(&[1], Signal::STOP).await;
}

#[tokio::test]
async fn another_takes_the_place_of_the_last_worker_when_it_falls_silent() {
    goes_on(&[2], Signal::STOP).await;
}

/// With room for a block or two in memory, what the one before has kept is on its disk.
#[tokio::test]
async fn another_is_given_what_was_kept_on_disk() {
    goes_on_with(&[1], Signal::KILL, &[], &["--replay-memory", "16K"]).await;
}

/// A worker that falls silent before a session is opened at it is not waited for: another is found within that request.
#[tokio::test]
async fn a_worker_that_is_silent_from_the_beginning_is_left_out() {
    let Swarm { boot, workers } = swarm(DEMO, &["0..2", "0..2", "2..4", "4..6"]).await;
    let asker = Launch::new().bootstrap(&boot).start().await;
    let question =
        json!({"model": DEMO, "prompt": "Once", "form": "raw", "ignore_eos": true, "max_tokens": 24, "route": "swarm"});
    let answer = async |within| {
        let mut asking = Asking::new(&asker, &question);
        let summary = asking.end(within).await.expect("no answer in time").expect("an error instead of an answer");
        (ids(&summary), asking.seen().route[0].0.clone())
    };
    let (first, used) = answer(Duration::from_secs(60)).await;
    let silent = workers.iter().find(|worker| worker.peer() == used).unwrap();
    silent.signal(Signal::STOP);
    // It has links to it, and asks it first: it was the best. Silence shows in 2.5 s; to open a session has 8.
    let (again, others) = answer(Duration::from_secs(7)).await;
    silent.signal(Signal::CONT);
    assert_eq!(again, first);
    assert_ne!(others, used);
    for worker in &workers {
        worker.until_sessions(0).await;
    }
}
