//! Who may use the API over HTTP, and how far: tokens with scopes, sessions of the page, names and origins, rates, streams.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::harness::{Daemon, Launch, PATIENCE, http_client, quelea, tempdir, until};

/// A client of a daemon's HTTP API.
struct Api {
    base: String,
    client: reqwest::Client,
}

impl Api {
    fn of(daemon: &Daemon) -> Self {
        Self { base: daemon.told("api")[0].to_owned(), client: http_client().build().unwrap() }
    }

    fn ask(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(token)
    }

    async fn status(&self, method: Method, path: &str, token: &str) -> StatusCode {
        self.ask(method, path, token).send().await.unwrap().status()
    }
}

fn own_token(daemon: &Daemon) -> String {
    std::fs::read_to_string(format!("{}/api.token", daemon.home())).unwrap().trim().to_owned()
}

/// A token of these scopes, made with the command.
async fn made(daemon: &Daemon, name: &str, scopes: &str) -> String {
    daemon.command(&["token", "create", name, "--scope", scopes]).await.expect(0).stdout.trim().to_owned()
}

#[tokio::test]
async fn a_token_does_what_its_scopes_say_and_nothing_once_it_is_revoked() {
    let daemon = Launch::new().start().await;
    let api = Api::of(&daemon);
    let [read, infer, metrics] =
        [made(&daemon, "r", "read").await, made(&daemon, "i", "infer").await, made(&daemon, "m", "metrics").await];
    // What an allowed request comes to is the route's own business; that it is not refused is this table's.
    let routes = [
        (Method::GET, "/api/v1/status", [true, false, false]),
        (Method::GET, "/api/v1/snapshot", [true, false, false]),
        (Method::GET, "/api/v1/config", [true, false, false]),
        (Method::POST, "/api/v1/config/set", [false, false, false]),
        (Method::GET, "/api/v1/stats", [true, false, true]),
        (Method::GET, "/api/v1/timeseries", [true, false, true]),
        (Method::GET, "/api/v1/models", [true, true, false]),
        (Method::POST, "/api/v1/infer", [false, true, false]),
        (Method::POST, "/api/v1/plan", [true, true, false]),
        (Method::POST, "/api/v1/peers/ban", [false, false, false]),
        (Method::POST, "/api/v1/ledger/promise", [false, false, false]),
        (Method::GET, "/api/v1/tokens", [false, false, false]),
        (Method::POST, "/api/v1/tokens", [false, false, false]),
        (Method::POST, "/api/v1/login/code", [false, false, false]),
        (Method::GET, "/api/v1/no/such/route", [false, false, false]),
        (Method::GET, "/api/v1/session", [true, true, true]),
    ];
    for (method, path, allowed) in routes {
        for (token, allowed) in [&read, &infer, &metrics].into_iter().zip(allowed) {
            let status = api.status(method.clone(), path, token).await;
            assert_eq!(status != StatusCode::FORBIDDEN, allowed, "{method} {path}: {status}");
        }
        let own = api.status(method.clone(), path, &own_token(&daemon)).await;
        assert!(own != StatusCode::FORBIDDEN && own != StatusCode::UNAUTHORIZED, "{method} {path}: {own}");
        let none = api.client.request(method.clone(), format!("{}{path}", api.base)).send().await.unwrap();
        assert_eq!(none.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    daemon.command(&["token", "revoke", "r"]).await.expect(0);
    assert_eq!(api.status(Method::GET, "/api/v1/status", &read).await, StatusCode::UNAUTHORIZED);
    let list = daemon.command(&["token", "list", "--json"]).await.expect(0).json();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["i", "m"]);
    assert!(!list.to_string().contains(&infer[7..]), "a list tells no secrets");
}

#[tokio::test]
async fn tokens_outlive_the_daemon_and_are_made_without_one() {
    let home = tempdir();
    let dir = home.path().to_str().unwrap();
    let create = ["token", "create", "before", "--scope", "read,metrics", "--expires", "1d", "--data-dir", dir];
    let token = quelea(&create).await.expect(0).stdout.trim().to_owned();
    let daemon = Launch::new().home(dir).start().await;
    assert_eq!(Api::of(&daemon).status(Method::GET, "/api/v1/id", &token).await, StatusCode::OK);
    // With one, the API may be reached from elsewhere; without, it may not.
    daemon.stop().await;
    let daemon = Launch::new().home(dir).args(&["--api-listen", "0.0.0.0:0"]).start().await;
    assert_eq!(daemon.command(&["token", "list"]).await.expect(0).stdout.lines().count(), 1);
    daemon.stop().await;
    quelea(&["token", "revoke", "before", "--data-dir", dir]).await.expect(0);
    let refused = Launch::new().home(dir).args(&["--api-listen", "0.0.0.0:0"]).fails().await.expect(2);
    refused.says(&["token", "loopback"]);
    let open = Launch::new().args(&["--insecure-no-auth"]).start().await;
    let api = Api::of(&open);
    let anybody =
        api.client.get(format!("{}/api/v1/status", api.base)).header("x-request-id", "mine").send().await.unwrap();
    assert_eq!(anybody.status(), StatusCode::OK);
    assert_eq!(anybody.headers()["x-request-id"], "mine");
    let page = api.client.get(format!("{}/api/v1/status", api.base)).header("origin", "http://evil.example");
    assert_eq!(page.send().await.unwrap().status(), StatusCode::FORBIDDEN, "pages are no guests, all the same");
}

#[tokio::test]
async fn wrong_words_to_token_are_told() {
    let home = tempdir();
    let dir = home.path().to_str().unwrap();
    let with = |args: &[&'static str]| [args, &["--data-dir"]].concat();
    for (args, words) in [
        (&["token", "create", "x", "--scope", "root"][..], "metrics"),
        (&["token", "create", "x"][..], "--scope"),
        (&["token", "create", "x", "--scope", "read", "--expires", "soon"][..], "30d"),
        (&["token", "create", "", "--scope", "read"][..], "name"),
    ] {
        let mut args = with(args);
        args.push(dir);
        quelea(&args).await.expect(2).says(&[words]);
    }
    quelea(&["token", "revoke", "nobody", "--data-dir", dir]).await.expect(5).says(&["nobody"]);
    quelea(&["ui", "--print", "--data-dir", dir]).await.expect(3).says(&["no daemon"]);
}

#[tokio::test]
async fn without_a_page_the_api_answers_all_the_same() {
    let daemon = Launch::new().args(&["--no-ui"]).start().await;
    let api = Api::of(&daemon);
    assert!(!daemon.greeting().contains("quelea ui"), "{}", daemon.greeting());
    let status = async |path: &str| api.client.get(format!("{}{path}", api.base)).send().await.unwrap().status();
    assert_eq!(status("/api/v1/status").await, StatusCode::UNAUTHORIZED);
    for path in ["/", "/favicon.svg"] {
        assert!(!status(path).await.is_success(), "{path}");
        let known = api.client.get(format!("{}{path}", api.base)).bearer_auth(own_token(&daemon));
        assert_eq!(known.send().await.unwrap().status(), StatusCode::NOT_FOUND, "{path}");
    }
    let refused = api.client.get(format!("{}/api/v1/status", api.base)).send().await.unwrap();
    assert!(refused.headers().contains_key("x-request-id"), "{refused:?}");
    daemon.command(&["ui", "--print"]).await.expect(5).says(&["serves no page", "--no-ui"]);
    let peer = daemon.command(&["id", "--format", "{peer_id}"]).await.expect(0).stdout;
    assert_eq!(peer.trim(), daemon.peer());
    daemon.command(&["id", "--format", "{nothing}"]).await.expect(2).says(&["peer_id", "addresses"]);
    daemon.command(&["id", "../status", "--format", "{peer_id}"]).await.expect(2).says(&["not a peer id"]);
}

#[tokio::test]
async fn the_page_is_opened_by_a_code_once() {
    let daemon = Launch::new().start().await;
    let api = Api::of(&daemon);
    let url = daemon.command(&["ui", "--print"]).await.expect(0).stdout.trim().to_owned();
    let (page, code) = url.split_once("#login=").unwrap();
    assert_eq!(page, format!("{}/", api.base));
    let shown = api.client.get(page).send().await.unwrap();
    assert_eq!(shown.status(), StatusCode::OK);
    let policy = shown.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");

    let login = async |code: &str| {
        let request = api.client.post(format!("{}/api/v1/login", api.base)).json(&json!({ "code": code }));
        request.send().await.unwrap()
    };
    let opened = login(code).await;
    assert_eq!(opened.status(), StatusCode::OK);
    let cookie = opened.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let csrf = opened.json::<Value>().await.unwrap()["csrf"].as_str().unwrap().to_owned();
    assert_eq!(login(code).await.status(), StatusCode::UNAUTHORIZED, "a second time");

    let with = |method, path: &str| api.client.request(method, format!("{}{path}", api.base)).header("cookie", &cookie);
    let status = async |request: RequestBuilder| request.send().await.unwrap().status();
    assert_eq!(status(with(Method::GET, "/api/v1/status")).await, StatusCode::OK);
    assert_eq!(status(with(Method::POST, "/api/v1/login/code")).await, StatusCode::FORBIDDEN);
    assert_eq!(status(with(Method::POST, "/api/v1/login/code").header("x-quelea-csrf", &csrf)).await, StatusCode::OK);
    let session: Value = with(Method::GET, "/api/v1/session").send().await.unwrap().json().await.unwrap();
    assert_eq!((&session["session"], &session["writes"]), (&json!(true), &json!(false)));
    assert_eq!(status(with(Method::POST, "/api/v1/logout").header("x-quelea-csrf", &csrf)).await, StatusCode::OK);
    assert_eq!(status(with(Method::GET, "/api/v1/status")).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn guessing_is_slowed_for_who_guesses() {
    let daemon = Launch::new().start().await;
    let api = Api::of(&daemon);
    let slowed = until("a guesser that is slowed", async || {
        let status = api.status(Method::GET, "/api/v1/status", "quelea_0000").await;
        assert!(matches!(status, StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS), "{status}");
        (status == StatusCode::TOO_MANY_REQUESTS).then_some(())
    });
    slowed.await;
    // Nobody else is, on the same address: what is right opens.
    assert_eq!(api.status(Method::GET, "/api/v1/id", &own_token(&daemon)).await, StatusCode::OK);
}

/// Sends bytes and reads what comes back, until the server ends it or nothing comes for a second.
async fn exchange(at: &str, bytes: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    // The server may refuse before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut piece)).await {
        answer.extend_from_slice(&piece[..n]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn garbage_is_refused_and_the_daemon_goes_on() {
    let daemon = Launch::new().start().await;
    let api = Api::of(&daemon);
    let at = api.base.trim_start_matches("http://").to_owned();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n{",
        b"POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n[]",
        b"GET /assets/../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /assets/%2e%2e/index.html HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let answer = exchange(&at, garbage).await;
        assert!(!answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"), "{garbage:?}: {answer}");
    }
    assert_eq!(api.status(Method::GET, "/api/v1/id", &own_token(&daemon)).await, StatusCode::OK);
}

#[tokio::test]
async fn streams_are_bounded_snapshots_begin_them_and_the_log_is_followed() {
    let daemon = Launch::new().start().await;
    let api = Api::of(&daemon);
    let token = own_token(&daemon);
    let snapshot: Value = api.ask(Method::GET, "/api/v1/snapshot", &token).send().await.unwrap().json().await.unwrap();
    assert_eq!(snapshot["schema"], "quelea.snapshot/v1");
    assert_eq!(snapshot["status"]["peer_id"], daemon.peer());
    let cursor = snapshot["cursor"].as_u64().unwrap();

    // A second node comes: the stream tells it, and a figure by and by.
    let path = format!("/api/v1/events?types=peer,metric&every_ms=1000&after={cursor}");
    let mut stream = api.ask(Method::GET, &path, &token).send().await.unwrap();
    let other = Launch::new().bootstrap(&daemon).start().await;
    let mut seen = String::new();
    let told = async {
        while !(seen.contains(other.peer()) && seen.contains(r#""type":"metric""#)) {
            seen.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    until("a point in the history", async || {
        let answer = api.ask(Method::GET, "/api/v1/timeseries", &token).send().await.unwrap();
        let history: Value = answer.json().await.unwrap();
        history["series"]["peers"].as_array()?.iter().any(|n| n == 1.0).then_some(())
    })
    .await;

    let mut log = api.ask(Method::GET, "/api/v1/logs?follow=true", &token).send().await.unwrap();
    let body = json!({ "directives": "quelea=debug" });
    let set = api.ask(Method::POST, "/api/v1/logs/level", &token).json(&body).send().await.unwrap();
    assert_eq!(set.status(), StatusCode::OK);
    let mut lines = String::new();
    let followed = async {
        while !lines.contains("what is logged was changed") {
            lines.push_str(&String::from_utf8_lossy(&log.chunk().await.unwrap().unwrap()));
        }
    };
    tokio::time::timeout(PATIENCE, followed).await.unwrap();
    assert!(!lines.contains(&token), "the log tells no secrets");

    let mut open = Vec::new();
    let full = loop {
        let answer = api.ask(Method::GET, "/api/v1/events", &token).send().await.unwrap();
        if answer.status() != StatusCode::OK {
            break answer;
        }
        open.push(answer);
        assert!(open.len() <= 256, "streams are bounded");
    };
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(open.len() > 200);
    drop(open);
    until("room for a stream again", async || {
        let answer = api.ask(Method::GET, "/api/v1/events", &token).send().await.unwrap();
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
}

/// Seconds of processor time that a process has had.
fn processor_time(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|at| fields[*at].parse::<f64>().unwrap()).sum();
    // What Linux has had on all machines for decades.
    ticks / 100.0
}

#[tokio::test]
#[ignore = "measures for a minute and a half"]
async fn a_hundred_idle_listeners_cost_next_to_nothing() {
    const FOR: Duration = Duration::from_secs(45);
    let daemon = Launch::new().start().await;
    let (api, token) = (Api::of(&daemon), own_token(&daemon));
    let pid: u32 = {
        let said = std::fs::read_to_string(format!("{}/daemon.json", daemon.home())).unwrap();
        serde_json::from_str::<Value>(&said).unwrap()["pid"].as_u64().unwrap().try_into().unwrap()
    };
    let share = async || {
        let before = processor_time(pid);
        tokio::time::sleep(FOR).await;
        100.0 * (processor_time(pid) - before) / FOR.as_secs_f64()
    };
    let alone = share().await;
    let path = "/api/v1/events?types=peer,model,message,job,ledger,dht,storage,log,metric&every_ms=1000";
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut stream = api.ask(Method::GET, path, &token).send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::OK);
        readers.spawn(async move { while let Ok(Some(_)) = stream.chunk().await {} });
    }
    let listened = share().await;
    println!("of one core: {alone:.2} % without listeners, {listened:.2} % with a hundred");
    assert!(listened - alone <= 1.0, "{alone} {listened}");
}
