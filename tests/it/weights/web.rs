//! A web server that serves one file as a repository of models does, and as servers are: it cuts lines, asks for patience,
//! and changes its mind.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// How one request is answered.
#[derive(Debug, Clone)]
pub enum Step {
    /// As it should be, but the line is cut after so many bytes of the body.
    Cut(usize),
    /// With this status and these headers, and nothing else.
    Only(u16, String),
    /// The file is another one from now on.
    Become(Vec<u8>),
    /// With all of the file, whatever range was asked for.
    Whole,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

#[derive(Default)]
struct State {
    file: Vec<u8>,
    steps: VecDeque<Step>,
    seen: Vec<Seen>,
    /// Where the file is instead, and what is told of it.
    elsewhere: Option<(String, String)>,
    token: Option<String>,
}

/// A running server.
pub struct Web {
    pub url: String,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Web {
    /// Serves this file at any path, the first requests like this.
    pub async fn of(file: Vec<u8>, steps: impl IntoIterator<Item = Step>) -> Self {
        Self::start(State { file, steps: steps.into_iter().collect(), ..State::default() }).await
    }

    /// Sends whoever has the token to another place, with the checksum of what is there.
    pub async fn hub(elsewhere: &Web, sha256: &str, token: &str) -> Self {
        let elsewhere = Some((format!("{}/of/the/cdn", elsewhere.url), sha256.to_owned()));
        Self::start(State { elsewhere, token: Some(token.to_owned()), ..State::default() }).await
    }

    async fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, shared.clone()));
            }
        });
        Self { url, state, task }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }
}

/// The tag of this edition of a file.
pub fn etag(file: &[u8]) -> String {
    format!("\"{}\"", blake3::hash(file).to_hex().split_at(20).0)
}

/// One request on a connection.
async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let (token, range) = (header("authorization"), header("range"));
    let (response, cut) = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen { path: path.clone(), range: range.clone(), token: token.clone() });
        respond(&mut state, &path, token.as_deref(), range.as_deref(), header("if-range").as_deref())
    };
    // Whoever has gone away is not waited for.
    let _ = stream.write_all(&response[..cut.min(response.len())]).await;
    let _ = stream.shutdown().await;
}

/// The bytes of an answer, and how many of them are sent.
fn respond(
    state: &mut State,
    path: &str,
    token: Option<&str>,
    range: Option<&str>,
    if_range: Option<&str>,
) -> (Vec<u8>, usize) {
    let only = |status: u16, headers: &str| {
        let bytes =
            format!("HTTP/1.1 {status} said\r\ncontent-length: 0\r\nconnection: close\r\n{headers}\r\n").into_bytes();
        let all = bytes.len();
        (bytes, all)
    };
    if let Some(wanted) = &state.token
        && token != Some(&format!("Bearer {wanted}"))
    {
        return only(401, "");
    }
    if path.starts_with("/api/models/") {
        let list = r#"{"siblings":[{"rfilename":"README.md"},{"rfilename":"m.gguf"}]}"#;
        let bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{list}", list.len())
            .into_bytes();
        let all = bytes.len();
        return (bytes, all);
    }
    if path.ends_with("/nothing.gguf") {
        return only(404, "");
    }
    if let Some((to, sha256)) = &state.elsewhere {
        return only(302, &format!("location: {to}\r\nx-linked-etag: \"{sha256}\"\r\n"));
    }
    let (mut cut, mut ranged) = (usize::MAX, true);
    while let Some(step) = state.steps.pop_front() {
        match step {
            Step::Cut(after) => cut = after,
            Step::Only(status, headers) => return only(status, &headers),
            Step::Whole => ranged = false,
            Step::Become(file) => {
                state.file = file;
                continue;
            }
        }
        break;
    }
    let (file, etag) = (&state.file, etag(&state.file));
    let same = if_range.is_none_or(|wanted| wanted == etag);
    let from = range
        .filter(|_| ranged && same)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let (status, range, body) = match from {
        Some(from) if from >= file.len() => return only(416, &format!("content-range: bytes */{}\r\n", file.len())),
        Some(from) => {
            (206, format!("content-range: bytes {from}-{}/{}\r\n", file.len() - 1, file.len()), &file[from..])
        }
        None => (200, String::new(), &file[..]),
    };
    let mut bytes = format!(
        "HTTP/1.1 {status} OK\r\ncontent-length: {}\r\netag: {etag}\r\nconnection: close\r\n{range}\r\n",
        body.len()
    )
    .into_bytes();
    let cut = cut.saturating_add(bytes.len());
    bytes.extend_from_slice(body);
    (bytes, cut)
}
