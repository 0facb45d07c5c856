//! Getting in: one-time codes, sessions of the page, and tokens for programs.
//!
//! | route | body | does |
//! |---|---|---|
//! | `POST /api/v1/login/code` | – | a code that opens the page once, within five minutes, and the page's address with it |
//! | `POST /api/v1/login` | `code` | opens a session: a cookie, and `csrf`, which writes show as `x-quelea-csrf` |
//! | `GET /api/v1/session` | – | what the caller may do |
//! | `POST /api/v1/logout` | – | ends the session |
//! | `GET /api/v1/tokens` | – | the tokens there are, without their secrets |
//! | `POST /api/v1/tokens` | `name`, `scopes`, `expires_s` | makes one; the answer alone has its secret |
//! | `POST /api/v1/tokens/revoke` | `token`: an id, or a name that only one has | takes it back |

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    ApiState,
    access::{self, CODE_TTL, Caller, Scope, Sessions, Token, TokenError, Tokens},
    failure, parse, refuse,
    shape::{self, Failure, List, answers, seconds},
};
use crate::{identity::IdentityError, inference::InferError};

/// The longest that a token may be told to hold: ten years.
const LIFETIME_MAX_S: u64 = 10 * 365 * 24 * 3600;

/// What getting in needs.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) sessions: Arc<Sessions>,
    /// Where the page is served.
    pub(crate) at: SocketAddr,
    /// Nobody needs to show anything.
    pub(crate) open: bool,
    /// Whether there is a page to get into.
    pub(crate) page: bool,
}

impl Door {
    /// The page's address, for a browser on this machine.
    pub(crate) fn url(&self) -> String {
        let mut at = self.at;
        if at.ip().is_unspecified() {
            let loopback: std::net::IpAddr =
                if at.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
            at.set_ip(loopback);
        }
        format!("http://{at}/")
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(code, login, session, logout, list, create, revoke))]
pub(super) struct Described;

answers! {
    /// A code that opens the page once.
    LoginCode = "quelea.login_code/v1" { code: String, url: String, expires_s: u64, }

    /// What writes of the session show as `x-quelea-csrf`; its cookie is in a header.
    LoggedIn = "quelea.login/v1" { csrf: String, }

    /// What the caller may do.
    Session = "quelea.session/v1" { scopes: Vec<Scope>, session: bool, writes: bool, open: bool, }

    LoggedOut = "quelea.logout/v1" {}

    /// A token without its secret.
    TokenItem { id: String, name: String, scopes: Vec<Scope>, created_at_s: f64, expires_at_s: Option<f64>, }

    /// A new token; its secret is told here only.
    TokenMade = "quelea.token/v1" {
        id: String, name: String, scopes: Vec<Scope>, created_at_s: f64, expires_at_s: Option<f64>, token: String,
    }

    TokenRevoked = "quelea.token_revoke/v1" {
        id: String, name: String, scopes: Vec<Scope>, created_at_s: f64, expires_at_s: Option<f64>,
    }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/login", post(login))
        .route("/api/v1/login/code", post(code))
        .route("/api/v1/session", get(session))
        .route("/api/v1/logout", post(logout))
        .route("/api/v1/tokens", get(list).post(create))
        .route("/api/v1/tokens/revoke", post(revoke))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LoginRequest)]
struct Login {
    code: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TokenRequest)]
struct Create {
    name: String,
    #[schema(value_type = Vec<Scope>)]
    scopes: Vec<String>,
    #[serde(default)]
    expires_s: Option<u64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RevokeRequest)]
struct Revoke {
    /// An id, or a name that only one has.
    token: String,
}

/// Makes a code that opens the page once, within five minutes.
#[utoipa::path(post, path = "/api/v1/login/code", responses((status = 200, body = LoginCode)))]
async fn code(State(state): State<ApiState>) -> Response {
    if !state.door.page {
        let error = InferError::new(ErrorCode::NotFound, "this node serves no page");
        return refuse(&error.hint("it was started with --no-ui; commands and the API work").not_retryable());
    }
    match state.door.sessions.code(Instant::now()) {
        Ok(code) => {
            let url = format!("{}#login={code}", state.door.url());
            Json(json!({
                "schema": "quelea.login_code/v1", "code": code, "url": url, "expires_s": CODE_TTL.as_secs(),
            }))
            .into_response()
        }
        Err(error) => refuse(&unlucky(&error)),
    }
}

/// Opens a session of the page: a cookie, and a second secret for writes.
#[utoipa::path(post, path = "/api/v1/login", request_body = Login, responses((status = 200, body = LoggedIn)))]
async fn login(State(state): State<ApiState>, body: Bytes) -> Response {
    let Login { code } = match parse(&body) {
        Ok(login) => login,
        Err(error) => return refuse(&error),
    };
    match state.door.sessions.login(&code, Instant::now()) {
        Ok(Some(opened)) => {
            let cookie = access::cookie(&access::cookie_name(state.door.at), Some(&opened.cookie));
            let answer = Json(json!({ "schema": "quelea.login/v1", "csrf": opened.csrf }));
            with_cookie(answer.into_response(), &cookie)
        }
        Ok(None) => {
            let error = InferError::new(ErrorCode::Unauthorized, "this code was used already, is too old, or is none")
                .hint("'quelea ui' makes a new one");
            failure(StatusCode::UNAUTHORIZED, &error)
        }
        Err(error) => refuse(&unlucky(&error)),
    }
}

/// What the caller may do.
#[utoipa::path(get, path = "/api/v1/session", responses((status = 200, body = Session)))]
async fn session(State(state): State<ApiState>, caller: Option<Extension<Caller>>) -> Json<Value> {
    let caller = caller.map(|Extension(caller)| caller);
    Json(json!({
        "schema": "quelea.session/v1",
        "scopes": caller.as_ref().map_or(vec![Scope::Admin], |caller| caller.scopes.clone()),
        "session": caller.as_ref().is_some_and(|caller| caller.session.is_some()),
        "writes": caller.is_none_or(|caller| caller.writes),
        "open": state.door.open,
    }))
}

/// Ends the session.
#[utoipa::path(post, path = "/api/v1/logout", responses((status = 200, body = LoggedOut)))]
async fn logout(State(state): State<ApiState>, caller: Option<Extension<Caller>>) -> Response {
    if let Some(cookie) = caller.and_then(|Extension(caller)| caller.session) {
        state.door.sessions.logout(&cookie);
    }
    let cookie = access::cookie(&access::cookie_name(state.door.at), None);
    with_cookie(Json(json!({ "schema": "quelea.logout/v1" })).into_response(), &cookie)
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

/// The tokens there are, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", responses((status = 200, body = List<TokenItem>)))]
async fn list(State(state): State<ApiState>) -> Json<Value> {
    Json(shape::list("quelea.tokens/v1", state.door.tokens.list().iter().map(shown).collect()))
}

/// Makes a token.
#[utoipa::path(post, path = "/api/v1/tokens", request_body = Create, responses((status = 201, body = TokenMade)))]
async fn create(State(state): State<ApiState>, body: Bytes) -> Response {
    let made = async {
        let Create { name, scopes, expires_s } = parse(&body)?;
        let scopes = scopes.iter().map(|scope| scope.parse()).collect::<Result<Vec<Scope>, String>>();
        let scopes = scopes.map_err(|message| InferError::new(ErrorCode::Usage, message))?;
        if expires_s.is_some_and(|seconds| seconds == 0 || seconds > LIFETIME_MAX_S) {
            return Err(InferError::new(ErrorCode::Usage, "expires_s: 1 second to 10 years"));
        }
        let tokens = state.door.tokens.clone();
        off_loop(move || tokens.create(&name, scopes, expires_s.map(|seconds| seconds * 1000))).await
    };
    match made.await {
        Ok((token, secret)) => {
            let mut answer = shown(&token);
            answer["schema"] = json!("quelea.token/v1");
            answer["token"] = json!(secret.as_str());
            (StatusCode::CREATED, Json(answer)).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// Takes a token back.
#[utoipa::path(
    post, path = "/api/v1/tokens/revoke",
    request_body = Revoke,
    responses((status = 200, body = TokenRevoked), (status = 404, body = Failure, description = "there is none"))
)]
async fn revoke(State(state): State<ApiState>, body: Bytes) -> Response {
    let gone = async {
        let Revoke { token } = parse(&body)?;
        let tokens = state.door.tokens.clone();
        off_loop(move || tokens.revoke(&token)).await
    };
    match gone.await {
        Ok(token) => {
            let mut answer = shown(&token);
            answer["schema"] = json!("quelea.token_revoke/v1");
            Json(answer).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// What waits for the disk.
async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, InferError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?.map_err(|e| explain(&e))
}

/// What went wrong with tokens, as commands and the API say it.
pub(crate) fn explain(error: &TokenError) -> InferError {
    let code = match error {
        TokenError::File(_) | TokenError::Damaged(..) => ErrorCode::StorageFailed,
        TokenError::Unknown(_) => ErrorCode::NotFound,
        TokenError::Full | TokenError::Name | TokenError::NoScope => ErrorCode::Usage,
    };
    InferError::new(code, error.to_string())
}

fn unlucky(error: &IdentityError) -> InferError {
    InferError::new(ErrorCode::Internal, error.to_string())
}

/// A token without what opens anything.
pub(crate) fn shown(token: &Token) -> Value {
    json!({
        "id": token.id,
        "name": token.name,
        "scopes": token.scopes,
        "created_at_s": seconds(token.created_ms),
        "expires_at_s": token.expires_ms.map(seconds),
    })
}
