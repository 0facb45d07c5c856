//! Two stages that ask prices, and who pays them.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use crate::harness::{DEMO, Daemon, Ended, Launch, ids, numbers, until};

/// Tokens of an answer.
pub const TOKENS: &str = "24";

/// What a stage asks for 1,000 rows of an answer and of a prompt through one of its layers.
pub type Asked = (u64, u64);

pub const FIRST: Asked = (2000, 500);
pub const SECOND: Asked = (3000, 700);

/// Layers of each of the two.
const LAYERS: u64 = 3;

/// `launch` asks a price.
pub fn asking(launch: Launch, (decode, prefill): Asked) -> Launch {
    launch.args(&["--price", &decode.to_string(), "--price-prefill", &prefill.to_string()])
}

/// The demo model's two halves, at different prices.
pub struct Market {
    pub first: Daemon,
    pub second: Daemon,
    pub network: &'static str,
}

impl Market {
    pub async fn open() -> Self {
        Self::open_with(&asking(Launch::new().serve(DEMO, "0..3"), FIRST)).await
    }

    /// With this first half.
    pub async fn open_with(first: &Launch) -> Self {
        Self::open_in("main", first).await
    }

    /// In this network, where `first` is in.
    pub async fn open_in(network: &'static str, first: &Launch) -> Self {
        let first = first.start().await;
        let second = Launch::new().bootstrap(&first).serve(DEMO, "3..6").args(&["--network", network]);
        Self { second: asking(second, SECOND).start().await, first, network }
    }

    /// Somebody who asks, and holds nothing.
    pub async fn payer(&self) -> Daemon {
        Launch::new().bootstrap(&self.first).args(&["--network", self.network]).start().await
    }

    /// Asks through `payer`.
    pub async fn asked(&self, payer: &Daemon, more: &[&str]) -> Ended {
        let args =
            ["infer", "--json", "--route", "swarm", "--model", DEMO, "--raw", "--ignore-eos", "--timeout", "30s"];
        payer.command(&[&args[..], &["--max-tokens", TOKENS], more].concat()).await
    }

    /// What an answer costs at each of them.
    pub fn costs(&self, answer: &Value) -> [u64; 2] {
        [FIRST, SECOND].map(|asked| cost(LAYERS, answer, asked))
    }
}

/// What an answer costs at a stage of so many layers: each row of the prompt that was not there from before, and all tokens of the
/// answer but for the last, which nothing is computed from.
pub fn cost(layers: u64, answer: &Value, (decode, prefill): Asked) -> u64 {
    let count = |array: &Value| u64::try_from(numbers(array).len()).unwrap();
    let prompt = count(&answer["prompt_ids"]) - answer["cached_tokens"].as_u64().unwrap();
    let rows = u64::try_from(ids(answer).len()).unwrap() - 1;
    (layers * (prompt * prefill + rows * decode)).div_ceil(1000)
}

/// What an answer says that it cost, in micro-credits.
pub fn micro(answer: &Value) -> u64 {
    answer["cost"]["micro_credits"].as_u64().unwrap_or_else(|| panic!("no cost: {answer}"))
}

/// A node's accounts, by peer.
pub async fn accounts(node: &Daemon) -> HashMap<String, Value> {
    let answer = node.command(&["ledger", "balance", "--json"]).await.expect(0).json();
    let items = answer["items"].as_array().unwrap().iter();
    items.map(|item| (item["peer_id"].as_str().unwrap().to_owned(), item.clone())).collect()
}

fn counters(account: Option<&Value>, of: [&str; 4]) -> [u64; 4] {
    of.map(|field| account.map_or(0, |account| account[field].as_u64().unwrap()))
}

/// Waits until every two of these nodes see the same counters and no hold is open any more, and checks that what they have stored is
/// sound and sums up to nothing; what each is owed by all others of them together.
pub async fn at_rest(nodes: &[&Daemon]) -> Vec<i128> {
    let owed = until("all accounts agree, and no hold is open", async || {
        let mut all = Vec::new();
        for node in nodes {
            all.push(accounts(node).await);
        }
        for (one, of_one) in nodes.iter().zip(&all) {
            for (other, of_other) in nodes.iter().zip(&all) {
                let (here, there) = (of_one.get(other.peer()), of_other.get(one.peer()));
                assert!(here.is_none_or(|account| account["frozen"].is_null()), "{here:?}");
                let mine = counters(here, ["issued", "issued_discharged", "received", "received_discharged"]);
                let theirs = counters(there, ["received", "received_discharged", "issued", "issued_discharged"]);
                if mine != theirs || here.is_some_and(|account| account["held"] != 0) {
                    return None;
                }
            }
        }
        let owed_by =
            |of: &HashMap<String, Value>, node: &Daemon| of.get(node.peer()).map_or(0, |a| a["owed"].as_i64().unwrap());
        let owed = |of: &HashMap<String, Value>| nodes.iter().map(|node| i128::from(owed_by(of, node))).sum();
        Some(all.iter().map(owed).collect::<Vec<i128>>())
    })
    .await;
    for node in nodes {
        node.command(&["ledger", "verify"]).await.expect(0);
    }
    assert_eq!(owed.iter().sum::<i128>(), 0, "{owed:?}");
    owed
}

/// Checks that no hold was paid for twice; for how many `payer` has paid.
pub async fn settled_once(payer: &Daemon) -> usize {
    let listed = payer.command(&["ledger", "list", "--number", "1000", "--json"]).await.expect(0).json();
    let notes = listed["items"].as_array().unwrap().iter().filter(|item| item["kind"] == "note" && item["by"] == "me");
    let holds: Vec<&str> = notes.map(|note| note["hold"].as_str().expect("a note for a hold")).collect();
    assert_eq!(holds.iter().collect::<BTreeSet<_>>().len(), holds.len(), "{listed}");
    holds.len()
}
