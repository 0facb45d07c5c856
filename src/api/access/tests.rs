use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

fn access() -> (Access, Arc<Tokens>, Arc<Sessions>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Arc::new(Tokens::open(&dir.path().join("tokens")).unwrap());
    let sessions = Arc::new(Sessions::default());
    let access = Access::new("0123abcd", tokens.clone(), sessions.clone(), "127.0.0.1:8469".parse().unwrap());
    (access, tokens, sessions, dir)
}

#[test]
fn only_the_token_opens() {
    let (access, tokens, _, _dir) = access();
    let scopes = |headers: &HeaderMap| access.caller(headers, true).map(|caller| caller.scopes);
    assert_eq!(scopes(&headers(&[("authorization", "Bearer 0123abcd")])), Ok(vec![Scope::Admin]));
    assert_eq!(scopes(&headers(&[("x-api-key", "0123abcd")])), Ok(vec![Scope::Admin]));
    for wrong in ["Bearer 0123abce", "Bearer ", "0123abcd", "Basic 0123abcd", "Bearer 0123abcd0"] {
        assert_eq!(scopes(&headers(&[("authorization", wrong)])), Err(Refused::Wrong), "{wrong}");
    }
    assert_eq!(scopes(&HeaderMap::new()), Err(Refused::Missing));
    let (_, made) = tokens.create("n", vec![Scope::Read, Scope::Infer], None).unwrap();
    let made = headers(&[("authorization", &format!("Bearer {}", made.as_str()))]);
    assert_eq!(scopes(&made), Ok(vec![Scope::Read, Scope::Infer]));
}

#[test]
fn a_cookie_alone_changes_nothing() {
    let (access, _, sessions, _dir) = access();
    let opened = sessions.login(&sessions.code(Instant::now()).unwrap(), Instant::now()).unwrap().unwrap();
    let cookie = format!("other=1; quelea_session_8469={}", opened.cookie);
    let alone = headers(&[("cookie", &cookie)]);
    assert!(access.caller(&alone, false).is_ok());
    assert_eq!(access.caller(&alone, true).unwrap_err(), Refused::Csrf);
    let wrong = headers(&[("cookie", &cookie), (CSRF_HEADER, "00")]);
    assert_eq!(access.caller(&wrong, true).unwrap_err(), Refused::Csrf);
    let both = headers(&[("cookie", &cookie), (CSRF_HEADER, &opened.csrf)]);
    assert_eq!(access.caller(&both, true).unwrap().scopes, [Scope::Admin]);
    // Another node's cookie on the same machine.
    let other = headers(&[("cookie", &format!("quelea_session_9999={}", opened.cookie))]);
    assert_eq!(access.caller(&other, false).unwrap_err(), Refused::Missing);
}

#[test]
fn rebound_names_are_told_from_ours() {
    for host in ["127.0.0.1:8469", "localhost:8469", "[::1]:8469", "127.0.0.1", "LOCALHOST", "[::1]", "192.0.2.1:80"] {
        assert!(is_ours(&headers(&[("host", host)]), &[]), "{host}");
    }
    for host in ["evil.example:8469", "localhost.evil.example", "", ":8469", "127.0.0.1:x", "localhost:8469:1"] {
        assert!(!is_ours(&headers(&[("host", host)]), &[]), "{host}");
    }
    assert!(!is_ours(&HeaderMap::new(), &[]));
    assert!(!is_ours(&headers(&[("host", "localhost"), ("host", "evil.example")]), &[]));
    assert!(is_ours(&headers(&[("host", "Node.lan:1")]), &["node.lan".to_owned()]));
}

#[test]
fn pages_of_others_are_told_from_ours() {
    let own = |method: Method, pairs: &[(&'static str, &str)], need| is_own_page(&method, &headers(pairs), need);
    let host = ("host", "127.0.0.1:8469");
    let read = scopes::need("GET", "/api/v1/status");
    assert!(own(Method::GET, &[host], read));
    assert!(own(Method::POST, &[host, ("origin", "http://127.0.0.1:8469"), ("sec-fetch-site", "same-origin")], read));
    for origin in
        ["http://evil.example", "http://127.0.0.1:1", "null", "", "http://127.0.0.1:8469/", "file://127.0.0.1:8469"]
    {
        assert!(!own(Method::GET, &[host, ("origin", origin)], read), "{origin}");
    }
    for site in ["cross-site", "same-site"] {
        assert!(!own(Method::GET, &[host, ("sec-fetch-site", site)], read), "{site}");
        // A link to the page from elsewhere is no harm.
        assert!(own(Method::GET, &[host, ("sec-fetch-site", site)], Need::Nothing), "{site}");
        assert!(!own(Method::POST, &[host, ("sec-fetch-site", site)], Need::Nothing), "{site}");
    }
}
