//! Asking with nothing of the model: the tokenizer comes from peers, the first stage embeds, the last gives logits, and the
//! answer is that of the whole model.

use quelea_engine::{Gguf, Outline};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    failover::goes_on_asked,
    harness::{DEMO, Launch, Process, Swarm, ids, long_model, quelea, spans, swarm, tempdir, until},
    weights::fake::{Fake, Manner},
};

const SPANS: [&str; 3] = ["0..2", "2..4", "4..6"];
const ASK: [&str; 5] = ["--raw", "--ignore-eos", "--max-tokens", "24", "12 plus 30 is"];

/// Ways to draw, each of which needs some of the logits.
const DRAWS: [&[&str]; 4] = [
    &[],
    &["--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--seed", "7"],
    &["--temperature", "1.3", "--top-k", "60", "--min-p", "0.02", "--seed", "11", "--repeat-penalty", "1.2"],
    &["--logprobs", "3", "--frequency-penalty", "0.3"],
];

fn outline() -> Outline {
    Outline::of(&Gguf::open(long_model()).unwrap()).unwrap()
}

fn id() -> String {
    hex::encode(outline().manifest().unwrap().id())
}

/// Asks by the id alone, from a data directory of its own.
fn asking<'a>(id: &'a str, bootstrap: &'a str, home: &'a TempDir, more: &[&'a str]) -> Vec<&'a str> {
    let dir = home.path().to_str().unwrap();
    let args = ["infer", "--json", "--model", id, "--bootstrap", bootstrap, "--data-dir", dir];
    [&args[..], &ASK, more].concat()
}

/// What the whole model answers.
async fn unsplit(draw: &[&str]) -> Value {
    let args = ["infer", "--json", "--route", "local", "--model", long_model()];
    quelea(&[&args[..], &ASK, draw].concat()).await.expect(0).json()
}

#[tokio::test]
async fn somebody_with_nothing_but_the_id_gets_the_same_answer() {
    let id = id();
    let swarm = swarm(long_model(), &SPANS).await;
    let home = tempdir();
    for draw in DRAWS {
        let whole = unsplit(draw).await;
        let answer = quelea(&asking(&id, swarm.boot.addr(), &home, draw)).await.expect(0).json();
        assert_eq!(ids(&answer), ids(&whole), "{draw:?}");
        assert_eq!((&answer["text"], &answer["logprobs"]), (&whole["text"], &whole["logprobs"]), "{draw:?}");
        assert_eq!((&answer["thin"], &whole["thin"]), (&true.into(), &Value::Null));
        assert_eq!(spans(&answer), SPANS);
        let route = answer["route"].as_array().unwrap();
        let sees: Vec<bool> = route.iter().map(|hop| hop["sees_tokens"] == true).collect();
        let gives: Vec<bool> = route.iter().map(|hop| hop["gives_logits"] == true).collect();
        assert_eq!((sees, gives), (vec![true, false, false], vec![false, false, true]));
    }
    // Of all the model the tokenizer alone is here.
    let dir = home.path().to_str().unwrap();
    let listed = quelea(&["model", "list", "--json", "--data-dir", dir]).await.expect(0).json();
    let tokenizer = outline().tokenizer().bytes();
    assert_eq!((&listed["items"][0]["bytes"], &listed["items"][0]["whole"]), (&tokenizer.into(), &false.into()));

    // People are told, too.
    let mut shown = asking(&id, swarm.boot.addr(), &home, &[]);
    shown.retain(|arg| *arg != "--json");
    quelea(&shown).await.expect(0).says(&["thin:", "saw them"]);
    let plan = ["plan", &id, "--bootstrap", swarm.boot.addr(), "--data-dir", dir];
    let text = quelea(&plan).await.expect(0).stdout;
    assert!(text.contains("the first stage embeds, and sees the tokens"), "{text}");
    let plan = quelea(&[&plan[..], &["--json"]].concat()).await.expect(0).json();
    let first = &plan["chosen"]["hops"][0];
    assert_eq!(
        (&plan["thin"], &first["sees_tokens"], &first["bytes_per_token"]),
        (&true.into(), &true.into(), &4.into())
    );
    // Whoever has the ends uses them, unless they say otherwise.
    for (flags, thin) in [(&[][..], Value::Null), (&["--thin"], true.into())] {
        let answer = swarm.ask(long_model(), &[&ASK, flags].concat()).await.expect(0).json();
        assert_eq!((&answer["thin"], ids(&answer)), (&thin, ids(&unsplit(&[]).await)));
    }
}

#[tokio::test]
async fn guessed_tokens_are_judged_by_the_likeliest_logits() {
    let swarm = swarm(DEMO, &["0..3", "3..6"]).await;
    let ask = ["--raw", "--ignore-eos", "--max-tokens", "64", "one two one two one two one two one two"];
    let plain = swarm.ask(DEMO, &ask).await.expect(0).json();
    let guessed = swarm.ask(DEMO, &[&ask[..], &["--thin", "--speculate", "4"]].concat()).await.expect(0).json();
    assert_eq!(ids(&guessed), ids(&plain));
    assert!(guessed["speculation"]["accepted"].as_u64().unwrap() > 0, "{}", guessed["speculation"]);
}

#[tokio::test]
async fn a_tokenizer_that_is_another_is_refused_and_asked_for_elsewhere() {
    let id = id();
    let whole = unsplit(&[]).await;
    for manner in [Manner::CorruptOutlined, Manner::WrongOutline] {
        let worker = Launch::new().serve(long_model(), "all").start().await;
        let liar = Fake::new(&outline(), manner).await;
        let home = tempdir();
        let both = format!("{},{}", liar.addr, worker.addr());
        // Nobody else answers until the liar has lied.
        worker.signal(Signal::STOP);
        let asked = Process::spawn(&asking(&id, &both, &home, &["--timeout", "30s"]));
        let lies = || if manner == Manner::WrongOutline { liar.outlines() } else { liar.asked() };
        until("the liar has lied", async || (lies() > 0).then_some(())).await;
        worker.signal(Signal::CONT);
        let answer = asked.end().await.expect(0).json();
        assert_eq!(ids(&answer), ids(&whole), "{manner:?}");
    }
}

#[tokio::test]
async fn without_a_worker_that_has_the_ends_it_is_said_what_is_missing() {
    let id = id();
    let boot = Launch::new().start().await;
    let worker = |span| Launch::new().bootstrap(&boot).serve(long_model(), span).args(&["--ends", "never"]);
    let (one, two) = (worker("0..3").start().await, worker("3..6").start().await);
    let home = tempdir();
    let insists = quelea(&asking(&id, boot.addr(), &home, &["--thin"])).await.expect(6);
    insists.says(&["no peer holds the embedding with layer 0, nor the head with layer 5", "--ends always"]);
    // Who does not insist fetches them.
    let answer = quelea(&asking(&id, boot.addr(), &home, &[])).await.expect(0).json();
    assert_eq!((&answer["thin"], ids(&answer)), (&Value::Null, ids(&unsplit(&[]).await)));
    drop((one, two));
}

#[tokio::test]
async fn what_the_likeliest_logits_do_not_tell_is_refused_or_drawn_here() {
    let id = id();
    let Swarm { boot, workers } = swarm(long_model(), &["0..6"]).await;
    let home = tempdir();
    let draw = ["--temperature", "0.8", "--top-k", "0", "--seed", "3"];
    let refused = quelea(&asking(&id, boot.addr(), &home, &[&draw[..], &["--thin"]].concat())).await.expect(2);
    refused.says(&["without top_k every token may be drawn", "--top-k"]);
    let answer = quelea(&asking(&id, boot.addr(), &home, &draw)).await.expect(0).json();
    assert_eq!((&answer["thin"], ids(&answer)), (&Value::Null, ids(&unsplit(&draw).await)));
    drop(workers);
}

#[tokio::test]
async fn another_takes_the_place_of_the_one_that_embeds() {
    goes_on_asked(&[0], Signal::KILL, &["--thin"]).await;
}

#[tokio::test]
async fn another_takes_the_place_of_the_one_that_gives_logits() {
    goes_on_asked(&[2], Signal::KILL, &["--thin"]).await;
}
