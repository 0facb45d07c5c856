//! Bare HTTP to a daemon's OpenAI API.

use std::{fs, path::Path, time::Duration};

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::harness::{DEMO, Daemon, Swarm, http_client, swarm};

/// The spans of a swarm that holds the demo model in three parts.
pub const SPANS: [&str; 3] = ["0..2", "2..4", "4..6"];

/// Somebody who asks a daemon.
#[derive(Clone)]
pub struct Client {
    pub url: String,
    pub token: String,
    http: reqwest::Client,
}

impl Client {
    pub fn of(daemon: &Daemon) -> Self {
        let token = fs::read_to_string(Path::new(daemon.home()).join("api.token")).unwrap();
        Self { url: daemon.told("api")[0].into(), token: token.trim().into(), http: http_client().build().unwrap() }
    }

    pub fn request(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.token).body(body)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(path, body.to_string()).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await.unwrap()
    }

    pub async fn chat(&self, more: Value) -> Response {
        self.post("/v1/chat/completions", &chat(more)).await
    }

    /// The answer's JSON, which has to be one.
    pub async fn answer(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let (status, body) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// A greedy question to the demo model, with more to it.
pub fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": DEMO, "temperature": 0, "messages": [{ "role": "user", "content": "What is a relay?" }],
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A long one, which goes on whatever the model says.
pub fn long(more: Value) -> Value {
    let mut body = chat(json!({ "max_tokens": 400, "ignore_eos": true }));
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// An error's status, headers and object.
pub async fn error(response: Response) -> (u16, reqwest::header::HeaderMap, Value) {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let mut body: Value = response.json().await.unwrap();
    let error = body["error"].take();
    for name in ["message", "type", "param", "code"] {
        assert!(error.get(name).is_some(), "{error}");
    }
    (status, headers, error)
}

/// The events of a stream, which has nothing but data and comments.
pub fn events(text: &str) -> Vec<Value> {
    let mut events = Vec::new();
    for block in text.split_terminator("\n\n") {
        if block.starts_with(':') && !block.contains('\n') {
            continue;
        }
        let data = block.strip_prefix("data: ").unwrap_or_else(|| panic!("{block:?} in {text}"));
        assert!(!data.contains('\n'), "{block:?}");
        events.push(if data == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(data).unwrap() });
    }
    events
}

/// A swarm that holds the demo model, whose first node holds nothing of it and knows all others.
pub async fn three() -> Swarm {
    let swarm = swarm(DEMO, &SPANS).await;
    for worker in &swarm.workers {
        swarm.boot.until_connected_to(worker.peer()).await;
    }
    swarm
}

/// Reads a stream until `wanted` is in it, for a while at most.
pub async fn read_until(response: &mut Response, wanted: impl Fn(&str) -> bool) -> String {
    let mut text = Vec::new();
    let read = async {
        while let Some(bytes) = response.chunk().await.unwrap() {
            text.extend_from_slice(&bytes);
            if wanted(&String::from_utf8_lossy(&text)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(40), read).await.unwrap();
    String::from_utf8(text).unwrap()
}
