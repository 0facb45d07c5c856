//! `quelea peers`, `quelea bootstrap` and `quelea id PEER`.

use std::process::ExitCode;

use quelea_wire::{ErrorCode, time::unix_ms};
use serde_json::{Value, json};

use super::{
    args::{BootstrapCommand, Global, PeerSort, PeersCommand},
    bans,
    client::Daemon,
    exit::CliError,
    infer::short,
    output::{data_line, note, printable},
    table::Listing,
    watch::{self, Shown},
};

pub(super) async fn run(global: &Global, command: PeersCommand) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    match command {
        PeersCommand::List { sort, relayed, protocol, watch } => {
            let look = async || {
                let mut answer = daemon.get("/api/v1/peers").await?;
                arrange(&mut answer, sort, relayed, protocol.as_deref());
                if global.json {
                    return Ok(answer.to_string().into());
                }
                Ok(Shown { data: connected(&answer), note: summary(&answer) })
            };
            return watch::show(global, watch, look).await;
        }
        PeersCommand::Known => {
            let answer = daemon.get("/api/v1/peers/known").await?;
            if global.json {
                data_line(&answer.to_string())?;
            } else {
                data_line(&known(&answer))?;
                note(&format!("{} peer(s) known", list(&answer["items"]).len()));
            }
        }
        PeersCommand::Info { peer } => return info(global, &peer).await,
        PeersCommand::Connect { addr } => {
            let answer = post(&daemon, "/api/v1/peers/connect", &json!({ "addr": addr })).await?;
            show(global, &answer, &format!("connected to {}", shown(&answer["peer_id"])))?;
        }
        PeersCommand::Disconnect { peer } => {
            let answer = post(&daemon, "/api/v1/peers/disconnect", &json!({ "peer": peer })).await?;
            show(global, &answer, &format!("disconnected from {}", shown(&answer["peer_id"])))?;
        }
        // Bans have a file of their own.
        PeersCommand::Ban(args) => return bans::ban(global, args).await,
        PeersCommand::Unban { subject } => return bans::unban(global, subject).await,
        PeersCommand::Bans => return bans::bans(global).await,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn bootstrap(global: &Global, command: BootstrapCommand) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    match command {
        BootstrapCommand::List => {
            let answer = daemon.get("/api/v1/bootstrap").await?;
            let lines: Vec<String> = list(&answer["items"]).iter().map(|item| shown(&item["addr"])).collect();
            if lines.is_empty() && !global.json {
                note("the list is empty; 'quelea bootstrap add ADDR' fills it");
            } else {
                show(global, &answer, &lines.join("\n"))?;
            }
        }
        BootstrapCommand::Add { addr } => {
            let answer = post(&daemon, "/api/v1/bootstrap/add", &json!({ "addr": addr })).await?;
            show(global, &answer, &format!("{} is on the list", shown(&answer["addr"])))?;
        }
        BootstrapCommand::Rm { addr } => {
            let answer = post(&daemon, "/api/v1/bootstrap/rm", &json!({ "addr": addr })).await?;
            show(global, &answer, &format!("{} is off the list", shown(&answer["addr"])))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The route that tells of a peer.
pub(super) fn route(peer: &str) -> Result<String, CliError> {
    // Anything but the characters of an id would be another route.
    if peer.is_empty() || !peer.chars().all(|c| c.is_ascii_alphanumeric()) {
        let message = format!("{:?} is not a peer id", printable(peer));
        return Err(CliError::new(ErrorCode::Usage, message).hint("'quelea peers known' shows those of known peers"));
    }
    Ok(format!("/api/v1/peers/{peer}"))
}

/// What is known of one peer.
pub(super) async fn info(global: &Global, peer: &str) -> Result<ExitCode, CliError> {
    let route = route(peer)?;
    let answer = Daemon::find(global)?.get(&route).await?;
    let connection = &answer["connection"];
    let mut lines = vec![
        format!("peer id    {}", shown(&answer["peer_id"])),
        format!("agent      {}", shown(&answer["agent"])),
        format!("conduct    {:.4}", answer["conduct"].as_f64().unwrap_or(0.0)),
        format!("found      {}, {} ago", shown(&answer["source"]), ago(&answer["first_seen_at_s"])),
    ];
    if connection.is_null() {
        lines.push(format!("connected  no, last {} ago", ago(&answer["last_seen_at_s"])));
    } else {
        let up = duration(connection["connected_s"].as_f64());
        lines.push(format!(
            "connected  {}, {}, {up}, rtt {}",
            way(connection),
            shown(&connection["direction"]),
            rtt(connection)
        ));
    }
    lines.extend(list(&answer["addresses"]).iter().map(|addr| format!("address    {}", shown(addr))));
    show(global, &answer, &lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

async fn post(daemon: &Daemon, route: &str, body: &Value) -> Result<Value, CliError> {
    let response = daemon.post(route, body).await?;
    response.json().await.map_err(|e| CliError::new(ErrorCode::Internal, format!("the answer is not understood: {e}")))
}

fn show(global: &Global, answer: &Value, text: &str) -> Result<(), CliError> {
    data_line(&if global.json { answer.to_string() } else { text.to_owned() })
}

/// Sorts and filters; the daemon sends the nearest first.
fn arrange(answer: &mut Value, sort: PeerSort, relayed: bool, protocol: Option<&str>) {
    let Some(items) = answer["items"].as_array_mut() else { return };
    items.retain(|item| !relayed || item["path"] == "relayed");
    if let Some(wanted) = protocol {
        let is_it =
            |name: &Value| name.as_str().is_some_and(|n| n == wanted || n.split('/').any(|part| part == wanted));
        items.retain(|item| list(&item["protocols"]).iter().any(is_it));
    }
    let keys: &[&str] = match sort {
        PeerSort::Rtt => return,
        PeerSort::Bytes => &["sent_bytes", "received_bytes"],
        PeerSort::Trust => &["conduct"],
        PeerSort::Up => &["connected_s"],
    };
    let of = |item: &Value| keys.iter().map(|key| item[*key].as_f64().unwrap_or(0.0)).sum::<f64>();
    items.sort_by(|a, b| of(b).total_cmp(&of(a)));
}

fn connected(answer: &Value) -> String {
    let mut table = Listing::new(["PEER", "AGENT", "PATH", "RTT", "STREAMS", "TX/RX", "DIR", "UP"]);
    for peer in list(&answer["items"]) {
        let (sent, received) = (size(&peer["sent_bytes"]), size(&peer["received_bytes"]));
        table.add_row([
            short(&shown(&peer["peer_id"])),
            shown(&peer["agent"]),
            way(peer),
            rtt(peer),
            shown(&peer["streams"]),
            format!("{sent} / {received}"),
            shown(&peer["direction"]),
            duration(peer["connected_s"].as_f64()),
        ]);
    }
    table.to_string()
}

fn summary(answer: &Value) -> String {
    let items = list(&answer["items"]);
    let relayed = items.iter().filter(|item| item["path"] == "relayed").count();
    format!("{} peer(s) ({} direct, {relayed} relayed)", items.len(), items.len() - relayed)
}

fn known(answer: &Value) -> String {
    let mut table = Listing::new(["PEER", "AGENT", "FOUND", "SEEN", "CONDUCT", "ADDRESS"]);
    for peer in list(&answer["items"]) {
        let seen = if peer["connected"] == true { "now".to_owned() } else { ago(&peer["last_seen_at_s"]) };
        let addr = list(&peer["addresses"]).first().map_or("-".to_owned(), shown);
        let conduct = format!("{:.3}", peer["conduct"].as_f64().unwrap_or(0.0));
        let found = shown(&peer["source"]) + if peer["anchor"] == true { ", anchor" } else { "" };
        table.add_row([short(&shown(&peer["peer_id"])), shown(&peer["agent"]), found, seen, conduct, addr]);
    }
    table.to_string()
}

/// `direct quic v4`, or `relayed via …h7Tc tcp v4`.
fn way(peer: &Value) -> String {
    let via = peer["relay"].as_str().map(|relay| format!(" via {}", short(relay))).unwrap_or_default();
    let ip = peer["ip"].as_str().map(|ip| format!(" {ip}")).unwrap_or_default();
    format!("{}{via} {}{ip}", shown(&peer["path"]), shown(&peer["transport"]))
}

fn rtt(peer: &Value) -> String {
    peer["rtt_s"].as_f64().map_or_else(|| "-".into(), |s| format!("{:.1}ms", s * 1e3))
}

/// How long ago an instant was.
fn ago(instant_s: &Value) -> String {
    instant_s.as_f64().map_or_else(|| "-".into(), |s| duration(Some((unix_ms() as f64 / 1e3 - s).max(0.0))))
}

/// `3h12m`, `12m`, `8s`.
fn duration(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".into() };
    let whole = seconds as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes:02}m"),
        (days, hours, _) => format!("{days}d{hours:02}h"),
    }
}

/// `310`, `4.1K`, `1.2G`: bytes by powers of 1000.
fn size(bytes: &Value) -> String {
    let Some(bytes) = bytes.as_f64() else { return "-".into() };
    let units = ["K", "M", "G", "T"];
    let mut shown = (bytes, "");
    for unit in units {
        if shown.0 < 1000.0 {
            break;
        }
        shown = (shown.0 / 1000.0, unit);
    }
    if shown.1.is_empty() { format!("{bytes}") } else { format!("{:.1}{}", shown.0, shown.1) }
}

/// What a daemon says, which may come from a peer, for a terminal.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in
            [(8.9, "8s"), (720.0, "12m"), (11_520.0, "3h12m"), (90_000.0, "1d01h"), (3_600.0, "1h00m")]
        {
            assert_eq!(duration(Some(seconds)), text);
        }
        assert_eq!(duration(None), "-");
    }

    #[test]
    fn peers_are_sorted_and_shown_as_asked() {
        let peer = |id: &str, path: &str, conduct: f64| {
            json!({ "peer_id": id, "agent": "quelea/\u{1b}[2J", "path": path, "transport": "quic", "ip": "v4",
                    "relay": (path == "relayed").then_some("12D3KooWrelay"), "rtt_s": 0.0081, "conduct": conduct,
                    "direction": "outbound", "connected_s": 61.0, "streams": 3, "sent_bytes": 1_234_567,
                    "received_bytes": (conduct * 1e4) as u64, "protocols": [format!("/quelea/0123abcd/{id}/1")] })
        };
        let mut answer =
            json!({ "items": [peer("a", "direct", 0.1), peer("b", "relayed", 0.3), peer("c", "direct", 0.2)] });
        arrange(&mut answer, PeerSort::Trust, false, None);
        let order: Vec<String> = list(&answer["items"]).iter().map(|item| shown(&item["peer_id"])).collect();
        assert_eq!((order.concat().as_str(), summary(&answer).as_str()), ("bca", "3 peer(s) (2 direct, 1 relayed)"));
        let table = connected(&answer);
        assert!(table.contains("8.1ms") && table.contains("direct quic v4") && !table.contains('\u{1b}'), "{table}");
        assert!(table.contains("1.2M / 1.0K"), "{table}");
        arrange(&mut answer, PeerSort::Bytes, false, None);
        assert_eq!(answer["items"][0]["peer_id"], "b");
        let mut speaking = answer.clone();
        arrange(&mut speaking, PeerSort::Rtt, false, Some("c"));
        assert_eq!((list(&speaking["items"]).len(), &speaking["items"][0]["peer_id"]), (1, &json!("c")));
        arrange(&mut speaking, PeerSort::Rtt, false, Some("/quelea/0123abcd/c/2"));
        assert!(list(&speaking["items"]).is_empty());
        arrange(&mut answer, PeerSort::Rtt, true, None);
        assert_eq!(list(&answer["items"]).len(), 1);
        assert!(connected(&answer).contains("relayed via 12D3K…Wrelay quic v4"), "{}", connected(&answer));
    }
}
