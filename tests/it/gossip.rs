//! What is said to everybody, what happens, and what is counted.

use futures::future::join_all;
use serde_json::Value;

use crate::harness::{Daemon, Launch, Process, until};

/// Five daemons, four of which start from the first, all with neighbours to gossip with.
async fn five() -> Vec<Daemon> {
    let boot = Launch::new().start().await;
    let others = join_all((0..4).map(|_| async { Launch::new().bootstrap(&boot).start().await })).await;
    let mut all = vec![boot];
    all.extend(others);
    for daemon in &all {
        until("gossip neighbours", async || (daemon.metric("quelea_gossip_neighbours", "").await >= 1.0).then_some(()))
            .await;
    }
    all
}

fn follow(daemon: &Daemon, args: &[&str]) -> Process {
    Process::spawn(&[&["events", "--follow", "--after", "0", "--data-dir", daemon.home()], args].concat())
}

async fn messages(daemon: &Daemon) -> Vec<Value> {
    let ended = daemon.command(&["events", "--type", "message", "--json"]).await.expect(0);
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_broadcast_is_seen_once_by_each_of_five_daemons() {
    let mut daemons = five().await;
    let mut followers: Vec<Process> =
        daemons.iter().map(|daemon| follow(daemon, &["--type", "message", "--json"])).collect();
    let said = daemons[3].command(&["broadcast", "--json", "the flock turns"]).await.expect(0).json();
    assert_eq!(said["schema"], "quelea.broadcast/v1");
    assert_eq!(said["id"].as_str().map(str::len), Some(40), "{said}");
    for follower in &mut followers {
        follower.stdout_until(|text| text.contains("the flock turns")).await;
    }
    // Another one, from elsewhere: whatever there is of the first has come by then.
    daemons[1].command(&["broadcast", "and again"]).await.expect(0);
    for follower in &mut followers {
        let text = follower.stdout_until(|text| text.contains("and again")).await;
        assert_eq!(text.lines().count(), 2, "{text}");
    }
    let author = daemons[3].peer().to_owned();
    for (n, daemon) in daemons.iter().enumerate() {
        let events = messages(daemon).await;
        let first: Vec<&Value> = events.iter().filter(|event| event["text"] == "the flock turns").collect();
        assert_eq!(first.len(), 1, "{events:?}");
        assert_eq!((&first[0]["schema"], &first[0]["type"]), (&"quelea.event/v1".into(), &"message".into()));
        assert_eq!((first[0]["author"].as_str(), &first[0]["own"]), (Some(&*author), &(n == 3).into()));
        // Mirrored now and then.
        let stats = until("both lines in the counters", async || {
            let stats = daemon.command(&["stats", "--json"]).await.expect(0).json();
            (stats["dedup"]["exact_ids"] == 2).then_some(stats)
        });
        let stats = stats.await;
        assert_eq!(stats["schema"], "quelea.stats/v1");
        assert!(stats["gossip"]["neighbours"].as_u64() >= Some(1), "{stats}");
    }
    for daemon in &mut daemons {
        daemon.logs("the flock turns").await;
    }
}

#[tokio::test]
async fn hostile_words_stay_words() {
    let boot = Launch::new().start().await;
    let mut other = Launch::new().bootstrap(&boot).start().await;
    until("neighbours", async || (other.metric("quelea_gossip_neighbours", "").await >= 1.0).then_some(())).await;
    for refused in ["two\nlines", "\x1b[2Jgone", "", &"x".repeat(513)] {
        boot.command(&["broadcast", refused]).await.expect(2).says(&["QUE-1001"]);
    }
    boot.command(&["broadcast", "pay \u{202e}ecila\u{202c} \\u{1b} now"]).await.expect(0);
    let shown = follow(&other, &["--type", "message"]).stdout_until(|text| text.contains("now")).await;
    assert!(shown.contains("pay \\u{202e}ecila\\u{202c} \\\\u{1b} now"), "{shown}");
    other.logs("pay \\u{202e}ecila").await;
    let json = messages(&other).await;
    assert_eq!(json[0]["text"], "pay \u{202e}ecila\u{202c} \\u{1b} now", "programs get what was said");
}

#[tokio::test]
async fn a_line_that_nobody_can_hear_is_an_error() {
    let alone = Launch::new().start().await;
    alone.command(&["broadcast", "anybody?"]).await.expect(6).says(&["no connected peer listens", "hint: "]);
    assert_eq!(messages(&alone).await, Vec::<Value>::new());
    alone.command(&["events", "--type", "weather"]).await.expect(2).says(&["peer, model, message"]);
    alone.command(&["stats"]).await.expect(0);
}

#[tokio::test]
async fn who_comes_serves_and_goes_is_an_event() {
    let boot = Launch::new().start().await;
    let mut all = follow(&boot, &[]);
    let worker = Launch::new().bootstrap(&boot).serve("demo", "0..3").start().await;
    let peer = worker.peer().to_owned();
    all.stdout_until(|text| text.contains(&format!("{peer} connected"))).await;
    // Whoever uses a model hears who serves it.
    worker.command(&["stats"]).await.expect(0);
    let ask = ["infer", "--max-tokens", "1", "--timeout", "2s", "hi"];
    boot.command(&ask).await;
    let text = all.stdout_until(|text| text.contains("0..3 of ")).await;
    assert!(text.contains(&format!("model    {peer} added")), "{text}");
    drop(worker);
    let text = all.stdout_until(|text| text.contains(&format!("{peer} disconnected"))).await;
    // A cursor continues: events after the first.
    let rest = boot.command(&["events", "--after", "1", "--json"]).await.expect(0).stdout;
    let first: Value = serde_json::from_str(rest.lines().next().unwrap()).unwrap();
    assert_eq!(first["id"], 2, "{text}");
}
