//! What is not paid: more than one is ready to, to whom credit is not given, at another price than was asked; and receipts that
//! could not be kept.

use std::fs;

use super::market::{FIRST, Market, TOKENS, accounts, asking, at_rest, cost, micro};
use crate::harness::{DEMO, Daemon, Ended, Launch, Process, tempdir, until};

/// Asks until there is an answer. Until then it is refused, or nobody is found: who has refused is not asked again at once.
async fn in_the_end(market: &Market, payer: &Daemon, prompt: &str) -> serde_json::Value {
    until("an answer", async || {
        let ended = market.asked(payer, &[prompt]).await;
        assert!(matches!(ended.code, Some(0 | 6 | 7)), "{ended:?}");
        (ended.code == Some(0)).then(|| ended.json())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_dear_or_gives_no_credit_gets_nothing() {
    let market = Market::open().await;
    let payer = market.payer().await;
    let dear = market.asked(&payer, &["--max-price", "0.000001", "What is a relay?"]).await;
    dear.expect(7).says(&["QUE-7001"]);
    // Nobody was asked for anything.
    assert!(accounts(&payer).await.is_empty());
    for stage in [&market.first, &market.second] {
        assert!(!accounts(stage).await.contains_key(payer.peer()));
        assert_eq!(stage.sessions().await, 0);
    }
    market.second.command(&["ledger", "limit", payer.peer(), "0"]).await.expect(0);
    market.asked(&payer, &["What is a relay?"]).await.expect(7).says(&["QUE-7003", market.second.peer()]);
    let nodes = [&market.first, &market.second, &payer];
    assert_eq!(at_rest(&nodes).await, [0, 0, 0]);
    market.second.command(&["ledger", "limit", payer.peer(), "--earned"]).await.expect(0);
    let answer = in_the_end(&market, &payer, "What is a relay?").await;
    let [first, second] = market.costs(&answer).map(i128::from);
    assert_eq!(at_rest(&nodes).await, [first, second, -first - second]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_that_has_changed_is_not_paid_by_mistake() {
    let home = tempdir();
    let first = Launch::new().home(home.path()).serve(DEMO, "0..3");
    let market = Market::open_with(&asking(first.clone(), FIRST)).await;
    let payer = Launch::new().bootstrap(&market.second).start().await;
    let cheap = market.asked(&payer, &["What is a relay?"]).await.expect(0).json();
    let before = market.costs(&cheap)[0];
    let dearer = (FIRST.0 * 10, FIRST.1 * 10);
    market.first.stop().await;
    let first = asking(first, dearer).bootstrap(&market.second).start().await;
    let market = Market { first, ..market };
    let dear = in_the_end(&market, &payer, "Who are you?").await;
    let now = cost(3, &dear, dearer);
    assert_eq!(micro(&dear), now + market.costs(&dear)[1], "{dear}");
    let owed = at_rest(&[&market.first, &market.second, &payer]).await;
    assert_eq!(owed[0], i128::from(before + now));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_receipt_can_be_kept_nobody_is_asked() {
    let market = Market::open().await;
    let payer = market.payer().await;
    let home = tempdir();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    for (file, why) in [(at("missing/a.receipt"), "No such file"), (at(""), "no file"), ("/dev/null".into(), "no file")]
    {
        let refused = market.asked(&payer, &["--receipt", &file, "What is a relay?"]).await;
        refused.expect(2).says(&["QUE-1001", why, &file]);
    }
    // No room: no file may be longer than a block.
    let args =
        ["infer", "--json", "--max-tokens", TOKENS, "--data-dir", payer.home(), "--receipt", &at("a.receipt"), "hi"];
    Process::spawn_in_little_room(&args).end().await.expect(2).says(&["QUE-1001", "a.receipt", "nobody was asked"]);
    assert!(accounts(&payer).await.is_empty());
    // An answer that fails leaves what was there.
    let kept = at("kept.receipt");
    fs::write(&kept, "of another answer").unwrap();
    let dear = market.asked(&payer, &["--max-price", "0.000001", "--receipt", &kept, "What is a relay?"]).await;
    dear.expect(7).says(&["QUE-7001"]);
    assert_eq!(fs::read(&kept).unwrap(), b"of another answer");
    let Ended { code, .. } = market.asked(&payer, &["--receipt", &kept, "What is a relay?"]).await;
    assert_eq!(code, Some(0));
    crate::harness::quelea(&["receipt", "verify", &kept]).await.expect(0);
    let names: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["kept.receipt"], "and nothing else is left");
}
