//! The table of what must not be fetched, and of what must: against a server and a resolver of this test's own.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    FetchError, Hosts, Limits,
    address::is_public,
    client::{FetchRequest, Fetched, Web},
    connect::{Later, Line, Network},
    listed,
};

/// A public address; the test's network leads it to the test's server.
const PUBLIC: &str = "93.184.215.14";

/// What was connected to: the address, and the name for TLS.
type Connected = Arc<Mutex<Vec<(SocketAddr, String)>>>;

/// A network whose names lead where the test says, and whose public addresses all lead to one server on this machine.
#[derive(Clone)]
struct Lab {
    /// Answers in order; the last one stays.
    names: Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>,
    looked_up: Arc<Mutex<Vec<String>>>,
    connected: Connected,
    server: SocketAddr,
}

impl Network for Lab {
    fn resolve<'a>(&'a self, host: &'a str, _: u16) -> Later<'a, Vec<IpAddr>> {
        self.looked_up.lock().unwrap().push(host.to_owned());
        let mut names = self.names.lock().unwrap();
        let answer = names.get_mut(host).map(|all| if all.len() > 1 { all.remove(0) } else { all[0].clone() });
        Box::pin(async move { answer.ok_or_else(|| std::io::ErrorKind::NotFound.into()) })
    }

    fn connect<'a>(&'a self, to: SocketAddr, host: &'a str, _: bool) -> Later<'a, Box<dyn Line>> {
        self.connected.lock().unwrap().push((to, host.to_owned()));
        Box::pin(async move { Ok(Box::new(TcpStream::connect(self.server).await?) as Box<dyn Line>) })
    }
}

impl Lab {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        let lab = Self { names: Arc::default(), looked_up: Arc::default(), connected: Arc::default(), server };
        for host in ["example.org", "www.example.org", "other.example.net", "xn--bcher-kva.example"] {
            lab.name(host, &[&[PUBLIC]]);
        }
        lab
    }

    fn name(&self, host: &str, answers: &[&[&str]]) {
        let answers = answers.iter().map(|one| one.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
        self.names.lock().unwrap().insert(host.into(), answers);
    }

    async fn get(&self, url: &str, limits: &Limits) -> Result<Fetched, FetchError> {
        let request = FetchRequest { url: url.into(), ..FetchRequest::default() };
        Web::over(Arc::new(self.clone())).fetch(&request, None, limits).await
    }

    fn connections(&self) -> usize {
        self.connected.lock().unwrap().len()
    }
}

/// Something of a request's first line, after `?`.
fn query(path: &str) -> BTreeMap<String, String> {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One request; the path says what the answer is.
async fn serve(mut stream: TcpStream) {
    let mut request = Vec::new();
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut some = [0; 1024];
        match stream.read(&mut some).await {
            Ok(read) if read > 0 => request.extend_from_slice(&some[..read]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
    let asked = query(&path);
    let plain = |body: &[u8], more: &str| {
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{more}content-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let answer = match path.split('?').next().unwrap_or_default() {
        "/to" => {
            let code = asked.get("code").map_or("302", String::as_str);
            format!("HTTP/1.1 {code} Go\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", asked["to"]).into_bytes()
        }
        // What the request was, as it came.
        "/echo" => plain(request.as_bytes(), ""),
        "/gzip" => plain(&gzip(b"compressed"), "content-encoding: gzip\r\n"),
        // A gigabyte of zeros in a megabyte: members one after the other, as gzip allows.
        "/bomb" => {
            let bomb = gzip(&vec![0; 4 << 20]);
            let all: Vec<u8> = bomb.iter().copied().cycle().take(bomb.len() * 256).collect();
            plain(&all, "content-encoding: gzip\r\n")
        }
        "/br" => plain(b"?", "content-encoding: br\r\n"),
        "/layers" => plain(&gzip(&gzip(b"x")), "content-encoding: gzip\r\ncontent-encoding: gzip\r\n"),
        "/promise" => b"HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\nonly this".to_vec(),
        "/garbage" => b"\x16\x03\x01 this is no HTTP\r\n\r\n".to_vec(),
        "/headers" => format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes(),
        "/fields" => format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(10_000)).into_bytes(),
        "/endless" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
            return;
        }
        "/loris" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            return;
        }
        "/silent" => {
            let mut nothing = [0; 1];
            let _ = stream.read(&mut nothing).await;
            return;
        }
        _ => plain(b"hello", ""),
    };
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
}

/// Addresses that are refused before anything is looked up.
const SPELT: [&str; 56] = [
    // IPv4 as it is, and as numbers may be written.
    "https://127.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0X7F.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://0177.0x0.0.1/",
    "https://127.0.0.1./",
    "https://%31%32%37.0.0.1/",
    "https://１２７.０.０.１/",
    "https://①②⑦.⓪.⓪.①/",
    "https://127。0。0。1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.0.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://2852039166/",
    "https://0xa9fea9fe/",
    "https://0251.0376.0251.0376/",
    "https://255.255.255.255/",
    // A public one, too: addresses have no name to check.
    "https://93.184.215.14/",
    // IPv6, and IPv4 within it.
    "https://[::1]/",
    "https://[::]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::169.254.169.254]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    // Names of this machine and of private networks.
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://x.localhost/",
    "https://ⓛocalhost/",
    "https://router/",
    "https://printer.local/",
    "https://metadata.google.internal/computeMetadata/v1/",
    "https://nas.home.arpa/",
    "https://example.org./",
    // Not https, not 443, not only a host.
    "http://example.org/",
    "file:///etc/passwd",
    "gopher://example.org/_",
    "https://user@example.org/",
    "https://example.org@127.0.0.1/",
    "https://example.org:22/",
];

/// Addresses that a name must not lead to.
const PRIVATE: [&str; 30] = [
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "168.63.129.16",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:93.184.215.14",
    "64:ff9b::5db8:d70e",
    "2002:5db8:d70e::1",
    "2001:0:1::1",
    "fc00::1",
    "fe80::1",
    "ff02::1",
];

#[tokio::test]
async fn no_spelling_of_a_private_address_is_fetched_or_even_looked_up() {
    let lab = Lab::new().await;
    for url in SPELT {
        let refused = lab.get(url, &Limits::default()).await;
        assert!(matches!(refused, Err(FetchError::Refused(_))), "{url}: {refused:?}");
    }
    assert!(lab.looked_up.lock().unwrap().is_empty() && lab.connections() == 0);
}

#[tokio::test]
async fn no_name_leads_to_a_private_address() {
    let lab = Lab::new().await;
    for ip in PRIVATE {
        assert!(!is_public(ip.parse().unwrap()), "{ip}");
        // Alone; after a public one; before it. A name's other name is in what the resolver says.
        for answers in [&[ip][..], &[PUBLIC, ip], &[ip, PUBLIC]] {
            lab.name("trap.example.org", &[answers]);
            let refused = lab.get("https://trap.example.org/", &Limits::default()).await;
            assert!(matches!(refused, Err(FetchError::NotPublic { .. })), "{answers:?}: {refused:?}");
        }
    }
    lab.name("nothing.example.org", &[&[]]);
    let nothing = lab.get("https://nothing.example.org/", &Limits::default()).await;
    assert!(matches!(nothing, Err(FetchError::Unresolved { .. })));
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn no_redirect_leads_there_either() {
    let lab = Lab::new().await;
    lab.name("inside.example.org", &[&["10.0.0.7"]]);
    let targets = [
        "https://127.0.0.1/",
        "https://169.254.169.254/latest/",
        "http://example.org/",
        "https://[::1]/",
        "https://localhost/",
        "https://inside.example.org/",
        "//2130706433/",
        "file:///etc/passwd",
        "https://example.org:8443/",
        "https://u:p@example.org/",
    ];
    for code in ["301", "302", "303", "307", "308"] {
        for target in targets {
            let mut url = url::Url::parse("https://example.org/to").unwrap();
            url.query_pairs_mut().append_pair("code", code).append_pair("to", target);
            let before = lab.connections();
            let refused = lab.get(url.as_str(), &Limits::default()).await;
            let held = matches!(refused, Err(FetchError::Refused(_) | FetchError::NotPublic { .. }));
            assert!(held, "{code} to {target}: {refused:?}");
            assert_eq!(lab.connections(), before + 1, "{code} to {target}");
        }
    }
    // In circles.
    let circle = lab.get("https://example.org/to?to=%2Fto%3Fto%3D%252F", &Limits::default()).await;
    assert_eq!(circle.unwrap().body, b"hello");
    let mut long = "/".to_owned();
    for _ in 0..5 {
        long = format!("/to?to={}", url::form_urlencoded::byte_serialize(long.as_bytes()).collect::<String>());
    }
    let long = lab.get(&format!("https://example.org{long}"), &Limits::default()).await;
    assert!(matches!(long, Err(FetchError::Redirects)), "{long:?}");
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_what_was_checked_is_connected_to() {
    let lab = Lab::new().await;
    // Public at first, private at once after.
    lab.name("rebind.example.org", &[&[PUBLIC], &["127.0.0.1"]]);
    assert_eq!(lab.get("https://rebind.example.org/", &Limits::default()).await.unwrap().body, b"hello");
    assert_eq!(*lab.looked_up.lock().unwrap(), ["rebind.example.org"]);
    let connected = lab.connected.lock().unwrap().clone();
    assert_eq!(connected, [(format!("{PUBLIC}:443").parse().unwrap(), "rebind.example.org".to_owned())]);
    // A second fetch, or a redirect to the same name, is checked anew.
    let again = lab.get("https://rebind.example.org/", &Limits::default()).await;
    assert!(matches!(again, Err(FetchError::NotPublic { .. })));
    lab.name("rebind.example.org", &[&[PUBLIC], &["127.0.0.1"]]);
    let limits = Limits::default();
    let hop = lab.get("https://rebind.example.org/to?to=https%3A%2F%2Frebind.example.org%2Fsecret", &limits).await;
    assert!(matches!(hop, Err(FetchError::NotPublic { .. })));
    assert_eq!(lab.connections(), 2);
}

#[tokio::test]
async fn bodies_end_where_the_limits_are() {
    let lab = Lab::new().await;
    let get = async |path: &str| lab.get(&format!("https://example.org{path}"), &Limits::default()).await;
    assert!(matches!(get("/endless").await, Err(FetchError::TooLong(_))));
    assert!(matches!(get("/bomb").await, Err(FetchError::TooLong(_))));
    assert!(matches!(get("/br").await, Err(FetchError::Encoding(_))));
    assert!(matches!(get("/layers").await, Err(FetchError::Encoding(_))));
    for path in ["/promise", "/garbage", "/headers", "/fields"] {
        let got = get(path).await;
        assert!(matches!(got, Err(FetchError::Http { .. })), "{path}: {got:?}");
    }
    let cut = Limits { cut: true, body: 1_000, ..Limits::default() };
    for path in ["/endless", "/bomb"] {
        let got = lab.get(&format!("https://example.org{path}"), &cut).await.unwrap();
        assert!(got.cut && got.body.len() == 1_000, "{path}");
    }
    // Time: slow and silent servers, redirects among it.
    let quick = Limits { time: Duration::from_millis(300), ..Limits::default() };
    for path in ["/loris", "/silent", "/to?to=/loris"] {
        let started = Instant::now();
        let got = lab.get(&format!("https://example.org{path}"), &quick).await;
        assert!(matches!(got, Err(FetchError::Slow(_))), "{path}: {got:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "{path}");
    }
}

#[tokio::test]
async fn what_is_legitimate_is_fetched() {
    let lab = Lab::new().await;
    lab.name("six.example.org", &[&["2606:2800:21f:cb07:6820:80da:af6b:8b2c", PUBLIC]]);
    let limits = Limits { ports: vec![8443], ..Limits::default() };
    for (url, body) in [
        ("https://example.org/", "hello"),
        ("https://EXAMPLE.org/", "hello"),
        ("https://example.org", "hello"),
        ("https://www.example.org/a/b?c=d#e", "hello"),
        ("https://example.org:443/", "hello"),
        ("https://example.org:8443/", "hello"),
        ("https://six.example.org/", "hello"),
        ("https://bücher.example/", "hello"),
        ("https://example.org/gzip", "compressed"),
        ("https://example.org/to?to=/", "hello"),
        ("https://example.org/to?code=301&to=https%3A%2F%2Fother.example.net%2F", "hello"),
        ("https://example.org/to?code=308&to=//www.example.org/x", "hello"),
    ] {
        let got = lab.get(url, &limits).await;
        assert_eq!(got.unwrap_or_else(|e| panic!("{url}: {e}")).body, body.as_bytes(), "{url}");
    }
    let http = Limits { http: true, ..Limits::default() };
    assert_eq!(lab.get("http://example.org/", &http).await.unwrap().body, b"hello");
    assert_eq!(lab.connected.lock().unwrap().last().unwrap().0.port(), 80);
}

#[tokio::test]
async fn only_listed_hosts_and_harmless_headers() {
    let lab = Lab::new().await;
    let only = |hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| listed(host).unwrap()).collect();
        Limits { hosts: Hosts::Only(hosts), ..Limits::default() }
    };
    let may = async |url: &str, hosts: &[&str]| lab.get(url, &only(hosts)).await.is_ok();
    assert!(may("https://example.org/", &["EXAMPLE.org"]).await);
    assert!(may("https://www.example.org/", &["*.example.org"]).await);
    for (url, hosts) in [
        ("https://www.example.org/", &["example.org"][..]),
        ("https://example.org/", &["*.example.org"]),
        ("https://a.b.example.org/", &["*.example.org"]),
        ("https://other.example.net/", &["example.org"]),
        ("https://example.org/", &[]),
        ("https://example.org/to?to=https%3A%2F%2Fother.example.net%2F", &["example.org"]),
    ] {
        assert!(!may(url, hosts).await, "{url} {hosts:?}");
    }
    for name in ["localhost", "*.local", "10.0.0.1", "router", "", "*", "a b.org"] {
        assert_eq!(listed(name).is_ok(), name == "*", "{name}");
    }

    let web = Web::over(Arc::new(lab.clone()));
    let ask = async |headers: &[(&str, &str)], method: &str, url: &str| {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = FetchRequest { url: url.into(), method: Some(method.into()), headers, body: "body".into() };
        web.fetch(&request, None, &Limits::default()).await
    };
    let url = "https://example.org/echo";
    for name in [
        "Host",
        "Cookie",
        "Metadata-Flavor",
        "X-aws-ec2-metadata-token",
        "Transfer-Encoding",
        "Connection",
        "User-Agent",
    ] {
        assert!(ask(&[(name, "x")], "GET", url).await.is_err(), "{name}");
    }
    for value in ["a\r\nHost: x", "a\0b"] {
        assert!(ask(&[("accept", value)], "GET", url).await.is_err(), "{value:?}");
    }
    for method in ["CONNECT", "PUT", "TRACE", "GET / HTTP/1.1\r\nx: y\r\n\r\n"] {
        assert!(ask(&[], method, url).await.is_err(), "{method}");
    }
    assert!(ask(&[("accept", &"x".repeat(70_000))], "GET", url).await.is_err());
    let sent = ask(&[("Authorization", "Bearer secret"), ("accept", "text/plain")], "POST", url).await.unwrap();
    let sent = String::from_utf8(sent.body).unwrap();
    assert!(sent.starts_with("POST /echo HTTP/1.1\r\n") && sent.contains("host: example.org\r\n"), "{sent}");
    assert!(sent.contains("user-agent: quelea/") && sent.contains("authorization: Bearer secret"), "{sent}");
    assert!(!sent.to_lowercase().contains("cookie"), "{sent}");
    // Secrets stay with the host that they were for; a redirect of a POST becomes a GET without its body.
    let there = "https://example.org/to?to=https%3A%2F%2Fother.example.net%2Fecho";
    let sent = ask(&[("Authorization", "Bearer secret")], "POST", there).await.unwrap();
    let sent = String::from_utf8(sent.body).unwrap();
    assert!(sent.starts_with("GET /echo") && !sent.contains("secret") && !sent.contains("content-length: 4"), "{sent}");
}
