//! Starting, stopping and coming back.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{DEMO, Launch, draining, quelea, tempdir};

#[tokio::test]
async fn a_daemon_says_who_and_where_it_is() {
    let daemon = Launch::new().serve(DEMO, "1..3").start().await;
    let lines: Vec<&str> = daemon.greeting().lines().collect();
    assert_eq!(lines.first(), Some(&concat!("quelea ", env!("CARGO_PKG_VERSION"))));
    assert_eq!(lines.last(), Some(&"ready"));
    let peer = daemon.peer();
    assert!(peer.starts_with("12D3KooW"), "an Ed25519 peer id: {peer}");
    let listen = daemon.told("listen");
    for transport in ["/ip4/127.0.0.1/tcp/", "/ip4/127.0.0.1/udp/"] {
        assert!(listen.iter().any(|a| a.starts_with(transport) && a.ends_with(&format!("/p2p/{peer}"))), "{listen:?}");
    }
    assert!(!listen.iter().any(|addr| addr.contains("/tcp/0/") || addr.contains("/udp/0/")), "{listen:?}");
    assert!(daemon.told("api")[0].starts_with("http://127.0.0.1:"));
    assert!(daemon.told("metrics")[0].ends_with("/metrics"));
    assert_eq!(daemon.told("data"), [fs::canonicalize(daemon.home()).unwrap().to_str().unwrap()]);
    assert!(daemon.told("serving")[0].starts_with("layers 1..3 of "));

    let written: Value = serde_json::from_str(&read(daemon.home(), "daemon.json")).unwrap();
    assert_eq!(written["schema"], "quelea.daemon/v1");
    assert_eq!(written["pid"], daemon.pid());
    assert_eq!(written["peer_id"], peer);
    assert_eq!(written["api"], daemon.told("api")[0]);
}

fn read(home: &str, name: &str) -> String {
    fs::read_to_string(Path::new(home).join(name)).unwrap()
}

#[tokio::test]
async fn a_signal_ends_it_cleanly_and_it_comes_back_as_itself() {
    let home = tempdir();
    let launch = Launch::new().home(home.path());
    let mut peers = Vec::new();
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        let daemon = launch.start().await;
        peers.push(daemon.peer().to_owned());
        let key = home.path().join("identity.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(home.path().join("api.token")).unwrap().permissions().mode() & 0o777, 0o600);
        daemon.signal(signal);
        let ended = daemon.end().await.expect(0);
        assert!(ended.took < Duration::from_secs(10), "with nothing under way it took {:?}", ended.took);
        for gone in ["quelea.sock", "daemon.json"] {
            assert!(!home.path().join(gone).exists(), "{gone} is left behind");
        }
        assert_eq!(read(home.path().to_str().unwrap(), "daemon.lock"), "", "the lock still names somebody");
    }
    assert!(peers.iter().all(|peer| *peer == peers[0]), "{peers:?}");
}

#[tokio::test]
async fn it_comes_back_after_being_killed() {
    let home = tempdir();
    let launch = Launch::new().home(home.path());
    let daemon = launch.start().await;
    let peer = daemon.peer().to_owned();
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.end().await.code, None);
    let daemon = launch.start().await;
    assert_eq!(daemon.peer(), peer);
    daemon.command(&["status"]).await.expect(0);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for second in [Signal::INT, Signal::TERM] {
        let (daemon, _asking) = draining().await;
        daemon.signal(second);
        let ended = daemon.end().await.expect(130);
        assert!(ended.took < Duration::from_secs(5), "it took {:?}", ended.took);
    }
}

#[tokio::test]
async fn one_directory_holds_one_daemon() {
    let daemon = Launch::new().start().await;
    let second = Launch::new().home(daemon.home()).fails().await.expect(1);
    second.says(&["another node is using", &format!("process {}", daemon.pid()), "--data-dir"]);
    daemon.command(&["id"]).await.expect(0);
}

#[tokio::test]
async fn a_restarted_node_finds_its_peers_without_being_told() {
    let boot = Launch::new().start().await;
    let home = tempdir();
    let node = Launch::new().home(home.path()).bootstrap(&boot).start().await;
    node.until_connected_to(boot.peer()).await;
    node.signal(Signal::TERM);
    node.end().await.expect(0);
    let node = Launch::new().home(home.path()).start().await;
    node.until_connected_to(boot.peer()).await;
}

#[tokio::test]
async fn a_restarted_bootstrap_node_gets_its_peers_back() {
    let home = tempdir();
    let start = async |listen: &str| Launch::new().home(home.path()).listen(listen).start().await;
    let boot = start("/ip4/127.0.0.1/tcp/0").await;
    let worker = Launch::new().bootstrap(&boot).serve(DEMO, "all").start().await;
    worker.until_connected_to(boot.peer()).await;
    let (addr, peer) = (boot.addr().to_owned(), boot.peer().to_owned());
    boot.signal(Signal::TERM);
    boot.end().await.expect(0);
    let boot = start(addr.split("/p2p/").next().unwrap()).await;
    assert_eq!(boot.peer(), peer);
    worker.until_connected_to(&peer).await;
    // And the worker is found through it again.
    let args = ["infer", "--json", "--bootstrap", &addr, "--max-tokens", "4", "hi"];
    quelea(&args).await.expect(0);
}

#[tokio::test]
async fn companion_commands_reach_the_daemon() {
    let daemon = Launch::new().serve(DEMO, "0..2").start().await;
    let id = daemon.command(&["id"]).await.expect(0).stdout;
    let mut told = vec![daemon.peer()];
    told.extend(daemon.told("listen"));
    assert_eq!(id.lines().collect::<Vec<_>>(), told);
    let id = daemon.command(&["id", "--json"]).await.expect(0).json();
    assert_eq!((&id["schema"], &id["peer_id"]), (&"quelea.id/v1".into(), &daemon.peer().into()));

    let shown = daemon.command(&["status"]).await.expect(0).stdout;
    assert!(shown.contains(daemon.peer()) && shown.contains("layers 0..2"), "{shown}");
    let status = daemon.status().await;
    assert_eq!(status["schema"], "quelea.status/v1");
    assert_eq!(status["serves"][0]["layers"], "0..2");
    assert_eq!(status["serves"][0]["layers_total"], 6);

    let healthy = daemon.command(&["health", "--ready"]).await.expect(0);
    assert_eq!(healthy.stdout.trim(), "ok");
    let url = daemon.told("metrics")[0].trim_end_matches("/metrics");
    assert_eq!(quelea(&["health", "--json", "--url", url]).await.expect(0).json()["live"], true);
}

#[tokio::test]
async fn companion_commands_say_when_there_is_no_daemon() {
    let home = tempdir();
    let home = home.path().to_str().unwrap();
    for command in [&["id"][..], &["status"], &["infer", "hi"]] {
        let ended = quelea(&[command, &["--data-dir", home]].concat()).await.expect(3);
        ended.says(&["no daemon answers at", "quelea.sock", "hint: start one with 'quelea daemon'"]);
        let ended = quelea(&[command, &["--data-dir", home, "--json"]].concat()).await.expect(3);
        let error: Value = serde_json::from_str(&ended.stderr).unwrap();
        assert_eq!(error["error"]["code"], "QUE-1003", "{error}");
    }
    quelea(&["health", "--data-dir", home]).await.expect(1).says(&["no daemon runs here"]);
    quelea(&["health", "--url", "http://127.0.0.1:1"]).await.expect(1).says(&["no node answers at"]);
}

#[tokio::test]
async fn the_http_api_wants_the_token() {
    let daemon = Launch::new().start().await;
    let api = daemon.told("api")[0].to_owned();
    let token = format!("{}/api.token", daemon.home());
    quelea(&["id", "--api", &api, "--api-token-file", &token]).await.expect(0);
    let other = tempdir();
    let wrong = other.path().join("api.token");
    fs::write(&wrong, "0".repeat(64)).unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = quelea(&["id", "--api", &api, "--api-token-file", wrong.to_str().unwrap()]).await;
    refused.expect(4).says(&["QUE-6001", "api.token"]);
    let missing = other.path().join("none");
    quelea(&["id", "--api", &api, "--api-token-file", missing.to_str().unwrap()]).await.expect(4);
}
