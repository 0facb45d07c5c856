//! Debts between daemons: made and read as a person does, and kept whoever is killed, whenever that is.
//!
//! `QUELEA_KILLS=300` has so many daemons killed while both sides write; `QUELEA_KILLS_SEED` draws another schedule.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, Launch, http_client, tempdir, until};

/// Daemons that are killed where nothing else is said.
const FEW: u64 = 12;

/// Callers that write at each side at once.
const WRITERS: usize = 6;

/// Between two kills at most.
const UP_TO_MS: u64 = 400;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value:?}")))
}

/// What a node says of its account with another: owed, issued, discharged, received, redeemed; and whether it is frozen.
async fn account(node: &Daemon, with: &str) -> Option<(i64, [u64; 4])> {
    let answer = node.command(&["ledger", "balance", "--json"]).await.expect(0).json();
    let account = answer["items"].as_array().unwrap().iter().find(|item| item["peer_id"] == with)?.clone();
    assert!(account["frozen"].is_null(), "{account}");
    let counters = ["issued", "issued_discharged", "received", "received_discharged"];
    Some((account["owed"].as_i64().unwrap(), counters.map(|field| account[field].as_u64().unwrap())))
}

/// Waits until both see the same counters; what the second owes the first, and the counters as the first sees them.
async fn agree(one: &Daemon, other: &Daemon) -> (i64, [u64; 4]) {
    until("both see the same counters", async || {
        let (here, there) = (account(one, other.peer()).await?, account(other, one.peer()).await?);
        let [issued, discharged, received, redeemed] = there.1;
        (here.0 == -there.0 && here.1 == [received, redeemed, issued, discharged]).then_some(here)
    })
    .await
}

async fn verified(node: &Daemon) {
    let checked = node.command(&["ledger", "verify", "--json"]).await.expect(0).json();
    assert_eq!(checked["ok"], true, "{checked}");
}

#[tokio::test]
async fn people_owe_each_other_and_say_so() {
    let creditor = Launch::new().start().await;
    let debtor = Launch::new().bootstrap(&creditor).start().await;
    let (owed_to, owed_by) = (creditor.peer(), debtor.peer());
    let empty = debtor.command(&["ledger", "balance"]).await.expect(0).says(&["no accounts yet"]);
    assert!(empty.stdout.contains("owed to us: 0.000000"), "{}", empty.stdout);
    let made = debtor.command(&["ledger", "iou", "create", owed_to, "0.75"]).await.expect(0);
    let id = made.stdout.trim().to_owned();
    until("the IOU arrives", async || (account(&creditor, owed_by).await?.0 == 750_000).then_some(())).await;
    let shown = creditor.command(&["ledger", "show", &id[..12], "--json"]).await.expect(0).json();
    assert_eq!((&shown["id"], &shown["by"], &shown["amount"]), (&json!(id), &json!("peer"), &json!(750_000)));
    let listed = creditor.command(&["ledger", "list"]).await.expect(0).stdout;
    assert!(["owes us more (by hand)", "0.750000", owed_by].iter().all(|part| listed.contains(part)), "{listed}");
    // Of more than is owed nothing is asked or discharged.
    creditor.command(&["ledger", "settle", owed_by, "1"]).await.expect(2).says(&["owes 750000 micro-credits"]);
    creditor.command(&["ledger", "redeem", owed_by, "1"]).await.expect(2).says(&["more than 750000 micro-credits"]);
    creditor.command(&["ledger", "settle", owed_by]).await.expect(0).says(&["is asked for 0.750000"]);
    creditor.command(&["ledger", "redeem", owed_by, "0.5", "--reference", "invoice 17"]).await.expect(0);
    creditor.command(&["ledger", "forgive", owed_by, "0.05"]).await.expect(0);
    assert_eq!(agree(&creditor, &debtor).await, (200_000, [0, 0, 750_000, 550_000]));
    // What was paid back is worth something, what was forgiven is not.
    let trust = creditor.command(&["trust", owed_by, "--json"]).await.expect(0).json();
    let worth = &trust["items"][0];
    assert_eq!((&worth["repaid"], worth["events"].as_array().unwrap().len()), (&json!(500_000), 1), "{trust}");
    assert!(worth["commerce"].as_f64().unwrap() > 0.0);
    let behind = creditor.command(&["trust", owed_by]).await.expect(0).stdout;
    assert!(behind.contains("redeemed") && behind.contains("0.500000"), "{behind}");
    creditor.command(&["ledger", "grant", owed_by, "25"]).await.expect(0).says(&["may owe 25.000000"]);
    until("the grant arrives", async || {
        let answer = debtor.command(&["ledger", "balance", "--json"]).await.expect(0).json();
        (answer["items"][0]["granted"] == 25_000_000).then_some(())
    })
    .await;
    let csv = creditor.command(&["ledger", "export", "--format", "csv"]).await.expect(0).stdout;
    assert_eq!((csv.lines().count(), csv.contains(&id)), (4, true), "{csv}");
    verified(&creditor).await;
    verified(&debtor).await;
    assert_eq!(creditor.metric("quelea_ledger_entries_total", r#"kind="note",result="taken""#).await, 1.0);
    until("the sum is shown", async || (creditor.metric("quelea_ledger_owed_credits", "").await == 0.2).then_some(()))
        .await;
    // Mistakes.
    let nobody = "12D3KooWMLkMLPzLPAhbfsStoKiacDDUsCiYFSdEuK3UxGuzg15K";
    creditor.command(&["ledger", "iou", "create", nobody, "1"]).await.expect(6).says(&["is not reached"]);
    creditor.command(&["ledger", "iou", "create", owed_by, "0"]).await.expect(2).says(&["over nothing"]);
    creditor.command(&["ledger", "iou", "create", owed_by, "0.0000001"]).await.expect(2).says(&["six decimals"]);
    creditor.command(&["ledger", "show", "ffffffff"]).await.expect(5).says(&["no entry's id begins with"]);
    creditor.stop().await;
    debtor.stop().await;
}

/// One side, which is killed and comes back at the same place with the same memory.
struct Node {
    home: std::path::PathBuf,
    launch: Launch,
    daemon: Option<Daemon>,
}

impl Node {
    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    async fn kill(&mut self) {
        let daemon = self.daemon.take().unwrap();
        daemon.signal(Signal::KILL);
        daemon.end().await;
        self.daemon = Some(self.launch.start().await);
    }
}

/// Promises, one after the other, through the socket of whoever runs there now. What is counted is what was told durable.
async fn write(home: &Path, to: &str, stop: &AtomicBool, told: &AtomicU64, asked: &AtomicU64) {
    let client = http_client().unix_socket(home.join("quelea.sock")).build().unwrap();
    let body = json!({ "peer": to, "amount": 1, "due_days": 14 });
    while !stop.load(Ordering::Relaxed) {
        asked.fetch_add(1, Ordering::Relaxed);
        let request = client.post("http://quelea/api/v1/ledger/promise").json(&body).timeout(Duration::from_secs(30));
        match request.send().await {
            Ok(answer) if answer.status().is_success() => {
                // The counter, not this answer, says what is owed; but what was told is owed.
                if answer.json::<Value>().await.is_ok() {
                    told.fetch_add(1, Ordering::Relaxed);
                }
            }
            // It is dead, or not synced yet.
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_debt_is_lost_and_nobody_contradicts_himself_whoever_is_killed() {
    let wanted = setting("QUELEA_KILLS").unwrap_or(FEW);
    let seed = setting("QUELEA_KILLS_SEED").unwrap_or(1);
    let mut draw = StdRng::seed_from_u64(seed);
    let homes = [tempdir(), tempdir()];
    let mut nodes = Vec::new();
    for home in &homes {
        let daemon = Launch::new().home(home.path()).start().await;
        let addr = daemon.addr().rsplit_once("/p2p/").unwrap().0.to_owned();
        nodes.push((home.path().to_owned(), addr, daemon));
    }
    let full: Vec<String> = nodes.iter().map(|(_, _, daemon)| daemon.addr().to_owned()).collect();
    let peers: Vec<String> = nodes.iter().map(|(_, _, daemon)| daemon.peer().to_owned()).collect();
    let mut sides = Vec::new();
    for (n, (home, addr, daemon)) in nodes.into_iter().enumerate() {
        daemon.stop().await;
        let launch = Launch::new().home(&home).listen(&addr).args(&["--bootstrap", &full[1 - n]]);
        sides.push(Node { home, launch, daemon: None });
    }
    for side in &mut sides {
        side.daemon = Some(side.launch.start().await);
    }
    let (stop, counts) =
        (Arc::new(AtomicBool::new(false)), [(); 2].map(|()| Arc::new([(); 2].map(|()| AtomicU64::new(0)))));
    let mut writers = Vec::new();
    for (n, side) in sides.iter().enumerate() {
        for _ in 0..WRITERS {
            let (home, to, stop, counts) = (side.home.clone(), peers[1 - n].clone(), stop.clone(), counts[n].clone());
            writers.push(tokio::spawn(async move { write(&home, &to, &stop, &counts[0], &counts[1]).await }));
        }
    }
    let mut killed: HashMap<usize, u64> = HashMap::new();
    for _ in 0..wanted {
        // Each moment is as good as another: before, between and after what is written and sent.
        tokio::time::sleep(Duration::from_millis(draw.random_range(0..UP_TO_MS))).await;
        let which = draw.random_range(0..2);
        sides[which].kill().await;
        *killed.entry(which).or_default() += 1;
        // That something is written between two kills is what makes this a test.
        let before = counts.each_ref().map(|side| side[0].load(Ordering::Relaxed));
        until("both sides write again", async || {
            let now = counts.each_ref().map(|side| side[0].load(Ordering::Relaxed));
            (now[0] > before[0] && now[1] > before[1]).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    futures::future::join_all(writers).await.into_iter().for_each(|ended| ended.unwrap());
    let (one, other) = (sides[0].daemon(), sides[1].daemon());
    let (_, [issued, _, received, _]) = agree(one, other).await;
    for (n, counter) in [issued, received].into_iter().enumerate() {
        let [told, asked] = counts[n].each_ref().map(|count| count.load(Ordering::Relaxed));
        println!("side {n}: {told} told durable, {counter} owed, {asked} asked for");
        assert!(told > 0 && told <= counter && counter <= asked, "seed {seed}: {told} <= {counter} <= {asked}");
    }
    for side in &sides {
        verified(side.daemon()).await;
        let text = side.daemon().fetch("/metrics").await.2;
        assert!(!text.contains("quelea_ledger_disputes_total{"), "seed {seed}");
    }
    println!("seed {seed}: killed {killed:?}");
    for side in sides {
        side.daemon.unwrap().stop().await;
    }
}
