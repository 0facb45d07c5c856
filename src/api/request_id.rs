//! Names of requests, by which a client, the log and the operator mean the same one.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument as _;

/// The longest that a client may give.
const LONGEST: usize = 128;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id comes back: the client's own, where it is a plain word, or one that is made here.
pub(super) async fn name(request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let plain = |id: &&str| !id.is_empty() && id.len() <= LONGEST && id.bytes().all(|b| b.is_ascii_graphic());
    let id = given.filter(plain).map_or_else(|| made("req_"), str::to_owned);
    // Its log lines have it. At the level of errors, so that no filter that shows a line takes it away.
    let log = tracing::error_span!("http", request_id = %id);
    let mut response = next.run(request).instrument(log).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// An id that nothing else has.
pub(super) fn made(prefix: &str) -> String {
    format!("{prefix}{}", hex::encode(rand::random::<[u8; 12]>()))
}
