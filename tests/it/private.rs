//! Keeping the outer layers: the answer is the same, and the report says who was given what.

use rustix::process::Signal;
use serde_json::json;

use crate::{
    failover::goes_on_asked,
    harness::{DEMO, ids, quelea, spans, swarm},
};

const ASK: [&str; 5] = ["--raw", "--ignore-eos", "--max-tokens", "40", "one two one two one two one two"];

#[tokio::test]
async fn an_answer_with_the_outer_layers_here_is_the_same() {
    let whole = quelea(&[&["infer", "--json", "--route", "local"], &ASK[..]].concat()).await.expect(0).json();
    let swarm = swarm(DEMO, &["0..3", "3..6"]).await;
    let (one, two) = (swarm.workers[0].peer(), swarm.workers[1].peer());
    for (flags, route, here) in [
        (&["--private"][..], ["1..3", "3..5"], json!(["0..1", "5..6"])),
        (&["--private=2", "--speculate", "3"], ["2..3", "3..4"], json!(["0..2", "4..6"])),
    ] {
        let answer = swarm.ask(DEMO, &[&ASK, flags].concat()).await.expect(0).json();
        assert_eq!(ids(&answer), ids(&whole), "{flags:?}");
        assert_eq!((spans(&answer), &answer["private"]), (route.map(String::from).into(), &here));
        let saw = json!([
            {"peer": one, "layers": route[0], "tokens": false},
            {"peer": two, "layers": route[1], "tokens": false},
        ]);
        assert_eq!(answer["saw"], saw);
    }
    let plan = ["plan", DEMO, "--private", "--json", "--bootstrap", swarm.boot.addr()];
    let plan = quelea(&plan).await.expect(0).json();
    assert_eq!((&plan["objective"], &plan["layers"]), (&"private".into(), &"1..5".into()));
    let all = swarm.ask(DEMO, &[&ASK[..], &["--private=3"]].concat()).await.expect(2);
    all.says(&["the first and the last 3 of 6 layers here none are left", "--route local"]);
    swarm.ask(DEMO, &[&ASK[..], &["--private", "--thin"]].concat()).await.expect(2);
}

#[tokio::test]
async fn another_is_given_the_rows_that_were_made_here() {
    goes_on_asked(&[0], Signal::KILL, &["--private"]).await;
}
