//! Requests that are none, by the thousand: nothing panics, nothing grows, and the next request is answered.

use std::{fs, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::http::{Client, chat};
use crate::harness::{DEMO, Daemon, Launch};

/// How many, unless `QUELEA_MALFORMED` says so.
const COUNT: u64 = 3000;

/// Those that are sent before memory is looked at: what they fill for the first time stays.
const WARM_UP: u64 = 500;

/// What a process may grow by meanwhile: a few buffers and the allocator's own.
const GROWTH: u64 = 24 << 20;

const PATHS: [&str; 6] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/%ff%00", "/v1/%2e%2e/api"];

/// Bodies as clients send them; what comes of them is not long.
fn bodies() -> [Value; 4] {
    [
        chat(json!({ "max_tokens": 1, "stop": ["a"], "n": 2, "logit_bias": { "3": 1 }, "logprobs": true,
            "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "object",
            "properties": { "a": { "type": "array", "items": { "enum": [1, "x"] } } } } } } })),
        chat(json!({ "max_tokens": 1, "stream": true, "stream_options": { "include_usage": true } })),
        json!({ "model": DEMO, "prompt": ["a", "b"], "max_tokens": 1, "echo": true, "seed": 3 }),
        json!({ "model": DEMO, "input": [[1, 2], [3]], "encoding_format": "base64" }),
    ]
}

/// A request with something wrong with it, most likely.
fn request(token: &str, random: &mut StdRng) -> Vec<u8> {
    let path = PATHS.choose(random).unwrap();
    let mut body = bodies().choose(random).unwrap().to_string().into_bytes();
    match random.random_range(0..8) {
        // Other bytes, or fewer.
        0..=3 => {
            for _ in 0..random.random_range(1..8) {
                let at = random.random_range(0..body.len());
                body[at] =
                    if random.random_bool(0.5) { random.random() } else { *b"{}[]\",:0-e".choose(random).unwrap() };
            }
        }
        4 => body.truncate(random.random_range(0..body.len())),
        5 => body = [b"[".repeat(random.random_range(1..20_000)), body].concat(),
        6 => body = (0..random.random_range(0..2000)).map(|_| random.random()).collect(),
        _ => {
            // A value of another kind.
            let mut value: Value = serde_json::from_slice(&body).unwrap();
            let fields = value.as_object_mut().unwrap();
            let names: Vec<String> = fields.keys().cloned().collect();
            let wrong =
                [json!(null), json!(-1), json!(1e300), json!("x"), json!([[[]]]), json!({ "a": {} }), json!(true)];
            fields[names.choose(random).unwrap()] = wrong.choose(random).unwrap().clone();
            body = value.to_string().into_bytes();
        }
    }
    let method = ["POST", "POST", "POST", "POST", "GET", "PUT", "DELETE", "BREW"].choose(random).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n").into_bytes();
    head.extend(format!("Authorization: Bearer {token}\r\n").into_bytes());
    match random.random_range(0..12) {
        0 => head.extend(b"Content-Length: 99999999999999999999\r\n"),
        1 => head.extend(b"Transfer-Encoding: chunked\r\n"),
        2 => head.extend(format!("Content-Length: {}\r\n", body.len() + 7).into_bytes()),
        3 => head.extend(b"Content-Length: 10\r\nContent-Length: 20\r\n"),
        4 => head.extend(b"Idempotency-Key: \xff\xfe\r\n"),
        5 => head.extend([b"X-Long: ".as_slice(), &b"a".repeat(random.random_range(1..40_000)), b"\r\n"].concat()),
        6 => head.extend(b"x-request-id: \x01\r\nx-quelea-max-price: lots\r\n"),
        7 => head.truncate(random.random_range(0..head.len())),
        _ => {}
    }
    if !head.windows(14).any(|name| name == b"Content-Length" || name == b"Transfer-Encod") {
        head.extend(format!("Content-Length: {}\r\n", body.len()).into_bytes());
    }
    [head, b"\r\n".to_vec(), body].concat()
}

/// Sends it and reads what comes; the status, if any.
async fn send(addr: SocketAddr, request: Vec<u8>) -> Option<u16> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    // The server may have had enough before it is all sent.
    let _ = stream.write_all(&request).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.expect("no end");
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_none_change_nothing() {
    let count = std::env::var("QUELEA_MALFORMED").map_or(COUNT, |count| count.parse().unwrap());
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let client = Client::of(&daemon);
    let addr: SocketAddr = client.url.trim_start_matches("http://").parse().unwrap();
    let statuses = async |range: std::ops::Range<u64>| {
        let one = |seed: u64| send(addr, request(&client.token, &mut StdRng::seed_from_u64(seed)));
        let all: Vec<Option<u16>> = stream::iter(range).map(one).buffer_unordered(16).collect().await;
        all
    };
    statuses(0..WARM_UP).await;
    let before = resident(&daemon);
    let all = statuses(WARM_UP..WARM_UP + count).await;
    let after = resident(&daemon);
    let of = |class: u16| all.iter().flatten().filter(|status| **status / 100 == class).count();
    let silent = all.iter().filter(|status| status.is_none()).count();
    println!(
        "{count} requests: {} 2xx, {} 4xx, {} 5xx, {silent} without an answer; {before} bytes before, {after} after",
        of(2),
        of(4),
        of(5),
    );
    assert!(of(4) > all.len() / 2, "most of them are wrong, and are told so");
    assert_eq!(of(5), 0, "what a client does wrong is not the server's fault");
    assert!(after < before + GROWTH, "grown from {before} to {after} bytes");
    assert_eq!(daemon.fetch("/livez").await.0, StatusCode::OK);
    client.answer("/v1/chat/completions", &chat(json!({}))).await;
    let panics = daemon.metric("quelea_tasks_panicked_total", "").await;
    assert!(panics == 0.0, "{panics}");
}
