//! Talking to the local daemon: its unix socket, else HTTP with a token.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use quelea_wire::ErrorCode;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{args::Global, exit::CliError};
use crate::{home::Home, http, identity, inference::InferError};

/// How long connecting may take: the daemon is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a question other than inference may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A way to the daemon.
pub(super) struct Daemon {
    client: Client,
    base: String,
    token: Option<String>,
    /// How long a document may take.
    timeout: Option<Duration>,
    /// For messages.
    place: String,
}

impl Daemon {
    /// The daemon that the global flags mean.
    pub(super) fn find(global: &Global) -> Result<Self, CliError> {
        let found = Self::place(global)?;
        Ok(Self { timeout: global.timeout, ..found })
    }

    fn place(global: &Global) -> Result<Self, CliError> {
        match global.api.as_deref() {
            Some(api) => match api.strip_prefix("unix:") {
                Some(path) => Self::socket(PathBuf::from(path)),
                None => Self::http(global, api),
            },
            None => Self::socket(home(global)?.socket().map_err(unusable)?),
        }
    }

    fn socket(path: PathBuf) -> Result<Self, CliError> {
        let place = path.display().to_string();
        let client = http::local().unix_socket(path).connect_timeout(CONNECT_TIMEOUT).build();
        Ok(Self {
            client: client.map_err(internal)?,
            base: "http://localhost".into(),
            token: None,
            timeout: None,
            place,
        })
    }

    fn http(global: &Global, url: &str) -> Result<Self, CliError> {
        if !url.starts_with("http://") {
            let message = format!("--api {url:?}: write it like http://127.0.0.1:8469 or unix:/path/to/quelea.sock");
            return Err(CliError::new(ErrorCode::Usage, message));
        }
        let file = match &global.api_token_file {
            Some(file) => file.clone(),
            None if is_here(url) => home(global)?.api_token(),
            // Whoever listens there would have the token of this machine's daemon.
            None => {
                let message = format!("--api {url:?} is another machine, and no token is named for it");
                let error = CliError::new(ErrorCode::Usage, message);
                return Err(
                    error.hint("make one there with 'quelea token create', and name its file with --api-token-file")
                );
            }
        };
        let token = identity::load_token(&file).map_err(|e| CliError::new(ErrorCode::Unauthorized, e.to_string()))?;
        let client = http::local().connect_timeout(CONNECT_TIMEOUT).build().map_err(internal)?;
        let base = url.trim_end_matches('/').to_owned();
        Ok(Self { client, place: base.clone(), base, token: Some(token.to_string()), timeout: None })
    }

    /// `GET` of a JSON document.
    pub(super) async fn get(&self, route: &str) -> Result<Value, CliError> {
        let request = self.client.get(format!("{}{route}", self.base)).timeout(self.timeout.unwrap_or(ANSWER_TIMEOUT));
        let response = self.send(request).await?;
        response.json().await.map_err(|e| self.lost(&e))
    }

    /// `GET` of a document without an end; its body follows as a stream.
    pub(super) async fn stream(&self, route: &str) -> Result<Response, CliError> {
        self.send(self.client.get(format!("{}{route}", self.base))).await
    }

    /// `POST` of a JSON document, for another one.
    pub(super) async fn post(&self, route: &str, body: &impl serde::Serialize) -> Result<Response, CliError> {
        let request = self.client.post(format!("{}{route}", self.base)).json(body);
        self.send(match self.timeout {
            Some(timeout) => request.timeout(timeout),
            None => request,
        })
        .await
    }

    /// `POST` of a JSON document; the answer's body follows as a stream, which takes as long as it takes.
    pub(super) async fn post_stream(&self, route: &str, body: &impl serde::Serialize) -> Result<Response, CliError> {
        self.send(self.client.post(format!("{}{route}", self.base)).json(body)).await
    }

    /// `POST` of bytes.
    pub(super) async fn post_bytes(&self, route: &str, body: Vec<u8>) -> Result<Response, CliError> {
        self.send(self.client.post(format!("{}{route}", self.base)).body(body)).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await.map_err(|e| self.lost(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        match response.json::<Value>().await.ok().and_then(|failure| failed(failure, status)) {
            Some(error) => Err(error.into()),
            None => Err(CliError::new(ErrorCode::Internal, format!("the daemon at {} answers {status}", self.place))),
        }
    }

    /// Reads an answer that comes in lines of JSON, of `most` bytes each at most.
    pub(super) fn lines(&self, response: Response, most: usize) -> Lines<'_> {
        Lines { daemon: self, response, unread: Vec::new(), most }
    }

    /// The connection to the daemon failed.
    pub(super) fn lost(&self, error: &reqwest::Error) -> CliError {
        if error.is_timeout() && !error.is_connect() {
            let message = format!("the daemon at {} has not answered in time", self.place);
            return CliError::new(ErrorCode::DeadlineExceeded, message).hint("--timeout gives it longer, like 60s");
        }
        let message = if error.is_connect() {
            format!("no daemon answers at {}", self.place)
        } else {
            format!("the daemon at {} stopped answering: {error}", self.place)
        };
        CliError::new(ErrorCode::DaemonUnreachable, message)
            .hint("start one with 'quelea daemon', or name its directory with --data-dir")
    }
}

/// What a daemon says line by line.
pub(super) struct Lines<'a> {
    daemon: &'a Daemon,
    response: Response,
    unread: Vec<u8>,
    /// Bytes of a line.
    most: usize,
}

impl Lines<'_> {
    /// The next line; nothing at the end.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CliError> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                // The daemon shows that it is there.
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|e| {
                    CliError::new(ErrorCode::Internal, format!("the daemon's answer is not understood: {e}"))
                });
            }
            if self.unread.len() > self.most {
                return Err(CliError::new(ErrorCode::Internal, "the daemon's answer has a line without end"));
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.unread.extend_from_slice(&bytes),
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.daemon.lost(&error)),
            }
        }
    }
}

/// What an answer of the control API says went wrong, or one of the OpenAI API, whose errors have our code beside theirs.
fn failed(mut failure: Value, status: StatusCode) -> Option<InferError> {
    let error = failure.get_mut("error")?.take();
    if error.get("type").is_none() {
        return serde_json::from_value(error).ok();
    }
    let number = |label: &str| label.strip_prefix("QUE-").and_then(|number| number.parse().ok());
    let ours = error["quelea_code"].as_str().and_then(number).map(ErrorCode::from_u16);
    let code = ours.unwrap_or(match status {
        StatusCode::NOT_FOUND => ErrorCode::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorCode::Unauthorized,
        StatusCode::TOO_MANY_REQUESTS => ErrorCode::Overloaded,
        _ => ErrorCode::Usage,
    });
    let told = InferError::new(code, error["message"].as_str()?);
    // What the API says to do is not what one does here.
    Some(match error["hint"].as_str().filter(|_| ours.is_some()) {
        Some(hint) => told.hint(hint),
        None => told,
    })
}

impl From<InferError> for CliError {
    fn from(error: InferError) -> Self {
        let mut cli = Self::new(error.error_code(), error.message);
        (cli.hint, cli.retryable, cli.cut) = (error.hint, error.retryable, error.cut);
        cli.retry_after_ms = error.retry_after_ms;
        cli
    }
}

/// The data directory that the global flags mean. It is not made: that is the daemon's to do.
pub(super) fn home(global: &Global) -> Result<Home, CliError> {
    Home::locate(global.data_dir.clone()).map_err(unusable)
}

fn internal(error: impl std::fmt::Display) -> CliError {
    CliError::new(ErrorCode::Internal, error.to_string())
}

pub(super) fn unusable(error: impl std::fmt::Display) -> CliError {
    CliError::new(ErrorCode::HomeUnusable, error.to_string())
}

/// Whether a request to a URL goes to this machine: its own name, or an address of loopback. The URL is read by
/// what sends the request, so that both mean the same host, whatever stands before an `@`.
fn is_here(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_here;

    #[test]
    fn only_this_machine_gets_its_token_unasked() {
        // A backslash ends the host, as what sends the request has it.
        for here in [
            "http://127.0.0.1:8469",
            "http://localhost/",
            "http://[::1]:1/api",
            "http://127.8.8.8",
            "http://127.0.0.1\\@example.org",
        ] {
            assert!(is_here(here), "{here}");
        }
        for there in [
            "http://10.0.0.1:8469",
            "http://localhost@example.org/",
            "http://127.0.0.1:8469@example.org",
            "http://[::1]:1@example.org",
            "http://",
            "http://[::2]:1",
            "http://localhost.example.org",
        ] {
            assert!(!is_here(there), "{there}");
        }
    }
}
