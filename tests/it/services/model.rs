//! A server on loopback that speaks as much of the `OpenAI` API as a chat needs, streams as the real ones do, and counts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::harness::until;

/// A prompt that is never answered.
pub const NEVER: &str = "never";

#[derive(Default)]
struct Counts {
    asked: AtomicUsize,
    /// Of those that are never answered, who hung up.
    hung_up: AtomicUsize,
    keys: std::sync::Mutex<Vec<String>>,
}

/// A running server.
pub struct Model {
    pub url: String,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Model {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { url, counts, task }
    }

    /// Waits until it has been asked so often.
    pub async fn until_asked(&self, times: usize) {
        let asked = async || (self.counts.asked.load(Ordering::Relaxed) >= times).then_some(());
        until(&format!("{times} question(s) to the model's server"), asked).await;
    }

    /// Waits until so many gave up waiting.
    pub async fn until_hung_up(&self, times: usize) {
        let gone = async || (self.counts.hung_up.load(Ordering::Relaxed) >= times).then_some(());
        until(&format!("{times} that hung up on the model's server"), gone).await;
    }

    /// The keys that it was shown.
    pub fn keys(&self) -> Vec<String> {
        self.counts.keys.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, counts: Arc<Counts>) {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
        return;
    }
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        match line.trim().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap();
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                counts.keys.lock().unwrap().push(value.trim().into());
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let out = stream.get_mut();
    if head.starts_with("GET ") {
        let list = r#"{"object":"list","data":[{"id":"tiny"}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{list}", list.len());
        let _ = out.write_all(head.as_bytes()).await;
        return;
    }
    counts.asked.fetch_add(1, Ordering::Relaxed);
    let request: Value = serde_json::from_slice(&body).unwrap();
    let prompt = request["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let _ = out.write_all(head.as_bytes()).await;
    if prompt == NEVER {
        let mut end = [0];
        let _ = out.read(&mut end).await;
        counts.hung_up.fetch_add(1, Ordering::Relaxed);
        return;
    }
    for part in ["You said: ", &prompt] {
        let chunk = json!({ "choices": [{ "index": 0, "delta": { "content": part } }] });
        let _ = out.write_all(format!("data: {chunk}\n\n").as_bytes()).await;
    }
    let _ = out.write_all(b"data: [DONE]\n\n").await;
}
