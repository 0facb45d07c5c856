//! Workers that are lost at every time there is: while a long prompt is computed, while another worker computes again what
//! the lost one had, two at once, and while tokens are guessed. The answer is always the one of the whole model, and those
//! who are left compute no row again.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Daemon, Process, Swarm, digits, ids, long_model, numbers, quelea, swarm, until};

const SPANS: [&str; 3] = ["0..2", "2..4", "4..6"];

/// More rows than a stage lets be under way at once (32 batches of 128).
const MANY: usize = 4_500;

/// A question of `prompt` tokens, answered by `answer`.
fn question(prompt: &str, answer: &str) -> Vec<String> {
    let args = ["infer", "--json", "--raw", "--ignore-eos", "--timeout", "30s", "--max-tokens", answer];
    [&args[..], &["--model", long_model(), prompt]].concat().into_iter().map(str::to_owned).collect()
}

/// The answer of the whole model, in one process.
async fn unsplit(question: &[String]) -> Value {
    quelea(&[question, &["--route".into(), "local".into()]].concat()).await.expect(0).json()
}

async fn rows(worker: &Daemon) -> f64 {
    worker.metric("quelea_stage_rows_total", "").await
}

async fn until_rows(worker: &Daemon, least: usize) {
    let what = format!("{least} rows at {}", worker.peer());
    until(&what, async || (rows(worker).await >= least as f64).then_some(())).await;
}

/// A worker takes [`SPANS`]`[at]` over: that one of `among`.
async fn successor(workers: &[Daemon], among: &[usize]) -> usize {
    until("another worker has taken over", async || {
        for at in among {
            if rows(&workers[*at]).await > 0.0 {
                return Some(*at);
            }
        }
        None
    })
    .await
}

/// All of `workers` have computed every row of `answer` once and no more, and hold nothing of it any more.
async fn nothing_again(workers: impl IntoIterator<Item = &Daemon>, answer: &Value) {
    let all = (numbers(&answer["prompt_ids"]).len() + ids(answer).len() - 1) as f64;
    for worker in workers {
        worker.until_sessions(0).await;
        // Looked at until it is so: what a worker has done shows a moment later.
        let what = format!("{all} rows at {}", worker.peer());
        until(&what, async || (rows(worker).await == all).then_some(())).await;
        let empty = async || (worker.metric("quelea_failover_log_bytes", "").await == 0.0).then_some(());
        until("no rows are kept of what is over", empty).await;
    }
}

fn same(answer: &Value, whole: &Value) {
    assert_eq!((ids(answer), &answer["text"]), (ids(whole), &whole["text"]), "another answer than in one piece");
}

fn recoveries(answer: &Value) -> usize {
    answer["recoveries"].as_array().map_or(0, Vec::len)
}

/// Workers for [`SPANS`] in this order, and then others; the question is asked once the latter are there, so that all are
/// known, but the first of two with the same layers is not always the one that is used.
async fn asked(more: &[&str], question: &[String]) -> (Swarm, Process) {
    let swarm = swarm(long_model(), &[&SPANS, more].concat()).await;
    let asking = Process::spawn(&[question, &["--bootstrap".into(), swarm.boot.addr().into()]].concat());
    (swarm, asking)
}

/// The stage at `at` is lost while the prompt is computed, and then its successor while that computes again.
async fn in_the_prompt_and_again(at: usize) {
    let question = question(&digits(MANY), "8");
    let whole = unsplit(&question).await;
    let (Swarm { boot, mut workers }, asking) = asked(&[SPANS[at], SPANS[at]], &question).await;
    let candidates = [at, 3, 4];
    let first = successor(&workers, &candidates).await;
    // All stages are at work by now, with chunks of the prompt on their way to each.
    until_rows(&workers[first], 1_500).await;
    workers[first].signal(Signal::KILL);
    let others: Vec<usize> = candidates.into_iter().filter(|other| *other != first).collect();
    let second = successor(&workers, &others).await;
    workers[second].signal(Signal::KILL);
    let answer = asking.end().await.expect(0).json();
    same(&answer, &whole);
    assert!(recoveries(&answer) > 0, "{answer}");
    let left = workers.iter().enumerate().filter(|(n, _)| *n != first && *n != second).map(|(_, worker)| worker);
    nothing_again(left, &answer).await;
    for at in [first.max(second), first.min(second)] {
        drop(workers.remove(at));
    }
    drop(boot);
}

#[tokio::test]
async fn the_first_stage_is_lost_in_the_prompt_and_its_successor_while_it_catches_up() {
    in_the_prompt_and_again(0).await;
}

#[tokio::test]
async fn the_middle_stage_is_lost_in_the_prompt_and_its_successor_while_it_catches_up() {
    in_the_prompt_and_again(1).await;
}

#[tokio::test]
async fn the_last_stage_is_lost_in_the_prompt_and_its_successor_while_it_catches_up() {
    in_the_prompt_and_again(2).await;
}

#[tokio::test]
async fn more_rows_than_a_stage_takes_at_once_are_handed_on_in_turn() {
    let question = question(&digits(MANY), "400");
    let whole = unsplit(&question).await;
    let (Swarm { boot, mut workers }, asking) = asked(&[SPANS[1], SPANS[2]], &question).await;
    // Two neighbours at once: what the second has to have is made of what the first computes again.
    let (middle, last) = (successor(&workers, &[1, 3]).await, successor(&workers, &[2, 4]).await);
    let prompt = numbers(&whole["prompt_ids"]).len();
    assert!(prompt > 32 * 128, "{prompt}");
    until_rows(&workers[last], prompt + 2).await;
    for lost in [middle, last] {
        workers[lost].signal(Signal::KILL);
    }
    let answer = asking.end().await.expect(0).json();
    same(&answer, &whole);
    let from = |recovery: &Value| numbers(&recovery["computes_from"]);
    let last_from = from(answer["recoveries"].as_array().unwrap().last().unwrap());
    assert!(last_from[0] as usize > prompt && last_from[1..] == [0, 0], "{last_from:?}");
    let left = workers.iter().enumerate().filter(|(n, _)| *n != middle && *n != last).map(|(_, worker)| worker);
    nothing_again(left, &answer).await;
    for at in [middle.max(last), middle.min(last)] {
        drop(workers.remove(at));
    }
    drop(boot);
}

#[tokio::test]
async fn a_stage_is_lost_while_tokens_are_guessed() {
    for draw in [&[][..], &["--temperature", "0.8", "--seed", "11"]] {
        let draw: Vec<String> = draw.iter().map(|arg| (*arg).to_owned()).collect();
        let question = [question("one two three one two three", "3000"), draw].concat();
        let whole = unsplit(&question).await;
        let guessed = [&question[..], &["--speculate".into(), "4".into()]].concat();
        let (Swarm { boot, mut workers }, asking) = asked(&[SPANS[1]], &guessed).await;
        let lost = successor(&workers, &[1, 3]).await;
        until_rows(&workers[lost], 100).await;
        workers[lost].signal(Signal::KILL);
        let answer = asking.end().await.expect(0).json();
        same(&answer, &whole);
        assert_eq!(recoveries(&answer), 1, "{answer}");
        drop(workers.remove(lost));
        drop(boot);
    }
}
