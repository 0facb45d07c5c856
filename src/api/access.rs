//! Who may use the control API over TCP.
//!
//! A request passes in this order: its `Host` is this machine's (a name that somebody rebound to us is not), its `Origin`, if
//! it has one, is this server's own page, its address has not asked too much; then its credential is looked at: the node's
//! own token, one of [`tokens`], or a session of the page ([`sessions`]); and at last whether that may use the route
//! ([`scopes`]).

mod rate;
pub(super) mod scopes;
mod sessions;
mod tokens;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use quelea_wire::ErrorCode;
use rand::TryRngCore as _;
use zeroize::Zeroizing;

use self::{rate::Rate, scopes::Need, sessions::Shown};
pub(crate) use self::{
    scopes::Scope,
    sessions::{CODE_TTL, Sessions},
    tokens::{Token, TokenError, Tokens},
};
use super::failure;
use crate::{identity::IdentityError, inference::InferError};

/// Requests of one address: far above what people and their programs do, far below what costs the node something.
const REQUESTS: (u32, u32) = (2000, 1000);

/// Credentials of one address that were wrong: a burst, and so many a second.
const GUESSES: (u32, u32) = (20, 1);

/// In which writes of the page show their session's second secret.
pub(crate) const CSRF_HEADER: &str = "x-quelea-csrf";

/// 256 random bits in hex.
fn secret() -> Result<Zeroizing<String>, IdentityError> {
    let mut random = Zeroizing::new([0u8; 32]);
    rand::rngs::OsRng.try_fill_bytes(random.as_mut_slice())?;
    Ok(Zeroizing::new(hex::encode(random.as_slice())))
}

/// Whether two hashes are one. `blake3::Hash` compares in constant time; that it is a hash that is compared does the rest.
fn constant(one: &blake3::Hash, other: &blake3::Hash) -> bool {
    one == other
}

/// What credentials there are, and what is allowed without one.
#[derive(Clone)]
pub(crate) struct Access {
    shared: Arc<Shared>,
}

struct Shared {
    /// The hash of the node's own token.
    token: blake3::Hash,
    tokens: Arc<Tokens>,
    sessions: Arc<Sessions>,
    /// Everybody is admin.
    open: bool,
    /// Names besides `localhost` by which this server is asked for.
    hosts: Vec<String>,
    /// Of the session's cookie. Cookies know no ports: two nodes of one machine must not overwrite each other's.
    cookie: String,
    requests: Rate,
    guesses: Rate,
}

/// Who asks, for the routes that want to know. Requests over the unix socket have none: they are this user's.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// What they may do.
    pub(crate) scopes: Vec<Scope>,
    /// The cookie, when it is a session of the page.
    pub(crate) session: Option<String>,
    /// Whether what it has shown is enough to change something.
    pub(crate) writes: bool,
}

impl Caller {
    fn program(scopes: Vec<Scope>) -> Self {
        Self { scopes, session: None, writes: true }
    }
}

impl Access {
    pub(crate) fn new(token: &str, tokens: Arc<Tokens>, sessions: Arc<Sessions>, at: SocketAddr) -> Self {
        let shared = Shared {
            token: blake3::hash(token.as_bytes()),
            tokens,
            sessions,
            open: false,
            hosts: Vec::new(),
            cookie: cookie_name(at),
            requests: Rate::new(REQUESTS.0, REQUESTS.1),
            guesses: Rate::new(GUESSES.0, GUESSES.1),
        };
        Self { shared: Arc::new(shared) }
    }

    /// These names are this server's, too; and whether everybody is admin.
    pub(crate) fn with(mut self, hosts: Vec<String>, open: bool) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.hosts = hosts.into_iter().map(|name| name.to_ascii_lowercase()).collect();
            shared.open = open;
        }
        self
    }

    /// Who this is, by what its headers show. `writes`: whether the request may change something.
    fn caller(&self, headers: &HeaderMap, writes: bool) -> Result<Caller, Refused> {
        let shared = &self.shared;
        if shared.open {
            return Ok(Caller::program(vec![Scope::Admin]));
        }
        if let Some(given) = token_of(headers) {
            if constant(&blake3::hash(given), &shared.token) {
                return Ok(Caller::program(vec![Scope::Admin]));
            }
            let scopes = shared.tokens.scopes_of(given).ok_or(Refused::Wrong)?;
            return Ok(Caller::program(scopes));
        }
        let Some(cookie) = cookie_of(headers, &shared.cookie) else { return Err(Refused::Missing) };
        let csrf = headers.get(CSRF_HEADER).map(HeaderValue::as_bytes);
        match shared.sessions.shown(cookie, csrf, Instant::now()) {
            Shown::Nothing => Err(Refused::Wrong),
            Shown::Cookie if writes => Err(Refused::Csrf),
            shown @ (Shown::Cookie | Shown::Both) => Ok(Caller {
                scopes: vec![Scope::Admin],
                session: Some(cookie.to_owned()),
                writes: shown == Shown::Both,
            }),
        }
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// No credential.
    Missing,
    /// One that is none of ours.
    Wrong,
    /// The cookie alone, for a write.
    Csrf,
}

/// The name of the session's cookie.
pub(crate) fn cookie_name(at: SocketAddr) -> String {
    format!("quelea_session_{}", at.port())
}

/// The cookie as it is set, or taken away.
pub(crate) fn cookie(name: &str, value: Option<&str>) -> String {
    let life = value.map_or(0, |_| sessions::LIFE.as_secs());
    format!("{name}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age={life}", value.unwrap_or_default())
}

fn cookie_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(of, value)| *of == name && !value.is_empty()).map(|(_, value)| value)
}

/// `Authorization: Bearer …`, or `x-api-key: …` as some clients of models have it.
fn token_of(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    // Any other scheme is a wrong credential, not a missing one.
    let bearer = bearer.map(|value| value.strip_prefix(b"Bearer ").unwrap_or_default());
    bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes))
}

/// A page in a browser on this machine reaches loopback, too: names that are not ours are somebody's rebinding.
fn is_ours(headers: &HeaderMap, hosts: &[String]) -> bool {
    let Some(name) = host_of(headers).and_then(name_of) else { return false };
    let name = name.to_ascii_lowercase();
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || ip.is_ok() || hosts.contains(&name)
}

fn host_of(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::HOST).into_iter();
    let host = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(host)
}

/// A host without its port.
fn name_of(host: &str) -> Option<&str> {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => {
            (!name.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
        }
        _ => (!host.is_empty()).then_some(host),
    }
}

/// A request that a page causes says of which origin it is: only our own page's is let through. Browsers that say whether a
/// request crosses sites are believed, too, except for a plain look at the page.
fn is_own_page(method: &Method, headers: &HeaderMap, need: Need) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    let looks = need == Need::Nothing && method == Method::GET;
    if matches!(site, Some("cross-site" | "same-site")) && !looks {
        return false;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Some(host) = host_of(headers) else { return false };
    let origin = origin.to_str().unwrap_or_default();
    origin.split_once("://").is_some_and(|(scheme, of)| matches!(scheme, "http" | "https") && of == host)
}

/// Lets a request through, or says why not.
pub(super) async fn check(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let shared = &access.shared;
    let method = request.method().clone();
    let need = scopes::need(method.as_str(), request.uri().path());
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map_or(IpAddr::from([0, 0, 0, 0]), |at| at.0.ip());
    let refuse = |status: StatusCode, error: InferError| failure(status, &error);
    if !is_ours(request.headers(), &shared.hosts) {
        let error = InferError::new(ErrorCode::Unauthorized, "this server is not asked for by that name")
            .hint("use its address or localhost; --api-host names others");
        return refuse(StatusCode::MISDIRECTED_REQUEST, error);
    }
    if !is_own_page(&method, request.headers(), need) {
        let error = InferError::new(ErrorCode::Unauthorized, "this API answers programs and its own page, no others'");
        return refuse(StatusCode::FORBIDDEN, error);
    }
    let now = Instant::now();
    if !shared.requests.take(from, now) {
        return too_many();
    }
    if need == Need::Nothing {
        let response = next.run(request).await;
        // A code that is wrong is a guess like any other.
        let guessed = response.status() == StatusCode::UNAUTHORIZED;
        return if guessed && !shared.guesses.take(from, now) { too_many() } else { response };
    }
    let writes = !matches!(method, Method::GET | Method::HEAD);
    let caller = match access.caller(request.headers(), writes) {
        Ok(caller) => caller,
        Err(why) => {
            let error = InferError::new(ErrorCode::Unauthorized, ErrorCode::Unauthorized.meaning());
            let (status, hint) = match why {
                Refused::Csrf => (StatusCode::FORBIDDEN, "the session's second secret is missing; log in again"),
                Refused::Missing | Refused::Wrong => (
                    StatusCode::UNAUTHORIZED,
                    "send 'Authorization: Bearer …' with the content of api.token in the data directory, or a token of \
                     'quelea token create'; the page is opened by 'quelea ui'",
                ),
            };
            // Who shows a right one is let in whoever else guesses from there: on loopback that is everybody.
            if why == Refused::Wrong && !shared.guesses.take(from, now) {
                return too_many();
            }
            return refuse(status, error.hint(hint));
        }
    };
    if !need.allows(&caller.scopes) {
        let message = format!("this token may not do that: it needs the scope {}", need.words());
        return refuse(StatusCode::FORBIDDEN, InferError::new(ErrorCode::Unauthorized, message));
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn too_many() -> Response {
    let error = InferError::new(ErrorCode::Overloaded, "too many requests from this address; wait a moment");
    let mut response = failure(StatusCode::TOO_MANY_REQUESTS, &error);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

#[cfg(test)]
mod tests;
