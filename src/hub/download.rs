//! One file, whatever happens on the way.

use std::{
    fs::File,
    io::{self, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt as _;
use quelea_wire::ErrorCode;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE, RETRY_AFTER},
};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio::{
    fs::OpenOptions,
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
    sync::watch,
};

use super::{Hub, RoomFor, refused};
use crate::{inference::InferError, weights::fetch::Progress};

/// Redirects in a row.
const REDIRECTS: usize = 8;

/// Failures in a row, without a byte between them, after which a download is given up. What has come is kept.
const FAILURES: u32 = 6;

/// The longest that a server may have us wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Which edition of a file a part of it is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Edition {
    url: String,
    etag: Option<String>,
    bytes: Option<u64>,
    /// Hex digits; large files have it.
    sha256: Option<String>,
}

/// Why an attempt ended.
enum Trouble {
    /// Another attempt may go better, after this long if the server says so.
    Again(String, Option<Duration>),
    /// None will.
    Never(InferError),
}

impl From<InferError> for Trouble {
    fn from(error: InferError) -> Self {
        Self::Never(error)
    }
}

impl Hub {
    pub(super) async fn download(
        &self,
        url: Url,
        folder: &Path,
        room: &RoomFor<'_>,
        progress: &watch::Sender<Progress>,
    ) -> Result<PathBuf, InferError> {
        tokio::fs::create_dir_all(folder).await.map_err(|e| disk(folder, &e))?;
        let name = blake3::hash(url.as_str().as_bytes()).to_hex();
        let part = folder.join(format!("{name}.part"));
        let note = folder.join(format!("{name}.json"));
        // Two downloads into one file would spoil each other.
        let lock = File::create(folder.join(format!("{name}.lock"))).map_err(|e| disk(folder, &e))?;
        if lock.try_lock().is_err() {
            return Err(InferError::new(ErrorCode::Overloaded, "somebody is fetching this file at present")
                .hint("wait for the pull that is under way, or stop it"));
        }
        let mut failures = 0_u32;
        loop {
            let before = length(&part).await;
            match self.attempt(&url, &part, &note, room, progress).await {
                Ok(()) => {
                    let _ = tokio::fs::remove_file(&note).await;
                    return Ok(part);
                }
                Err(Trouble::Never(error)) => return Err(error),
                Err(Trouble::Again(why, wait)) => {
                    failures = if length(&part).await > before { 1 } else { failures.saturating_add(1) };
                    if failures >= FAILURES {
                        let host = url.host_str().unwrap_or_default();
                        let message = format!("the download from {host} fails again and again: {why}");
                        return Err(InferError::new(ErrorCode::NoRoute, message)
                            .hint("try again later: what has come is kept, and the download goes on from there"));
                    }
                    let wait = wait.unwrap_or_else(|| self.backoff.saturating_mul(1 << failures.min(6)));
                    tracing::info!(%why, ?wait, "the download is begun again where it stopped");
                    tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
                }
            }
        }
    }

    /// One question, of which redirects are not followed.
    pub(super) async fn send(&self, url: Url, range: Option<(u64, Option<&str>)>) -> Result<Response, InferError> {
        let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| self.is_endpoint(&url)) {
            request = request.bearer_auth(token);
        }
        if let Some((from, etag)) = range.filter(|(from, _)| *from > 0) {
            request = request.header(RANGE, format!("bytes={from}-"));
            // A weak validator does not vouch for bytes.
            if let Some(etag) = etag.filter(|etag| !etag.starts_with("W/")) {
                request = request.header(IF_RANGE, etag);
            }
        }
        request.send().await.map_err(|e| InferError::new(ErrorCode::NoRoute, e.without_url().to_string()))
    }

    async fn attempt(
        &self,
        url: &Url,
        part: &Path,
        note: &Path,
        room: &RoomFor<'_>,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Trouble> {
        let known: Option<Edition> =
            tokio::fs::read(note).await.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut from = if known.is_some() { length(part).await } else { 0 };
        let mut edition = Edition { url: url.to_string(), etag: None, bytes: None, sha256: None };
        let mut at = url.clone();
        let mut answer = None;
        for _ in 0..REDIRECTS {
            let etag = known.as_ref().and_then(|known| known.etag.as_deref()).filter(|_| self.is_endpoint(&at));
            let now = self.send(at.clone(), Some((from, etag))).await;
            let now = now.map_err(|error| Trouble::Again(error.message, None))?;
            edition.note(now.headers());
            if !now.status().is_redirection() {
                answer = Some(now);
                break;
            }
            let to = now.headers().get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| at.join(to).ok());
            let secure = |to: &Url| to.scheme() == "https" || at.scheme() == "http";
            let to = to.filter(secure).ok_or_else(|| {
                InferError::new(ErrorCode::NoRoute, format!("{} leads nowhere", at.host_str().unwrap_or_default()))
            })?;
            at = to;
        }
        let Some(answer) = answer else {
            return Err(InferError::new(ErrorCode::NoRoute, "the download is passed from host to host").into());
        };
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(answer.headers()) == Some(from) => {}
            // The whole file: from the beginning.
            StatusCode::OK => from = 0,
            StatusCode::RANGE_NOT_SATISFIABLE if known.as_ref().and_then(|known| known.bytes) == Some(from) => {
                return self.finished(part, known.as_ref().unwrap_or(&edition)).await;
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
                let _ = tokio::fs::remove_file(part).await;
                return Err(Trouble::Again("the server gives another part than was asked for".into(), None));
            }
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                let wait = answer.headers().get(RETRY_AFTER).and_then(|s| s.to_str().ok()).and_then(|s| s.parse().ok());
                return Err(Trouble::Again(format!("the server answers {status}"), wait.map(Duration::from_secs)));
            }
            status => return Err(refused(&at, status).into()),
        }
        let rest = answer.content_length();
        edition.bytes = edition.bytes.or_else(|| Some(from.saturating_add(rest?)));
        if from > 0 && known.as_ref().is_some_and(|known| !known.same(&edition)) {
            let _ = tokio::fs::remove_file(part).await;
            return Err(Trouble::Again("the file has changed since the download began".into(), None));
        }
        let _room = room(edition.bytes.unwrap_or(0).saturating_sub(from))?;
        let text = serde_json::to_vec(&edition).map_err(|e| Trouble::Again(e.to_string(), None))?;
        tokio::fs::write(note, text).await.map_err(|e| disk(note, &e))?;
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(part).await;
        let file = file.as_mut().map_err(|e| disk(part, e))?;
        file.set_len(from).await.map_err(|e| disk(part, &e))?;
        file.seek(SeekFrom::Start(from)).await.map_err(|e| disk(part, &e))?;
        let mut body = answer.bytes_stream();
        let mut here = from;
        while let Some(bytes) = body.next().await {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    file.flush().await.map_err(|e| disk(part, &e))?;
                    return Err(Trouble::Again(error.without_url().to_string(), None));
                }
            };
            here = here.saturating_add(bytes.len() as u64);
            if edition.bytes.is_some_and(|all| here > all) {
                return Err(Trouble::Again("the server sends more than it announced".into(), None));
            }
            file.write_all(&bytes).await.map_err(|e| disk(part, &e))?;
            progress.send_replace(Progress {
                bytes: here,
                total: edition.bytes.unwrap_or(here),
                peers: 1,
                ..Progress::default()
            });
        }
        file.flush().await.map_err(|e| disk(part, &e))?;
        file.sync_all().await.map_err(|e| disk(part, &e))?;
        if edition.bytes.is_some_and(|all| here < all) {
            return Err(Trouble::Again("the line was cut".into(), None));
        }
        self.finished(part, &edition).await
    }

    /// Compares the file with its checksum, where it has one.
    async fn finished(&self, part: &Path, edition: &Edition) -> Result<(), Trouble> {
        let Some(wanted) = &edition.sha256 else { return Ok(()) };
        let mut file = tokio::fs::File::open(part).await.map_err(|e| disk(part, &e))?;
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buffer).await.map_err(|e| disk(part, &e))?;
            if n == 0 {
                break;
            }
            hash.update(buffer.get(..n).unwrap_or_default());
        }
        if hex::encode(hash.finish()) == *wanted {
            return Ok(());
        }
        let _ = tokio::fs::remove_file(part).await;
        let message = "the file that came is not the one that the server has a checksum of; it was thrown away";
        Err(InferError::new(ErrorCode::ModelFile, message)
            .hint("try again; if it fails again, the server's file is damaged")
            .into())
    }
}

impl Edition {
    /// Takes what an answer tells: of a redirect, too, as it speaks of the file behind it.
    fn note(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let etag = text("x-linked-etag").or_else(|| text(ETAG.as_str()));
        self.etag = self.etag.take().or(etag);
        let bare = self.etag.as_deref().map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let is_sha256 = |tag: &&str| tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        self.sha256 = bare.filter(is_sha256).map(str::to_ascii_lowercase);
        let linked = text("x-linked-size").and_then(|size| size.parse().ok());
        let ranged = text(CONTENT_RANGE.as_str()).and_then(|range| range.rsplit_once('/')?.1.parse().ok());
        self.bytes = self.bytes.or(linked).or(ranged);
    }

    /// Whether a part of one may be continued with the other.
    fn same(&self, other: &Self) -> bool {
        self.url == other.url && self.etag == other.etag && self.bytes == other.bytes
    }
}

/// Where a partial answer begins.
fn starts_at(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// An answer's body, if it is not longer than this.
pub(super) async fn limited(answer: Response, most: usize) -> Result<Vec<u8>, InferError> {
    let mut body = answer.bytes_stream();
    let mut all = Vec::new();
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|e| InferError::new(ErrorCode::NoRoute, e.without_url().to_string()))?;
        if all.len().saturating_add(bytes.len()) > most {
            return Err(InferError::new(ErrorCode::ModelFile, "an answer is longer than any that is expected"));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

async fn length(path: &Path) -> u64 {
    tokio::fs::metadata(path).await.map_or(0, |meta| meta.len())
}

fn disk(path: &Path, error: &io::Error) -> InferError {
    let code =
        if error.kind() == io::ErrorKind::StorageFull { ErrorCode::StorageFull } else { ErrorCode::StorageFailed };
    InferError::new(code, format!("{}: {error}", path.display()))
        .hint("what has come is kept; pulling again goes on from there")
}
