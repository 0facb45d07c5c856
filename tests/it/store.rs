//! Copies of the database: taken while the node runs and rests, put back while it rests.

use std::fs;

use crate::harness::{Launch, quelea, tempdir};

const FIRST: &str = "/ip4/203.0.113.7/tcp/8468/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";
const SECOND: &str = "/ip4/203.0.113.9/tcp/8468/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";

#[tokio::test]
async fn a_copy_taken_while_the_node_runs_brings_back_what_it_knew() {
    let (home, copies) = (tempdir(), tempdir());
    let data = home.path().to_str().unwrap();
    let copy = copies.path().join("monday.redb");
    let (copy, rest) = (copy.to_str().unwrap(), copies.path().join("rest.redb"));
    let daemon = Launch::new().home(home.path()).start().await;
    daemon.command(&["bootstrap", "add", FIRST]).await.expect(0);
    let made = daemon.command(&["store", "backup", copy, "--json"]).await.expect(0).json();
    assert_eq!((&made["schema"], &made["path"]), (&"quelea.store_backup/v1".into(), &copy.into()));
    assert_eq!(made["bytes"], fs::metadata(copy).unwrap().len());
    daemon.command(&["store", "backup", copy]).await.expect(2).says(&["is there already"]);
    daemon.command(&["bootstrap", "add", SECOND]).await.expect(0);
    daemon.command(&["store", "restore", copy]).await.expect(2).says(&["a daemon runs", "stop it"]);
    daemon.stop().await;

    // At rest, both ways.
    let store = |args: &[&str]| {
        let args: Vec<String> =
            [&["store"], args, &["--data-dir", data]].concat().iter().map(|a| (*a).to_owned()).collect();
        async move { quelea(&args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    store(&["backup", rest.to_str().unwrap()]).await.expect(0).says(&[]);
    let nothing = copies.path().join("nothing.redb");
    let nothing = nothing.to_str().unwrap();
    store(&["restore", nothing]).await.expect(5).says(&["there is no file", nothing]);
    fs::write(nothing, b"not a database, whatever it is called").unwrap();
    store(&["restore", nothing]).await.expect(2).says(&["not a Quelea database", nothing]);
    fs::write(nothing, b"").unwrap();
    store(&["restore", nothing]).await.expect(2).says(&["not a Quelea database", nothing]);
    let restored = store(&["restore", copy, "--json"]).await.expect(0).json();
    let kept = restored["kept"].as_str().unwrap().to_owned();

    let daemon = Launch::new().home(home.path()).start().await;
    let listed = daemon.command(&["bootstrap", "list", "--json"]).await.expect(0).json();
    let addrs: Vec<&str> = listed["items"].as_array().unwrap().iter().map(|i| i["addr"].as_str().unwrap()).collect();
    assert_eq!(addrs, [FIRST], "what came after the copy is gone");
    daemon.stop().await;
    // What the restore put aside is whole, too.
    store(&["restore", &kept]).await.expect(0);
    let daemon = Launch::new().home(home.path()).start().await;
    let listed = daemon.command(&["bootstrap", "list", "--json"]).await.expect(0).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
}
