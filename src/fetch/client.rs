//! One request, its redirects, and the answer.

use std::{
    collections::BTreeMap,
    future::ready,
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures::future::{BoxFuture, FutureExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use url::Url;

use super::{
    FetchError, HOPS, Limits, REQUEST_MAX, TIME_MAX,
    connect::{Internet, Network, line},
    guard::{self, Refused, Target},
};

/// Who we say we are, to everybody.
const AGENT: &str = concat!("quelea/", env!("CARGO_PKG_VERSION"));

/// What of an answer's headers is kept in memory; no server needs more.
const HEAD_MAX: usize = 64 << 10;

/// Headers that whoever asks may set. Nothing that names another host, carries our identity, or speaks to a cloud's metadata
/// service.
const HEADERS: [&str; 7] =
    ["accept", "accept-language", "authorization", "content-type", "if-modified-since", "if-none-match", "x-api-key"];

/// Headers of an answer that are passed on.
const PASSED_ON: [&str; 6] = ["content-type", "content-language", "etag", "last-modified", "retry-after", "date"];

/// What is to be fetched.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FetchRequest {
    pub(crate) url: String,
    #[serde(default)]
    pub(crate) method: Option<String>,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) body: String,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fetched {
    /// Where it was in the end.
    pub(crate) url: String,
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(skip)]
    pub(crate) body: Vec<u8>,
    /// Whether the body went on.
    pub(crate) cut: bool,
}

/// Whether an address may be asked for something.
pub(super) type May<'a> = dyn Fn(Url) -> BoxFuture<'a, Result<(), FetchError>> + Send + Sync + 'a;

/// Fetches. Clones share nothing but certificates.
#[derive(Clone)]
pub(crate) struct Web {
    network: Arc<dyn Network>,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Web")
    }
}

impl Default for Web {
    fn default() -> Self {
        Self { network: Arc::new(Internet::default()) }
    }
}

impl Web {
    #[cfg(test)]
    pub(super) fn over(network: Arc<dyn Network>) -> Self {
        Self { network }
    }

    /// Fetches; `body` is sent in the place of the request's own, if there is one.
    pub(crate) async fn fetch(
        &self,
        request: &FetchRequest,
        body: Option<&[u8]>,
        limits: &Limits,
    ) -> Result<Fetched, FetchError> {
        self.fetch_if(request, body, limits, &|_| ready(Ok(())).boxed()).await
    }

    /// As [`Web::fetch`], where `may` is asked of each address that a redirect leads to before anything is asked for there.
    pub(super) async fn fetch_if(
        &self,
        request: &FetchRequest,
        body: Option<&[u8]>,
        limits: &Limits,
        may: &May<'_>,
    ) -> Result<Fetched, FetchError> {
        let time = limits.time.min(TIME_MAX);
        timeout(time, self.follow(request, body, limits, may)).await.unwrap_or(Err(FetchError::Slow(time)))
    }

    async fn follow(
        &self,
        request: &FetchRequest,
        body: Option<&[u8]>,
        limits: &Limits,
        may: &May<'_>,
    ) -> Result<Fetched, FetchError> {
        let mut method = method(request.method.as_deref().unwrap_or("GET"))?;
        let mut body = Bytes::copy_from_slice(body.unwrap_or(request.body.as_bytes()));
        let mut headers = headers(&request.headers, body.len())?;
        let mut target = guard::target(&request.url, limits)?;
        for _ in 0..=HOPS {
            let response = self.one(&target, &method, &headers, body.clone()).await?;
            let Some(next) = redirected(&target, &response)? else {
                return answer(&target, response, &method, limits).await;
            };
            let next = guard::check(next, limits)?;
            may(next.url.clone()).await?;
            let status = response.status();
            if status == StatusCode::SEE_OTHER || (method == Method::POST && !keeps_method(status)) {
                (method, body) = (if method == Method::HEAD { Method::HEAD } else { Method::GET }, Bytes::new());
                headers.remove(header::CONTENT_TYPE);
            }
            if (&next.host, next.port, next.tls) != (&target.host, target.port, target.tls) {
                // Secrets are for the host that they were given for.
                headers.remove(header::AUTHORIZATION);
                headers.remove("x-api-key");
            }
            target = next;
        }
        Err(FetchError::Redirects)
    }

    async fn one(
        &self,
        target: &Target,
        method: &Method,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, FetchError> {
        let failed = |e: &dyn std::fmt::Display| FetchError::Http { host: target.host.clone(), said: e.to_string() };
        let line = line(&*self.network, target).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .max_headers(100)
            .handshake(TokioIo::new(line))
            .await
            .map_err(|e| failed(&e))?;
        // Ends with the request: one connection for each, and nobody else's.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let path = target.url[url::Position::BeforePath..].to_owned();
        let mut request = Request::builder().method(method).uri(path).body(Full::new(body)).map_err(|e| failed(&e))?;
        *request.headers_mut() = headers.clone();
        let host = target.url[url::Position::BeforeHost..url::Position::AfterPort].to_owned();
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(&host).map_err(|e| failed(&e))?);
        sender.send_request(request).await.map_err(|e| failed(&e))
    }
}

fn method(name: &str) -> Result<Method, Refused> {
    match name.to_ascii_uppercase().as_str() {
        "GET" => Ok(Method::GET),
        "HEAD" => Ok(Method::HEAD),
        "POST" => Ok(Method::POST),
        _ => Err(Refused::Method(name.to_owned())),
    }
}

fn headers(asked: &BTreeMap<String, String>, body: usize) -> Result<HeaderMap, Refused> {
    let mut headers = HeaderMap::new();
    let mut bytes = body;
    for (name, value) in asked {
        bytes = bytes.saturating_add(name.len()).saturating_add(value.len());
        let lower = name.to_ascii_lowercase();
        let refused = || Refused::Header(name.clone());
        if !HEADERS.contains(&lower.as_str()) {
            return Err(refused());
        }
        let name = HeaderName::from_bytes(lower.as_bytes()).map_err(|_| refused())?;
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| refused())?);
    }
    if bytes > REQUEST_MAX {
        return Err(Refused::RequestTooLong(bytes));
    }
    headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

fn keeps_method(status: StatusCode) -> bool {
    matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT)
}

/// Where an answer sends us, if it does.
fn redirected(target: &Target, response: &Response<Incoming>) -> Result<Option<Url>, FetchError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(header::LOCATION) else { return Ok(None) };
    let malformed = |said: String| FetchError::Http { host: target.host.clone(), said };
    let location = location.to_str().map_err(|_| malformed("a redirect that is no text".into()))?;
    Ok(Some(target.url.join(location).map_err(Refused::Malformed)?))
}

/// Reads an answer's body within the limits.
async fn answer(
    target: &Target,
    response: Response<Incoming>,
    method: &Method,
    limits: &Limits,
) -> Result<Fetched, FetchError> {
    let (head, mut body) = response.into_parts();
    let kept = PASSED_ON.iter().filter_map(|name| {
        let value = head.headers.get(*name)?.to_str().ok()?;
        Some(((*name).to_owned(), value.chars().take(512).collect()))
    });
    let mut fetched = Fetched {
        url: target.url.to_string(),
        status: head.status.as_u16(),
        headers: kept.collect(),
        body: Vec::new(),
        cut: false,
    };
    if method == Method::HEAD {
        return Ok(fetched);
    }
    let mut reading = Reading::new(&head.headers, limits.body)?;
    let mut end = Ok(());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| FetchError::Http { host: target.host.clone(), said: e.to_string() })?;
        if let Some(data) = frame.data_ref() {
            end = reading.take(data);
            if end.is_err() {
                break;
            }
        }
    }
    let end = end.and_then(|()| reading.finish());
    match end {
        Ok(()) => {}
        Err(_) if reading.is_full() => {
            if !limits.cut {
                return Err(FetchError::TooLong(limits.body));
            }
            fetched.cut = true;
        }
        Err(error) => return Err(FetchError::Http { host: target.host.clone(), said: error.to_string() }),
    }
    fetched.body = reading.into_body();
    Ok(fetched)
}

/// A buffer that takes so much and no more.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.most.saturating_sub(self.bytes.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.bytes.extend_from_slice(taken);
        if taken.len() < bytes.len() {
            self.full = true;
            return Err(io::Error::other("longer than is taken"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body that is being read. What is compressed is decompressed as it comes, so that a little that would become much ends
/// where the much begins.
enum Reading {
    Plain(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
}

impl Reading {
    fn new(headers: &HeaderMap, most: usize) -> Result<Self, FetchError> {
        let bounded = Bounded { bytes: Vec::new(), most, full: false };
        let encodings: Vec<_> = headers.get_all(header::CONTENT_ENCODING).iter().collect();
        match encodings.as_slice() {
            [] => Ok(Self::Plain(bounded)),
            [one] if one.as_bytes().eq_ignore_ascii_case(b"identity") => Ok(Self::Plain(bounded)),
            [one] if one.as_bytes().eq_ignore_ascii_case(b"gzip") => {
                Ok(Self::Gzip(Box::new(MultiGzDecoder::new(bounded))))
            }
            [one, ..] => Err(FetchError::Encoding(String::from_utf8_lossy(one.as_bytes()).chars().take(32).collect())),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(into) => into.write_all(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(decoder) => decoder.try_finish(),
        }
    }

    fn bounded(&self) -> &Bounded {
        match self {
            Self::Plain(bounded) => bounded,
            Self::Gzip(decoder) => decoder.get_ref(),
        }
    }

    fn is_full(&self) -> bool {
        self.bounded().full
    }

    fn into_body(mut self) -> Vec<u8> {
        match &mut self {
            Self::Plain(bounded) => std::mem::take(&mut bounded.bytes),
            Self::Gzip(decoder) => std::mem::take(&mut decoder.get_mut().bytes),
        }
    }
}
