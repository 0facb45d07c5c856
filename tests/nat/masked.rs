//! What a masked node shows to whoever sees all of its packets, for as long as `QUELEA_MASKED_SECONDS` says (60).

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::Value;

use crate::{
    capture::{Capture, open_ports},
    daemon::{Daemon, PATIENCE},
    net::{self, Net},
};

/// The web's port, the only one that may be spoken.
const PORT: u16 = 443;

/// Between two rounds of use.
const ROUND: Duration = Duration::from_secs(10);

/// An authority, and a certificate of it for these addresses.
fn certificates(dir: &Path, addresses: &[&str]) {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let names: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, &ca, &ca_key).unwrap();
    for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

fn seconds() -> Duration {
    let told = std::env::var("QUELEA_MASKED_SECONDS").ok();
    Duration::from_secs(told.map_or(60, |text| text.parse().expect("QUELEA_MASKED_SECONDS is a number")))
}

/// The middle one knows one of the others from its command line and finds the other by discovery; it asks them, puts and
/// gets, and speaks. All that it ever sends or gets is TLS on one port.
#[tokio::test(flavor = "multi_thread")]
async fn a_masked_node_speaks_on_one_port_only() {
    if let Some(reason) = net::missing() {
        println!("skipped: {reason}");
        return;
    }
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let hosts = ["first", "middle", "last"].map(|name| net.public(&format!("masked-{name}")));
    let [first, middle, last] = &hosts;
    certificates(dir.path(), &[&first.1, &middle.1, &last.1]);
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let start = async |name: &str, host: &(net::Host, String), more: &[&str]| {
        let external = format!("/ip4/{}/tcp/{PORT}/tls/ws", host.1);
        let mut args = vec!["--masking", "--masking-ca", &ca, "--masking-cert", &cert, "--masking-key", &key];
        args.extend(["--external", &external]);
        args.extend(more);
        Daemon::start(name, &host.0, &args).await
    };
    let demo = |layers: &'static str| ["--model", "demo", "--layers", layers];
    let first_node = start("first", first, &[&["--kad-mode", "server"], &demo("0..3")[..]].concat()).await;
    let bootstrap = first_node.listen.clone();
    let last_node = start("last", last, &[&["--bootstrap", bootstrap.as_str()], &demo("3..6")[..]].concat()).await;
    // From its first packet on.
    let capture = Capture::new(&middle.0, PORT);
    let begun = Instant::now();
    let node = start("middle", middle, &["--bootstrap", &bootstrap]).await;
    let open = open_ports(&middle.0);
    assert_eq!(open, ["tcp 443"], "{}", node.log());

    node.until_connected(&last_node.peer).await;
    let (mut rounds, wanted) = (0, seconds());
    while rounds == 0 || begun.elapsed() < wanted {
        let round = Instant::now();
        let (key, value) = (format!("round {rounds}"), format!("value {rounds}"));
        for args in [
            ["ping", &first_node.peer, "-c", "1"].as_slice(),
            &["ping", &last_node.peer, "-c", "1"],
            &["infer", "--json", "--max-tokens", "8", "What is a relay?"],
            &["dht", "put", &key, &value],
            &["dht", "get", &key],
            &["broadcast", &value],
        ] {
            let (code, out, err) = node.command(args).await;
            assert_eq!(code, 0, "{args:?} after {rounds} rounds: {out}{err}\n{}", node.log());
        }
        rounds += 1;
        let pause = ROUND.saturating_sub(round.elapsed()).min(wanted.saturating_sub(begun.elapsed()));
        tokio::time::sleep(pause).await;
    }
    let took = begun.elapsed();
    assert_eq!(open_ports(&middle.0), open);
    let heard = capture.stop();
    println!("{took:.0?}, {rounds} rounds of use: {} bytes in {} connections", heard.bytes, heard.connections());
    for (kind, packets) in &heard.kinds {
        println!("{packets:>9} {kind}");
    }
    assert!(heard.wrong.is_empty(), "{:#?}\n{}", heard.wrong, node.log());
    // One to each of the two at least, and answers that went through them.
    assert!(heard.connections() >= 2 && heard.bytes > 10_000, "hardly anything was heard");
}

impl Daemon {
    async fn until_connected(&self, peer: &str) {
        let since = Instant::now();
        loop {
            let (_, out, err) = self.command(&["status", "--json"]).await;
            let status: Value = serde_json::from_str(&out).unwrap_or_default();
            let peers = status["peers"].as_array().cloned().unwrap_or_default();
            if peers.iter().any(|known| known["peer_id"] == peer) {
                return;
            }
            assert!(since.elapsed() < 2 * PATIENCE, "{} does not find {peer}: {out}{err}\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}
