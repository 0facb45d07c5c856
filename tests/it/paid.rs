//! Answers that are paid for, between daemons as users start them: what each says that it is owed is what the rows cost, whoever
//! asked, and whatever went wrong meanwhile; and nobody pays twice or for nothing.

mod lives;
pub mod market;
mod refused;
mod unpaid;

use std::fs;

use futures::future::join_all;
use serde_json::json;

use self::market::{Market, at_rest, micro, settled_once};
use crate::harness::{DEMO, numbers, quelea, tempdir};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_each_says_is_what_the_rows_cost() {
    let market = Market::open().await;
    let payer = market.payer().await;
    let dir = tempdir();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (receipt, told) = (at("a.receipt"), at("a.json"));
    let answer = market.asked(&payer, &["--receipt", &receipt, "What is a relay?"]).await.expect(0);
    fs::write(&told, &answer.stdout).unwrap();
    let answer = answer.json();
    let [first, second] = market.costs(&answer);
    assert!(first > 0 && second > 0);
    assert_eq!(micro(&answer), first + second, "{answer}");
    let owed = at_rest(&[&market.first, &market.second, &payer]).await;
    assert_eq!(
        owed,
        [first, second].map(i128::from).into_iter().chain([-i128::from(first + second)]).collect::<Vec<_>>()
    );
    assert_eq!(settled_once(&payer).await, 2);

    // Somebody who had no part in it.
    let shown = quelea(&["receipt", "verify", &receipt, "--json"]).await.expect(0).json();
    let stages = shown["stages"].as_array().unwrap();
    assert!(stages.iter().all(|stage| stage["signed"] == true && stage["note"].is_string()), "{shown}");
    assert_eq!((stages.len(), &shown["coordinator"], &shown["links"]), (2, &json!(payer.peer()), &json!(1)));
    assert_eq!(shown["prompt_rows"], numbers(&answer["prompt_ids"]).len());
    let verify = ["verify", &receipt, "--answer", &told, "--model", DEMO, "--json"];
    let checked = quelea(&verify).await.expect(0).json();
    assert!(checked["ok"] == true && checked["stages"].as_array().unwrap().len() == 2, "{checked}");
    let (whole, changed) = (fs::read(&receipt).unwrap(), at("changed.receipt"));
    for at in [0, 20, 60, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&changed, bytes).unwrap();
        quelea(&["receipt", "verify", &changed]).await.expect(8).says(&["QUE-"]);
    }
    fs::write(&changed, &whole[..whole.len() - 1]).unwrap();
    quelea(&["verify", &changed, "--answer", &told, "--model", DEMO]).await.expect(8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_side_by_side_for_two_payers_add_up() {
    let market = Market::open().await;
    let payers = [market.payer().await, market.payer().await];
    let prompts = ["What is a relay?", "Who are you?", "Once upon a time"];
    let asked = payers.iter().flat_map(|payer| prompts.map(|prompt| (payer, [prompt]))).collect::<Vec<_>>();
    let asking = asked.iter().map(|(payer, prompt)| market.asked(payer, prompt));
    let answers: Vec<_> = join_all(asking).await.into_iter().map(|ended| ended.expect(0).json()).collect();
    let costs: Vec<[u64; 2]> = answers.iter().map(|answer| market.costs(answer)).collect();
    for (answer, [first, second]) in answers.iter().zip(&costs) {
        assert_eq!(micro(answer), first + second, "{answer}");
    }
    let sum = |of: &[[u64; 2]], at: usize| of.iter().map(|costs| i128::from(costs[at])).sum::<i128>();
    let [one, other] = [&costs[..3], &costs[3..]].map(|costs| sum(costs, 0) + sum(costs, 1));
    let owed = at_rest(&[&market.first, &market.second, &payers[0], &payers[1]]).await;
    assert_eq!(owed, [sum(&costs, 0), sum(&costs, 1), -one, -other]);
    for payer in &payers {
        assert_eq!(settled_once(payer).await, 6);
    }
}
