//! Reading pages as they are read: over TLS, from a web server of the lab, by name. `web_read` for another peer, the agent
//! `reader`, and what a site does not want read or a name should not lead to.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::Value;

use crate::{
    daemon::Daemon,
    net::{self, Host, Net},
};

const SITE: &str = "news.example.org";

/// A page as sites have them: what is to be read stands among what is not.
const PAGE: &str = r#"<!doctype html><html lang="en"><head><title>Storks return</title><style>p { color: red }</style>
<script>document.write("never")</script></head><body><nav><a href="/">Home</a> <a href="/login">Log in</a></nav>
<main><article><h1>Storks return to the river</h1>
<p>After forty years without a single nest, eleven pairs of white storks have settled on the roofs along the river this
spring. The town had put up platforms of willow on its chimneys, and for six winters nothing came of them.</p>
<p>&ldquo;We had all but given up,&rdquo; says the warden, who counts the birds every evening from the <a href="/bridge">old
bridge</a>. She expects the first young in the last week of May, if the meadows stay wet for long enough.</p>
<p>The council has decided to mow the meadows later in the year, and to leave the ditches open until the autumn.</p>
</article></main><footer>Imprint and cookies</footer></body></html>"#;

/// A web server that answers what the lab asks, with the certificate in its folder.
const SERVER: &str = r#"
import http.server, pathlib, ssl, sys
here = pathlib.Path(sys.argv[1])
class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        status, kind, headers, body = 404, "text/plain", {}, b"nothing"
        if self.path == "/robots.txt":
            status, body = 200, b"User-agent: *\nDisallow: /private/\n"
        elif self.path in ("/storks", "/private/storks"):
            status, kind, body = 200, "text/html; charset=utf-8", (here / "page.html").read_bytes()
        elif self.path == "/moved":
            status, headers = 302, {"Location": "/storks"}
        elif self.path == "/hidden":
            status, headers = 302, {"Location": "/private/storks"}
        elif self.path == "/inside":
            status, headers = 302, {"Location": "https://inside.example.org/secret"}
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *what):
        with open(here / "asked", "a") as log:
            print(self.path, self.headers.get("user-agent"), file=log)
server = http.server.ThreadingHTTPServer(("0.0.0.0", 443), Site)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(here / "cert.pem", here / "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
(here / "ready").touch()
server.serve_forever()
"#;

/// The site's process, ended when dropped.
struct Site(Child);

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A site in `host`, and an authority in `dir` that vouches for it.
async fn site(host: &Host, dir: &Path) -> Site {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let cert = CertificateParams::new(vec![SITE.to_owned()]).unwrap().signed_by(&key, &ca, &ca_key).unwrap();
    let (ca, cert, key) = (ca.pem(), cert.pem(), key.serialize_pem());
    for (name, text) in
        [("ca.pem", &ca[..]), ("cert.pem", &cert), ("key.pem", &key), ("page.html", PAGE), ("server.py", SERVER)]
    {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let mut command = Net::exec(host, "python3").into_std();
    let child = command.arg(dir.join("server.py")).arg(dir).stdin(Stdio::null()).spawn().unwrap();
    let site = Site(child);
    let given_up = std::time::Instant::now() + crate::daemon::PATIENCE;
    while !dir.join("ready").exists() {
        assert!(std::time::Instant::now() < given_up, "the site does not start");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_read_by_name_and_over_tls() {
    if let Some(reason) = net::missing() {
        println!("skipped: {reason}");
        return;
    }
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let (web, address) = net.public("site");
    let _site = site(&web, dir.path()).await;
    let (host, at) = net.public("reading");
    let names =
        format!("127.0.0.1 localhost\n{address} {SITE}\n10.1.2.3 inside.example.org\n{address} other.example.org\n");
    net.names(&host, &names);
    let ca = dir.path().join("ca.pem");
    let args = ["--model", "demo", "--layers", "all", "--service", "web_read=0.01"];
    let node = Daemon::start_with("reading", &host, &args, &[("SSL_CERT_FILE", ca.to_str().unwrap())]).await;
    let read = async |path: &str| node.command(&["web", "read", &format!("https://{SITE}{path}"), "--json"]).await;

    let (code, out, err) = read("/storks").await;
    assert_eq!(code, 0, "{err}\n{}", node.log());
    let page: Value = serde_json::from_str(&out).unwrap();
    let text = page["text"].as_str().unwrap();
    assert_eq!(page["title"], "Storks return to the river", "{page}");
    assert!(text.contains("eleven pairs of white storks") && text.contains("“We had all but given up,”"), "{text}");
    assert!(!["never", "color: red", "Log in", "Imprint"].iter().any(|noise| text.contains(noise)), "{text}");
    assert!(page["links"].to_string().contains(&format!("https://{SITE}/bridge")), "{page}");
    let (code, out, _) = read("/moved").await;
    let moved: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &moved["url"]), (0, &format!("https://{SITE}/storks").into()), "{moved}");

    // What the site does not want read, what leads inside, and a certificate of another name.
    for (url, said) in [
        (format!("https://{SITE}/private/storks"), "robots"),
        (format!("https://{SITE}/hidden"), "robots"),
        (format!("https://{SITE}/inside"), "not public"),
        ("https://inside.example.org/".into(), "not public"),
        ("https://other.example.org/storks".into(), "certificate"),
    ] {
        let (code, out, err) = node.command(&["web", "read", &url]).await;
        assert!(code != 0 && err.contains(said), "{url}: {code} {out}{err}");
    }
    let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
    assert!(asked.lines().all(|line| line.contains("quelea/")), "who asks does not say so: {asked}");
    assert!(!asked.contains("/private/") && !asked.contains("secret"), "{asked}");
    assert_eq!(asked.matches("/robots.txt").count(), 1, "a site's rules are remembered: {asked}");

    // For another peer, who pays for it and has no way to the site of its own.
    let (asker, _) = net.public("asking");
    let caller =
        Daemon::start("asking", &asker, &["--bootstrap", &format!("/ip4/{at}/tcp/8468/p2p/{}", node.peer)]).await;
    let question = format!(r#"{{"url":"https://{SITE}/storks"}}"#);
    let (code, out, err) =
        caller.command(&["service", "call", "web_read", &question, "--peer", &node.peer, "--json"]).await;
    assert_eq!(code, 0, "{err}\n{}", node.log());
    assert!(out.contains("eleven pairs of white storks"), "{out}");

    // The agent that ships, with the model of this node.
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/agents/reader/reader.wasm");
    let install = ["agent", "install", module, "--grant", "http,infer", "--hosts", SITE];
    let (code, _, err) = node.command(&install).await;
    assert_eq!(code, 0, "{err}");
    let url = format!("https://{SITE}/storks");
    let (code, out, err) = node.command(&["agent", "run", "reader", "--input", &url]).await;
    assert!(code == 0 && !out.trim().is_empty(), "{out}{err}\n{}", node.log());
    let (_, log, _) = node.command(&["agent", "logs", "reader"]).await;
    assert!(log.contains("characters of https://news.example.org/storks") && log.contains("spent 0"), "{log}");
    let (code, out, err) = node.command(&["agent", "run", "reader", "--input", "https://other.example.org/"]).await;
    assert!(code != 0 && format!("{out}{err}").contains("the page was not fetched"), "{out}{err}");
}
