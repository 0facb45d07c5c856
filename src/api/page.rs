//! The web page: files built into the program (`web/dist`), compressed when they are asked for first.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::Write as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use rust_embed::RustEmbed;

use super::ApiState;

#[derive(RustEmbed)]
#[folder = "web/dist/"]
struct Dist;

/// What the page may do: run and show what comes from here, and talk to here. No other page may hold it in a frame.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// On all files, besides the policy.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Files whose name has a hash of what is in them never change.
const FOREVER: &str = "public, max-age=31536000, immutable";

/// Others are asked for again, and mostly answered with 304.
const ASK_AGAIN: &str = "no-cache";

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/", get(async |headers: HeaderMap| file("index.html", &headers)))
        .route("/favicon.svg", get(async |headers: HeaderMap| file("favicon.svg", &headers)))
        .route(
            "/assets/{*name}",
            get(async |Path(name): Path<String>, headers: HeaderMap| file(&format!("assets/{name}"), &headers)),
        )
}

/// A file as it is sent.
struct Ready {
    plain: Bytes,
    /// Smaller, for those who take it.
    gzip: Option<Bytes>,
    etag: HeaderValue,
}

/// Files that were asked for, by name: only names that there are.
fn ready(name: &str) -> Option<Arc<Ready>> {
    static READY: OnceLock<Mutex<HashMap<String, Arc<Ready>>>> = OnceLock::new();
    let all = READY.get_or_init(Mutex::default);
    if let Some(ready) = all.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Some(ready.clone());
    }
    let plain = match Dist::get(name)?.data {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let etag = format!("\"{}\"", &blake3::hash(&plain).to_hex()[..32]);
    let gzip = compressed(&plain).filter(|gzip| gzip.len() < plain.len()).map(Bytes::from);
    let ready = Arc::new(Ready { plain, gzip, etag: HeaderValue::from_str(&etag).ok()? });
    all.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), ready.clone());
    Some(ready)
}

fn compressed(plain: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, end)| end) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        _ => "application/octet-stream",
    }
}

fn file(name: &str, headers: &HeaderMap) -> Response {
    let Some(ready) = ready(name) else { return (StatusCode::NOT_FOUND, "there is no such file").into_response() };
    let says = |name: HeaderName, what: &str| {
        headers.get_all(name).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(what)))
    };
    let same = ready.etag.to_str().is_ok_and(|etag| says(header::IF_NONE_MATCH, etag));
    let mut response = match (&ready.gzip, same) {
        (_, true) => StatusCode::NOT_MODIFIED.into_response(),
        (Some(gzip), _) if says(header::ACCEPT_ENCODING, "gzip") => {
            ([(header::CONTENT_ENCODING, "gzip")], Body::from(gzip.clone())).into_response()
        }
        _ => Body::from(ready.plain.clone()).into_response(),
    };
    let caching = if name.starts_with("assets/") { FOREVER } else { ASK_AGAIN };
    let into = response.headers_mut();
    into.insert(header::ETAG, ready.etag.clone());
    into.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind(name)));
    into.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    into.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    for (name, value) in HEADERS {
        into.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_there_and_names_only_files_that_are() {
        let page = Dist::get("index.html").expect("web/dist is built").data;
        let page = std::str::from_utf8(&page).unwrap();
        let mut named = 0;
        for part in page.split(['"', '\'']).filter_map(|part| part.strip_prefix('/')).filter(|part| part.contains('.'))
        {
            assert!(Dist::get(part).is_some(), "index.html names {part}");
            named += 1;
        }
        assert!(named >= 2, "{page}");
        for outside in ["http://", "https://", "<script>", "<style", "style=", "onload="] {
            assert!(!page.contains(outside), "the policy would refuse {outside}");
        }
    }

    #[test]
    fn files_are_small_on_the_way_and_not_sent_twice() {
        let asked = |name: &str, pairs: &[(HeaderName, &str)]| {
            let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
            file(name, &headers)
        };
        let plain = asked("index.html", &[]);
        assert_eq!(plain.status(), StatusCode::OK);
        assert!(plain.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("default-src 'self'"));
        assert_eq!(plain.headers()[header::CACHE_CONTROL], ASK_AGAIN);
        let etag = plain.headers()[header::ETAG].to_str().unwrap().to_owned();
        let gzip = asked("index.html", &[(header::ACCEPT_ENCODING, "br, gzip")]);
        assert_eq!(gzip.headers()[header::CONTENT_ENCODING], "gzip");
        let known = asked("index.html", &[(header::IF_NONE_MATCH, &etag)]);
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(asked("../Cargo.toml", &[]).status(), StatusCode::NOT_FOUND);
        assert_eq!(asked("assets/../index.html", &[]).status(), StatusCode::NOT_FOUND);
    }
}
