//! An answer as it comes: over a daemon's control API, token by token.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{Daemon, http_client, ids};

/// What has come of an answer.
#[derive(Debug, Default)]
pub struct Seen {
    /// Peer and layers of every stage that it began with; empty until they are known.
    pub route: Vec<(String, String)>,
    /// When each token came.
    pub tokens: Vec<Instant>,
    /// Whether it is over.
    pub over: bool,
}

/// A question under way. It is taken back when dropped.
pub struct Asking {
    seen: watch::Receiver<Seen>,
    reader: JoinHandle<Result<Value, Value>>,
}

impl Asking {
    /// Asks `daemon`; `question` is the body of a request.
    pub fn new(daemon: &Daemon, question: &Value) -> Self {
        let url = format!("{}/api/v1/infer", daemon.told("api")[0]);
        let token = fs::read_to_string(Path::new(daemon.home()).join("api.token")).unwrap();
        let request = http_client().build().unwrap().post(url).bearer_auth(token.trim());
        let request = request.body(question.to_string());
        let (sender, seen) = watch::channel(Seen::default());
        let reader = tokio::spawn(async move {
            let end = read(request, &sender).await;
            sender.send_modify(|seen| seen.over = true);
            end
        });
        Self { seen, reader }
    }

    /// What has come so far.
    pub fn seen(&self) -> watch::Ref<'_, Seen> {
        self.seen.borrow()
    }

    /// Waits until this is so, or the answer is over, for `most` at most; whether it was so.
    pub async fn until(&mut self, most: Duration, wanted: impl Fn(&Seen) -> bool) -> bool {
        let seen = timeout(most, self.seen.wait_for(|seen| seen.over || wanted(seen))).await;
        seen.is_ok_and(|seen| seen.is_ok_and(|seen| wanted(&seen)))
    }

    /// How it ended: its summary, or the error; nothing if it did not within `most`.
    pub async fn end(&mut self, most: Duration) -> Option<Result<Value, Value>> {
        timeout(most, &mut self.reader).await.ok().map(Result::unwrap)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(request: reqwest::RequestBuilder, seen: &watch::Sender<Seen>) -> Result<Value, Value> {
    let lost = |error: reqwest::Error| Value::from(format!("the daemon's answer is cut off: {error}"));
    let mut response = request.send().await.map_err(lost)?;
    if !response.status().is_success() {
        return Err(response.text().await.map_err(lost)?.into());
    }
    let mut unread = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(lost)? {
        unread.extend_from_slice(&bytes);
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            let mut event: Value = serde_json::from_slice(&line).unwrap();
            match event["type"].as_str().unwrap() {
                "route" => {
                    let text = |value: &Value| value.as_str().unwrap().to_owned();
                    let hops = event["hops"].as_array().unwrap().iter();
                    let route = hops.map(|hop| (text(&hop["peer"]), text(&hop["layers"]))).collect();
                    seen.send_modify(|seen| seen.route = route);
                }
                "text" => seen.send_modify(|seen| seen.tokens.push(Instant::now())),
                "done" => {
                    let summary = event["summary"].take();
                    assert!(!ids(&summary).is_empty(), "{summary}");
                    return Ok(summary);
                }
                _ => return Err(event),
            }
        }
    }
    Err("the answer stopped before its end".into())
}
