//! What people sit before, without a terminal: conversations, the shell, and the commands of whoever keeps a node running.

use std::fs;

use serde_json::Value;

use crate::harness::{DEMO, Daemon, Ended, Launch, Process, quelea, tempdir};

/// A command of this daemon that reads `input`.
async fn fed(daemon: &Daemon, args: &[&str], input: &str) -> Ended {
    Process::spawn_fed(&[args, &["--data-dir", daemon.home()]].concat(), input).end().await
}

fn items(document: &Value) -> &[Value] {
    document["items"].as_array().unwrap()
}

#[tokio::test]
async fn a_conversation_goes_on_from_what_was_said() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let room = tempdir();
    let saved = room.path().join("talk.json");
    let file = saved.to_str().unwrap();
    let ask = ["chat", "demo", "--temperature", "0", "--max-tokens", "12"];
    let input = format!("What is a relay?\n\"\"\"And\nwhat else?\"\"\"\n/save {file}\n/cost\n/quit\nnever said\n");
    let ended = fed(&daemon, &ask, &input).await.expect(0);
    let said = ended.says(&["total duration:", "route:", "prompt eval:", "eval:", "tokens/s", "2 answer(s)"]);
    let talk: Value = serde_json::from_str(&fs::read_to_string(&saved).unwrap()).unwrap();
    let messages = talk["messages"].as_array().unwrap();
    assert_eq!((&talk["schema"], messages.len()), (&"quelea.chat/v1".into(), 4), "{talk}");
    assert_eq!(messages[2]["content"], "And\nwhat else?");
    let answers: Vec<&str> = [1, 3].map(|at| messages[at]["content"].as_str().unwrap()).into();
    assert_eq!(said.stdout, format!("{}\n{}\n", answers[0], answers[1]));
    assert!(answers.iter().all(|answer| !answer.is_empty()), "{talk}");

    // Loaded again, the last answer is the same: the same messages are before it.
    let input = format!("/load {file}\n/regenerate\n");
    let again = fed(&daemon, &[&ask[..], &["--json"]].concat(), &input).await.expect(0);
    let turn: Value = serde_json::from_str(again.stdout.trim()).unwrap();
    assert_eq!((&turn["schema"], &turn["message"]["content"]), (&"quelea.chat.turn/v1".into(), &answers[1].into()));
    assert!(turn["prompt_ids"].as_array().unwrap().len() > 20, "the whole conversation was sent: {turn}");

    // One question, one answer; and without a daemon a word on what to do.
    let one = daemon.command(&["chat", "demo", "What is a relay?", "--temperature", "0", "--max-tokens", "12"]).await;
    assert_eq!(one.expect(0).stdout, format!("{}\n", answers[0]));
    let nowhere = room.path().join("none");
    quelea(&["chat", "demo", "hi", "--data-dir", nowhere.to_str().unwrap()]).await.expect(3).says(&["quelea daemon"]);
}

#[tokio::test]
async fn mistakes_in_a_conversation_do_not_end_it() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let input = "/modle x\n/params temperature=hot\n/load nowhere.json\nhi\n";
    let ended = fed(&daemon, &["chat", "--max-tokens", "2"], input).await.expect(2);
    let ended = ended.says(&["did you mean /model?", "no number that fits", "nowhere.json", "eval:"]);
    assert!(!ended.stdout.trim().is_empty(), "the question was answered");
}

#[tokio::test]
async fn the_shell_has_the_commands() {
    let boot = Launch::new().start().await;
    let daemon = Launch::new().bootstrap(&boot).start().await;
    daemon.until_connected_to(boot.peer()).await;
    let input = format!(
        "# what the first prototype could do\nid\npeers\nknown\nping {} -c 1\nbroadcast it's a line\nstats\ntrust\nledger\nhelp\nquit\nid\n",
        boot.peer()
    );
    let ended = fed(&daemon, &["shell"], &input).await.expect(0);
    let out = &ended.stdout;
    assert_eq!(out.matches(daemon.peer()).count(), out.lines().filter(|line| line.contains(daemon.peer())).count());
    for part in [daemon.peer(), "PEER", "FOUND", "uptime", "Usage: quelea", "owed to us"] {
        assert!(out.contains(part) || (part == "uptime" && out.contains("up  ")), "{part} is not in {out}");
    }

    // The exit code is that of the first that failed, and the rest runs unless --stop is given.
    let input = "peers info nobody!\nfrobnicate\nerrors lookup QUE-9\nversion\n";
    let ended = fed(&daemon, &["shell"], input).await.expect(2).says(&["'frobnicate'", "QUE-9"]);
    assert!(ended.stdout.starts_with("quelea "), "{}", ended.stdout);
    let ended = fed(&daemon, &["shell", "--stop"], "errors lookup QUE-9\nversion\n").await.expect(5);
    assert_eq!(ended.stdout, "");
    fed(&daemon, &["shell"], "shell\ndaemon\n'open\n").await.expect(2).says(&["no command of the shell", "a quote"]);

    // Flags of the shell hold for its commands.
    let ended = fed(&daemon, &["shell", "--json"], "id\npeers\n").await.expect(0);
    let documents: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        documents.iter().map(|d| d["schema"].as_str().unwrap()).collect::<Vec<_>>(),
        ["quelea.id/v1", "quelea.peers/v1"]
    );
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong() {
    let home = tempdir();
    let dir = home.path().to_str().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let peer = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";
    quelea(&["init", "--data-dir", dir]).await.expect(0);
    let file = home.path().join("config.toml");
    let text = format!("host = \"127.0.0.1\"\nport = {port}\nbootstrap = \"/ip4/127.0.0.1/tcp/{silent}/p2p/{peer}\"\n");
    fs::write(&file, &text).unwrap();
    let token = home.path().join("api.token");
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();

    let report = quelea(&["doctor", "--json", "--data-dir", dir]).await.expect(1).json();
    let status = |check: &str| {
        let found = items(&report).iter().find(|item| item["check"] == check && item["status"] != "ok");
        found.map(|item| (item["status"].as_str().unwrap(), item["advice"].is_string()))
    };
    for check in ["token", "ports", "bootstrap", "daemon"] {
        assert!(matches!(status(check), Some((_, true))), "{check}: {report}");
    }
    assert_eq!(status("ports"), Some(("failed", true)), "{report}");

    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&file, "prot = 1\n").unwrap();
    quelea(&["doctor", "--data-dir", dir]).await.expect(1);
    fs::remove_file(&file).unwrap();
    let daemon = Launch::new().home(home.path()).start().await;
    let report = daemon.command(&["doctor", "--json"]).await.expect(0).json();
    assert!(items(&report).iter().any(|item| item["check"] == "daemon" && item["status"] == "ok"), "{report}");
    daemon.stop().await;
}

#[tokio::test]
async fn watchers_get_their_codes() {
    let daemon = Launch::new().serve(DEMO, "0..3").start().await;
    daemon.command(&["check", "node"]).await.expect(0);
    daemon.command(&["check", "peers", "--format", "nagios"]).await.expect(2);
    daemon.command(&["check", "peers", "--warning", "1", "--critical", "0"]).await.expect(1);
    let model = daemon.command(&["check", "model", "--format", "json"]).await.expect(2).json();
    assert_eq!((&model["schema"], &model["state"]), (&"quelea.check/v1".into(), &"CRITICAL".into()));
    daemon.command(&["check", "ledger"]).await.expect(0);
    daemon.command(&["check", "storage", "--critical", "1", "--warning", "1"]).await.expect(0);
    daemon.command(&["check", "storage", "--warning", "1e18", "--critical", "1"]).await.expect(1);
    let nowhere = tempdir();
    let dir = nowhere.path().to_str().unwrap();
    quelea(&["check", "node", "--data-dir", dir]).await.expect(2);
    quelea(&["check", "peers", "--data-dir", dir]).await.expect(3);
    let text = daemon.command(&["check", "node", "--format", "prometheus"]).await.expect(0).stdout;
    assert!(text.contains("quelea_check_state{subject=\"node\"} 0"), "{text}");
}

#[tokio::test]
async fn metrics_and_bundles_are_files_without_secrets() {
    let daemon = Launch::new().start().await;
    let room = tempdir();
    let file = room.path().join("quelea.prom");
    assert!(daemon.command(&["metrics"]).await.expect(0).stdout.contains("quelea_build_info"));
    daemon.command(&["metrics", "--write", file.to_str().unwrap()]).await.expect(0);
    assert!(fs::read_to_string(&file).unwrap().contains("# TYPE quelea_ready gauge"));
    let nowhere = tempdir();
    quelea(&["metrics", "--data-dir", nowhere.path().to_str().unwrap()]).await.expect(3);

    let bundle = room.path().join("bundle.json");
    daemon.command(&["debug", "bundle", bundle.to_str().unwrap()]).await.expect(0);
    let text = fs::read_to_string(&bundle).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["daemon"]["status"]["peer_id"], daemon.peer());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&bundle).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let home = std::path::Path::new(daemon.home());
    let token = fs::read_to_string(home.join("api.token")).unwrap();
    let key = fs::read(home.join("identity.key")).unwrap();
    // The second half of a pair's bytes is public.
    let secret: String = key[4..36].iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!text.contains(token.trim()) && !text.contains(&secret), "a secret is in the bundle");
    daemon.command(&["debug", "bundle", bundle.to_str().unwrap()]).await.expect(1);
}

#[tokio::test]
async fn a_daemon_is_told_to_end() {
    let daemon = Launch::new().start().await;
    let ended = daemon.command(&["shutdown", "--json"]).await.expect(0).json();
    assert_eq!((&ended["schema"], &ended["grace_s"]), (&"quelea.shutdown/v1".into(), &20.0.into()));
    daemon.end().await.expect(0);

    // What is under way has as long as is said.
    let mut daemon = Launch::new().serve(DEMO, "all").start().await;
    let asking = crate::harness::streaming(&["--bootstrap", daemon.addr()]).await;
    asking.signal(rustix::process::Signal::STOP);
    daemon.until_sessions(1).await;
    let begun = std::time::Instant::now();
    daemon.command(&["shutdown", "--drain", "1s"]).await.expect(0);
    assert!(begun.elapsed() >= std::time::Duration::from_millis(900), "{:?}", begun.elapsed());
    daemon.logs("told to stop over the API").await;
    daemon.end().await.expect(0);
    asking.signal(rustix::process::Signal::CONT);
    drop(asking);
}
