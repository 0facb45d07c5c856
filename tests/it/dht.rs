//! Values, providers and peers in the DHT, through commands.

use serde_json::Value;

use crate::harness::{Daemon, Ended, Launch, tempdir, until};

/// A node to start from, a second one that serves the DHT, and one that only asks.
async fn three() -> [Daemon; 3] {
    let boot = Launch::new().start().await;
    let server = Launch::new().bootstrap(&boot).start().await;
    let asker = Launch::new().bootstrap(&boot).args(&["--kad-mode", "client"]).start().await;
    for node in [&server, &asker] {
        node.until_connected_to(boot.peer()).await;
        until_peers(node, 1).await;
    }
    [boot, server, asker]
}

async fn stats(node: &Daemon) -> Value {
    node.command(&["dht", "stats", "--json"]).await.expect(0).json()
}

/// Waits until this many peers stand in its routing table.
async fn until_peers(node: &Daemon, wanted: u64) {
    let what = format!("{wanted} peer(s) in the table of {}", node.peer());
    until(&what, async || (stats(node).await["peers"].as_u64()? >= wanted).then_some(())).await;
}

async fn dht(node: &Daemon, args: &[&str]) -> Ended {
    node.command(&[&["dht"], args].concat()).await
}

#[tokio::test]
async fn a_value_is_put_got_elsewhere_and_given_up() {
    let [boot, server, asker] = three().await;
    let put = dht(&server, &["put", "greeting", "hello, flock", "--json"]).await.expect(0).json();
    assert_eq!((&put["schema"], &put["key"]), (&"quelea.dht_put/v1".into(), &"/quelea/user/greeting".into()));
    assert!(put["peers"].as_u64().unwrap() >= 1, "{put}");

    // The one that asks holds nothing itself: nobody puts anything there.
    assert_eq!(stats(&asker).await["records"]["held"], 0);
    let got = dht(&asker, &["get", "greeting"]).await.expect(0);
    assert_eq!(got.stdout, "hello, flock");
    assert!(got.stderr.contains("peer(s) asked in"), "{}", got.stderr);
    let all = dht(&asker, &["get", "/quelea/user/greeting", "--all", "--json"]).await.expect(0).json();
    assert_eq!((all["items"].as_array().unwrap().len(), &all["items"][0]["holders"]), (1, &2.into()), "{all}");

    // Who asks may write there, too: the last writer wins where it is written.
    dht(&asker, &["put", "greeting", "good night", "--ttl", "1h", "--json"]).await.expect(0);
    let both = dht(&asker, &["get", "greeting", "--all", "--json"]).await.expect(0).json();
    assert_eq!(both["values"], 2, "the one that it was from keeps its own: {both}");

    let deleted = dht(&server, &["delete", "greeting", "--json"]).await.expect(0).json();
    assert_eq!((&deleted["value"], &deleted["provided"]), (&true.into(), &false.into()));
    assert_eq!(stats(&server).await["records"]["own"], 0);
    dht(&server, &["delete", "greeting"]).await.expect(5);
    let stats = stats(&asker).await;
    assert_eq!((&stats["mode"], &stats["queries"]["get"]["failed"]), (&"client".into(), &0.into()), "{stats}");
    assert_eq!(stats["queries"]["get"]["ok"], 3);
    drop(boot);
}

/// A node that does not serve the DHT is at the end of no lookup: its signed record says where it is.
#[tokio::test]
async fn a_node_that_only_asks_is_found_by_what_it_has_signed() {
    const OUTSIDE: &str = "/ip4/127.0.0.1/tcp/9";
    let boot = Launch::new().start().await;
    let hidden = Launch::new().bootstrap(&boot).args(&["--kad-mode", "client", "--external", OUTSIDE]).start().await;
    let id = hidden.peer().to_owned();
    hidden.until_connected_to(boot.peer()).await;
    until("the record at the node to start from", async || {
        (stats(&boot).await["records"]["held"].as_u64()? >= 1).then_some(())
    })
    .await;
    drop(hidden);

    let asker = Launch::new().bootstrap(&boot).start().await;
    asker.until_connected_to(boot.peer()).await;
    until_peers(&asker, 1).await;
    let got = dht(&asker, &["get", &format!("/quelea/peer/{id}"), "--json"]).await.expect(0).json();
    assert!(got["sequence"].as_u64().unwrap() > 0 && got["invalid"] == 0, "{got}");
    let found = dht(&asker, &["find-peer", &id, "--json"]).await;
    assert!(found.stdout.contains(OUTSIDE), "{} {}", found.stdout, found.stderr);
}

#[tokio::test]
async fn providers_and_peers_are_found_and_reached() {
    let [_boot, server, asker] = three().await;
    dht(&server, &["provide", "pictures"]).await.expect(0);
    let found = dht(&asker, &["providers", "pictures", "--json"]).await.expect(0).json();
    let items = found["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[0]["peer_id"], &items[0]["connected"]), (1, &server.peer().into(), &true.into()));
    asker.until_connected_to(server.peer()).await;

    let found = dht(&server, &["find-peer", asker.peer(), "--json"]).await.expect(0).json();
    assert_eq!((&found["connected"], &found["peer_id"]), (&true.into(), &asker.peer().into()));
    let near = dht(&asker, &["find-node", "pictures", "--json"]).await.expect(0).json();
    let ids: Vec<&str> = near["items"].as_array().unwrap().iter().map(|p| p["peer_id"].as_str().unwrap()).collect();
    assert!(ids.len() == 2 && ids.contains(&server.peer()), "{near}");

    dht(&server, &["delete", "pictures"]).await.expect(0);
    assert_eq!(stats(&server).await["providers"]["own"], 0);
}

#[tokio::test]
async fn every_way_to_fail_has_its_code() {
    let alone = Launch::new().start().await;
    let put = dht(&alone, &["put", "a", "b"]).await.expect(6);
    assert!(put.stderr.contains("no peer that serves the DHT answered"), "{}", put.stderr);
    dht(&alone, &["get", "nowhere"]).await.expect(6);
    dht(&alone, &["put", "k", &"v".repeat(1025)]).await.expect(2);
    dht(&alone, &["put", "/elsewhere/k", "v"]).await.expect(2);
    dht(&alone, &["put", "/quelea/peer/x", "v"]).await.expect(2);
    dht(&alone, &["put", "k", "@/nonexistent/file"]).await.expect(2);
    dht(&alone, &["find-peer", "nobody"]).await.expect(2);

    let second = Launch::new().bootstrap(&alone).start().await;
    until_peers(&second, 1).await;
    dht(&second, &["get", "nowhere"]).await.expect(5);
    dht(&second, &["providers", "nothing"]).await.expect(5);
    let stranger = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";
    dht(&second, &["find-peer", stranger]).await.expect(5);
    let few = dht(&second, &["put", "k", "v", "--quorum", "3", "--json"]).await.expect(6);
    assert!(few.stderr.contains("QUE-2102") && few.stderr.contains("1 of 3"), "{}", few.stderr);
    assert_eq!(dht(&alone, &["get", "k"]).await.expect(0).stdout, "v", "what reached one is there");
}

#[tokio::test]
async fn a_node_that_restarts_goes_on_publishing_and_holding() {
    let [boot_home, putter_home] = [tempdir(), tempdir()];
    // Over TCP alone: a port that is closed says so at once.
    let launch = || Launch::new().listen("/ip4/127.0.0.1/tcp/0");
    let boot = launch().home(boot_home.path()).start().await;
    let putter = launch().home(putter_home.path()).bootstrap(&boot).start().await;
    until_peers(&putter, 1).await;
    dht(&putter, &["put", "kept", "still here"]).await.expect(0);
    dht(&putter, &["put", "given-up", "gone"]).await.expect(0);
    dht(&putter, &["delete", "given-up"]).await.expect(0);
    dht(&putter, &["provide", "pictures"]).await.expect(0);
    until("two values held", async || (stats(&boot).await["records"]["held"] == 2).then_some(())).await;
    putter.stop().await;
    boot.stop().await;

    // What others put is still held.
    let boot = launch().home(boot_home.path()).start().await;
    assert_eq!(stats(&boot).await["records"]["held"], 2);
    assert_eq!(dht(&boot, &["get", "kept"]).await.expect(0).stdout, "still here");

    // A node that nobody has ever told of it hears of it from the putter, which has not been asked again.
    let fresh = launch().start().await;
    let putter = launch().home(putter_home.path()).bootstrap(&fresh).start().await;
    let own = stats(&putter).await;
    assert_eq!((&own["records"]["own"], &own["providers"]["own"]), (&1.into(), &0.into()), "{own}");
    until("the value where it never was", async || (stats(&fresh).await["records"]["held"] == 1).then_some(())).await;
    until("the provider record", async || (stats(&fresh).await["providers"]["held"] == 1).then_some(())).await;
    assert!(putter.metric("quelea_dht_republish_total", "result=\"ok\"").await >= 2.0);
}

#[tokio::test]
async fn a_value_ends_when_its_time_is_over() {
    let [_boot, server, asker] = three().await;
    dht(&server, &["put", "brief", "now", "--ttl", "3s"]).await.expect(0);
    assert_eq!(dht(&asker, &["get", "brief"]).await.expect(0).stdout, "now");
    until("the end of a value", async || (dht(&asker, &["get", "brief"]).await.code == Some(5)).then_some(())).await;
    until("the end at home", async || (stats(&server).await["records"]["own"] == 0).then_some(())).await;
}
