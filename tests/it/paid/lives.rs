//! Whoever dies in the middle of an answer: what was signed for is paid, nothing more, and once.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::market::{Asked, FIRST, SECOND, asking, at_rest, cost, micro, settled_once};
use crate::harness::{Asking, Daemon, Launch, ids, long_model, numbers, tempdir};

/// Layers of each stage here.
const LAYERS: u64 = 3;

/// Long enough to be cut off, however busy the machine is.
const TOKENS: u64 = 1000;

/// Tokens after which somebody dies. A stage works for 48 rows of an answer at most, and for some of the prompt, beyond vouchers:
/// there are vouchers by then.
const SEEN: usize = 120;

/// Rows between two vouchers.
const EVERY: u64 = 16;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// A daemon that dies and comes back with the same memory.
struct Mortal {
    launch: Launch,
    daemon: Option<Daemon>,
    _home: TempDir,
}

impl Mortal {
    async fn born(launch: Launch) -> Self {
        let home = tempdir();
        let launch = launch.home(home.path());
        Self { daemon: Some(launch.start().await), launch, _home: home }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    async fn dies(&mut self) {
        let daemon = self.daemon.take().unwrap();
        daemon.signal(Signal::KILL);
        daemon.end().await;
    }

    /// Comes back, and looks for this node first.
    async fn comes_back(&mut self, to: Option<&Daemon>) {
        let launch = self.launch.clone();
        self.daemon = Some(to.map_or(launch.clone(), |to| launch.bootstrap(to)).start().await);
    }
}

fn stage(layers: &str, asked: Asked) -> Launch {
    asking(Launch::new().serve(long_model(), layers), asked)
}

fn question() -> Value {
    json!({
        "model": long_model(), "prompt": "one two three", "form": "raw", "ignore_eos": true, "max_tokens": TOKENS,
        "step_timeout_ms": 10_000, "route": "swarm",
    })
}

/// The same of somebody who waits for its end.
async fn asked(payer: &Daemon, more: &[&str]) -> Value {
    let args = ["infer", "--json", "--timeout", "30s", "--route", "swarm"];
    payer.command(&[&args[..], more].concat()).await.expect(0).json()
}

/// Begins an answer and waits until [`SEEN`] tokens have come.
async fn under_way(payer: &Daemon) -> Asking {
    let mut asking = Asking::new(payer, &question());
    assert!(asking.until(ANSWER, |seen| seen.tokens.len() >= SEEN).await, "no {SEEN} tokens");
    assert!(!asking.seen().over, "it is over already");
    asking
}

/// Rows of an answer that `micro_credits` pay for at a stage, besides those of the prompt.
fn rows(micro_credits: u64, prompt: u64, (decode, prefill): Asked) -> u64 {
    let thousandths = micro_credits * 1000 - LAYERS * prompt * prefill;
    // Rounded up once.
    thousandths / (LAYERS * decode)
}

fn count(of: usize) -> u64 {
    u64::try_from(of).unwrap()
}

/// What `stage` got by what an answer says.
fn got(summary: &Value, stage: &Daemon) -> i128 {
    let stages = summary["cost"]["stages"].as_array().unwrap().iter().filter(|of| of["peer"] == stage.peer());
    let micro = |credits: &Value| credits.as_str().unwrap().replace('.', "").parse::<i128>().unwrap();
    stages.map(|of| micro(&of["credits"])).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_killed_gets_what_came_of_it_and_who_takes_over_what_it_computes() {
    let first = stage("0..3", FIRST).start().await;
    let mut halves = Vec::new();
    for _ in 0..2 {
        halves.push(Mortal::born(stage("3..6", SECOND).bootstrap(&first)).await);
    }
    let payer = Launch::new().bootstrap(&first).start().await;
    let mut asking = under_way(&payer).await;
    let used = asking.seen().route[1].0.clone();
    let killed = halves.iter().position(|half| half.daemon().peer() == used).unwrap();
    halves[killed].dies().await;
    let answer = asking.end(ANSWER).await.expect("an end").expect("an answer");
    halves[killed].comes_back(Some(&payer)).await;
    let nodes = [&first, halves[killed].daemon(), halves[1 - killed].daemon(), &payer];
    let owed = at_rest(&nodes).await;
    assert_eq!(owed[..3], nodes[..3].iter().map(|stage| got(&answer, stage)).collect::<Vec<_>>(), "{answer}");
    assert_eq!(owed[3], -i128::from(micro(&answer)));
    // The stage before computed nothing twice; and no row that came back is missing.
    assert_eq!(owed[0], i128::from(cost(LAYERS, &answer, FIRST)), "{answer}");
    let prompt = count(numbers(&answer["prompt_ids"]).len());
    let paid = rows(u64::try_from(owed[1]).unwrap(), prompt, SECOND);
    assert!((count(SEEN) - 1..TOKENS).contains(&paid), "{paid} rows: {answer}");
    assert_eq!(settled_once(&payer).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_that_was_killed_pays_what_it_had_signed_for_and_an_answer_gone_on_with_its_own_rows() {
    let first = stage("0..3", FIRST).start().await;
    let second = stage("3..6", SECOND).bootstrap(&first).start().await;
    let mut payer = Mortal::born(Launch::new().bootstrap(&first).bootstrap(&second)).await;
    let asking = under_way(payer.daemon()).await;
    payer.dies().await;
    drop(asking);
    payer.comes_back(None).await;
    let payer = payer.daemon();
    let nodes = [&first, &second, payer];
    let before = at_rest(&nodes).await;
    assert_eq!(settled_once(payer).await, 2);

    let answer = asked(payer, &["--resume", "last"]).await;
    let (prompt, resumed) = (count(numbers(&answer["prompt_ids"]).len()), answer["resumed_tokens"].as_u64().unwrap());
    assert!(resumed >= count(SEEN) - 1, "{answer}");
    for (owed, asked) in before.iter().zip([FIRST, SECOND]) {
        let vouched = rows(u64::try_from(*owed).unwrap(), prompt, asked);
        assert!((EVERY..TOKENS).contains(&vouched), "{vouched} rows");
    }
    // Gone on with, the tokens so far are a prompt; those that come are an answer's.
    let again = |(decode, prefill): Asked| {
        let given = prompt + resumed - answer["cached_tokens"].as_u64().unwrap();
        let come = count(ids(&answer).len()) - resumed - 1;
        (LAYERS * (given * prefill + come * decode)).div_ceil(1000)
    };
    let after = at_rest(&nodes).await;
    assert_eq!(after[0] - before[0], i128::from(again(FIRST)), "{answer}");
    assert_eq!(after[1] - before[1], i128::from(again(SECOND)), "{answer}");
    assert_eq!(settled_once(payer).await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_tried_again_is_paid_once_for_each_time() {
    let first = stage("0..3", FIRST).start().await;
    let mut second = Mortal::born(stage("3..6", SECOND).bootstrap(&first)).await;
    let payer = Launch::new().bootstrap(&first).start().await;
    let mut asking = under_way(&payer).await;
    second.dies().await;
    asking.end(ANSWER).await.expect("an end").expect_err("nobody has its layers");
    second.comes_back(Some(&payer)).await;
    let second = second.daemon();
    let before = at_rest(&[&first, second, &payer]).await;
    assert!(before[0] > 0 && before[1] > 0, "{before:?}");
    let tokens = TOKENS.to_string();
    let ask = ["--raw", "--ignore-eos", "--max-tokens", &tokens, "--model", long_model(), "one two three"];
    let answer = crate::harness::until("an answer", async || {
        let args = [&["infer", "--json", "--timeout", "30s", "--route", "swarm"], &ask[..]].concat();
        let ended = payer.command(&args).await;
        (ended.code == Some(0)).then(|| ended.json())
    })
    .await;
    let after = at_rest(&[&first, second, &payer]).await;
    for (at, asked) in [FIRST, SECOND].into_iter().enumerate() {
        let whole = i128::from(cost(LAYERS, &answer, asked));
        assert_eq!(after[at] - before[at], whole, "{answer}");
        // It was cut off: less than the whole.
        assert!(before[at] < whole, "{before:?}");
    }
    settled_once(&payer).await;
}
