//! The NAT lab: real daemons behind real routers, in network namespaces. See `net` for the networks.
//!
//! Two hosts of each kind, three relays on the internet; every host of the first set reaches every host of the second. Runs
//! only as root with `QUELEA_NAT_LAB=1`: `QUELEA_NAT_LAB=1 cargo test --test nat -- --nocapture`. It says why when it cannot
//! run. `RUST_LOG` sets what the daemons log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]
#![allow(clippy::print_stdout, reason = "the lab shows who reached whom")]

mod capture;
mod daemon;
mod masked;
mod net;
mod pages;

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;

use daemon::{Daemon, reserved};
use net::{Host, Net, Router};

/// What stands before a host, by the names that netcheck uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    FullCone,
    RestrictedCone,
    PortRestricted,
    Symmetric,
    Double,
}

const KINDS: [Kind; 6] =
    [Kind::None, Kind::FullCone, Kind::RestrictedCone, Kind::PortRestricted, Kind::Symmetric, Kind::Double];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full",
            Self::RestrictedCone => "restricted",
            Self::PortRestricted => "port",
            Self::Symmetric => "symmetric",
            Self::Double => "double",
        }
    }

    /// What netcheck has to say. Two port-restricted routers look like one.
    fn diagnosis(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full cone",
            Self::RestrictedCone => "restricted cone",
            Self::PortRestricted | Self::Double => "port-restricted cone",
            Self::Symmetric => "symmetric",
        }
    }

    fn host(self, net: &Net, set: &str) -> Host {
        let name = format!("{}-{set}", self.name());
        match self {
            Self::None => net.public(&name).0,
            Self::FullCone => net.behind(&name, Router::FullCone),
            Self::RestrictedCone => net.behind(&name, Router::RestrictedCone),
            Self::PortRestricted => net.behind(&name, Router::PortRestricted),
            Self::Symmetric => net.behind(&name, Router::Symmetric),
            Self::Double => net.behind_two(&name),
        }
    }
}

/// Whether a packet of one can reach the other without a relay: only a port that nobody can foretell stands in the way, when
/// the other side lets in nothing but what comes from a port that it knows.
fn direct_is_possible(a: Kind, b: Kind) -> bool {
    let picky = |kind| matches!(kind, Kind::PortRestricted | Kind::Symmetric | Kind::Double);
    !(a == Kind::Symmetric && picky(b) || b == Kind::Symmetric && picky(a))
}

/// The swarm's three public nodes: they relay, dial back, and keep the DHT.
async fn relays(net: &Net) -> (Vec<Daemon>, String) {
    let (mut relays, mut starts) = (Vec::new(), Vec::<String>::new());
    for n in 1..=3 {
        let name = format!("relay-{n}");
        let (host, address) = net.public(&name);
        let mut args = vec!["--relay-server", "--kad-mode", "server"];
        // Room for all pairs at once, and for an inference that takes longer than a hole punch.
        args.extend(["--relay-circuits", "64", "--relay-circuit-bytes", "64M", "--relay-circuit-time", "10m"]);
        let before = starts.join(",");
        if !starts.is_empty() {
            args.extend(["--bootstrap", before.as_str()]);
        }
        let relay = Daemon::start(&name, &host, &args).await;
        let transport = if n == 2 { "tcp/8468" } else { "udp/8468/quic-v1" };
        starts.push(format!("/ip4/{address}/{transport}/p2p/{}", relay.peer));
        relays.push(relay);
    }
    (relays, starts.join(","))
}

/// How one host reached another.
struct Reached {
    kind: Kind,
    connected: Duration,
    first: Value,
    direct: bool,
    direct_after: Duration,
    said: String,
}

/// Lets `a` reach every host of `others`, one after the other.
async fn reach_all(a: &(Kind, Daemon), others: &[(Kind, Daemon)]) -> Vec<Reached> {
    let mut all = Vec::new();
    for (kind, b) in others {
        let start = Instant::now();
        let (code, out, err) = a.1.command(&["ping", &b.peer, "-c", "1", "--json"]).await;
        let connected = start.elapsed();
        let said = format!("{out}{err}");
        assert_eq!(code, 0, "{} does not reach {}: {said}\n{}\n{}", a.1.name, b.name, a.1.log(), b.log());
        let first = out.lines().next().map(|line| serde_json::from_str(line).unwrap()).unwrap_or_default();
        let mut reached = Reached { kind: *kind, connected, first, direct: false, direct_after: connected, said };
        if direct_is_possible(a.0, *kind) {
            let (code, out, err) = a.1.command(&["ping", &b.peer, "--until-direct", "--deadline", "50s"]).await;
            (reached.direct, reached.said) = (code == 0, format!("{out}{err}"));
            reached.direct_after = start.elapsed();
        }
        all.push(reached);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_kinds_connects() {
    if let Some(reason) = net::missing() {
        println!("skipped: {reason}");
        return;
    }
    let net = Net::new();
    let start = Instant::now();
    let (mut relays, bootstrap) = relays(&net).await;
    let launch = |set: &'static str| {
        let (net, bootstrap) = (&net, &bootstrap);
        let launches = KINDS.map(|kind| async move {
            let mut args = vec!["--bootstrap", bootstrap.as_str()];
            if kind == Kind::PortRestricted && set == "b" {
                args.extend(["--model", "demo", "--layers", "all"]);
            }
            let daemon = Daemon::start(&format!("{}-{set}", kind.name()), &kind.host(net, set), &args).await;
            (kind, daemon)
        });
        join_all(launches)
    };
    let (first, second) = (launch("a").await, launch("b").await);
    println!("15 daemons after {:.1?}", start.elapsed());
    for (kind, host) in first.iter().chain(&second) {
        match kind {
            Kind::None => host.until("a confirmed address", |check| check["reachability"] == "public").await,
            _ => host.until("places at two relays", |check| reserved(check) == 2).await,
        };
    }
    println!("all places at relays after {:.1?}", start.elapsed());

    let matrix = join_all(first.iter().map(|a| reach_all(a, &second))).await;
    println!("\n{:<12}{}", "from \\ to", KINDS.map(|kind| format!("{:<26}", kind.name())).concat());
    let mut missed = Vec::new();
    for ((from, a), row) in first.iter().zip(&matrix) {
        let cells = row.iter().map(|reached| {
            let ms = |time: Duration| time.as_millis();
            let how = if reached.direct {
                format!("{} direct {}", reached.first["path"].as_str().unwrap(), ms(reached.direct_after))
            } else {
                "relayed".to_owned()
            };
            format!("{:<26}", format!("{} {how}", ms(reached.connected)))
        });
        println!("{:<12}{}", from.name(), cells.collect::<String>());
        for (reached, (_, b)) in row.iter().zip(&second) {
            if direct_is_possible(*from, reached.kind) && !reached.direct {
                missed.push(format!("{} to {}: {}\n{}\n{}", a.name, b.name, reached.said, a.log(), b.log()));
            }
        }
    }
    println!("(ms to the first answer, how it came, ms until direct); {:.1?} in all\n", start.elapsed());
    assert!(missed.is_empty(), "no direct connection where there could be one:\n{}", missed.join("\n\n"));

    // Somebody whom they never sent anything to: let in by a full cone. What that shows, a restricted one must not show.
    // One for each: whoever it meets first tells the others of it, and then it is none.
    let mut strangers = Vec::new();
    for (kind, host) in first.iter().chain(&second) {
        if *kind == Kind::FullCone {
            let name = format!("stranger-{}", strangers.len());
            let stranger = Daemon::start(&name, &net.public(&name).0, &[]).await;
            let check = host.netcheck().await;
            let confirmed = check["addresses"].as_array().unwrap().iter().find(|addr| addr["state"] == "reachable");
            let addr = format!("{}/p2p/{}", confirmed.unwrap()["address"].as_str().unwrap(), host.peer);
            let (_, out, err) = stranger.command(&["ping", &addr, "-c", "1"]).await;
            assert!(out.contains("direct"), "to {}: {out}{err}", host.name);
            strangers.push(stranger);
        }
    }
    for (kind, host) in first.iter().chain(&second) {
        let wanted = kind.diagnosis();
        let check = host.until(wanted, |check| check["nat"]["kind"] == wanted).await;
        println!("{:<14} {:<22} {}", host.name, wanted, check["reachability"]);
    }
    let symmetric = &first.iter().find(|(kind, _)| *kind == Kind::Symmetric).unwrap().1;
    let port_restricted = &second.iter().find(|(kind, _)| *kind == Kind::PortRestricted).unwrap().1;

    // What cannot be is said.
    let args = ["ping", &port_restricted.peer, "--until-direct", "--deadline", "2s"];
    let (code, _, said) = symmetric.command(&args).await;
    assert!(code == 6 && said.contains("relay") && said.contains("symmetric"), "{code}: {said}");

    // A worker behind one NAT answers somebody behind another, through a relay.
    let (code, out, said) = symmetric.command(&["infer", "--json", "--max-tokens", "24", "What is a relay?"]).await;
    assert_eq!(code, 0, "{said}\n{}", symmetric.log());
    let summary: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert!(out.contains(&port_restricted.peer), "{summary}");
    println!("an answer from {} after {:.1?}", port_restricted.name, start.elapsed());

    // A relay goes away: another one takes its place.
    let gone = relays.remove(0).peer.clone();
    let left =
        |check: &Value| check["relays"].as_array().unwrap().iter().all(|relay| relay["peer_id"] != gone.as_str());
    for (kind, host) in first.iter().chain(&second) {
        if !matches!(kind, Kind::None | Kind::FullCone) {
            host.until("places at the two relays that are left", |check| left(check) && reserved(check) == 2).await;
        }
    }
    println!("all moved to the relays that are left after {:.1?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_with_upnp_lets_strangers_in() {
    if let Some(reason) = net::missing() {
        println!("skipped: {reason}");
        return;
    }
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let (host, mut router) = net.behind_upnp("upnp", &dir.path().join("miniupnpd.conf"));
    let (start, address) = net.public("start");
    let start = Daemon::start("start", &start, &["--kad-mode", "server"]).await;
    let bootstrap = format!("/ip4/{address}/udp/8468/quic-v1/p2p/{}", start.peer);
    let inside = Daemon::start("upnp", &host, &["--bootstrap", &bootstrap, "--upnp"]).await;
    let check = inside.until("a mapped port", |check| check["reachability"] == "public").await;
    let mapped = check["upnp"]["addresses"][0].as_str().unwrap().to_owned();
    println!("mapped: {mapped}");

    let stranger = Daemon::start("stranger", &net.public("stranger").0, &[]).await;
    let (code, out, err) = stranger.command(&["ping", &format!("{mapped}/p2p/{}", inside.peer), "-c", "1"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("direct"), "{out}");
    router.kill().unwrap();
    router.wait().unwrap();
}
