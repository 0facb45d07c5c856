//! A peer of another making, js-libp2p (`tests/interop`), beside a daemon.

use std::{path::Path, process::Stdio};

use quelea_wire::NetworkId;
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::harness::{Daemon, Launch, PATIENCE, until};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");

/// Whether the peer's packages are installed: `npm ci` in its folder does that.
fn installed() -> bool {
    let there = Path::new(FOLDER).join("node_modules/libp2p").is_dir();
    if !there {
        println!("skipped: no js-libp2p (npm ci in tests/interop)");
    }
    there
}

fn network() -> String {
    hex::encode(NetworkId::from_name("main").0)
}

/// A daemon that serves the DHT, over TCP and WebSocket.
async fn daemon() -> Daemon {
    let listen = "/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/tcp/0/ws";
    Launch::new().listen(listen).args(&["--kad-mode", "server"]).start().await
}

/// Where the daemon listens with plain TCP, and with WebSocket.
fn addresses(daemon: &Daemon) -> [String; 2] {
    let all = daemon.told("listen");
    let find = |web: bool| all.iter().find(|addr| addr.contains("/ws/") == web).unwrap().to_string();
    [find(false), find(true)]
}

/// Runs the peer with a command; what it says, line by line.
async fn peer(args: &[&str]) -> Vec<Value> {
    let mut command = Command::new("node");
    command.arg("peer.mjs").args(args).current_dir(FOLDER).stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(PATIENCE, command.output()).await.expect("the peer does not end").unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "node peer.mjs {args:?}: {stderr}");
    String::from_utf8(ended.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn identify_and_ping_over_tcp_and_websocket() {
    if !installed() {
        return;
    }
    let daemon = daemon().await;
    let net = NetworkId::from_name("main");
    for addr in addresses(&daemon) {
        let said = peer(&["ping", &addr]).await;
        let met = &said[0];
        assert_eq!((met["encryption"].as_str(), met["multiplexer"].as_str()), (Some("/noise"), Some("/yamux/1.0.0")));
        assert_eq!(met["over"], addr);
        assert_eq!(met["agent"], format!("quelea/{}", env!("CARGO_PKG_VERSION")));
        let protocols = met["protocols"].as_array().unwrap();
        for name in ["kad", "gossip", "shard", "announce", "exchange"] {
            assert!(protocols.contains(&net.protocol(name, 1).as_ref().into()), "{name}: {met}");
        }
        assert!(met["observed"].as_str().is_some_and(|addr| addr.starts_with("/ip4/127.0.0.1/tcp/")), "{met}");
        assert!(said[1]["milliseconds"].is_number(), "{said:?}");
    }
}

#[tokio::test]
async fn values_go_both_ways_through_kademlia() {
    if !installed() {
        return;
    }
    let (daemon, other) = (daemon().await, Launch::new());
    let other = other.bootstrap(&daemon).args(&["--kad-mode", "server"]).start().await;
    let [addr, _] = addresses(&daemon);
    until("the other in the table", async || {
        let stats = daemon.command(&["dht", "stats", "--json"]).await.expect(0).json();
        (stats["peers"].as_u64()? >= 1).then_some(())
    })
    .await;

    let put = peer(&["put", &addr, &network(), "/quelea/user/theirs", "made in JavaScript"]).await;
    let kept = put[1]["kept"].as_array().unwrap();
    assert!(kept.contains(&daemon.peer().into()), "{put:?}");
    let got = other.command(&["dht", "get", "theirs"]).await.expect(0);
    assert_eq!(got.stdout, "made in JavaScript");

    other.command(&["dht", "put", "ours", "made in Rust"]).await.expect(0);
    let got = peer(&["get", &addr, &network(), "/quelea/user/ours"]).await;
    assert_eq!(got[1]["value"], "made in Rust");
}

async fn lines(daemon: &Daemon) -> Vec<(String, String)> {
    let events = daemon.command(&["events", "--type", "message", "--json"]).await.expect(0);
    let event = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let both = |event: Value| (event["author"].as_str().unwrap().into(), event["text"].as_str().unwrap().into());
    events.stdout.lines().map(|line| both(event(line))).collect()
}

#[tokio::test]
async fn gossip_is_heard_when_it_is_signed() {
    if !installed() {
        return;
    }
    let daemon = daemon().await;
    let [addr, _] = addresses(&daemon);
    // First a line that gossipsub has not signed: nothing of it may come up, then or later.
    let unsigned = peer(&["unsigned", &addr, &network(), "who says this?"]).await;
    assert_eq!(unsigned[1]["to"][0], daemon.peer(), "{unsigned:?}");

    let (addr, net) = (addr.as_str(), network());
    let words = ["gossip", addr, &net, "hello from JavaScript", "hello from Rust"];
    let talk = peer(&words);
    let answer = async {
        until("the line from JavaScript", async || {
            lines(&daemon).await.iter().any(|(_, text)| text == "hello from JavaScript").then_some(())
        })
        .await;
        daemon.command(&["broadcast", "hello from Rust"]).await.expect(0);
    };
    let (said, ()) = tokio::join!(talk, answer);
    assert_eq!(said[2], serde_json::json!({"heard": "hello from Rust", "type": "signed", "from": daemon.peer()}));
    let author = said[0]["peer"].as_str().unwrap().to_owned();
    let ours = (daemon.peer().to_owned(), "hello from Rust".to_owned());
    assert_eq!(lines(&daemon).await, [(author, "hello from JavaScript".to_owned()), ours]);
}
