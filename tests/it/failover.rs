//! When a worker goes away in the middle of an answer and another has its layers: the answer goes on with the same tokens,
//! and those who are left compute nothing again.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{DEMO, Daemon, Ended, Swarm, numbers, quelea, swarm, until};

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
    let (text, all_rows) = unsplit(args).await;
    let twice: Vec<&str> = SPANS.into_iter().chain(at.iter().map(|at| SPANS[*at])).collect();
    let Swarm { boot, mut workers } = swarm(DEMO, &twice).await;
    let swarm = Swarm { boot, workers: Vec::new() };
    let asking = swarm.streaming(DEMO, &[&["--timeout", "20s"], args].concat()).await;
    let mut lost = Vec::new();
    for (n, at) in at.iter().enumerate() {
        lost.push(in_use(&workers, *at, SPANS.len() + n).await);
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
            let empty = async || (worker.metric("quelea_failover_log_bytes", "").await == 0.0).then_some(());
            until("no rows are kept of what is over", empty).await;
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
