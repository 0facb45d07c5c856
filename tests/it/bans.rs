//! Bans, as operators meet them.

use rustix::process::Signal;

use crate::harness::{Launch, quelea, tempdir, until};

#[tokio::test]
async fn a_banned_peer_is_out_across_a_restart_until_it_is_forgiven() {
    let (home, other_home) = (tempdir(), tempdir());
    let node = Launch::new().home(home.path()).start().await;
    let other = Launch::new().home(other_home.path()).bootstrap(&node).start().await;
    let peer = other.peer().to_owned();
    node.until_connected_to(&peer).await;

    let ban = ["peers", "ban", &peer, "--for", "2h", "--reason", "noise", "--json"];
    let made = node.command(&ban).await.expect(0).json();
    assert_eq!((made["schema"].as_str(), made["ban"]["by"].as_str()), (Some("quelea.peers.ban/v1"), Some("operator")));
    until("the banned peer to be gone", async || {
        node.status().await["peers"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    until("the gauge to follow", async || (node.metric("quelea_peers_banned", "").await == 1.0).then_some(())).await;
    node.signal(Signal::TERM);
    node.end().await.expect(0);

    let node = Launch::new().home(home.path()).start().await;
    let bans = node.command(&["peers", "bans", "--json"]).await.expect(0).json();
    assert_eq!(bans["items"][0], made["ban"]);
    let table = node.command(&["peers", "bans"]).await.expect(0);
    assert!(table.stdout.contains(&peer) && table.stdout.contains("noise"), "{}", table.stdout);
    other.signal(Signal::TERM);
    other.end().await.expect(0);
    node.command(&["peers", "unban", &peer]).await.expect(0).says(&["may connect again"]);
    node.command(&["peers", "unban", &peer]).await.expect(5).says(&["is not banned"]);
    let other = Launch::new().home(other_home.path()).bootstrap(&node).start().await;
    node.until_connected_to(other.peer()).await;
}

#[tokio::test]
async fn a_banned_range_is_cut_off_and_mistakes_are_named() {
    let node = Launch::new().start().await;
    let other = Launch::new().bootstrap(&node).start().await;
    node.until_connected_to(other.peer()).await;
    node.command(&["peers", "ban", "127.0.0.0/8"]).await.expect(0).says(&["banned 127.0.0.0/8 for 24h"]);
    until("everybody to be gone", async || node.connections().await.is_empty().then_some(())).await;

    node.command(&["peers", "ban", node.peer()]).await.expect(2).says(&["this node itself"]);
    quelea(&["peers", "ban", "127.0.0.1/8"]).await.expect(2).says(&["neither a peer id nor a range"]);
    quelea(&["peers", "ban", "10.0.0.0/8", "--for", "forever"]).await.expect(2).says(&["30m, 2h or 7d"]);
}
