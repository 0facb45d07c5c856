//! What a request's head gets for an answer. No socket here.

use std::{fmt::Write as _, net::IpAddr, time::SystemTime};

/// Bytes of a request's head; more is answered by 431. As nginx's default for one header line, which browsers live with.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// Headers of a request. Browsers send some twenty.
const MAX_HEADERS: usize = 64;

const NOT_FOUND: &str = "<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n";

/// What visitors find.
pub(super) struct Site {
    page: String,
    /// Of the secret path: compared in constant time.
    path: blake3::Hash,
    /// Whether the operator's own web server stands before us and says who asks.
    proxied: bool,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is the swarm's, and comes from there where a web server stands before us.
    Tunnel {
        /// As that server says.
        forwarded: Option<IpAddr>,
    },
    /// A response, after which the connection goes on or ends.
    Response {
        /// The whole of it.
        bytes: Vec<u8>,
        /// The status.
        status: u16,
        /// Whether another request may follow.
        keep: bool,
    },
}

/// What matters of a request.
struct Head<'a> {
    method: &'a str,
    path: &'a str,
    modern: bool,
    headers: &'a [httparse::Header<'a>],
}

impl Head<'_> {
    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.filter_map(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    }

    /// Whether a header's list has this element.
    fn lists(&self, name: &str, element: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(element))
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name))
    }

    /// Whether it asks for a WebSocket as RFC 6455 says.
    fn is_websocket(&self) -> bool {
        let key = self.all("sec-websocket-key").any(|key| key.len() == 24);
        let version = self.all("sec-websocket-version").any(|version| version == "13");
        self.lists("upgrade", "websocket") && self.lists("connection", "upgrade") && key && version
    }

    /// The last of those whom it is forwarded for: the one that the nearest server saw itself.
    fn forwarded(&self) -> Option<IpAddr> {
        self.all("x-forwarded-for").last()?.rsplit(',').next()?.trim().parse().ok()
    }
}

impl Site {
    pub(super) fn new(page: String, path: String, proxied: bool) -> Self {
        Self { page, path: blake3::hash(path.as_bytes()), proxied }
    }

    /// The answer to a head, which ends in an empty line.
    pub(super) fn answer(&self, head: &[u8]) -> Answer {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(head);
        let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) = (parsed, request.method, request.path)
        else {
            return respond(400, "Bad Request", None, "", false, false);
        };
        let path = target.split('?').next().unwrap_or(target);
        let head = Head { method, path, modern: request.version == Some(1), headers: request.headers };
        if head.modern && head.all("host").count() != 1 {
            return respond(400, "Bad Request", None, "", false, false);
        }
        self.decide(&head)
    }

    fn decide(&self, head: &Head<'_>) -> Answer {
        let only_head = head.method == "HEAD";
        // A body would be taken for the next request.
        let body = head.has("transfer-encoding") || head.all("content-length").any(|length| length != "0");
        let keep = head.modern && !body && !head.lists("connection", "close");
        if head.method != "GET" && !only_head {
            return respond(405, "Method Not Allowed", Some("Allow: GET, HEAD\r\n"), "", false, false);
        }
        let secret = blake3::hash(head.path.as_bytes()) == self.path;
        if head.has("upgrade") {
            if secret && head.method == "GET" && head.modern && head.is_websocket() {
                return self.tunnel(head);
            }
        } else if matches!(head.path, "/" | "/index.html") {
            return respond(200, "OK", None, &self.page, only_head, keep);
        }
        respond(404, "Not Found", None, NOT_FOUND, only_head, keep)
    }

    fn tunnel(&self, head: &Head<'_>) -> Answer {
        match (self.proxied, head.forwarded()) {
            (false, _) => Answer::Tunnel { forwarded: None },
            (true, Some(ip)) => Answer::Tunnel { forwarded: Some(ip) },
            (true, None) => {
                tracing::warn!("the web server before us does not say who asks: have it set X-Forwarded-For");
                respond(400, "Bad Request", None, "", false, false)
            }
        }
    }
}

/// The answer to a head that is longer than [`MAX_HEAD`].
pub(super) fn too_long() -> Answer {
    respond(431, "Request Header Fields Too Large", None, "", false, false)
}

fn respond(status: u16, reason: &str, extra: Option<&str>, body: &str, only_head: bool, keep: bool) -> Answer {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let (extra, connection) = (extra.unwrap_or_default(), if keep { "keep-alive" } else { "close" });
    let mut text = String::new();
    let _ = write!(
        text,
        "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nContent-Type: text/html; charset=utf-8\r\n\
         Content-Length: {}\r\n{extra}Connection: {connection}\r\n\r\n",
        body.len()
    );
    if !only_head {
        text.push_str(body);
    }
    Answer::Response { bytes: text.into_bytes(), status, keep }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UPGRADE: &str = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn site(proxied: bool) -> Site {
        Site::new("<p>hello</p>".into(), "/secret".into(), proxied)
    }

    fn asked(site: &Site, line: &str, headers: &str) -> (u16, String, bool) {
        match site.answer(format!("{line} HTTP/1.1\r\n{headers}\r\n").as_bytes()) {
            Answer::Response { bytes, status, keep } => (status, String::from_utf8(bytes).unwrap(), keep),
            Answer::Tunnel { .. } => (101, String::new(), true),
        }
    }

    #[test]
    fn visitors_see_a_page_and_nothing_else() {
        let site = site(false);
        let (status, text, keep) = asked(&site, "GET /", "Host: a\r\n");
        assert!(status == 200 && keep && text.ends_with("\r\n\r\n<p>hello</p>") && text.contains("text/html"));
        assert!(text.contains("Content-Length: 12\r\n"));
        assert!(asked(&site, "HEAD /", "Host: a\r\n").1.ends_with("\r\n\r\n"));
        assert!(!asked(&site, "GET /", "Host: a\r\nConnection: close\r\n").2);
        for (line, status) in
            [("GET /favicon.ico", 404), ("POST /", 405), ("OPTIONS *", 405), ("GET /index.html?a", 200)]
        {
            assert_eq!(asked(&site, line, "Host: a\r\n").0, status, "{line}");
        }
        assert_eq!(asked(&site, "GET /", "").0, 400, "HTTP/1.1 wants a host");
    }

    /// Without the path, no request tells this server from any other; with it, none but an upgrade.
    #[test]
    fn the_secret_path_shows_to_those_who_upgrade_on_it_only() {
        let site = site(false);
        assert_eq!(asked(&site, "GET /secret", UPGRADE).0, 101);
        let nowhere = asked(&site, "GET /nowhere", "Host: a\r\n");
        assert_eq!(nowhere.0, 404);
        for (line, headers) in [
            ("GET /nowhere", UPGRADE),
            ("GET /", UPGRADE),
            ("GET /secret/", UPGRADE),
            ("GET /secret", "Host: a\r\n"),
            ("GET /secret", "Host: a\r\nUpgrade: websocket\r\n"),
            ("GET /secret", &UPGRADE.replace("13", "8")),
            ("GET /secret", &UPGRADE.replace("dGhl", "")),
        ] {
            let (status, text, keep) = asked(&site, line, headers);
            let without_date = |text: &str| text.lines().filter(|l| !l.starts_with("Date")).collect::<String>();
            assert_eq!((status, keep), (404, true), "{line} {headers}");
            assert_eq!(without_date(&text), without_date(&nowhere.1), "{line} {headers}");
        }
    }

    #[test]
    fn a_web_server_before_us_says_who_asks() {
        let site = site(true);
        let from = |header: &str| site.answer(format!("GET /secret HTTP/1.1\r\n{UPGRADE}{header}\r\n").as_bytes());
        let tunnel = |ip: &str| Answer::Tunnel { forwarded: ip.parse().ok() };
        assert_eq!(from("X-Forwarded-For: 9.9.9.9\r\n"), tunnel("9.9.9.9"));
        assert_eq!(
            from("x-forwarded-for: 127.0.0.1, 9.9.9.9\r\n"),
            tunnel("9.9.9.9"),
            "the nearest saw that one itself"
        );
        assert_eq!(from("X-Forwarded-For: 2001:db8::1\r\n"), tunnel("2001:db8::1"));
        for unsaid in ["", "X-Forwarded-For: unknown\r\n"] {
            assert!(matches!(from(unsaid), Answer::Response { status: 400, .. }), "{unsaid:?}");
        }
    }

    #[test]
    fn a_body_is_not_taken_for_a_request() {
        let smuggled = asked(&site(false), "GET /", "Host: a\r\nContent-Length: 30\r\n");
        assert!(!smuggled.2);
        assert!(!asked(&site(false), "GET /", "Host: a\r\nTransfer-Encoding: chunked\r\n").2);
    }

    proptest! {
        #[test]
        fn anything_gets_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let tunnel = matches!(site(false).answer(&bytes), Answer::Tunnel { .. });
            prop_assert!(!tunnel);
        }
    }
}
