//! A running program, and a client of a few lines.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Ends on its own, and answers what it was trained on.
pub(crate) const DEMO: &str = "demo/quelea-demo-q8_0.gguf";

/// Random weights: at no warmth it never ends on its own.
pub(crate) const ENDLESS: &str = "tests/data/models/qwen3-F32.gguf";

/// A file of the engine's.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../engine").join(name)
}

pub(crate) struct Sidecar {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    _dir: TempDir,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sidecar {
    /// Not ready yet.
    pub(crate) fn begin(model: &Path, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("made/llm.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_quelea-local-llm"));
        command.arg("--model").arg(model).arg("--socket").arg(&socket).args(args);
        // As in CI; see what the program does about it.
        command.env("RUST_BACKTRACE", "1");
        let child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, socket, _dir: dir }
    }

    pub(crate) fn start(model: &str, args: &[&str]) -> Self {
        Self::start_at(&file(model), args)
    }

    pub(crate) fn start_at(model: &Path, args: &[&str]) -> Self {
        let mut sidecar = Self::begin(model, args);
        until("ready", || {
            if let Some(status) = sidecar.child.try_wait().unwrap() {
                panic!("it ended, {status}: {}", sidecar.ended().1);
            }
            sidecar.connect().is_ok() && sidecar.health()["status"] == "ok"
        });
        sidecar
    }

    pub(crate) fn connect(&self) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(stream)
    }

    pub(crate) fn health(&self) -> Value {
        self.get("/health").json()
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n"))
    }

    pub(crate) fn post(&self, body: &Value) -> Reply {
        self.request(&posted(&body.to_string()))
    }

    pub(crate) fn request(&self, request: &str) -> Reply {
        let mut stream = self.connect().unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        Reply::read(stream)
    }

    /// Begins a streamed answer, and reads until its first token.
    pub(crate) fn begin_stream(&self, body: &Value) -> BufReader<UnixStream> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let mut stream = self.connect().unwrap();
        stream.write_all(posted(&body.to_string()).as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while !line.contains("\"content\":") || line.contains("\"content\":\"\"") {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the stream ended before its first token");
        }
        reader
    }

    /// How the program ended, and what it said on stderr.
    pub(crate) fn ended(&mut self) -> (ExitStatus, String) {
        let mut status = None;
        until("ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.unwrap(), said)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

pub(crate) fn posted(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: l\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// A question, and what else goes with it.
pub(crate) fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": text }] });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn read(mut stream: UnixStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a response") + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = &bytes[end..];
        let body = if head.contains("transfer-encoding: chunked") { joined(body) } else { body.to_vec() };
        Self { status, head, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// What the assistant said.
    pub(crate) fn text(&self) -> String {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// The documents of a stream, of which the last line has to be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        let text = String::from_utf8(self.body.clone()).unwrap();
        let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn joined(mut chunked: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let line = chunked.windows(2).position(|two| two == b"\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(std::str::from_utf8(&chunked[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return all;
        }
        all.extend_from_slice(&chunked[line + 2..line + 2 + length]);
        chunked = &chunked[line + 4 + length..];
    }
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "not {what} in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}
