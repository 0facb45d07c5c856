//! Debts that are not paid, with seconds in the place of days: a debtor is asked, is in default, gets no credit, and after it has
//! paid it gets none for as long as that is remembered; and the creditor forgets none of it, whenever it is killed.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{DEMO, Daemon, Launch, tempdir, until};

/// As long as the debtor may take. Long enough that the creditor can be killed before it is over.
const GRACE: &str = "6s";

/// What the debtor promises: micro-credits.
const DEBT: u64 = 200_000;

async fn killed(daemon: Daemon, launch: &Launch) -> Daemon {
    daemon.signal(Signal::KILL);
    daemon.end().await;
    launch.start().await
}

/// What a node says of a peer, in its ledger or of its trust.
async fn about(node: &Daemon, what: &[&str], peer: &str) -> Value {
    let answer = node.command(&[what, &["--json"]].concat()).await.expect(0).json();
    let item = answer["items"].as_array().unwrap().iter().find(|item| item["peer_id"] == peer);
    item.cloned().unwrap_or_default()
}

async fn account(node: &Daemon, peer: &str) -> Value {
    about(node, &["ledger", "balance"], peer).await
}

async fn trust(node: &Daemon, peer: &str) -> Value {
    about(node, &["trust"], peer).await
}

const ASK: [&str; 7] = ["infer", "--json", "--raw", "--max-tokens", "4", "--ignore-eos", "What is a relay?"];

/// The debtor asks for work on credit until it hears about that: whether it gets some.
async fn served(debtor: &Daemon) -> bool {
    until("the worker is found, and says whether it works on credit", async || {
        let ended = debtor.command(&ASK).await;
        match ended.code {
            Some(0) => Some(true),
            Some(7) if format!("{}{}", ended.stdout, ended.stderr).contains("QUE-7003") => Some(false),
            _ => None,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_pay_gets_no_credit_and_is_remembered() {
    let homes = [tempdir(), tempdir()];
    // Where they are is found once, so that they are there again after they were killed.
    let (mut addrs, mut full) = (Vec::new(), Vec::new());
    for home in &homes {
        let daemon = Launch::new().home(home.path()).start().await;
        full.push(daemon.addr().to_owned());
        addrs.push(daemon.addr().rsplit_once("/p2p/").unwrap().0.to_owned());
        daemon.stop().await;
    }
    let launch = |n: usize| {
        Launch::new().home(homes[n].path()).listen(&addrs[n]).args(&[
            "--bootstrap",
            &full[1 - n],
            "--debt-grace",
            GRACE,
        ])
    };
    let working = launch(0).serve(DEMO, "0..6").args(&["--price", "1000", "--price-prefill", "1000"]);
    let mut creditor = working.start().await;
    let debtor = launch(1).start().await;
    let (to, by) = (creditor.peer().to_owned(), debtor.peer().to_owned());

    // Work that is paid with a promise for next month makes nobody a defaulter.
    assert!(served(&debtor).await);
    let worked =
        until("the note arrives", async || account(&creditor, &by).await["received"].as_u64().filter(|n| *n > 0));
    assert!(worked.await < DEBT);
    assert_eq!(account(&creditor, &by).await["overdue"], 0);

    // A promise for now does. The debtor is asked, and tells its operator.
    debtor.command(&["ledger", "iou", "create", &to, "0.2", "--due-days", "0"]).await.expect(0);
    let asked = until("the debtor is asked", async || {
        let account = account(&creditor, &by).await;
        account["asked_at_s"].as_f64().filter(|_| account["overdue"] == DEBT)
    })
    .await;
    until("the debtor shows what it is asked for", async || {
        let listed = debtor.command(&["ledger", "list", "--json"]).await.expect(0).json();
        let request = listed["requests"].as_array()?.first()?.clone();
        (request["peer_id"] == to.as_str() && request["amount"] == DEBT).then_some(())
    })
    .await;
    debtor.command(&["ledger", "list"]).await.expect(0).says(&["asks to be paid 0.200000"]);
    until("the sum is shown", async || {
        (creditor.metric("quelea_ledger_overdue_credits", "").await == 0.2).then_some(())
    })
    .await;

    // That it was asked survives: the grace goes on, and ends in a default.
    creditor = killed(creditor, &working).await;
    let since =
        until("the debtor is in default", async || account(&creditor, &by).await["default_since_s"].as_f64()).await;
    assert!(since >= asked + 6.0, "asked at {asked}, in default at {since}");
    assert_eq!(creditor.metric("quelea_ledger_defaults_total", "").await, 1.0);
    let worth = trust(&creditor, &by).await;
    assert_eq!((&worth["limit"], &worth["overdue"]), (&0.into(), &DEBT.into()), "{worth}");
    assert!(worth["commerce"].as_f64().unwrap() <= -0.1, "{worth}");
    creditor.command(&["trust", &by]).await.expect(0);
    let shown = creditor.command(&["ledger", "balance"]).await.expect(0);
    assert!(shown.stdout.contains("in default since"), "{}", shown.stdout);
    assert!(!served(&debtor).await);

    // So does the default. A part of it is not enough.
    creditor = killed(creditor, &working).await;
    assert_eq!(account(&creditor, &by).await["default_since_s"].as_f64(), Some(since));
    assert!(!served(&debtor).await);
    creditor.command(&["ledger", "redeem", &by, "0.15"]).await.expect(0);
    let account_now = account(&creditor, &by).await;
    assert_eq!((&account_now["overdue"], account_now["default_since_s"].as_f64()), (&50_000.into(), Some(since)));
    creditor.command(&["ledger", "forgive", &by, "0.05"]).await.expect(0);
    let worth = trust(&creditor, &by).await;
    let until_s = worth["no_credit_until_s"].as_f64().unwrap();
    assert!((until_s - since) > 29.0 * 86_400.0, "{worth}");
    assert_eq!((&worth["overdue"], &worth["default_since_s"], &worth["limit"]), (&0.into(), &Value::Null, &0.into()));

    // What is paid is remembered, also after a kill.
    assert!(!served(&debtor).await);
    creditor = killed(creditor, &working).await;
    let worth = trust(&creditor, &by).await;
    assert_eq!((worth["no_credit_until_s"].as_f64(), &worth["limit"]), (Some(until_s), &0.into()), "{worth}");
    assert!(!served(&debtor).await);
    until("the debtor is asked for nothing any more", async || {
        let account = account(&debtor, &to).await;
        account["asks"].is_null().then_some(())
    })
    .await;
    for node in [&creditor, &debtor] {
        node.command(&["ledger", "verify"]).await.expect(0);
    }
    creditor.stop().await;
    debtor.stop().await;
}
