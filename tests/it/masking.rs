//! Masked nodes: what a visitor sees, what the wire shows, and that the swarm works all the same.

use std::{path::Path, sync::Arc};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use futures_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use super::harness::{DEMO, Daemon, Launch, PATIENCE, quelea, tempdir, until};

mod capture;

/// What nobody may see.
const MARKERS: [&str; 5] = ["multistream", "/noise", "/yamux", "libp2p", "quelea"];

/// An authority of our own, and a certificate of it for this machine.
struct Certificates {
    dir: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let certs = Self { dir: tempdir() };
        certs.make();
        certs
    }

    /// Makes new ones in place of those that are there.
    fn make(&self) {
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let cert = CertificateParams::new(names).unwrap().signed_by(&key, &ca, &ca_key).unwrap();
        for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A node with a front of its own.
    fn front(&self) -> Launch {
        let (ca, cert, key) = (self.file("ca.pem"), self.file("cert.pem"), self.file("key.pem"));
        let trust = ["--masking", "--masking-ca", ca.as_str()];
        Launch::new().args(&trust).args(&["--masking-cert", cert.as_str(), "--masking-key", key.as_str()])
    }

    /// What a client of the web that trusts the authority gets at `addr` for `request`, until the server closes or has
    /// answered an upgrade. Agrees on `alpn` if there is any.
    async fn visit(&self, addr: &str, alpn: &[&str], request: &str) -> (String, Option<Vec<u8>>) {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(Path::new(&self.file("ca.pem"))).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tcp = TcpStream::connect(addr).await.unwrap().compat();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        let read = async {
            while let Ok(n) = stream.read(&mut chunk).await
                && n > 0
            {
                answer.extend_from_slice(&chunk[..n]);
                if answer.starts_with(b"HTTP/1.1 101") {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), agreed)
    }
}

/// The secret path, from the address that friends are given.
fn path(node: &Daemon) -> String {
    let addr = node.addr();
    let encoded = addr.split("/x-parity-ws/").nth(1).unwrap_or_else(|| panic!("no path in {addr}"));
    encoded.split("/p2p/").next().unwrap().replace("%2F", "/")
}

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_visitor_sees_a_web_server() {
    let certs = Certificates::new();
    let node = certs.front().start().await;
    let front = node.told("front")[0];
    let (page, alpn) = certs.visit(front, &["h2", "http/1.1"], &get("/")).await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("Content-Type: text/html"), "{page}");
    assert!(page.contains("<h1>It works!</h1>"), "{page}");
    assert_eq!(alpn.as_deref(), Some(b"http/1.1".as_slice()));
    let secret = path(&node);
    let close = |request: String| request.replace("Upgrade\r\nSec", "Upgrade, close\r\nSec");
    for request in [close(upgrade("/")), close(upgrade("/wrong")), get(&secret), get("/wrong")] {
        let (answer, _) = certs.visit(front, &[], &request).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{request}\n{answer}");
        assert!(MARKERS.iter().all(|marker| !answer.contains(marker)), "{answer}");
    }
    let (answer, alpn) = certs.visit(front, &[], &upgrade(&secret)).await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && alpn.is_none(), "{answer}");
    // Who speaks no TLS, like a peer that dials TCP, gets nowhere.
    let clear = front.rsplit(':').next().unwrap();
    let addr = format!("/ip4/127.0.0.1/tcp/{clear}/p2p/{}", node.peer());
    let plain = Launch::new().start().await;
    assert_ne!(plain.command(&["peers", "connect", &addr]).await.code, Some(0));
}

#[tokio::test]
async fn masked_nodes_answer_together_and_the_wire_shows_tls_only() {
    let certs = Certificates::new();
    let tap = capture::Tap::new().await;
    // Others reach the first through the tap.
    let external = format!("/ip4/127.0.0.1/tcp/{}/tls/ws", tap.port());
    let first = certs.front().args(&["--external", &external]).serve(DEMO, "0..3").start().await;
    tap.leads_to(first.told("front")[0]);
    let second = certs.front().bootstrap(&first).serve(DEMO, "3..6").start().await;
    second.until_connected_to(first.peer()).await;
    let ca = certs.file("ca.pem");
    let asked = ["infer", "--json", "--masking", "--masking-ca", &ca, "--bootstrap", first.addr(), "What is a relay?"];
    let answer = quelea(&asked).await.expect(0).json();
    let unsplit = quelea(&["infer", "--json", "--route", "local", "What is a relay?"]).await.expect(0).json();
    assert_eq!(answer["ids"], unsplit["ids"]);
    let hops = answer["route"].as_array().unwrap().len();
    assert_eq!(hops, 2, "{}", answer["route"]);
    for connection in [first.connections().await, second.connections().await].concat() {
        assert!(connection.contains("/tls/"), "{connection}");
    }
    let seen = tap.seen();
    assert!(seen.len() >= 2, "the second node and the passing peer came through the tap");
    for connection in &seen {
        capture::assert_tls(&connection.client, capture::CLIENT_HELLO);
        capture::assert_tls(&connection.server, capture::SERVER_HELLO);
        for bytes in [&connection.client, &connection.server] {
            let text = String::from_utf8_lossy(bytes).to_lowercase();
            for marker in MARKERS.iter().chain(&[&path(&first)[1..], first.peer(), second.peer()]) {
                assert!(!text.contains(&marker.to_lowercase()), "{marker} is on the wire");
            }
        }
        let alpn = capture::alpn(&connection.client);
        assert!(alpn.is_empty() || alpn == ["http/1.1"], "{alpn:?}");
    }
    let carried: usize = seen.iter().map(|connection| connection.client.len() + connection.server.len()).sum();
    assert!(carried > 10_000, "an inference went over it: {carried} bytes");
}

/// By the address and by the name in it: names are looked up beneath TLS, which has to see them.
#[tokio::test]
async fn a_node_that_is_not_masked_reaches_one_that_is() {
    let certs = Certificates::new();
    let masked = certs.front().start().await;
    let by_name = masked.addr().replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    assert_ne!(by_name, masked.addr());
    let ca = certs.file("ca.pem");
    for addr in [masked.addr(), &by_name] {
        let plain = Launch::new().args(&["--masking-ca", &ca, "--bootstrap", addr]).start().await;
        plain.until_connected_to(masked.peer()).await;
        for connection in plain.connections().await {
            assert!(connection.contains("/tls/"), "{connection}");
        }
    }
    // Who does not trust the authority is not taken in.
    let stranger = Launch::new().start().await;
    assert_ne!(stranger.command(&["peers", "connect", masked.addr()]).await.code, Some(0));
}

#[tokio::test]
async fn a_restart_keeps_the_path() {
    let (certs, home) = (Certificates::new(), tempdir());
    let launch = certs.front().home(home.path());
    let node = launch.start().await;
    let before = path(&node);
    node.signal(rustix::process::Signal::TERM);
    node.end().await.expect(0);
    assert_eq!(path(&launch.start().await), before);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&home.path().join("masking.secret").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn whatever_else_would_be_open_is_refused() {
    let certs = Certificates::new();
    for (more, named) in [
        (["--listen", "/ip4/127.0.0.1/tcp/0"].as_slice(), "--listen"),
        (&["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"], "--listen"),
        (&["--mdns"], "--mdns"),
        (&["--upnp"], "--upnp"),
        (&["--metrics-listen", "0.0.0.0:0"], "--metrics-listen"),
        (
            &["--bootstrap", "/ip4/9.9.9.9/tcp/1/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS"],
            "--bootstrap",
        ),
        (&["--external", "/ip4/9.9.9.9/tcp/443"], "--external"),
    ] {
        certs.front().args(more).fails().await.expect(2).says(&[named]);
    }
    Launch::new().args(&["--masking"]).fails().await.expect(2).says(&["--masking-cert"]);
    let wrong = certs.file("ca.pem");
    let launch = Launch::new().args(&["--masking", "--masking-cert", &wrong, "--masking-key", &certs.file("key.pem")]);
    launch.fails().await.expect(2).says(&["do not go together"]);
}

/// A renewed certificate is taken without a restart, and half of one is not.
#[tokio::test]
async fn a_new_certificate_is_taken_and_a_bad_one_is_not() {
    let (old, certs) = (Certificates::new(), Certificates::new());
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::copy(old.file(name), certs.file(name)).unwrap();
    }
    let mut node = certs.front().start().await;
    let front = node.told("front")[0].to_owned();
    let page = async |certs: &Certificates| certs.visit(&front, &[], &get("/")).await.0;
    assert!(page(&old).await.starts_with("HTTP/1.1 200"));
    std::fs::write(certs.file("cert.pem"), "-----BEGIN").unwrap();
    node.signal(rustix::process::Signal::HUP);
    node.logs("keeps its old certificate").await;
    assert!(page(&old).await.starts_with("HTTP/1.1 200"));
    certs.make();
    node.signal(rustix::process::Signal::HUP);
    node.logs("has a new certificate").await;
    assert!(page(&certs).await.starts_with("HTTP/1.1 200"));
    // What was asked, and that nobody is there any more.
    until("nobody is there", async || (node.metric("quelea_front_lines", "visitor").await == 0.0).then_some(())).await;
    assert_eq!(node.metric("quelea_front_requests_total", "page").await, 3.0);
    assert!(node.metric("quelea_front_certificate_end_seconds", "").await > 1e9);
}

#[tokio::test]
async fn a_damaged_secret_is_called_by_its_name() {
    let (certs, home) = (Certificates::new(), tempdir());
    let file = home.path().join("masking.secret");
    std::fs::write(&file, "damaged").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let ended = certs.front().home(home.path()).fails().await.says(&["masking.secret", "masked node's path"]);
    assert!(ended.code != Some(0) && !ended.stderr.contains("API token"), "{}", ended.stderr);
}

/// The figures of a debug build say nothing; that there are some, does.
#[tokio::test]
async fn masking_is_measured_beside_tcp() {
    let report = quelea(&["bench", "masking", "--bytes", "1M", "--turns", "1", "--json"]).await.expect(0).json();
    assert_eq!(report["schema"], "quelea.bench.masking/v1");
    let lines: Vec<_> = report["items"].as_array().unwrap().iter().map(|item| item["line"].as_str().unwrap()).collect();
    assert_eq!(lines, ["socket", "tcp", "masked"]);
    assert!(report["masked_to_tcp"].as_f64().unwrap() > 0.0 && report["masked_to_socket"].as_f64().unwrap() > 0.0);
}

/// Behind the operator's web server: no TLS here, and that server says who asks.
#[tokio::test]
async fn behind_a_web_server_only_what_it_passes_on_gets_in() {
    let external = "/dns4/www.example.org/tcp/443/tls/ws";
    let node = Launch::new().args(&["--masking=behind-proxy", "--external", external]).start().await;
    let secret = path(&node);
    assert!(node.addr().starts_with("/dns4/www.example.org/tcp/443/tls/x-parity-ws/"), "{}", node.addr());
    let ask = async |request: String| {
        let mut stream = TcpStream::connect(node.told("front")[0]).await.unwrap().compat();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        String::from_utf8_lossy(&first).into_owned()
    };
    assert_eq!(ask(upgrade("/wrong")).await, "HTTP/1.1 404");
    assert_eq!(ask(upgrade(&secret)).await, "HTTP/1.1 400", "it must say who asks");
    let said = upgrade(&secret).replace("Host:", "X-Forwarded-For: 203.0.113.7\r\nHost:");
    assert_eq!(ask(said).await, "HTTP/1.1 101");
}
