//! Prompts that begin as others did: stages compute only the new rows, and the tokens are the same.

use serde_json::Value;

use crate::harness::{DEMO, Daemon, Launch, Swarm, ids, numbers, quelea, spans, swarm, until};

/// Rows of a block.
const BLOCK: usize = 32;
const TOKENS: usize = 24;

/// A few blocks of tokens.
const BEGINNING: &str = "The weaver birds of the dry plains build one nest beside the other, and every evening they come home \
    in one great cloud. Some say that a flock has a will of its own, and some that each bird only looks at the seven next \
    to it. What is a relay? A relay is";

/// Asks a daemon as it is.
async fn ask(daemon: &Daemon, prompt: &str) -> Value {
    let tokens = TOKENS.to_string();
    let args = ["infer", "--json", "--raw", "--ignore-eos", "--max-tokens", &tokens, prompt];
    daemon.command(&args).await.expect(0).json()
}

/// The same in one piece and without anything from before.
async fn assert_unchanged(answer: &Value, prompt: &str) {
    let tokens = TOKENS.to_string();
    let args =
        ["infer", "--json", "--route", "local", "--model", DEMO, "--raw", "--ignore-eos", "--max-tokens", &tokens];
    let whole = quelea(&[&args[..], &[prompt]].concat()).await.expect(0).json();
    assert_eq!(whole["cached_tokens"], 0, "{whole}");
    assert_eq!((ids(answer), &answer["text"]), (ids(&whole), &whole["text"]), "{prompt}");
}

/// Tokens that were there from before; that each stage says to have computed the others and no more.
fn cached(answer: &Value) -> usize {
    let cached = usize::try_from(answer["cached_tokens"].as_u64().unwrap()).unwrap();
    let prompt = numbers(&answer["prompt_ids"]).len();
    // The last token of the answer is not run.
    let rows = prompt - cached + ids(answer).len() - 1;
    assert!(answer["hops"].as_array().unwrap().iter().all(|hop| hop["rows"] == rows), "{rows} new rows: {answer}");
    cached
}

/// Whole blocks at the beginning of `prompt` that are among the rows that an answer left; its last row is computed.
fn common(left: &[u64], prompt: &[u64]) -> usize {
    let alike = left.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    alike.min(prompt.len() - 1) / BLOCK * BLOCK
}

/// The rows that an answer left at its stages.
fn left_by(answer: &Value) -> Vec<u64> {
    let all = [numbers(&answer["prompt_ids"]), ids(answer)].concat();
    all[..all.len() - 1].to_vec()
}

async fn rows_computed(worker: &Daemon) -> f64 {
    worker.metric("quelea_stage_rows_total", "").await
}

#[tokio::test]
async fn a_second_turn_computes_only_its_new_rows() {
    let Swarm { boot, workers } = swarm(DEMO, &["0..2", "2..4", "4..6"]).await;
    let first = ask(&boot, BEGINNING).await;
    assert_eq!(spans(&first), ["0..2", "2..4", "4..6"]);
    assert_eq!(cached(&first), 0);
    assert_unchanged(&first, BEGINNING).await;

    let turn = format!("{BEGINNING}{} And what do the others say?", first["text"].as_str().unwrap());
    let before = numbers(&first["prompt_ids"]).len() + TOKENS - 1;
    for worker in &workers {
        let all = async || (rows_computed(worker).await == before as f64).then_some(());
        until("the first turn's rows in the metrics", all).await;
    }
    let second = ask(&boot, &turn).await;
    let (prompt, kept) = (numbers(&second["prompt_ids"]), cached(&second));
    assert_eq!(kept, common(&left_by(&first), &prompt));
    assert!(kept > numbers(&first["prompt_ids"]).len(), "rows of the answer are among the {kept}");
    assert_unchanged(&second, &turn).await;

    // By the stages' own count, too: not one row more.
    let new = prompt.len() - kept + TOKENS - 1;
    for worker in &workers {
        let all = async || (rows_computed(worker).await >= (before + new) as f64).then_some(());
        until("the second turn's rows in the metrics", all).await;
        assert_eq!(rows_computed(worker).await, (before + new) as f64);
        let hits = worker.metric("quelea_prefix_cache_hits_total", "").await;
        assert_eq!(hits, (kept / BLOCK) as f64);
        assert!(worker.metric("quelea_prefix_cache_lookups_total", "").await >= hits);
        assert!(worker.metric("quelea_prefix_cache_bytes", "").await > 0.0);
        let capacity = worker.metric("quelea_kv_cache_capacity_bytes", "").await;
        assert!(worker.metric("quelea_kv_cache_used_bytes", "").await < capacity);
    }
}

#[tokio::test]
async fn nobody_else_finds_what_was_kept() {
    let swarm = swarm(DEMO, &["0..3", "3..6"]).await;
    assert_eq!(cached(&ask(&swarm.boot, BEGINNING).await), 0);
    let tokens = TOKENS.to_string();
    let args = ["--raw", "--ignore-eos", "--max-tokens", &tokens, BEGINNING];
    let stranger = swarm.ask(DEMO, &args).await.expect(0).json();
    assert_eq!(cached(&stranger), 0, "a passing peer");
    assert_eq!(cached(&ask(&swarm.workers[0], BEGINNING).await), 0, "a daemon of the same chain");
    let again = ask(&swarm.boot, BEGINNING).await;
    assert_eq!(cached(&again), common(&left_by(&again), &numbers(&again["prompt_ids"])));
    assert_unchanged(&again, BEGINNING).await;
}

/// Stages that have kept different numbers of rows begin where all of them can; a coordinator that was started again
/// finds its prompts.
#[tokio::test]
async fn stages_begin_where_all_of_them_have_rows() {
    let home = crate::harness::tempdir();
    let boot = Launch::new().start().await;
    let coordinator = Launch::new().home(home.path()).bootstrap(&boot);
    let asking = coordinator.start().await;
    let other = Launch::new().bootstrap(&boot).serve(DEMO, "3..6").start().await;
    let worker = Launch::new().bootstrap(&boot).serve(DEMO, "0..3").start().await;
    let first = ask(&asking, BEGINNING).await;
    let whole = common(&left_by(&first), &numbers(&first["prompt_ids"]));
    assert!(whole >= 2 * BLOCK, "{whole}");

    // Another process of the same layers has nothing, then only the first block, of which more is known elsewhere.
    worker.signal(rustix::process::Signal::TERM);
    worker.end().await;
    let worker = Launch::new().bootstrap(&boot).serve(DEMO, "0..3").start().await;
    let short = BEGINNING.split_at(BEGINNING.find("and some").unwrap()).0;
    let begun = ask(&asking, short).await;
    assert_eq!(cached(&begun), 0);
    assert_unchanged(&begun, short).await;
    let alike = common(&left_by(&begun), &numbers(&first["prompt_ids"]));
    assert!((BLOCK..whole).contains(&alike), "{alike} of {whole}");
    let again = ask(&asking, BEGINNING).await;
    assert_eq!(cached(&again), alike);
    assert_unchanged(&again, BEGINNING).await;

    asking.signal(rustix::process::Signal::TERM);
    asking.end().await;
    let asking = coordinator.start().await;
    let again = ask(&asking, BEGINNING).await;
    assert_eq!(cached(&again), whole);
    assert_unchanged(&again, BEGINNING).await;
    drop((worker, other));
}
