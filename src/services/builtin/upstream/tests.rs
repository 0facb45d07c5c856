//! Against a server on loopback that behaves as the real ones do: streams, refusals, and what goes wrong in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;

const KEY: &str = "sk-do-not-tell";

const OFFER: Offer = Offer { price: 50_000, at_once: 2, about: "for tests" };

/// Speaks HTTP/1.1 and as much of the API as a chat needs; the prompt says how it behaves.
struct Server {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, counted.clone()));
            }
        });
        Self { url, asked }
    }

    fn remote(&self, key: Option<&str>, model: Option<&str>) -> Remote {
        let key = key.map(|key| Zeroizing::new(key.to_owned()));
        Remote::new(Upstream::new(&self.url, key, model.map(str::to_owned)).unwrap(), OFFER).unwrap()
    }
}

async fn serve(stream: TcpStream, asked: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length, mut key) = (String::new(), 0, String::new());
    stream.read_line(&mut head).await.unwrap();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let (name, value) = line.trim().split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => key = value.trim().into(),
            "" => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let out = stream.get_mut();
    let plain = |status: &str, more: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}connection: close\r\n\r\n{body}", body.len())
    };
    if key != format!("Bearer {KEY}") {
        let why = format!("{{\"error\":{{\"message\":\"Incorrect API key provided: {key}\"}}}}");
        let _ = out.write_all(plain("401 Unauthorized", "", &why).as_bytes()).await;
        return;
    }
    if head.starts_with("GET /v1/models ") {
        let list = r#"{"object":"list","data":[{"id":"tiny","object":"model"},{"id":"other"}]}"#;
        let _ = out.write_all(plain("200 OK", "", list).as_bytes()).await;
        return;
    }
    assert!(head.starts_with("POST /v1/chat/completions "), "{head}");
    asked.fetch_add(1, Ordering::Relaxed);
    let request: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&request["model"], &request["stream"]), (&"tiny".into(), &true.into()));
    let messages = request["messages"].as_array().unwrap();
    let prompt = messages.last().unwrap()["content"].as_str().unwrap();
    let answer = match prompt {
        "busy" => plain("429 Too Many Requests", "retry-after: 7\r\n", "slow down"),
        "long" => plain("400 Bad Request", "", "maximum context length"),
        "broken" => plain("500 Internal Server Error", "", KEY),
        "away" => plain("302 Found", "location: http://127.0.0.1:1/\r\n", ""),
        "page" => plain("200 OK", "content-type: text/html\r\n", "<html>hello</html>\n"),
        _ => "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".into(),
    };
    let _ = out.write_all(answer.as_bytes()).await;
    let mut say = async |event: &str| {
        let event = format!("{event}\n\n");
        out.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.is_ok()
    };
    let text = |text: &str| format!("data: {}", json!({ "choices": [{ "delta": { "content": text } }] }));
    match prompt {
        "hi" => {
            say(r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#).await;
            for part in ["Hello, ", "flock", "."] {
                say(&text(part)).await;
                say(": ping").await;
            }
            say(r#"data: {"choices":[],"usage":{"completion_tokens":3}}"#).await;
            say("data: [DONE]").await;
        }
        "cut" => {
            say(&text("Hel")).await;
            say(&format!("data: {}", json!({ "error": { "message": KEY } }))).await;
        }
        "endless" => while say(&text(&"x".repeat(4096))).await {},
        "silent" => {
            say(&text("Hel")).await;
            let mut end = [0];
            // Until the other side gives up.
            let _ = out.read(&mut end).await;
        }
        _ => {}
    }
}

async fn call(remote: &Remote, input: &str) -> (Result<Done, Fault>, Vec<u8>) {
    let (say, mut said) = mpsc::channel(1024);
    let job = Job { input: input.as_bytes().to_vec(), most: 50_000, remaining: Duration::from_secs(10) };
    let progress = Progress(say);
    let done = remote.call(job, &progress).await;
    drop(progress);
    let mut all = Vec::new();
    while let Some(piece) = said.recv().await {
        all.extend(piece);
    }
    (done, all)
}

#[tokio::test]
async fn an_answer_streams_and_comes_in_the_form_of_its_question() {
    let server = Server::start().await;
    let remote = server.remote(Some(KEY), None);
    let (done, said) = call(&remote, "hi").await;
    assert_eq!((done.unwrap().output, said), (b"Hello, flock.".to_vec(), b"Hello, flock.".to_vec()));
    let (done, _) = call(&remote, r#"{"prompt":"hi","system":"be kind"}"#).await;
    let answer: Value = serde_json::from_slice(&done.unwrap().output).unwrap();
    assert_eq!(
        (&answer["text"], &answer["model"], &answer["tokens"]),
        (&"Hello, flock.".into(), &"tiny".into(), &3.into())
    );
    assert_eq!(server.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_goes_wrong_is_told_in_our_words_and_never_with_the_key() {
    let server = Server::start().await;
    let remote = server.remote(Some(KEY), Some("tiny"));
    for (prompt, code, says) in [
        ("busy", ErrorCode::Overloaded, "too much to do"),
        ("long", ErrorCode::ServiceInput, "too long"),
        ("broken", ErrorCode::UpstreamFailed, "answered 500"),
        ("away", ErrorCode::UpstreamFailed, "answered 302"),
        ("page", ErrorCode::UpstreamFailed, "without an answer"),
        ("cut", ErrorCode::UpstreamFailed, "in the middle"),
        ("endless", ErrorCode::UpstreamFailed, "does not end"),
    ] {
        let fault = call(&remote, prompt).await.0.unwrap_err();
        assert!(fault.code == code && fault.message.contains(says), "{prompt}: {fault:?}");
        assert!(!fault.message.contains(KEY) && fault.amount == 0, "{prompt}: {fault:?}");
        assert_eq!(fault.retry_ms, if prompt == "busy" { 7000 } else { 0 }, "{prompt}");
    }
    let wrong = server.remote(Some("sk-wrong"), Some("tiny"));
    let fault = call(&wrong, "hi").await.0.unwrap_err();
    assert!(fault.message.contains("this node's key") && !fault.message.contains("sk-wrong"), "{fault:?}");
    let nobody = Remote::new(Upstream::new("http://127.0.0.1:1", None, Some("tiny".into())).unwrap(), OFFER).unwrap();
    let fault = call(&nobody, "hi").await.0.unwrap_err();
    assert!(fault.message.contains("cannot be reached") && !fault.message.contains("127.0.0.1"), "{fault:?}");
}

#[tokio::test]
async fn who_gives_up_hangs_up() {
    let server = Server::start().await;
    let remote = server.remote(Some(KEY), Some("tiny"));
    let given_up = tokio::time::timeout(Duration::from_millis(300), call(&remote, "silent")).await;
    assert!(given_up.is_err(), "it waits for more");
}

#[test]
fn urls_and_keys_are_checked_and_never_shown() {
    let key = || Some(Zeroizing::new(KEY.to_owned()));
    for wrong in ["", "ftp://x", "http://", "http://me:secret@host/v1", "nonsense"] {
        let error = Upstream::new(wrong, key(), None).unwrap_err();
        assert!(!error.message.contains("secret"), "{error}");
    }
    assert!(Upstream::new("http://host", Some(Zeroizing::new("a\nb".into())), None).is_err());
    let upstream = Upstream::new("http://host/", key(), None).unwrap();
    assert_eq!(upstream.route("models"), "http://host/v1/models");
    assert_eq!(Upstream::new("http://host/api/v1/", None, None).unwrap().route("models"), "http://host/api/v1/models");
    assert!(!format!("{upstream:?}").contains(KEY));
}
