//! Model files from the web: a Hugging Face repository, or any URL. Ranges, so that a download goes on where it stopped; redirects,
//! without taking the token to other hosts; and the checksum that large files have there.
//!
//! `HF_TOKEN` is sent to the endpoint alone. `HF_ENDPOINT` names another endpoint, such as a mirror.

mod download;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use quelea_wire::ErrorCode;
use reqwest::{Client, StatusCode, Url, redirect};
use serde::Deserialize;
use tokio::sync::watch;

use crate::{
    http,
    inference::InferError,
    weights::{fetch::Progress, store::Room},
};

/// Where repositories are, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a download may stand still before it is begun anew where it stopped.
const STILL: Duration = Duration::from_secs(30);

/// What is taken of a file list, which has a line a file.
const LIST_MAX: usize = 4 << 20;

/// Where a model's file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// `hf:OWNER/REPO[:FILE]`.
    Repository {
        /// `OWNER/REPO`.
        name: String,
        /// The file; the only one, or the commonest quantisation, when it is not said.
        file: Option<String>,
    },
    /// `http://…` or `https://…`.
    Url(Url),
}

impl Place {
    /// Reads a place; nothing when the text is none, but a file's name.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, InferError> {
        if let Some(rest) = text.strip_prefix("hf:") {
            let (name, file) = match rest.split_once(':') {
                Some((name, file)) => (name, Some(file.to_owned())),
                None => (rest, None),
            };
            let plain = |part: &str| {
                !part.is_empty()
                    && part != ".."
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            };
            let named = name.split_once('/').is_some_and(|(owner, repo)| plain(owner) && plain(repo));
            let filed = file.as_ref().is_none_or(|file| file.split('/').all(plain));
            if !named || !filed {
                let message = format!("{text:?} names no repository");
                return Err(
                    InferError::new(ErrorCode::Usage, message).hint("write hf:OWNER/REPO or hf:OWNER/REPO:FILE")
                );
            }
            return Ok(Some(Self::Repository { name: name.to_owned(), file }));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            let url = text.parse().map_err(|e| InferError::new(ErrorCode::Usage, format!("{text:?}: {e}")))?;
            return Ok(Some(Self::Url(url)));
        }
        Ok(None)
    }
}

/// Makes room for so many bytes.
pub(crate) type RoomFor<'a> = dyn Fn(u64) -> Result<Room, InferError> + Send + Sync + 'a;

/// The way to the web.
pub(crate) struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<String>,
    /// Wait after the first failure in a row; each further one doubles it.
    backoff: Duration,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// As the environment says.
    pub(crate) fn from_env() -> Result<Self, InferError> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self::new(&endpoint, set("HF_TOKEN"), Duration::from_secs(1))
    }

    fn new(endpoint: &str, token: Option<String>, backoff: Duration) -> Result<Self, InferError> {
        let endpoint: Url = endpoint
            .trim_end_matches('/')
            .parse()
            .map_err(|e| InferError::new(ErrorCode::Usage, format!("HF_ENDPOINT {endpoint:?}: {e}")))?;
        // Redirects are followed by hand: the checksum is in the first answer, and the token must not go on.
        let client =
            http::web().redirect(redirect::Policy::none()).connect_timeout(CONNECT).read_timeout(STILL).build();
        let client = client.map_err(|e| InferError::new(ErrorCode::Internal, format!("no way to the web: {e}")))?;
        Ok(Self { client, endpoint, token, backoff })
    }

    /// Fetches the file into `folder`, going on with what is there of it; says where it is.
    pub(crate) async fn fetch(
        &self,
        place: &Place,
        folder: &Path,
        room: &RoomFor<'_>,
        progress: &watch::Sender<Progress>,
    ) -> Result<PathBuf, InferError> {
        let url = match place {
            Place::Url(url) => url.clone(),
            Place::Repository { name, file } => {
                let file = match file {
                    Some(file) => file.clone(),
                    None => self.only_file(name).await?,
                };
                self.at(&format!("{name}/resolve/main/{file}"))?
            }
        };
        self.download(url, folder, room, progress).await
    }

    fn at(&self, path: &str) -> Result<Url, InferError> {
        let base = self.endpoint.as_str().trim_end_matches('/');
        format!("{base}/{path}").parse().map_err(|e| InferError::new(ErrorCode::Usage, format!("{path:?}: {e}")))
    }

    /// Whether the token is this host's business.
    fn is_endpoint(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// The GGUF file of a repository that is meant when none is named.
    async fn only_file(&self, name: &str) -> Result<String, InferError> {
        let url = self.at(&format!("api/models/{name}"))?;
        let answer = self.send(url.clone(), None).await?;
        if !answer.status().is_success() {
            return Err(refused(&url, answer.status()));
        }
        let body = download::limited(answer, LIST_MAX).await?;
        let listed: Listed = serde_json::from_slice(&body)
            .map_err(|e| InferError::new(ErrorCode::ModelFile, format!("{url} is no list of files: {e}")))?;
        choose(name, listed.siblings.into_iter().map(|file| file.rfilename).collect())
    }
}

/// The only GGUF file, else the only one of the commonest quantisation.
fn choose(name: &str, files: Vec<String>) -> Result<String, InferError> {
    let gguf: Vec<String> = files.into_iter().filter(|file| file.ends_with(".gguf")).collect();
    let usual = |file: &&String| file.to_ascii_lowercase().contains("q4_k_m");
    let usual: Vec<&String> = gguf.iter().filter(usual).collect();
    match (gguf.as_slice(), usual.as_slice()) {
        ([only], _) => Ok(only.clone()),
        ([], _) => Err(InferError::new(ErrorCode::NotFound, format!("{name} has no GGUF file")).hint(
            "name a repository with GGUF files; a folder of safetensors is served as it is, with --model FOLDER",
        )),
        (_, [only]) => Ok((*only).clone()),
        _ => {
            Err(InferError::new(ErrorCode::Usage, format!("{name} has {} GGUF files: {}", gguf.len(), gguf.join(", ")))
                .hint(format!("name one: hf:{name}:FILE")))
        }
    }
}

fn refused(url: &Url, status: StatusCode) -> InferError {
    let host = url.host_str().unwrap_or_default();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            InferError::new(ErrorCode::Unauthorized, format!("{host} refuses {}: {status}", url.path()))
                .hint("accept the model's terms on its page, and set HF_TOKEN to a token that may read it")
        }
        StatusCode::NOT_FOUND => InferError::new(ErrorCode::NotFound, format!("{host} has no {}", url.path()))
            .hint("check the names; a private repository needs HF_TOKEN"),
        _ => InferError::new(ErrorCode::NoRoute, format!("{host} answers {status} for {}", url.path())),
    }
}

#[cfg(test)]
mod tests;
