//! `quelea doctor`: what is wrong with this node or its machine, and what to do about it.

mod machine;

pub(super) use self::machine::is_locked;

use std::{net::SocketAddr, path::Path, process::ExitCode, time::Duration};

use libp2p::{Multiaddr, multiaddr::Protocol};
use serde_json::{Value, json};

use super::{
    args::Global,
    client::{Daemon, home},
    config,
    exit::{CliError, Exit},
    output::{data_line, look, note, printable},
    table::Listing,
};
use crate::{address::PeerAddress, api::shape, home::Home, node::ports};

/// How long a peer to start from may take to answer a connection.
const DIAL_WITHIN: Duration = Duration::from_secs(3);

/// Peers to start from that are tried.
const DIALLED_MAX: usize = 16;

/// A clock that is so far off has what this node signs refused (`quelea_wire::time`).
const SKEW_MAX_S: f64 = 120.0;

/// A clock that is so far off is worth a word.
const SKEW_S: f64 = 10.0;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Ok,
    Warning,
    Failed,
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) level: Level,
    pub(super) message: String,
    /// What to do; nothing where all is well.
    pub(super) advice: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, message: message.into(), advice: None }
    }

    pub(super) fn warning(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, message: message.into(), advice: Some(advice.into()) }
    }

    pub(super) fn failed(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Failed, ..Self::warning(check, message, advice) }
    }
}

pub(super) async fn run(global: &Global) -> Result<ExitCode, CliError> {
    let findings = examine(global).await?;
    let worst = worst(&findings);
    if global.json {
        data_line(&document(&findings).to_string())?;
    } else {
        show(&findings)?;
        let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
        note(&format!(
            "{} ok, {} warning(s), {} failed",
            count(Level::Ok),
            count(Level::Warning),
            count(Level::Failed)
        ));
    }
    Ok(if worst == Level::Failed { ExitCode::from(Exit::Failed as u8) } else { ExitCode::SUCCESS })
}

/// The findings as JSON.
pub(super) async fn report(global: &Global) -> Result<Value, CliError> {
    Ok(document(&examine(global).await?))
}

fn document(findings: &[Finding]) -> Value {
    let item = |finding: &Finding| {
        let Finding { check, message, advice, .. } = finding;
        json!({ "check": check, "status": word(finding.level), "message": message, "advice": advice })
    };
    let mut document = shape::list("quelea.doctor/v1", findings.iter().map(item).collect());
    document["status"] = json!(word(worst(findings)));
    document
}

fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Failed => "failed",
    }
}

fn show(findings: &[Finding]) -> Result<(), CliError> {
    if look().plain {
        let mut table = Listing::new(["CHECK", "STATUS", "MESSAGE", "ADVICE"]);
        for finding in findings {
            let advice = finding.advice.clone().unwrap_or_default();
            table.add_row([finding.check.to_owned(), word(finding.level).to_owned(), finding.message.clone(), advice]);
        }
        return data_line(&table.to_string());
    }
    for finding in findings {
        let colour = match (look().colour, finding.level) {
            (false, _) => "",
            (_, Level::Ok) => "\u{1b}[32m",
            (_, Level::Warning) => "\u{1b}[33m",
            (_, Level::Failed) => "\u{1b}[1;31m",
        };
        let end = if colour.is_empty() { "" } else { "\u{1b}[0m" };
        let (check, message) = (finding.check, printable(&finding.message));
        data_line(&format!("{colour}{:<8}{end} {check:<10} {message}", word(finding.level)))?;
        if let Some(advice) = &finding.advice {
            data_line(&format!("{:20}→ {}", "", printable(advice)))?;
        }
    }
    Ok(())
}

async fn examine(global: &Global) -> Result<Vec<Finding>, CliError> {
    let home = home(global)?;
    let mut findings = machine::of_directory(&home);
    findings.extend(machine::of_limits());
    let (settings, of_config) = of_config(global);
    findings.push(of_config);
    let daemon = Daemon::find(global)?;
    match daemon.get("/api/v1/status").await {
        Ok(status) => {
            findings.push(of_daemon(&status));
            findings.push(of_peers(&status));
            findings.push(of_clock(daemon.get("/api/v1/netcheck").await.ok().as_ref()));
        }
        Err(error) => {
            let running = is_locked(&home);
            findings.push(if running {
                let advice = "look into its log; if it hangs, end it and start it again";
                Finding::failed("daemon", format!("it runs and does not answer: {}", error.message), advice)
            } else {
                Finding::warning("daemon", "none runs on this data directory", "start it with 'quelea daemon'")
            });
            findings.push(of_clock(None));
            if !running {
                findings.extend(of_ports(&settings));
            }
            findings.extend(of_bootstrap(&settings).await);
        }
    }
    findings.push(of_models(&home).await);
    Ok(findings)
}

fn of_config(global: &Global) -> (Vec<config::Setting>, Finding) {
    match config::effective(global) {
        Ok((path, settings)) if path.exists() => {
            (settings, Finding::ok("config", format!("{} is right", path.display())))
        }
        Ok((_, settings)) => (settings, Finding::ok("config", "no file; all is as built in")),
        Err(error) => {
            let advice = error.hint.unwrap_or_else(|| "mend the file; 'quelea config validate' looks again".into());
            (Vec::new(), Finding::failed("config", error.message, advice))
        }
    }
}

fn of_daemon(status: &Value) -> Finding {
    let health = &status["health"];
    let version = status["version"].as_str().unwrap_or("?");
    let ill: Vec<String> = health["components"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, state)| !matches!(state["status"].as_str(), Some("ok")))
        .map(|(name, state)| format!("{name}: {}", state["message"].as_str().unwrap_or_default()))
        .collect();
    if version != env!("CARGO_PKG_VERSION") {
        let message = format!("it answers, as version {version}; this is {}", env!("CARGO_PKG_VERSION"));
        return Finding::warning("daemon", message, "restart it, so that both are the same");
    }
    match (health["ready"].as_bool(), ill.is_empty()) {
        (Some(true), true) => Finding::ok("daemon", "it answers and is well"),
        (Some(true), false) => {
            Finding::warning("daemon", ill.join("; "), "'quelea health --ready' and the log say more")
        }
        _ => Finding::failed("daemon", ill.join("; "), "'quelea health --ready' and the log say more"),
    }
}

fn of_peers(status: &Value) -> Finding {
    match status["peers_connected"].as_u64().unwrap_or(0) {
        0 => {
            let advice = "name one with --bootstrap or 'quelea bootstrap add ADDR'; on a LAN, --mdns finds them";
            Finding::warning("peers", "connected to none", advice)
        }
        n => Finding::ok("peers", format!("{n} connected")),
    }
}

/// By what peers sign, where there are any; else only whether this machine knows the year.
fn of_clock(netcheck: Option<&Value>) -> Finding {
    const ADVICE: &str =
        "set it by NTP, as systemd-timesyncd or chrony do: peers refuse what is signed at another time";
    if let Some(skew) = netcheck.and_then(|report| report["clock"]["skew_s"].as_f64()) {
        // What arrives is older than when it was signed: a little behind is the way it took.
        return match skew.abs() {
            off if off >= SKEW_MAX_S => Finding::failed("clock", format!("{skew:+.1} s against peers"), ADVICE),
            off if off >= SKEW_S && skew > 0.0 => {
                Finding::warning("clock", format!("{skew:+.1} s against peers"), ADVICE)
            }
            _ => Finding::ok("clock", "as peers have it"),
        };
    }
    machine::of_year()
        .unwrap_or_else(|year| Finding::failed("clock", format!("this machine is in the year {year}"), ADVICE))
}

fn values<'a>(settings: &'a [config::Setting], key: &str) -> &'a [String] {
    settings.iter().find(|setting| setting.key == key).map_or(&[], |setting| setting.values.as_slice())
}

/// Whether the ports that a daemon would open are free.
fn of_ports(settings: &[config::Setting]) -> Vec<Finding> {
    let one = |key: &str, default: &str| values(settings, key).first().cloned().unwrap_or_else(|| default.to_owned());
    let listen = values(settings, "listen");
    let addrs: Vec<Multiaddr> = if listen.is_empty() {
        let host: std::net::IpAddr = one("host", "0.0.0.0").parse().unwrap_or([0, 0, 0, 0].into());
        super::daemon::listen_on(host, one("port", "8468").parse().unwrap_or(super::daemon::SWARM_PORT))
    } else {
        listen.iter().filter_map(|addr| addr.parse().ok()).collect()
    };
    let taken: Vec<String> = addrs.iter().filter_map(|addr| ports::check_free(addr).err()).collect();
    if taken.is_empty() {
        let shown: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        return vec![Finding::ok("ports", format!("free: {}", shown.join(", ")))];
    }
    let split = |text: &String| match text.split_once("; ") {
        Some((what, advice)) => Finding::failed("ports", what, advice),
        None => Finding::failed("ports", text.as_str(), "choose another with --port"),
    };
    taken.iter().map(split).collect()
}

/// Whether peers to start from answer, as far as that can be seen without being a node: by TCP.
async fn of_bootstrap(settings: &[config::Setting]) -> Vec<Finding> {
    let peers: Vec<PeerAddress> =
        values(settings, "bootstrap").iter().filter_map(|text| crate::address::parse_peer_address(text).ok()).collect();
    if peers.is_empty() {
        return vec![Finding::ok("bootstrap", "no peers are set to start from")];
    }
    let tried = peers.iter().take(DIALLED_MAX).map(|peer| async move { (peer, answers(&peer.addr).await) });
    let tried = futures::future::join_all(tried).await;
    let answering = tried.iter().filter(|(_, answer)| matches!(answer, Some(Ok(())))).count();
    let untried = tried.iter().filter(|(_, answer)| answer.is_none()).count();
    let silent = tried.iter().filter_map(|(peer, answer)| Some((peer, answer.as_ref()?.as_ref().err()?)));
    let mut findings: Vec<Finding> = silent
        .map(|(peer, error)| {
            let advice = "ask whoever runs it, or take it off; one that answers is enough";
            Finding::warning("bootstrap", format!("{}: {error}", peer.addr), advice)
        })
        .collect();
    match (answering, untried) {
        (0, 0) => {
            let advice = "look at this machine's connection, and whether these addresses are right";
            findings.push(Finding::failed("bootstrap", "none of them answers", advice));
        }
        (0, n) => findings.push(Finding::ok("bootstrap", format!("{n} speak no TCP, which is all that was tried"))),
        (n, _) => findings.push(Finding::ok("bootstrap", format!("{n} of {} answer", tried.len()))),
    }
    findings
}

/// Whether something accepts connections there; nothing where the address is not one for TCP.
async fn answers(addr: &Multiaddr) -> Option<Result<(), String>> {
    let mut parts = addr.iter();
    let (host, next) = (parts.next()?, parts.next()?);
    let Protocol::Tcp(port) = next else { return None };
    let target = match host {
        Protocol::Ip4(ip) => SocketAddr::from((ip, port)).to_string(),
        Protocol::Ip6(ip) => SocketAddr::from((ip, port)).to_string(),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => format!("{name}:{port}"),
        _ => return None,
    };
    Some(match tokio::time::timeout(DIAL_WITHIN, tokio::net::TcpStream::connect(target)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DIAL_WITHIN.as_secs())),
    })
}

/// What of models is on the disk.
async fn of_models(home: &Home) -> Finding {
    let (store, folder) = (crate::weights::store::Store::new(home.models(), None), home.models());
    let looked = tokio::task::spawn_blocking(move || {
        let ids = store.ids();
        let broken: Vec<String> =
            ids.iter().filter(|id| !matches!(store.open(**id), Ok(Some(_)))).map(ToString::to_string).collect();
        (ids.len(), broken, store.used())
    });
    match looked.await {
        Ok((0, ..)) => Finding::ok("models", "none on this disk"),
        Ok((n, broken, bytes)) if broken.is_empty() => {
            Finding::ok("models", format!("{n} in {} MB", bytes / 1_000_000))
        }
        Ok((_, broken, _)) => {
            let message = format!("{} cannot be read in {}", broken.join(", "), shown(&folder));
            Finding::failed("models", message, "'quelea model rm ID' and pull it again")
        }
        Err(error) => Finding::failed("models", error.to_string(), "look again"),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_judged_by_what_peers_refuse() {
        let level = |skew: f64| of_clock(Some(&json!({ "clock": { "skew_s": skew } }))).level;
        assert_eq!([level(0.3), level(-3.0), level(30.0)], [Level::Ok, Level::Ok, Level::Warning]);
        assert_eq!([level(121.0), level(-200.0)], [Level::Failed, Level::Failed]);
        assert_eq!(of_clock(Some(&json!({ "clock": null }))).level, Level::Ok);
    }

    #[test]
    fn a_daemon_is_as_well_as_its_parts() {
        let status = |ready: bool, storage: &str| {
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "health": { "ready": ready, "components": { "storage": { "status": storage, "message": "disk full" } } },
            })
        };
        assert_eq!(of_daemon(&status(true, "ok")).level, Level::Ok);
        let degraded = of_daemon(&status(true, "degraded"));
        assert_eq!((degraded.level, degraded.message.as_str()), (Level::Warning, "storage: disk full"));
        assert_eq!(of_daemon(&status(false, "failed")).level, Level::Failed);
        assert_eq!(of_daemon(&json!({ "version": "0.0.1", "health": { "ready": true } })).level, Level::Warning);
    }

    #[tokio::test]
    async fn peers_to_start_from_are_tried() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addr = |text: String| text.parse::<Multiaddr>().unwrap();
        assert_eq!(answers(&addr(format!("/ip4/127.0.0.1/tcp/{port}"))).await, Some(Ok(())));
        drop(listener);
        assert!(answers(&addr(format!("/ip4/127.0.0.1/tcp/{port}"))).await.unwrap().is_err());
        assert_eq!(answers(&addr(format!("/ip4/127.0.0.1/udp/{port}/quic-v1"))).await, None);
    }
}
