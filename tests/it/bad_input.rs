//! Every mistake gets a documented exit code, a word on what is wrong, and one on what to do. None of them panics: the
//! harness checks each process's stderr for that.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use futures::{StreamExt as _, stream};

use crate::harness::{DEMO, Launch, quelea, swarm, tempdir};

const PEER: &str = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";
const RIGHT_ADDRESS: &str = "a right";

/// Commands that run at once.
const AT_ONCE: usize = 4;

/// Runs each command line; it must end with `code` and say all the parts on stderr.
async fn table(code: i32, rows: &[(&[&str], &[&str])]) {
    let home = tempdir();
    let home = ["--data-dir", home.path().to_str().unwrap()];
    let runs = stream::iter(rows).map(|(args, says)| async move {
        let ended = quelea(&[args, &home[..]].concat()).await.expect(code).says(says);
        assert_eq!(ended.stdout, "", "{}: nothing was asked for that could be answered", ended.what);
    });
    runs.buffer_unordered(AT_ONCE).collect::<()>().await;
}

#[tokio::test]
async fn wrong_arguments_are_usage_errors() {
    table(
        2,
        &[
            (&["daemon", "--frobnicate"], &["'--frobnicate'", "--help"]),
            (&["frobnicate"], &["'frobnicate'", "--help"]),
            (&["infer"], &["<PROMPT>"]),
            (&["daemon", "--port", "70000"], &["'70000'", "--port"]),
            (&["daemon", "--host", "nowhere"], &["'nowhere'", "--host"]),
            (&["daemon", "--metrics-listen", "8470"], &["'8470'", "--metrics-listen"]),
            (&["daemon", "--api-listen", "0.0.0.0:0"], &["loopback", "127.0.0.1"]),
            (&["daemon", "--model", DEMO, "--layers", "4..4"], &["4..4", "half-open", "0..8"]),
            (&["daemon", "--model", DEMO, "--layers", "4..2"], &["4..2"]),
            (&["daemon", "--model", DEMO, "--layers", "x"], &["\"x\"", "like 0..8"]),
            (&["daemon", "--model", DEMO, "--layers", "0..99999"], &["0..99999"]),
            (&["daemon", "--layers", "0..2"], &["--model"]),
            (&["daemon", "--model", DEMO, "--memory", "2X"], &["\"X\"", "like 2G"]),
            (&["daemon", "--model", DEMO, "--memory", "0"], &["\"0\""]),
            (&["infer", "--temperature", "-1", "hi"], &["'-1'", "--temperature", "between 0 and 100"]),
            (&["infer", "--temperature", "nan", "hi"], &["'nan'", "between 0 and 100"]),
            (&["infer", "--temperature", "warm", "hi"], &["'warm'", "between 0 and 100"]),
            (&["infer", "--top-p", "1.5", "hi"], &["'1.5'", "between 0 and 1"]),
            (&["infer", "--min-p", "inf", "hi"], &["'inf'", "--min-p", "between 0 and 1"]),
            (&["infer", "--repeat-penalty", "0", "hi"], &["'0'", "between 0.01 and 100"]),
            (&["infer", "--presence-penalty", "2.5", "hi"], &["'2.5'", "between -2 and 2"]),
            (&["infer", "--frequency-penalty", "nan", "hi"], &["'nan'", "between -2 and 2"]),
            (&["infer", "--repeat-last-n", "-2", "hi"], &["'-2'", "--repeat-last-n"]),
            (&["infer", "--logit-bias", "5", "hi"], &["'5'", "like 42=-1.5"]),
            (&["infer", "--logit-bias", "x=1", "hi"], &["\"x\"", "token id"]),
            (&["infer", "--logit-bias", "5=200", "hi"], &["'5=200'", "between -100 and 100"]),
            (&["infer", "--route", "local", "--logit-bias", "4000000=1", "hi"], &["token 4000000", "vocabulary"]),
            (&["infer", "--logprobs", "21", "hi"], &["'21'", "--logprobs"]),
            (&["infer", "--route", "local", "--stop", "", "hi"], &["stop string 1 is empty"]),
            (&["infer", "--max-tokens", "0", "hi"], &["'0'", "--max-tokens"]),
            (&["infer", "--timeout", "0", "hi"], &["\"0\"", "between 10ms and 60m"]),
            (&["infer", "--top-k", "-1", "hi"], &["'-1'", "--top-k"]),
            (&["infer", "--chat", "--raw", "hi"], &["--chat", "--raw"]),
            (&["infer", "--route", "local", "--raw", ""], &["the prompt is empty"]),
            (&["id", "--api", "ftp://nowhere"], &["ftp://nowhere", "http://127.0.0.1:8469"]),
            (&["model", "logits", DEMO], &["--text"]),
            (&["model", "logits", DEMO, "--ids", "1,x"], &["'x'", "--ids"]),
            (&["model", "logits", DEMO, "--ids", "1", "--isa", "sse"], &["sse", "scalar, avx2"]),
            (&["model", "logits", DEMO, "--ids", "1", "--chunk", "0"], &["'0'", "between 1 and 128"]),
            (&["model", "logits", DEMO, "--ids", "1", "--kv", "q4"], &["'q4'", "f32, f16 and q8"]),
            (&["bench", "model", DEMO, "--pp", "0"], &["'0'", "--pp"]),
            (&["bench", "model", DEMO, "--tg", "9999999"], &["--tg", "1000000"]),
            (&["bench", "model", DEMO, "--pp", "100000"], &["100000 tokens", "context"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn wrong_multiaddrs_name_the_part_that_is_wrong() {
    let no_port = format!("/ip4/127.0.0.1/tcp/x/p2p/{PEER}");
    let bad_ip = format!("/ip4/127.0.0.256/tcp/1/p2p/{PEER}");
    let bad_protocol = format!("/ip4/127.0.0.1/tpc/1/p2p/{PEER}");
    let bad_peer = "/ip4/127.0.0.1/tcp/1/p2p/nobody";
    let nowhere = format!("/p2p/{PEER}");
    let second = format!("/ip4/127.0.0.1/tcp/1/p2p/{PEER},/ip4/127.0.0.1/tcp/2");
    for command in [&["daemon"][..], &["infer", "hi"]] {
        let row = |addr| [command, &["--bootstrap", addr]].concat();
        table(
            2,
            &[
                (&row("/ip4/127.0.0.1/tcp/1"), &["/p2p/<peer id>", RIGHT_ADDRESS]),
                (&row("127.0.0.1:8468"), &["must start with '/'", RIGHT_ADDRESS]),
                (&row(&no_port), &["\"/tcp/x\"", RIGHT_ADDRESS]),
                (&row(&bad_ip), &["\"/ip4/127.0.0.256\"", RIGHT_ADDRESS]),
                (&row(&bad_protocol), &["\"/tpc/1\"", RIGHT_ADDRESS]),
                (&row(bad_peer), &["\"/p2p/nobody\"", RIGHT_ADDRESS]),
                (&row(&nowhere), &[nowhere.as_str(), RIGHT_ADDRESS]),
                (&row(&second), &["/ip4/127.0.0.1/tcp/2", "/p2p/<peer id>"]),
                (&row(""), &["--bootstrap"]),
            ],
        )
        .await;
    }
    table(2, &[(&["daemon", "--listen", "/ip4/127.0.0.1/tcp/x"], &["\"/tcp/x\"", RIGHT_ADDRESS])]).await;
}

#[tokio::test]
async fn layers_outside_the_model_are_refused() {
    let refused = Launch::new().serve(DEMO, "0..99").fails().await.expect(2);
    refused.says(&["layers 0..99", "0..6"]);
    let refused = Launch::new().serve(DEMO, "auto").args(&["--memory", "100K"]).fails().await.expect(6);
    refused.says(&["not one layer fits", "hint: give more --memory"]);
    let refused = Launch::new().serve(DEMO, "all").args(&["--memory", "1M"]).fails().await.expect(6);
    refused.says(&["no room for keys and values", "hint: give more --memory"]);
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_wherever_the_layers_run() {
    let swarm = swarm(DEMO, &["0..6"]).await;
    let long = "word ".repeat(1000);
    let says = ["the model's context holds 512", "QUE-4007"];
    quelea(&["infer", "--route", "local", &long]).await.expect(2).says(&says);
    swarm.ask(DEMO, &[&long]).await.expect(2).says(&says);
    swarm.workers[0].command(&["infer", &long]).await.expect(2).says(&says);
    swarm.workers[0].command(&["infer", "--raw", ""]).await.expect(2).says(&["the prompt is empty"]);
}

#[tokio::test]
async fn a_bootstrap_peer_that_cannot_be_reached_is_named() {
    // Of another identity than the address says, and a port that was free a moment ago.
    let boot = Launch::new().start().await;
    let other = boot.addr().replace(boot.peer(), PEER);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let closed = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{PEER}");
    let rows = [&other, &closed].map(|addr| ["infer", "hi", "--bootstrap", addr]);
    let says: &[&str] = &["no bootstrap peer could be reached", PEER, "hint:"];
    table(6, &[(&rows[0], says), (&rows[1], says)]).await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_flag() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (http, quic) = (tcp.local_addr().unwrap().to_string(), udp.local_addr().unwrap().port());
    let port = tcp.local_addr().unwrap().port();
    for (listen, named) in [
        (format!("/ip4/127.0.0.1/tcp/{port}"), format!("TCP port {port} is in use")),
        (format!("/ip4/127.0.0.1/udp/{quic}/quic-v1"), format!("UDP port {quic} is in use")),
    ] {
        Launch::new().listen(&listen).fails().await.expect(1).says(&[&named, "choose another"]);
    }
    for flag in ["--metrics-listen", "--api-listen"] {
        let ended = Launch::new().args(&[flag, &http]).fails().await.expect(1);
        ended.says(&[&format!("cannot listen on {http}"), "in use", flag]);
    }
    let home = tempdir();
    let port = port.to_string();
    let args = ["daemon", "--host", "127.0.0.1", "--port", &port, "--data-dir", home.path().to_str().unwrap()];
    quelea(&args).await.expect(1).says(&[&format!("TCP port {port} is in use on 127.0.0.1"), "--port"]);
    let elsewhere = Launch::new().listen("/ip4/203.0.113.1/tcp/0").fails().await.expect(1);
    elsewhere.says(&["cannot listen", "203.0.113.1"]);
    // Another daemon's port, which libp2p itself would share with it.
    let daemon = Launch::new().start().await;
    for addr in daemon.told("listen") {
        let same = Launch::new().listen(addr.split("/p2p/").next().unwrap()).fails().await.expect(1);
        same.says(&["in use", "--port"]);
    }
}

#[tokio::test]
async fn an_identity_that_cannot_be_used_is_left_alone() {
    let home = tempdir();
    let start = |key: &Path| Launch::new().home(home.path()).args(&["--identity", key.to_str().unwrap()]);
    let write = |name: &str, bytes: &[u8], mode: u32| {
        let path = home.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let good = home.path().join("good.key");
    start(&good).start().await.stop().await;
    let key = fs::read(&good).unwrap();
    let cases: [(_, &[&str]); 6] = [
        (write("empty.key", b"", 0o600), &["0 bytes", "not an identity"]),
        (write("short.key", &key[..60], 0o600), &["60 bytes", "not an identity"]),
        (write("garbage.key", &[0x5a; 68], 0o600), &["does not hold", "keypair"]),
        (write("torn.key", &[&key[..40], &[0; 28]].concat(), 0o600), &["does not hold", "keypair"]),
        (write("open.key", &key, 0o644), &["mode 0644", "chmod 600"]),
        (home.path().to_owned(), &["not a regular file", "--identity"]),
    ];
    for (path, says) in cases {
        let before = fs::read(&path).ok();
        let ended = start(&path).fails().await.expect(1).says(says);
        assert!(ended.stderr.contains(path.to_str().unwrap()), "{}", ended.stderr);
        assert_eq!(fs::read(&path).ok(), before, "{} was changed", path.display());
    }
    let nowhere = good.join("identity.key");
    start(&nowhere).fails().await.expect(1).says(&[nowhere.to_str().unwrap()]);
}

#[tokio::test]
async fn a_data_directory_or_database_that_cannot_be_used_is_named() {
    let home = tempdir();
    let file = home.path().join("file");
    fs::write(&file, "not a database").unwrap();
    Launch::new().home(&file).fails().await.expect(1).says(&["not a directory", "--data-dir"]);
    for db in [file.as_path(), home.path()] {
        let ended = Launch::new().args(&["--db", db.to_str().unwrap()]).fails().await.expect(1);
        ended.says(&["QUE-5001", db.to_str().unwrap()]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"not a database", "the file was changed");
    let deep = home.path().join("d".repeat(120));
    fs::create_dir(&deep).unwrap();
    let ended = quelea(&["id", "--data-dir", deep.to_str().unwrap()]).await.expect(1);
    ended.says(&["too long for a unix socket", "--data-dir"]);
}
