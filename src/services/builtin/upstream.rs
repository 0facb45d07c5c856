//! `llm_prompt` and `llm_local`: a server that speaks the `OpenAI` API of chat completions, wherever it is. Ollama, llama.cpp, vLLM
//! and the commercial ones do.
//!
//! What comes from there is as little trusted as what peers send: lines, answers and time are bounded. Its errors are told in our
//! words, because theirs may quote this node's key.

mod events;

use std::{fmt, path::Path, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use quelea_service::Fault;
use quelea_wire::ErrorCode;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use self::events::{Events, Piece};
use super::prompt::{INPUT, OUTPUT, Prompt};
use crate::{
    http,
    inference::InferError,
    services::service::{About, Done, Job, Progress, Service, fault},
};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a server may say nothing: a model of its own may have to be loaded first.
const SILENT: Duration = Duration::from_secs(120);

/// How long the list of models may take.
const MODELS: Duration = Duration::from_secs(10);

/// How long a server of ours may take to say how it is.
const HEALTH: Duration = Duration::from_secs(5);

/// Bytes taken of what it says.
const HEALTH_MAX: usize = 4 << 10;

/// Bytes taken of the list of models.
const MODELS_MAX: usize = 1 << 20;

/// The longest that we say somebody should stay away because a server says so.
const RETRY_MAX_S: u32 = 30;

/// Where a server is, and how it is asked.
#[derive(Clone)]
pub(crate) struct Upstream {
    /// Up to and with `/v1`.
    base: Url,
    /// Sent as a bearer token, and shown nowhere.
    key: Option<Zeroizing<String>>,
    /// The model to ask for; the first that it has, without.
    model: Option<String>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key in the URL is no better than one elsewhere.
        let host = self.base.host_str().unwrap_or_default();
        write!(f, "Upstream({host}, key: {}, model: {:?})", self.key.is_some(), self.model)
    }
}

impl Upstream {
    /// A server at `url`, like `http://127.0.0.1:11434/v1`.
    ///
    /// # Errors
    /// When that is no URL of a web server, or has a name and password in it.
    pub(crate) fn new(url: &str, key: Option<Zeroizing<String>>, model: Option<String>) -> Result<Self, InferError> {
        let wrong = |why: &str| {
            InferError::new(ErrorCode::Usage, format!("the URL of a model's server is wrong: {why}"))
                .hint("write it like http://127.0.0.1:11434/v1")
        };
        let mut base: Url = url.trim_end_matches('/').parse().map_err(|_| wrong("it is no URL"))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(wrong("it is not http:// or https://"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong("a name or password in it would be logged along the way; give a key as a file"));
        }
        if base.path() == "/" {
            base.set_path("/v1");
        }
        if key.as_ref().is_some_and(|key| key.trim().is_empty() || key.chars().any(char::is_control)) {
            return Err(InferError::new(
                ErrorCode::Usage,
                "the key of a model's server is empty, or has control characters",
            ));
        }
        Ok(Self { base, key, model })
    }

    fn route(&self, path: &str) -> String {
        format!("{}/{path}", self.base.as_str().trim_end_matches('/'))
    }
}

/// What the two are called, and cost.
#[derive(Debug, Clone, Copy)]
pub(in crate::services) struct Offer {
    pub(super) price: u64,
    pub(super) at_once: u16,
    pub(super) about: &'static str,
}

pub(in crate::services) struct Remote {
    upstream: Upstream,
    offer: Offer,
    client: Client,
    model: OnceCell<String>,
}

/// What a server of ours says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::services) enum Health {
    /// It answers; while it does, the seconds since something of an answer came.
    Ready {
        silent_s: u64,
    },
    /// It is there, and reads the model.
    Loading,
    Missed,
}

impl Remote {
    pub(super) fn new(upstream: Upstream, offer: Offer) -> Result<Self, InferError> {
        Self::over(upstream, offer, None)
    }

    /// Over this unix socket, where there is one.
    pub(in crate::services) fn over(
        upstream: Upstream,
        offer: Offer,
        socket: Option<&Path>,
    ) -> Result<Self, InferError> {
        let builder = match socket {
            // What listens there comes and goes: a connection is used once.
            Some(socket) => http::local().unix_socket(socket).pool_max_idle_per_host(0),
            None if upstream.base.scheme() == "https" => http::web(),
            None => http::local(),
        };
        // A redirect would take the key, and the prompt, elsewhere.
        let builder = builder.connect_timeout(CONNECT).read_timeout(SILENT).redirect(reqwest::redirect::Policy::none());
        let client = builder.build().map_err(|error| {
            InferError::new(ErrorCode::Internal, format!("no client for a model's server: {error}"))
        })?;
        let model = OnceCell::new_with(upstream.model.clone());
        Ok(Self { upstream, offer, client, model })
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.upstream.key {
            Some(key) => request.bearer_auth(key.trim()),
            None => request,
        }
    }

    /// How a server of ours is: others have no such route, or mean something else by it.
    pub(in crate::services) async fn health(&self) -> Health {
        let mut url = self.upstream.base.clone();
        url.set_path("/health");
        let Ok(response) = self.client.get(url).timeout(HEALTH).send().await else { return Health::Missed };
        let status = response.status();
        let body = bounded(response, HEALTH_MAX).await.ok();
        let said = body.and_then(|body| serde_json::from_slice::<Value>(&body).ok());
        match (status, said) {
            (StatusCode::OK, Some(said)) => Health::Ready { silent_s: said["silent_s"].as_u64().unwrap_or(0) },
            (StatusCode::SERVICE_UNAVAILABLE, Some(said)) if said["status"] == "loading" => Health::Loading,
            _ => Health::Missed,
        }
    }

    /// The model that is asked for.
    async fn model(&self) -> Result<&str, Fault> {
        let first = || async {
            let request = self.with_key(self.client.get(self.upstream.route("models"))).timeout(MODELS);
            let response = request.send().await.map_err(|error| unreached(&error))?;
            let response = checked(response)?;
            let body = bounded(response, MODELS_MAX).await?;
            let list: Value = serde_json::from_slice(&body).map_err(|_| foreign("its list of models is not JSON"))?;
            let id = list["data"][0]["id"].as_str().filter(|id| id.len() <= 256);
            id.map(str::to_owned).ok_or_else(|| foreign("it has no model"))
        };
        self.model.get_or_try_init(first).await.map(String::as_str)
    }

    async fn ask(&self, job: &Job, progress: &Progress) -> Result<Done, Fault> {
        let prompt = Prompt::parse(&job.input)?;
        let model = self.model().await?;
        let mut messages = Vec::new();
        if let Some(system) = &prompt.system {
            messages.push(json!({ "role": "system", "content": system }));
        }
        messages.push(json!({ "role": "user", "content": prompt.prompt }));
        let body = json!({
            "model": model,
            "messages": messages,
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        let request = self.with_key(self.client.post(self.upstream.route("chat/completions"))).json(&body);
        let response = checked(request.send().await.map_err(|error| unreached(&error))?)?;
        let (mut text, mut tokens, mut finished) = (String::new(), None, false);
        let mut events = Events::default();
        let mut bytes = response.bytes_stream();
        while !finished && let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|error| unreached(&error))?;
            for piece in events.take(&chunk)? {
                match piece {
                    Piece::Text(more) => {
                        if text.len().saturating_add(more.len()) > usize::try_from(OUTPUT).unwrap_or(0) / 2 {
                            return Err(foreign("its answer does not end"));
                        }
                        text.push_str(&more);
                        progress.say(more.as_bytes()).await;
                    }
                    Piece::Tokens(count) => tokens = Some(count),
                    Piece::End => finished = true,
                    Piece::Error => return Err(foreign("it stopped in the middle of its answer with an error")),
                }
            }
        }
        if text.is_empty() && !finished {
            return Err(foreign("it ended without an answer"));
        }
        Ok(prompt.answer(model, &text, tokens))
    }
}

impl Service for Remote {
    fn about(&self) -> About {
        About {
            version: 1,
            price: self.offer.price,
            input_max: INPUT,
            output_max: OUTPUT,
            deadline: Duration::from_secs(300),
            at_once: self.offer.at_once,
            queue: 16,
            about: self.offer.about,
        }
    }

    fn call<'a>(&'a self, job: Job, progress: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
        Box::pin(async move { self.ask(&job, progress).await })
    }
}

fn foreign(what: &str) -> Fault {
    fault(ErrorCode::UpstreamFailed, format!("the model's server failed: {what}"))
}

/// Without the URL, which may say more than callers need to know.
fn unreached(error: &reqwest::Error) -> Fault {
    let what = if error.is_connect() {
        "it cannot be reached"
    } else if error.is_timeout() {
        "it did not answer in time"
    } else {
        "the connection to it broke"
    };
    foreign(what)
}

/// What a status means, in our words.
fn checked(response: Response) -> Result<Response, Fault> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let seconds = response.headers().get(reqwest::header::RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => foreign("it does not take this node's key"),
        StatusCode::NOT_FOUND => foreign("it has no such model, or does not speak this API"),
        StatusCode::PAYMENT_REQUIRED => foreign("this node's account there has no credit"),
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
            fault(ErrorCode::ServiceInput, "the model's server does not take this prompt; it may be too long")
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Fault {
            retry_ms: seconds.unwrap_or(1).clamp(1, RETRY_MAX_S) * 1000,
            ..fault(ErrorCode::Overloaded, "the model's server has too much to do")
        },
        status => foreign(&format!("it answered {}", status.as_u16())),
    })
}

async fn bounded(mut response: Response, most: usize) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreached(&error))? {
        if body.len().saturating_add(chunk.len()) > most {
            return Err(foreign("its answer is too long"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
