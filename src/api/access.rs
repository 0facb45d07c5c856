//! Who may use the control API over TCP.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::Response,
};
use quelea_wire::ErrorCode;

use super::failure;
use crate::inference::InferError;

/// What a request must show.
#[derive(Clone)]
pub(super) struct Guard {
    /// The hash of the token: hashes are compared, so that the time it takes says nothing about the token.
    token: Arc<blake3::Hash>,
}

impl Guard {
    pub(super) fn new(token: &str) -> Self {
        Self { token: Arc::new(blake3::hash(token.as_bytes())) }
    }

    /// `blake3::Hash` compares in constant time.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let given = given.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
        given.is_some_and(|token| blake3::hash(token) == *self.token)
    }
}

/// A page in a browser on this machine reaches loopback, too: names other than loopback's are somebody's rebinding, and a
/// request with an Origin comes from a page, of which there is none of ours.
fn is_local(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    (name == "localhost" || ip.is_ok()) && !headers.contains_key(header::ORIGIN)
}

/// Lets a request through, or says why not.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if !is_local(request.headers()) {
        let error = InferError::new(ErrorCode::Unauthorized, "this API answers programs on this machine, not pages");
        return failure(StatusCode::FORBIDDEN, &error);
    }
    if !guard.admits(request.headers()) {
        let error = InferError::new(ErrorCode::Unauthorized, ErrorCode::Unauthorized.meaning())
            .hint("send 'Authorization: Bearer …' with the content of api.token in the data directory");
        return failure(StatusCode::UNAUTHORIZED, &error);
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_token_opens() {
        let guard = Guard::new("0123abcd");
        assert!(guard.admits(&headers(&[(header::AUTHORIZATION, "Bearer 0123abcd")])));
        for wrong in ["Bearer 0123abce", "Bearer ", "0123abcd", "Basic 0123abcd", "Bearer 0123abcd0"] {
            assert!(!guard.admits(&headers(&[(header::AUTHORIZATION, wrong)])), "{wrong}");
        }
        assert!(!guard.admits(&HeaderMap::new()));
    }

    #[test]
    fn pages_and_rebound_names_are_told_apart() {
        for host in ["127.0.0.1:8469", "localhost:8469", "[::1]:8469"] {
            assert!(is_local(&headers(&[(header::HOST, host)])), "{host}");
        }
        assert!(!is_local(&headers(&[(header::HOST, "evil.example:8469")])));
        assert!(!is_local(&headers(&[(header::HOST, "127.0.0.1:8469"), (header::ORIGIN, "http://evil.example")])));
    }
}
