//! `quelea check`: one question, one answer, for whatever watches machines. Exit codes are those of Nagios' plugins.

use std::{fmt::Write as _, process::ExitCode};

use serde_json::{Value, json};

use super::{
    args::{CheckArgs, CheckFormat, CheckSubject, Global},
    client::{Daemon, home},
    coverage::escaped,
    exit::CliError,
    infer::absolute,
    output::{data_line, printable},
};

/// Bytes free below which storage is a warning, and below which it is critical.
const SPACE: (f64, f64) = (2e9, 100e6);

/// How it is, as Nagios numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// An answer, and the figures that it rests on.
#[derive(Debug, Clone, PartialEq)]
struct Report {
    state: State,
    message: String,
    /// Name, value, unit as Nagios has it.
    figures: Vec<(&'static str, f64, &'static str)>,
}

pub(super) async fn run(global: &Global, args: CheckArgs) -> Result<ExitCode, CliError> {
    let report = match look(global, &args).await {
        Ok(report) => report,
        // Who cannot look does not know.
        Err(error) => Report { state: State::Unknown, message: error.message, figures: Vec::new() },
    };
    let format = if global.json { CheckFormat::Json } else { args.format };
    data_line(&shown(&report, args.subject.name(), format))?;
    Ok(ExitCode::from(report.state as u8))
}

async fn look(global: &Global, args: &CheckArgs) -> Result<Report, CliError> {
    let daemon = Daemon::find(global)?;
    Ok(match args.subject {
        CheckSubject::Node => match daemon.get("/api/v1/status").await {
            Ok(status) => node(&status),
            // A daemon that is not there is what this one is for.
            Err(error) => Report { state: State::Critical, message: error.message, figures: Vec::new() },
        },
        CheckSubject::Peers => {
            let status = daemon.get("/api/v1/status").await?;
            let (warning, critical) = (args.warning.unwrap_or(2.0), args.critical.unwrap_or(1.0));
            peers(&status, warning, critical)
        }
        CheckSubject::Model => {
            let route = format!("/api/v1/coverage?model={}", escaped(&absolute(&args.model)));
            model(&daemon.get(&route).await?)
        }
        CheckSubject::Ledger => {
            let (check, accounts) = (daemon.get("/api/v1/ledger/check").await?, daemon.get("/api/v1/ledger").await?);
            ledger(&check, &accounts)
        }
        CheckSubject::Storage => {
            let status = daemon.get("/api/v1/status").await?;
            let disk = rustix::fs::statvfs(home(global)?.dir()).ok();
            let free = disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            storage(&status, free, args.warning.unwrap_or(SPACE.0), args.critical.unwrap_or(SPACE.1))
        }
    })
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn node(status: &Value) -> Report {
    let health = &status["health"];
    let state = match (health["live"].as_bool(), health["ready"].as_bool(), health["status"].as_str()) {
        (Some(true), Some(true), Some("ok")) => State::Ok,
        (Some(true), Some(true), _) => State::Warning,
        _ => State::Critical,
    };
    let ill: Vec<String> = health["components"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, component)| component["status"] != "ok")
        .map(|(name, component)| format!("{name}: {}", component["message"].as_str().unwrap_or_default()))
        .collect();
    let message = if ill.is_empty() {
        format!("the node is {}", health["status"].as_str().unwrap_or("unknown"))
    } else {
        ill.join("; ")
    };
    Report { state, message, figures: vec![("uptime", number(&health["uptime_seconds"]), "s")] }
}

/// Fewer than `warning` or `critical` is too few.
fn peers(status: &Value, warning: f64, critical: f64) -> Report {
    let connected = number(&status["peers_connected"]);
    let state = too_little(connected, warning, critical);
    let message = format!("{connected} peer(s) connected");
    Report {
        state,
        message,
        figures: vec![("connected", connected, ""), ("known", number(&status["peers_known"]), "")],
    }
}

fn too_little(value: f64, warning: f64, critical: f64) -> State {
    if value < critical {
        State::Critical
    } else if value < warning {
        State::Warning
    } else {
        State::Ok
    }
}

fn model(coverage: &Value) -> Report {
    let layers = coverage["layers"].as_u64().unwrap_or(0);
    let missing: Vec<&str> = coverage["missing"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let holders = coverage["holders"].as_array().map_or(0, Vec::len);
    let state = if missing.is_empty() && layers > 0 { State::Ok } else { State::Critical };
    let message = match state {
        State::Ok => format!("all {layers} layers are held, by {holders} peer(s)"),
        _ => format!("nobody holds layers {} of {layers}", missing.join(", ")),
    };
    Report { state, message, figures: vec![("layers", layers as f64, ""), ("holders", holders as f64, "")] }
}

fn ledger(check: &Value, accounts: &Value) -> Report {
    let faults = check["faults"].as_array().map_or(0, Vec::len);
    let all = accounts["items"].as_array().map_or(&[][..], Vec::as_slice);
    let frozen = all.iter().filter(|account| !account["frozen"].is_null()).count();
    let defaults = all.iter().filter(|account| !account["default_since_s"].is_null()).count();
    let (state, message) = match (check["ok"].as_bool(), frozen + defaults) {
        (Some(true), 0) => (State::Ok, format!("{} account(s), all entries hold", all.len())),
        (Some(true), _) => (State::Warning, format!("{frozen} account(s) frozen, {defaults} in default")),
        _ => (State::Critical, format!("{faults} stored entries are not what the counters say")),
    };
    let credits = |field: &str| number(&accounts["totals"][field]) / 1e6;
    let figures = vec![
        ("owed", credits("owed"), ""),
        ("owing", credits("owing"), ""),
        ("faults", faults as f64, ""),
        ("defaults", defaults as f64, ""),
    ];
    Report { state, message, figures }
}

fn storage(status: &Value, free: Option<u64>, warning: f64, critical: f64) -> Report {
    let component = &status["health"]["components"]["storage"];
    let Some(free) = free else {
        let message = "the data directory is not on this machine, or the system does not say what is free".into();
        return Report { state: State::Unknown, message, figures: Vec::new() };
    };
    let free = free as f64;
    let of_database = match component["status"].as_str() {
        Some("ok") => State::Ok,
        Some("degraded") => State::Warning,
        _ => State::Critical,
    };
    let state = of_database.max(too_little(free, warning, critical));
    let database = component["message"].as_str().unwrap_or_default();
    let message = format!("{:.1} GB free; database: {database}", free / 1e9);
    Report { state, message, figures: vec![("free", free, "B")] }
}

fn shown(report: &Report, subject: &str, format: CheckFormat) -> String {
    let Report { state, message, figures } = report;
    let message = printable(message).replace(['\n', '|'], " ");
    match format {
        CheckFormat::Text => format!("{subject}: {} ({message})", state.name()),
        CheckFormat::Nagios => {
            let data: Vec<String> = figures.iter().map(|(name, value, unit)| format!("{name}={value}{unit}")).collect();
            let data = if data.is_empty() { String::new() } else { format!(" | {}", data.join(" ")) };
            format!("QUELEA {} {} - {message}{data}", subject.to_uppercase(), state.name())
        }
        CheckFormat::Json => {
            let figures: serde_json::Map<String, Value> =
                figures.iter().map(|(name, value, _)| ((*name).to_owned(), json!(value))).collect();
            json!({
                "schema": "quelea.check/v1",
                "subject": subject,
                "state": state.name(),
                "exit": *state as u8,
                "message": message,
                "figures": figures,
            })
            .to_string()
        }
        CheckFormat::Prometheus => {
            let mut text = format!(
                "# HELP quelea_check_state 0 ok, 1 warning, 2 critical, 3 unknown\n# TYPE quelea_check_state gauge\n\
                 quelea_check_state{{subject=\"{subject}\"}} {}",
                *state as u8
            );
            for (name, value, unit) in figures {
                let suffix = match *unit {
                    "s" => "_seconds",
                    "B" => "_bytes",
                    _ => "",
                };
                let metric = format!("quelea_check_{subject}_{name}{suffix}");
                let _ = write!(text, "\n# HELP {metric} As checked\n# TYPE {metric} gauge\n{metric} {value}");
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_says_the_same() {
        let report = peers(&json!({ "peers_connected": 1, "peers_known": 7 }), 2.0, 1.0);
        assert_eq!(report.state, State::Warning);
        let nagios = "QUELEA PEERS WARNING - 1 peer(s) connected | connected=1 known=7";
        assert_eq!(shown(&report, "peers", CheckFormat::Nagios), nagios);
        assert_eq!(shown(&report, "peers", CheckFormat::Text), "peers: WARNING (1 peer(s) connected)");
        let json: Value = serde_json::from_str(&shown(&report, "peers", CheckFormat::Json)).unwrap();
        assert_eq!((&json["exit"], &json["figures"]["known"]), (&json!(1), &json!(7.0)));
        let text = shown(&report, "peers", CheckFormat::Prometheus);
        assert!(
            text.contains("quelea_check_state{subject=\"peers\"} 1") && text.ends_with("quelea_check_peers_known 7")
        );
    }

    #[test]
    fn thresholds_and_states() {
        let state = |connected: u64| peers(&json!({ "peers_connected": connected }), 2.0, 1.0).state;
        assert_eq!([state(0), state(1), state(2)], [State::Critical, State::Warning, State::Ok]);
        let healthy = json!({ "health": { "live": true, "ready": true, "status": "ok", "components": {
            "storage": { "status": "ok", "message": "open" } } } });
        assert_eq!(node(&healthy).state, State::Ok);
        assert_eq!(node(&json!({})).state, State::Critical);
        let free = |bytes: Option<u64>| storage(&healthy, bytes, SPACE.0, SPACE.1).state;
        assert_eq!(
            [free(Some(5_000_000_000)), free(Some(1_000_000_000)), free(Some(1)), free(None)],
            [State::Ok, State::Warning, State::Critical, State::Unknown]
        );
        let sums = json!({ "items": [], "totals": {} });
        assert_eq!(ledger(&json!({ "ok": true }), &sums).state, State::Ok);
        assert_eq!(ledger(&json!({ "ok": false, "faults": [1] }), &sums).state, State::Critical);
    }
}
