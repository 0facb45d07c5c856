//! Processes under test: commands with a deadline, and daemons that are killed when dropped.

mod ask;
mod daemon;
mod limit;
mod model;
mod process;

use std::{path::PathBuf, time::Duration};

use serde_json::Value;

pub use self::{
    ask::Asking,
    daemon::{Daemon, Launch, Swarm, draining, streaming, swarm, swarm_of},
    limit::MemoryLimit,
    model::{digits, long_model},
    process::{Ended, Process, quelea},
};

/// The embedded model: always there.
pub const DEMO: &str = "demo";

/// How long anything may take that takes a moment on an idle machine. Tests run beside each other on busy ones.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Between two looks at something that no process tells of by itself.
const LOOK: Duration = Duration::from_millis(40);

/// Looks again and again until there is something to see.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

/// A model of the shared fixtures, unless they are not there.
pub fn fixture(name: &str) -> Option<String> {
    let root = std::env::var_os("QUELEA_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/fixtures")), PathBuf::from);
    let path = root.join("models").join(name);
    if path.is_file() {
        return Some(path.to_str().unwrap().to_owned());
    }
    println!("skipped: no fixture at {}", path.display());
    None
}

/// A client for this machine. TLS of the tests' process has the provider that the program has.
#[allow(clippy::disallowed_methods, reason = "the one place where the tests' clients are made")]
pub fn http_client() -> reqwest::ClientBuilder {
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).no_proxy()
}

/// A directory that is removed with the value. Short, because a unix socket's path has to fit into 107 bytes.
pub fn tempdir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("quelea-it-").tempdir().unwrap()
}

/// The token ids of an answer.
pub fn ids(answer: &Value) -> Vec<u64> {
    numbers(&answer["ids"])
}

/// An array of numbers.
pub fn numbers(array: &Value) -> Vec<u64> {
    array.as_array().unwrap_or_else(|| panic!("no array: {array}")).iter().map(|n| n.as_u64().unwrap()).collect()
}

/// Peer and layers of every stage that an answer came through.
pub fn route(answer: &Value) -> Vec<(String, String)> {
    let hop = |hop: &Value| (hop["peer"].as_str().unwrap().to_owned(), hop["layers"].as_str().unwrap().to_owned());
    answer["route"].as_array().unwrap().iter().map(hop).collect()
}

/// The layers of every stage that an answer came through.
pub fn spans(answer: &Value) -> Vec<String> {
    route(answer).into_iter().map(|(_, layers)| layers).collect()
}
