//! Peers: how nodes hear of each other, and find back.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{DEMO, Daemon, Launch, Process, ids, quelea, swarm, tempdir, until};

async fn items(daemon: &Daemon, args: &[&str]) -> Vec<Value> {
    daemon.command(&[args, &["--json"]].concat()).await.expect(0).json()["items"].as_array().unwrap().clone()
}

/// The peers that a node knows an address of.
async fn known(daemon: &Daemon) -> Vec<String> {
    let all = items(daemon, &["peers", "known"]).await;
    let somewhere = all.iter().filter(|item| !item["addresses"].as_array().unwrap().is_empty());
    somewhere.map(|item| item["peer_id"].as_str().unwrap().to_owned()).collect()
}

async fn until_knows(daemon: &Daemon, peer: &str) {
    until(&format!("{} to know {peer}", daemon.peer()), async || {
        known(daemon).await.contains(&peer.to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nodes_that_share_one_neighbour_hear_of_each_other_and_connect() {
    let boot = Launch::new().start().await;
    let nodes = [
        Launch::new().bootstrap(&boot).start().await,
        Launch::new().bootstrap(&boot).start().await,
        Launch::new().bootstrap(&boot).start().await,
    ];
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.peer() != node.peer()) {
            node.until_connected_to(other.peer()).await;
        }
        // Figures are read off now and then.
        until("figures", async || (node.metric("quelea_peers_known", "").await >= 3.0).then_some(())).await;
        assert!(node.metric("quelea_exchange_records_total", "inbound").await >= 1.0);
    }
    for node in &nodes {
        let listed = items(node, &["peers", "list"]).await;
        for peer in &listed {
            assert_eq!(peer["path"], "direct", "{peer}");
            assert!(["quic", "tcp"].contains(&peer["transport"].as_str().unwrap()), "{peer}");
        }
    }
}

#[tokio::test]
async fn a_restarted_node_asks_again_though_the_one_it_started_from_is_gone() {
    let swarm = swarm(DEMO, &["0..3", "3..6"]).await;
    let home = tempdir();
    let node = Launch::new().home(home.path()).bootstrap(&swarm.boot).start().await;
    for worker in &swarm.workers {
        node.until_connected_to(worker.peer()).await;
    }
    let ask = ["infer", "--json", "--model", DEMO, "--max-tokens", "4", "hi"];
    let before = ids(&node.command(&ask).await.expect(0).json());
    node.signal(Signal::TERM);
    node.end().await.expect(0);
    let crate::harness::Swarm { boot, workers } = swarm;
    boot.signal(Signal::KILL);
    boot.end().await;

    let node = Launch::new().home(home.path()).start().await;
    for worker in &workers {
        node.until_connected_to(worker.peer()).await;
    }
    assert_eq!(ids(&node.command(&ask).await.expect(0).json()), before);
    let anchors: Vec<Value> =
        items(&node, &["peers", "known"]).await.into_iter().filter(|item| item["anchor"] == true).collect();
    assert!(!anchors.is_empty(), "nobody was held on to");
}

#[tokio::test]
async fn peers_are_shown_connected_and_disconnected_by_command() {
    let (boot, node) = (Launch::new().start().await, Launch::new().start().await);
    let peer = boot.peer().to_owned();
    node.command(&["peers", "info", &peer]).await.expect(5).says(&["nothing is known of"]);
    node.command(&["peers", "disconnect", &peer]).await.expect(5).says(&["is not connected"]);
    node.command(&["peers", "connect", &peer]).await.expect(5).says(&["full address"]);
    let wrong = node.command(&["peers", "connect", "/ip4/127.0.0.1/tcp/1"]).await.expect(2);
    wrong.says(&["'/p2p/<peer id>' is missing"]);
    node.command(&["peers", "info", "../status"]).await.expect(2).says(&["is not a peer id"]);
    let nobody = format!("/ip4/127.0.0.1/tcp/1/p2p/{}", "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS");
    node.command(&["peers", "connect", &nobody]).await.expect(6).says(&["QUE-2003"]);

    let connected = node.command(&["peers", "connect", boot.addr(), "--json"]).await.expect(0).json();
    assert_eq!(
        (&connected["schema"], &connected["peer_id"]),
        (&"quelea.peers_connect/v1".into(), &peer.as_str().into())
    );
    node.until_connected_to(&peer).await;
    until("its name", async || {
        let listed = items(&node, &["peers", "list"]).await;
        listed.first().filter(|p| p["agent"].as_str().is_some_and(|a| a.starts_with("quelea/"))).map(|_| ())
    })
    .await;
    let table = node.command(&["peers", "list"]).await.expect(0);
    assert!(table.stdout.contains("direct tcp v4") && table.stdout.contains("outbound"), "{}", table.stdout);
    table.says(&["1 peer(s) (1 direct, 0 relayed)"]);
    let info = node.command(&["id", &peer, "--json"]).await.expect(0).json();
    assert_eq!((&info["schema"], &info["connection"]["direction"]), (&"quelea.peer/v1".into(), &"outbound".into()));
    let info = node.command(&["peers", "info", &peer]).await.expect(0).stdout;
    assert!(info.contains(&peer) && info.contains("connected  direct"), "{info}");
    assert_eq!(node.status().await["peers_connected"], 1);

    node.command(&["peers", "disconnect", &peer]).await.expect(0);
    until("the connection to end", async || items(&node, &["peers", "list"]).await.is_empty().then_some(())).await;
    let table = node.command(&["peers", "known"]).await.expect(0);
    assert!(table.stdout.contains("127.0.0.1"), "{}", table.stdout);
    node.command(&["peers", "connect", &peer]).await.expect(0);
}

#[tokio::test]
async fn the_list_to_start_from_is_kept() {
    let boot = Launch::new().start().await;
    let home = tempdir();
    let node = Launch::new().home(home.path()).start().await;
    node.command(&["bootstrap", "list"]).await.expect(0).says(&["the list is empty"]);
    node.command(&["bootstrap", "add", "/ip4/127.0.0.1/tcp/1"]).await.expect(2).says(&["QUE-1001"]);
    node.command(&["bootstrap", "rm", boot.addr()]).await.expect(5).says(&["is not on the list"]);
    node.command(&["bootstrap", "add", boot.addr()]).await.expect(0);
    node.until_connected_to(boot.peer()).await;
    let listed = items(&node, &["bootstrap", "list"]).await;
    assert_eq!((listed.len(), &listed[0]["addr"]), (1, &boot.addr().into()));
    node.signal(Signal::TERM);
    node.end().await.expect(0);

    let node = Launch::new().home(home.path()).start().await;
    node.until_connected_to(boot.peer()).await;
    assert_eq!(items(&node, &["peers", "known"]).await[0]["source"], "bootstrap");
    node.command(&["bootstrap", "rm", boot.addr()]).await.expect(0);
    assert!(items(&node, &["bootstrap", "list"]).await.is_empty());
    let home = home.path().to_str().unwrap();
    drop(node);
    quelea(&["peers", "list", "--data-dir", home]).await.expect(3);
}

#[tokio::test]
async fn what_is_heard_of_outlives_whoever_told() {
    let boot = Launch::new().start().await;
    let first = Launch::new().bootstrap(&boot).start().await;
    let second = Launch::new().bootstrap(&boot).start().await;
    until_knows(&second, first.peer()).await;
    boot.signal(Signal::KILL);
    boot.end().await;
    let info = second.command(&["peers", "info", first.peer(), "--json"]).await.expect(0).json();
    assert!(info["record"]["seq"].as_u64().is_some(), "{info}");
    second.until_connected_to(first.peer()).await;
}

/// Three daemons of which two know a rendezvous point and nobody else.
#[tokio::test]
async fn nodes_that_share_a_rendezvous_point_find_each_other() {
    let point = Launch::new().args(&["--rendezvous-server"]).start().await;
    let at = ["--rendezvous", point.addr()];
    let nodes = [Launch::new().args(&at).start().await, Launch::new().args(&at).start().await];
    nodes[0].until_connected_to(nodes[1].peer()).await;
    nodes[1].until_connected_to(nodes[0].peer()).await;
    let held = async || (point.metric("quelea_rendezvous_registrations", "").await >= 2.0).then_some(());
    until("both to be registered", held).await;
    for node in &nodes {
        assert!(node.metric("quelea_rpc_requests_total", "protocol=\"rendezvous\"").await >= 1.0);
    }
}

#[tokio::test]
async fn more_points_than_a_node_goes_to_are_refused() {
    let point = "/ip4/203.0.113.7/tcp/8468/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    let ended = Launch::new().args(&["--rendezvous", &[point; 9].join(",")]).fails().await.expect(2);
    assert!(ended.stderr.contains("at most 8 points"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_peer_is_reached_where_it_is_now_while_it_is_dialled_where_it_was() {
    let (node, other) = (Launch::new().start().await, Launch::new().start().await);
    // Takes the connection, and says nothing.
    let before = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let was = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", before.local_addr().unwrap().port(), other.peer());
    let dialling = Process::spawn(&["peers", "connect", &was, "--data-dir", node.home()]);
    let _held = before.accept().await.unwrap();
    node.command(&["peers", "connect", other.addr()]).await.expect(0);
    node.until_connected_to(other.peer()).await;
    // The first one is answered by the second.
    dialling.end().await.expect(0);
}
