//! Half the bytes between peers: another function than exact, and one however the layers are cut.

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    failover::goes_on_asked,
    harness::{DEMO, ids, quelea, swarm},
};

const ASK: [&str; 5] = ["--raw", "--ignore-eos", "--max-tokens", "48", "Once upon a time there was a bird"];
const HALF: [&str; 2] = ["--profile", "exact-bf16"];

fn bytes(answer: &Value) -> (u64, u64) {
    (answer["bytes_sent"].as_u64().unwrap(), answer["bytes_received"].as_u64().unwrap())
}

#[tokio::test]
async fn half_the_bytes_give_one_answer_however_the_layers_are_cut() {
    let whole = quelea(&[&["infer", "--json", "--route", "local"], &ASK[..], &HALF].concat()).await.expect(0).json();
    assert_eq!(whole["profile"], "exact-bf16");
    for spans in [&["0..3", "3..6"][..], &["0..1", "1..4", "4..6"]] {
        let swarm = swarm(DEMO, spans).await;
        let half = swarm.ask(DEMO, &[&ASK[..], &HALF].concat()).await.expect(0).json();
        assert_eq!((ids(&half), &half["profile"]), (ids(&whole), &"exact-bf16".into()), "{spans:?}");
        for flags in [&["--thin"][..], &["--private"], &["--speculate", "3"]] {
            let other = swarm.ask(DEMO, &[&ASK[..], &HALF, flags].concat()).await.expect(0).json();
            assert_eq!(ids(&other), ids(&whole), "{spans:?} {flags:?}");
        }
        let full = swarm.ask(DEMO, &ASK).await.expect(0).json();
        assert_eq!(full["profile"], "exact", "never unless it is asked for");
        let ((sent, received), (all_sent, all_received)) = (bytes(&half), bytes(&full));
        assert_eq!((2 * sent, 2 * received), (all_sent, all_received));
        let plan = |more: &[&str]| {
            let args = ["plan", DEMO, "--json", "--bootstrap", swarm.boot.addr()];
            let args: Vec<String> = args.iter().chain(more).map(|arg| (*arg).to_owned()).collect();
            async move { quelea(&args).await.expect(0).json()["chosen"]["hops"][0]["bytes_per_token"].as_u64().unwrap() }
        };
        assert_eq!(2 * plan(&HALF).await, plan(&[]).await);
    }
}

#[tokio::test]
async fn another_goes_on_with_rounded_rows() {
    goes_on_asked(&[1], Signal::KILL, &HALF).await;
}
