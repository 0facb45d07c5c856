//! A model of the provider's own machine, behind `llm_local`: started by a call, watched, started again, unloaded, and gone with
//! the daemon. The program is what `QUELEA_LOCAL_LLM` names (`sidecars/local-llm`, built by `.ci/run`).

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    harness::{Daemon, Ended, Launch, tempdir, until},
    paid::market::at_rest,
    services::caller,
};

const ASKED: &str = "What is a relay?";

/// What a call costs.
const PRICE: i128 = 30_000;

/// The program, where it was built.
fn program() -> Option<String> {
    let program = std::env::var("QUELEA_LOCAL_LLM").ok().filter(|program| !program.is_empty());
    if program.is_none() {
        println!("skipped: QUELEA_LOCAL_LLM does not name sidecars/local-llm's program");
    }
    program
}

fn model(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("engine").join(name);
    path.to_str().unwrap().to_owned()
}

fn offering(model: &str, program: &str, more: &[&str]) -> Launch {
    let args = ["--service", "llm_local,echo", "--llm-local-path", model, "--llm-local-program", program];
    Launch::new().args(&args).args(more)
}

async fn call(caller: &Daemon, provider: &Daemon, prompt: &str) -> Ended {
    let peer = provider.peer();
    caller.command(&["service", "call", "llm_local", prompt, "--peer", peer, "--json", "--timeout", "60s"]).await
}

fn answered(ended: Ended) {
    let answer = ended.expect(0).json();
    assert!(answer["output"].as_str().unwrap().contains("peer"), "{answer}");
}

async fn until_state(daemon: &Daemon, wanted: &str) {
    let label = format!("state=\"{wanted}\"");
    let is = async || (daemon.metric("quelea_local_llm_state", &label).await == 1.0).then_some(());
    until(&format!("llm_local is {wanted}"), is).await;
}

/// The processes that a process has started and that live.
fn children(parent: i32) -> Vec<Pid> {
    let lives = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold anything; what comes after it may not.
        let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, of) = (rest.next()?, rest.next()?.parse::<i32>().ok()?);
        (of == parent && state != "Z").then_some(())
    };
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| lives(pid).is_some()).filter_map(Pid::from_raw).collect()
}

/// The one that runs the model.
fn sidecar(daemon: &Daemon) -> Option<Pid> {
    let runs = |pid: &Pid| {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap_or_default();
        name.starts_with("quelea-local-ll")
    };
    children(daemon.pid()).into_iter().find(runs)
}

async fn until_gone(pid: Pid) {
    let gone = async || rustix::process::test_kill_process(pid).is_err().then_some(());
    until("the end of the process behind llm_local", gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_starts_it_and_without_calls_it_is_unloaded() {
    let Some(program) = program() else { return };
    let provider = offering(&model("demo/quelea-demo-q8_0.gguf"), &program, &["--llm-local-idle", "1s"]).start().await;
    assert!(sidecar(&provider).is_none(), "nobody has called");
    until_state(&provider, "off").await;
    let caller = caller(&provider).await;
    let socket = PathBuf::from(provider.home()).join("llm/l.sock");
    for _ in 0..2 {
        answered(call(&caller, &provider, ASKED).await);
        until_state(&provider, "off").await;
        assert!(sidecar(&provider).is_none() && !socket.exists());
    }
    let said = call(&caller, &provider, r#"{"prompt":"What is a relay?","max_tokens":3}"#).await.expect(0).json();
    let said: Value = serde_json::from_str(said["output"].as_str().unwrap()).unwrap();
    assert_eq!((&said["model"], &said["tokens"]), (&"quelea-demo".into(), &3.into()), "{said}");
    assert_eq!(provider.metric("quelea_local_llm_restarts_total", "").await, 0.0);
    assert_eq!(at_rest(&[&provider, &caller]).await, [3 * PRICE, -3 * PRICE]);
    provider.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_is_started_again_and_nothing_is_paid_for_what_was_lost() {
    let Some(program) = program() else { return };
    let provider = offering(&model("demo/quelea-demo-q8_0.gguf"), &program, &[]).start().await;
    let caller = caller(&provider).await;
    answered(call(&caller, &provider, ASKED).await);
    let mut paid = PRICE;
    for round in 1..=2 {
        let killed = sidecar(&provider).unwrap();
        let calling = futures::future::join_all((0..4).map(|_| call(&caller, &provider, ASKED)));
        let killing = async {
            // In the middle of them.
            tokio::time::sleep(Duration::from_millis(60)).await;
            kill_process(killed, Signal::KILL).unwrap();
        };
        let (ended, ()) = tokio::join!(calling, killing);
        for ended in ended {
            if ended.code == Some(0) {
                paid += PRICE;
                answered(ended);
            } else {
                // Lost with it, or told to come again.
                assert!(ended.stderr.contains("QUE-8005") || ended.stderr.contains("QUE-1004"), "{}", ended.stderr);
            }
        }
        // It is there again without a call.
        until_state(&provider, "ready").await;
        assert_ne!(sidecar(&provider), Some(killed));
        assert_eq!(provider.metric("quelea_local_llm_restarts_total", "").await, f64::from(round));
        answered(call(&caller, &provider, ASKED).await);
        paid += PRICE;
    }
    assert_eq!(at_rest(&[&provider, &caller]).await, [paid, -paid]);
    provider.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_with_the_daemon_however_that_ends() {
    let Some(program) = program() else { return };
    for signal in [Signal::TERM, Signal::KILL] {
        let home = tempdir();
        let launch = offering(&model("tests/data/models/qwen3-F32.gguf"), &program, &[]).home(home.path());
        let provider = launch.start().await;
        let caller = caller(&provider).await;
        // A long answer is under way.
        let calling = call(&caller, &provider, r#"{"prompt":"hi","max_tokens":450}"#);
        let ending = async {
            until_state(&provider, "ready").await;
            let pid = sidecar(&provider).unwrap();
            provider.signal(signal);
            pid
        };
        let (called, pid) = tokio::join!(calling, ending);
        let ended = provider.end().await;
        if signal == Signal::TERM {
            // What it had begun is finished, its caller hears of it, and it ends by itself.
            called.expect(0);
            ended.expect(0).says(&["llm_local is unloaded status=exit status: 0"]);
        }
        until_gone(pid).await;
        let socket = home.path().join("llm/l.sock");
        until("the end of the socket", async || (!socket.exists()).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_has_no_room_fails_alone() {
    let Some(program) = program() else { return };
    let small = ["--llm-local-memory", "8M"];
    let mut provider = offering(&model("demo/quelea-demo-q8_0.gguf"), &program, &small).start().await;
    let caller = caller(&provider).await;
    call(&caller, &provider, ASKED).await.expect(6).says(&["QUE-1004", "has failed"]);
    // A thread, or an allocation: whichever finds no room first.
    provider.logs("llm_local: ").await;
    let echo = ["service", "call", "echo", "hi", "--peer", provider.peer()];
    caller.command(&echo).await.expect(0);
    assert_eq!(at_rest(&[&provider, &caller]).await, [1000, -1000]);
    provider.stop().await;
}

/// A program of a few lines.
fn script(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_cannot_start_is_said_to_have_failed_and_is_tried_again() {
    let dir = tempdir();
    let counted = dir.path().join("starts");
    let program = script(&dir, &format!("echo . >> {}\necho this model is damaged >&2\nexit 3", counted.display()));
    let mut provider = offering(&model("demo/quelea-demo-q8_0.gguf"), &program, &[]).start().await;
    let caller = caller(&provider).await;
    call(&caller, &provider, ASKED).await.expect(6).says(&["QUE-1004", "has failed"]);
    provider.logs("llm_local: this model is damaged").await;
    // Nobody wants it: it is left alone until somebody does.
    until_state(&provider, "off").await;
    assert_eq!(std::fs::read_to_string(&counted).unwrap().lines().count(), 1);
    call(&caller, &provider, ASKED).await.expect(6);
    assert_eq!(std::fs::read_to_string(&counted).unwrap().lines().count(), 2);
    assert_eq!(at_rest(&[&provider, &caller]).await, [0, 0]);
    provider.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_does_not_listen_is_killed_with_the_daemon_and_its_noise_is_bounded() {
    let dir = tempdir();
    let noise = "trap '' TERM\ni=0\nwhile [ $i -lt 5000 ]; do echo noise $i >&2; i=$((i+1)); done\necho done > \"$0.done\"\n\
        while :; do sleep 1; done";
    let program = script(&dir, noise);
    let provider = offering(&model("demo/quelea-demo-q8_0.gguf"), &program, &[]).start().await;
    let caller = caller(&provider).await;
    let calling = call(&caller, &provider, ASKED);
    let ending = async {
        until("the noise", async || PathBuf::from(format!("{program}.done")).exists().then_some(())).await;
        let pids = children(provider.pid());
        assert_eq!(pids.len(), 1);
        // Nobody waits for the call, so that the daemon has nothing to finish.
        caller.signal(Signal::KILL);
        provider.signal(Signal::TERM);
        pids[0]
    };
    let (_, pid) = tokio::join!(calling, ending);
    let ended = provider.end().await;
    until_gone(pid).await;
    let told = ended.expect(0).stderr.matches("llm_local: noise").count();
    assert!((1..=80).contains(&told), "{told} lines of noise in the log");
}

#[tokio::test]
async fn what_is_missing_is_named_and_how_to_get_it() {
    let demo = model("demo/quelea-demo-q8_0.gguf");
    let ended = offering(&demo, "/nonexistent/quelea-local-llm", &[]).fails().await.expect(2);
    ended.says(&["cargo build --release --manifest-path sidecars/local-llm/Cargo.toml", "--llm-local-url"]);
    offering("/nonexistent.gguf", "/bin/sh", &[]).fails().await.expect(2).says(&["--llm-local-path /nonexistent.gguf"]);
    let both = offering(&demo, "/bin/sh", &["--llm-local-url", "http://127.0.0.1:1/v1"]);
    both.fails().await.expect(2).says(&["cannot be used with"]);
    Launch::new().args(&["--llm-local-memory", "1G"]).fails().await.expect(2).says(&["--llm-local-path"]);
}
