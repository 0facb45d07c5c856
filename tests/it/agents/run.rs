//! Agents as their operator has them.

use quelea::agents::{End, Limits};
use quelea_wire::Credits;
use serde_json::{Value, json};

use super::{compute, module, modules::IMPORTS};
use crate::{
    harness::{DEMO, Launch, quelea, tempdir, until},
    paid::market::{Market, at_rest},
};

/// Gives its input back, in capital letters.
pub fn shout() -> Vec<u8> {
    module(&format!(
        r#"(module {IMPORTS} (func (export "run") (result i32) (local $p i64) (local $i i64) (local $c i32)
            (local.set $p (call $alloc (call $input_length)))
            (block $done (loop $l
              (br_if $done (i64.ge_u (local.get $i) (call $input_length)))
              (local.set $c (call $input_load_u8 (local.get $i)))
              (if (i32.and (i32.ge_u (local.get $c) (i32.const 97)) (i32.le_u (local.get $c) (i32.const 122)))
                (then (local.set $c (i32.sub (local.get $c) (i32.const 32)))))
              (call $store_u8 (i64.add (local.get $p) (local.get $i)) (local.get $c))
              (local.set $i (i64.add (local.get $i) (i64.const 1)))
              (br $l)))
            (call $output_set (local.get $p) (call $input_length))
            (i32.const 0)))"#
    ))
}

/// Hands its input to one of our functions, and gives the answer.
fn asks(function: &str) -> Vec<u8> {
    module(&format!(
        r#"(module
            (import "extism:host/env" "length" (func $length (param i64) (result i64)))
            (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
            (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
            (import "extism:host/user" "{function}" (func $ask (param i64) (result i64)))
            (func (export "run") (local $p i64)
              (local.set $p (call $ask (call $input_offset)))
              (call $output_set (local.get $p) (call $length (local.get $p)))))"#
    ))
}

/// Keeps its input, if it has any; else gives what is kept.
fn keeps() -> Vec<u8> {
    module(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "length" (func $length (param i64) (result i64)))
            (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
            (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
            (import "extism:host/env" "input_length" (func $input_length (result i64)))
            (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
            (import "extism:host/user" "kv_get" (func $get (param i64) (result i64)))
            (import "extism:host/user" "kv_set" (func $set (param i64 i64) (result i64)))
            (func (export "run") (local $k i64) (local $p i64)
              (local.set $k (call $alloc (i64.const 8)))
              (call $store_u64 (local.get $k) (i64.const 0x6162636465666768))
              (local.set $p (call $get (local.get $k)))
              (if (i64.gt_u (call $input_length) (i64.const 0))
                (then (local.set $p (call $set (local.get $k) (call $input_offset)))))
              (call $output_set (local.get $p) (call $length (local.get $p)))))"#,
    )
}

#[tokio::test]
async fn a_module_computes_and_the_same_input_takes_the_same_fuel() {
    let run = compute(shout(), b"hello, world", Limits::default()).await;
    assert_eq!((run.end, run.output.as_slice()), (End::Ok, &b"HELLO, WORLD"[..]));
    assert!(run.fuel > 1_000 && run.fuel < 100_000, "{}", run.fuel);
    let again = compute(shout(), b"hello, world", Limits::default()).await;
    assert_eq!(again.fuel, run.fuel);
    let longer = compute(shout(), &[b'a'; 10_000], Limits::default()).await;
    assert!(longer.fuel > run.fuel && longer.output.len() == 10_000);
    // What it used is enough, and half of it is not.
    let exactly = Limits { fuel: run.fuel, ..Limits::default() };
    assert_eq!(compute(shout(), b"hello, world", exactly).await.end, End::Ok);
    let less = Limits { fuel: run.fuel / 2, ..Limits::default() };
    assert_eq!(compute(shout(), b"hello, world", less).await.end, End::OutOfFuel);
}

#[tokio::test]
async fn what_only_computes_is_refused_everything_else() {
    for function in ["kv_get", "http_fetch", "infer", "call"] {
        let run = compute(asks(function), b"{}", Limits::default()).await;
        let said = String::from_utf8(run.output).unwrap();
        assert!(run.end == End::Ok && said.contains(r#""code":"denied""#), "{function}: {:?} {said}", run.end);
    }
}

#[tokio::test]
async fn an_agent_pays_peers_from_its_allowance_and_not_a_micro_credit_more() {
    let (market, home) = (Market::open().await, tempdir());
    let payer = market.payer().await;
    let file = home.path().join("asks.wasm");
    std::fs::write(&file, asks("infer")).unwrap();
    let install = ["agent", "install", file.to_str().unwrap(), "--grant", "infer"];
    payer.command(&install).await.expect(0);
    let question = json!({ "prompt": "What is a relay?", "model": DEMO, "max_tokens": 8 }).to_string();
    let run = async |allowance: Option<&str>| {
        let mut args = vec!["agent", "run", "asks", "--input", &question, "--json"];
        args.extend(allowance.iter().flat_map(|allowance| ["--allowance", *allowance]));
        payer.command(&args).await.expect(0).json()
    };
    let said = |ran: &Value| serde_json::from_str::<Value>(ran["output"].as_str().unwrap()).unwrap();

    // Nothing was given to it: peers that ask a price are out of its reach.
    let ran = run(None).await;
    assert!(said(&ran)["error"]["message"].is_string() && ran["spent"] == 0, "{ran}");
    let ran = run(Some("1")).await;
    let spent = ran["spent"].as_u64().unwrap();
    assert!(said(&ran)["ok"]["text"].is_string() && spent > 0, "{ran}");
    assert_eq!(said(&ran)["ok"]["spent"], spent, "{ran}");
    let owed = at_rest(&[&payer, &market.first, &market.second]).await;
    assert_eq!(owed[0], -i128::from(spent));

    // One too little is too little, and costs nothing.
    let less = Credits(spent / 2).to_string();
    let ran = run(Some(&less)).await;
    assert!(said(&ran)["error"]["message"].is_string() && ran["spent"] == 0, "{ran}");
    assert_eq!(at_rest(&[&payer, &market.first, &market.second]).await, owed);

    // Of an allowance of its own, what is left stays for the next run, and is not exceeded by many runs at once.
    let twice = Credits(spent * 5 / 2).to_string();
    payer.command(&[&install[..], &["--allowance", &twice]].concat()).await.expect(0);
    let mut paid = 0;
    for _ in 0..2 {
        let ran = futures::future::join_all((0..3).map(|_| run(None))).await;
        paid += ran.iter().map(|ran| ran["spent"].as_u64().unwrap()).sum::<u64>();
    }
    assert!(paid > 0 && paid <= spent * 5 / 2, "{paid} of {}", spent * 5 / 2);
    assert_eq!(at_rest(&[&payer, &market.first, &market.second]).await[0], owed[0] - i128::from(paid));
}

#[tokio::test]
async fn an_agent_is_installed_run_and_taken_away() {
    let files = tempdir();
    let write = |name: &str, bytes: &[u8]| {
        let path = files.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let daemon = Launch::new().serve("demo", "all").start().await;
    let shout = write("Shout.wasm", &shout());
    daemon.command(&["agent", "list"]).await.expect(0).says(&["no agent is installed"]);
    daemon.command(&["agent", "run", "shout"]).await.expect(5).says(&["no agent is called shout"]);
    daemon.command(&["agent", "install", &shout]).await.expect(0).says(&["installed shout"]);
    let ran = daemon.command(&["agent", "run", "shout", "--input", "hello"]).await.expect(0);
    assert_eq!(ran.stdout, "HELLO");

    // What it was not granted it is refused; what it was granted it has, the next time, too.
    let keeps = write("keeps.wasm", &keeps());
    daemon.command(&["agent", "install", &keeps]).await.expect(0).says(&["asks for: kv", "--grant kv"]);
    let ran = daemon.command(&["agent", "run", "keeps", "--input", "something"]).await.expect(0);
    assert!(ran.stdout.contains("was not granted the capability 'kv'"), "{}", ran.stdout);
    daemon.command(&["agent", "install", &keeps, "--grant", "kv"]).await.expect(0);
    let caps = daemon.command(&["agent", "caps", "keeps", "--json"]).await.expect(0).json();
    let kv = caps["capabilities"].as_array().unwrap().iter().find(|one| one["name"] == "kv").unwrap();
    assert!(kv["granted"] == true && kv["wanted"] == true, "{caps}");
    let ran = daemon.command(&["agent", "run", "keeps", "--input", "something"]).await.expect(0);
    assert_eq!(ran.stdout, r#"{"ok":true}"#);
    let ran = daemon.command(&["agent", "run", "keeps"]).await.expect(0);
    assert_eq!(ran.stdout, r#"{"ok":"something"}"#);

    // Models, within the allowance: this node's own layers cost nothing.
    let asks = write("asks.wasm", &asks("infer"));
    daemon.command(&["agent", "install", &asks, "--grant", "infer"]).await.expect(0);
    let question = r#"{"prompt":"What is a relay?","max_tokens":4}"#;
    let ran = daemon.command(&["agent", "run", "asks", "--input", question, "--json"]).await.expect(0).json();
    let answer: serde_json::Value = serde_json::from_str(ran["output"].as_str().unwrap()).unwrap();
    assert!(answer["ok"]["text"].as_str().is_some_and(|text| !text.is_empty()), "{ran}");
    assert_eq!((&ran["spent"], &ran["schema"]), (&0.into(), &"quelea.agent_run/v1".into()));
    // A file of this machine is not a model that an agent may name.
    let file = r#"{"prompt":"hi","model":"/etc/passwd"}"#;
    let ran = daemon.command(&["agent", "run", "asks", "--input", file]).await.expect(0);
    assert!(ran.stdout.contains(r#""code":"usage""#), "{}", ran.stdout);
    let dear = r#"{"prompt":"hi","max_price":2000000}"#;
    let ran = daemon.command(&["agent", "run", "asks", "--input", dear, "--allowance", "1"]).await.expect(0);
    assert!(ran.stdout.contains(r#""code":"allowance""#), "{}", ran.stdout);

    // Mistakes.
    let text = write("text.wasm", b"(module)");
    daemon.command(&["agent", "install", &text]).await.expect(1).says(&["no WebAssembly module", "QUE-8101"]);
    daemon
        .command(&["agent", "install", &shout, "--entry", "go"])
        .await
        .expect(1)
        .says(&["exports no function", "run"]);
    daemon.command(&["agent", "install", &shout, "--grant", "root"]).await.expect(2).says(&["no capability"]);
    daemon.command(&["agent", "install", &shout, "--grant", "http"]).await.expect(2).says(&["hosts go together"]);
    daemon.command(&["agent", "install", &shout, "--name", "../x"]).await.expect(2).says(&["is no name"]);
    daemon.command(&["agent", "install", "/nowhere.wasm"]).await.expect(2).says(&["/nowhere.wasm"]);
    daemon.command(&["agent", "caps", "nobody"]).await.expect(5);

    daemon.command(&["agent", "rm", "shout"]).await.expect(0);
    daemon.command(&["agent", "run", "shout"]).await.expect(5);
    let listed = daemon.command(&["agent", "list", "--json"]).await.expect(0).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert!(daemon.metric("quelea_agent_runs_total", "ok").await >= 5.0);
    assert!(daemon.metric("quelea_agent_fuel_used_total", "ok").await > 1_000.0);
}

#[tokio::test]
async fn a_page_that_may_not_be_fetched_is_refused_in_words() {
    let daemon = Launch::new().start().await;
    for (url, said) in [
        ("http://example.org/", "only https"),
        ("https://127.0.0.1/", "address in the place of a name"),
        ("https://2130706433/", "address in the place of a name"),
        ("https://localhost/", "private network"),
        ("https://metadata.google.internal/", "private network"),
        ("https://user:word@example.org/", "user or a password"),
        ("https://example.org:22/", "port 22"),
        ("nonsense", "no address"),
    ] {
        daemon.command(&["web", "read", url]).await.expect(2).says(&[said]);
    }
    quelea(&["web", "read", "https://example.org", "--data-dir", "/nonexistent-quelea"]).await.expect(3);
}

/// Processes that were started by `parent` to run modules.
fn workers_of(parent: i32) -> Vec<i32> {
    let is_worker = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|argument| argument == b"agent-worker")
    };
    let children = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    tasks
        .flat_map(|task| children(task).split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .filter(is_worker)
        .collect()
}

#[tokio::test]
async fn a_process_waits_with_an_agent_for_its_next_run() {
    let dir = tempdir();
    let path = dir.path().join("shout.wasm");
    std::fs::write(&path, shout()).unwrap();
    let daemon = Launch::new().start().await;
    daemon.command(&["agent", "install", path.to_str().unwrap()]).await.expect(0);
    // One with the agent, one with none.
    let waiting = async || {
        until("two processes wait", async || {
            let workers = workers_of(daemon.pid());
            (workers.len() == 2).then_some(workers)
        })
        .await
    };
    let run = async || daemon.command(&["agent", "run", "shout", "--input", "hello", "--json"]).await.expect(0).json();
    let first = waiting().await;
    let ran = run().await;
    assert_eq!((&ran["output"], &ran["compile_s"]), (&"HELLO".into(), &0.0.into()), "{ran}");
    // A process runs one module once.
    let second = waiting().await;
    assert_eq!(second.iter().filter(|pid| first.contains(pid)).count(), 1, "{first:?}, {second:?}");
    // Whoever ends them meanwhile costs a start, and changes no answer.
    for pid in second {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let again = run().await;
    assert_eq!((&again["output"], &again["fuel"]), (&ran["output"], &ran["fuel"]), "{again}");
    assert!(again["compile_s"].as_f64().unwrap() > 0.0, "{again}");
    let last = waiting().await;
    daemon.stop().await;
    let gone = async || last.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(());
    until("no process is left", gone).await;
}
