//! The main job: nodes that hold a model between them answer as one that holds all of it.

use futures::future::join_all;
use serde_json::Value;

use crate::harness::{
    DEMO, Daemon, Launch, Process, Swarm, fixture, ids, numbers, quelea, route, spans, swarm, tempdir, until,
};

const GREEDY: &[&str] = &[];
const SEEDED: &[&str] = &["--temperature", "0.8", "--seed", "7"];

/// Far more than one chunk of 64 tokens, and more than the window of four chunks.
fn long_prompt() -> String {
    "The weaver birds of the dry plains build one nest beside the other. ".repeat(12)
}

/// Asks the same in one piece, on this machine alone.
async fn unsplit(model: &str, args: &[&str]) -> Value {
    quelea(&[&["infer", "--json", "--route", "local", "--model", model], args].concat()).await.expect(0).json()
}

fn assert_same(split: &Value, whole: &Value, what: &str) {
    assert_eq!(split["prompt_ids"], whole["prompt_ids"], "{what}");
    assert_eq!(ids(split), ids(whole), "{what}: other tokens than the unsplit model's");
    assert_eq!(split["text"], whole["text"], "{what}");
    assert_eq!(split["finish_reason"], whole["finish_reason"], "{what}");
    assert!(!ids(split).is_empty(), "{what}: no tokens to compare");
}

/// Asks `swarm` all of this at once, and compares each answer with the unsplit model's.
async fn compare(swarm: &Swarm, model: &str, expected: &[&str]) {
    let long = long_prompt();
    let questions = [
        ("What is a relay?", GREEDY),
        ("What is a relay?", SEEDED),
        ("x", GREEDY),
        ("Ünïcödé ✓ and\nlines", SEEDED),
        (long.as_str(), GREEDY),
        (long.as_str(), SEEDED),
    ];
    let answers = questions.map(|(prompt, how)| async move {
        let args = [&["--max-tokens", "24", "--ignore-eos", "--raw", prompt], how].concat();
        let split = swarm.ask(model, &args).await.expect(0).json();
        (prompt, split, unsplit(model, &args).await)
    });
    let mut longest = 0;
    for (prompt, split, whole) in join_all(answers).await {
        assert_same(&split, &whole, prompt);
        assert_eq!(spans(&split), expected, "{prompt}");
        assert_eq!(ids(&split).len(), 24, "{prompt}");
        let prompt_len = numbers(&split["prompt_ids"]).len();
        let rows = u64::try_from(prompt_len + 23).unwrap();
        assert!(split["hops"].as_array().unwrap().iter().all(|hop| hop["rows"] == rows), "{prompt}: {split}");
        longest = longest.max(prompt_len);
    }
    assert!(longest > 4 * 64, "the longest prompt has only {longest} tokens");
}

#[tokio::test]
async fn the_demo_model_answers_the_same_split_and_unsplit() {
    let swarm = swarm(DEMO, &["0..1", "1..4", "4..6"]).await;
    compare(&swarm, DEMO, &["0..1", "1..4", "4..6"]).await;

    let args = ["--chat", "What is a relay?"];
    let split = swarm.ask(DEMO, &args).await.expect(0).json();
    assert_same(&split, &unsplit(DEMO, &args).await, "with its chat template");
    assert_eq!(split["finish_reason"], "stop");
}

#[tokio::test]
async fn a_llama_answers_the_same_split_and_unsplit() {
    let Some(model) = fixture("llama-Q8_0.gguf") else { return };
    let swarm = swarm(&model, &["0..1", "1..3", "3..4"]).await;
    compare(&swarm, &model, &["0..1", "1..3", "3..4"]).await;
}

#[tokio::test]
async fn a_qwen_answers_the_same_split_and_unsplit() {
    let Some(model) = fixture("qwen2-Q4_K_M.gguf") else { return };
    let swarm = swarm(&model, &["0..1", "1..3", "3..4"]).await;
    compare(&swarm, &model, &["0..1", "1..3", "3..4"]).await;
    greedy_follows_the_logits(&swarm, &model).await;
}

/// Each greedy token is the likeliest after those before it, as `quelea model logits` has it. That runs all tokens as
/// one prompt, which adds in another order than one by one does, so a tie within rounding may go the other way.
async fn greedy_follows_the_logits(swarm: &Swarm, model: &str) {
    const ROUNDING: f64 = 1e-3;
    let answer = swarm.ask(model, &["--raw", "--ignore-eos", "--max-tokens", "6", "Once upon a time"]).await;
    let answer = answer.expect(0).json();
    let mut before = numbers(&answer["prompt_ids"]);
    for id in ids(&answer) {
        let list = before.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let args = ["model", "logits", model, "--ids", &list, "--split", "1,3", "--top", "8", "--json"];
        let ranked = quelea(&args).await.expect(0).json()["logprobs"].clone();
        let best = ranked[0][1].as_f64().unwrap();
        let of_id = ranked.as_array().unwrap().iter().find(|pair| pair[0] == id);
        let of_id = of_id.unwrap_or_else(|| panic!("{id} is not among the likeliest after {list}: {ranked}"));
        assert!(best - of_id[1].as_f64().unwrap() <= ROUNDING, "{id} after {list}: {ranked}");
        before.push(id);
    }
}

#[tokio::test]
async fn overlapping_spans_are_used_once_each() {
    let swarm = swarm(DEMO, &["0..4", "2..6"]).await;
    let args = ["--max-tokens", "16", "Who are you?"];
    let split = swarm.ask(DEMO, &args).await.expect(0).json();
    assert_same(&split, &unsplit(DEMO, &args).await, "overlapping");
    // Chunks of a prompt follow each other through the stages, so the cut may be anywhere in what both hold.
    let cut = spans(&split);
    assert!(cut == ["0..2", "2..6"] || cut == ["0..3", "3..6"] || cut == ["0..4", "4..6"], "{cut:?}");
}

#[tokio::test]
async fn layers_auto_covers_what_is_missing() {
    let layers = quelea(&["model", "show", DEMO, "--json"]).await.expect(0).json()["layer_bytes"].clone();
    let layers = numbers(&layers);
    // A quarter is kept for keys and values: room for half of the layers, and not for one more.
    let memory = (layers.iter().take(layers.len() / 2).sum::<u64>() + layers[0] / 2) * 4 / 3;
    let memory = memory.to_string();
    let boot = Launch::new().start().await;
    let mut workers = Vec::new();
    for _ in 0..2 {
        // One after the other: each looks at what is there.
        let launch = Launch::new().bootstrap(&boot).serve(DEMO, "auto").args(&["--memory", &memory]);
        workers.push(launch.start().await);
        let all = f64::from(u32::try_from(workers.len()).unwrap());
        // A record for the model and one for its first bucket of layers, each.
        let known = async || (boot.metric("quelea_dht_records", "").await >= 2.0 * all).then_some(());
        until("the worker's provider records", known).await;
    }
    let swarm = Swarm { boot, workers };
    let args = ["--max-tokens", "16", "What is a span?"];
    let split = swarm.ask(DEMO, &args).await.expect(0).json();
    assert_same(&split, &unsplit(DEMO, &args).await, "placed by themselves");
    assert_eq!(spans(&split), ["0..3", "3..6"]);
}

#[tokio::test]
async fn a_daemon_coordinates_with_layers_of_its_own() {
    let swarm = swarm(DEMO, &["0..2", "2..5", "5..6"]).await;
    let args = ["--max-tokens", "16", "What is a peer?"];
    let whole = unsplit(DEMO, &args).await;
    for daemon in &swarm.workers {
        let split = daemon.command(&[&["infer", "--json"], &args[..]].concat()).await.expect(0).json();
        assert_same(&split, &whole, "through a daemon's socket");
        assert_eq!(spans(&split), ["0..2", "2..5", "5..6"]);
        let stages = route(&split);
        assert!(stages.iter().any(|(peer, _)| peer == daemon.peer()), "its own layers are part of it: {stages:?}");
    }
    // The same over loopback HTTP with the token.
    let daemon = &swarm.workers[1];
    let [api, token] = [daemon.told("api")[0].to_owned(), format!("{}/api.token", daemon.home())];
    let http = ["infer", "--json", "--api", &api, "--api-token-file", &token];
    let split = quelea(&[&http, &args[..]].concat()).await.expect(0).json();
    assert_same(&split, &whole, "through a daemon's port");
}

#[tokio::test]
async fn a_daemon_with_every_layer_answers_alone() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let args = ["infer", "--json", "--max-tokens", "16", "What is a peer?"];
    let answer = daemon.command(&args).await.expect(0).json();
    assert_same(&answer, &unsplit(DEMO, &args[2..]).await, "alone");
    daemon.until_sessions(0).await;
}

#[tokio::test]
async fn text_goes_to_stdout_and_the_rest_to_stderr() {
    let swarm = swarm(DEMO, &["0..3", "3..6"]).await;
    let whole = unsplit(DEMO, &["What is a relay?"]).await;
    let args = ["infer", "--bootstrap", swarm.boot.addr(), "What is a relay?"];
    let shown = quelea(&args).await.expect(0);
    assert_eq!(shown.stdout.trim_end(), whole["text"].as_str().unwrap().trim_end());
    shown.says(&["route:", "[0..3]", "[3..6]", "tokens/s", "first token:", "ms computing per row"]);
}

#[tokio::test]
async fn missing_layers_are_named_with_those_who_were_counted() {
    let swarm = swarm(DEMO, &["0..1", "4..6"]).await;
    let ended = swarm.ask(DEMO, &["hi"]).await.expect(6);
    let error: Value = serde_json::from_str(&ended.stderr).unwrap();
    let (code, message) = (&error["error"]["code"], error["error"]["message"].as_str().unwrap());
    assert_eq!(code, "QUE-2001");
    assert!(message.contains("short of layers 1..4"), "{message}");
    for (worker, span) in swarm.workers.iter().zip(["0..1", "4..6"]) {
        assert!(message.contains(&format!("{} ({span})", worker.peer())), "{message}");
    }
    assert!(!message.contains(swarm.boot.peer()), "a bare node holds nothing: {message}");
    assert!(error["error"]["hint"].as_str().unwrap().contains("--layers 1..4"), "{error}");
}

#[tokio::test]
async fn a_model_id_is_enough_where_somebody_has_the_model() {
    let Some(model) = fixture("llama-Q8_0.gguf") else { return };
    let id = quelea(&["model", "show", &model, "--json"]).await.expect(0).json()["id"].as_str().unwrap().to_owned();
    let swarm = swarm(&model, &["0..2", "2..4"]).await;
    let args = ["--max-tokens", "8", "hi"];
    let whole = unsplit(&model, &args).await;
    // Tokenizer, embedding and head come from those who serve it; the layers stay there.
    let home = tempdir();
    let kept = ["--data-dir", home.path().to_str().unwrap()];
    let split = swarm.ask(&id, &[&kept[..], &args].concat()).await.expect(0).json();
    assert_same(&split, &whole, "by its id");
    let listed = quelea(&[&["model", "list", "--json"], &kept[..]].concat()).await.expect(0).json();
    assert_eq!((&listed["items"][0]["model"], &listed["items"][0]["whole"]), (&id.as_str().into(), &false.into()));
    let split = swarm.workers[0].command(&[&["infer", "--json", "--model", &id], &args[..]].concat()).await;
    assert_same(&split.expect(0).json(), &whole, "by the id of its own file");

    let alone = Launch::new().start().await;
    let nobody = alone.command(&["infer", "--model", &id, "hi"]).await;
    nobody.expect(5).says(&[&id, "QUE-4008", "hint: pass the file"]);
}

#[tokio::test]
async fn the_embedded_model_is_known_by_its_id() {
    let id = quelea(&["model", "show", DEMO, "--json"]).await.expect(0).json()["id"].as_str().unwrap().to_owned();
    let args = ["--max-tokens", "4", "hi"];
    assert_same(&unsplit(&id, &args).await, &unsplit(DEMO, &args).await, "by its id");
}

#[tokio::test]
async fn a_swarm_over_tcp_alone_works() {
    over_one_transport("/ip4/127.0.0.1/tcp/0", "/tcp/").await;
}

#[tokio::test]
async fn a_swarm_over_quic_alone_works() {
    over_one_transport("/ip4/127.0.0.1/udp/0/quic-v1", "/quic-v1").await;
}

async fn over_one_transport(listen: &str, part: &str) {
    let boot = Launch::new().listen(listen).start().await;
    let launch = |span| Launch::new().listen(listen).bootstrap(&boot).serve(DEMO, span);
    let workers: Vec<Daemon> = join_all(["0..3", "3..6"].map(|span| async move { launch(span).start().await })).await;
    for daemon in workers.iter().chain([&boot]) {
        assert!(daemon.told("listen").iter().all(|addr| addr.contains(part)), "{:?}", daemon.greeting());
    }
    let swarm = Swarm { boot, workers };
    let args = ["--max-tokens", "16", "What is QUIC?"];
    let split = swarm.ask(DEMO, &args).await.expect(0).json();
    assert_same(&split, &unsplit(DEMO, &args).await, part);
    for worker in &swarm.workers {
        let addresses = until("connections", async || Some(worker.connections().await).filter(|all| !all.is_empty()));
        let addresses = addresses.await;
        assert!(addresses.iter().all(|addr| addr.contains(part)), "{addresses:?}");
    }
}

#[tokio::test]
async fn networks_do_not_mix() {
    let boot = Launch::new().args(&["--network", "one"]).start().await;
    let worker = Launch::new().args(&["--network", "one"]).bootstrap(&boot).serve(DEMO, "all").start().await;
    worker.until_connected_to(boot.peer()).await;
    let args = ["infer", "--json", "--bootstrap", boot.addr(), "--max-tokens", "4", "hi", "--network"];
    let (same, other) = tokio::join!(
        Process::spawn(&[&args[..], &["one"]].concat()).end(),
        Process::spawn(&[&args[..], &["two"]].concat()).end()
    );
    same.expect(0);
    other.expect(6).says(&["QUE-"]);
}
