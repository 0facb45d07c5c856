//! `quelea dht`.

use std::{
    io::{IsTerminal as _, Read as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{DhtCommand, Global},
    client::Daemon,
    exit::CliError,
    output::{data_bytes, data_line, note, printable},
    table::Listing,
};

/// Bytes read of a value before it is certain that it is too long; the daemon says how long it may be.
const VALUE_READ_MAX: u64 = 64 * 1024;

/// The longest line of an answer: 64 providers, or 32 values of a kilobyte in hexadecimal.
const LINE_MAX: usize = 1 << 20;

/// Between two lines that say how far a lookup is.
const SAY_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(global: &Global, command: DhtCommand) -> Result<ExitCode, CliError> {
    let show = |answer: &Value, text: String| data_line(if global.json { answer.to_string() } else { text }.as_str());
    match command {
        DhtCommand::Put { key, value, ttl, quorum, time } => {
            let ttl = ttl.map(|ttl| ttl.as_secs_f64());
            let body =
                json!({ "key": key, "value_hex": hex::encode(read_value(&value)?), "ttl_s": ttl, "quorum": quorum });
            let answer = lookup(global, "put", body, time.timeout).await?;
            show(&answer, format!("{} acknowledged by {} peer(s)", shown(&answer["key"]), answer["peers"]))?;
        }
        DhtCommand::Get { key, all, quorum, time } => {
            let body = json!({ "key": key, "all": all, "quorum": quorum });
            let answer = lookup(global, "get", body, time.timeout).await?;
            match (global.json, all) {
                (true, _) => data_line(&answer.to_string())?,
                (false, true) => data_line(&all_values(&answer).to_string())?,
                (false, false) => one_value(&answer)?,
            }
        }
        DhtCommand::Delete { key } => {
            let response = Daemon::find(global)?.post("/api/v1/dht/delete", &json!({ "key": key })).await?;
            let answer: Value = response.json().await.map_err(|e| not_understood(&e))?;
            show(&answer, format!("{} is no longer published", shown(&answer["key"])))?;
        }
        DhtCommand::Provide { key, time } => {
            let answer = lookup(global, "provide", json!({ "key": key }), time.timeout).await?;
            show(&answer, format!("{} is provided", shown(&answer["key"])))?;
        }
        DhtCommand::Providers { key, time } => {
            let answer = lookup(global, "providers", json!({ "key": key }), time.timeout).await?;
            show(&answer, peers(&answer["items"]).to_string())?;
        }
        DhtCommand::FindPeer { peer, time } => {
            let answer = lookup(global, "find-peer", json!({ "peer": peer }), time.timeout).await?;
            let addrs: Vec<String> = list(&answer["addresses"]).iter().map(shown).collect();
            if answer["connected"] == false {
                note("found, but it could not be reached");
            }
            show(&answer, addrs.join("\n"))?;
        }
        DhtCommand::FindNode { target, time } => {
            let answer = lookup(global, "find-node", json!({ "target": target }), time.timeout).await?;
            show(&answer, peers(&answer["items"]).to_string())?;
        }
        DhtCommand::Stats => {
            let answer = Daemon::find(global)?.get("/api/v1/dht/stats").await?;
            show(&answer, stats(&answer))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read_value(given: &str) -> Result<Vec<u8>, CliError> {
    let cannot = |what: &str, e: std::io::Error| CliError::new(ErrorCode::Usage, format!("cannot read {what}: {e}"));
    let mut value = Vec::new();
    if given == "-" {
        std::io::stdin().take(VALUE_READ_MAX).read_to_end(&mut value).map_err(|e| cannot("stdin", e))?;
    } else if let Some(path) = given.strip_prefix('@') {
        let file = std::fs::File::open(path).map_err(|e| cannot(path, e))?;
        file.take(VALUE_READ_MAX).read_to_end(&mut value).map_err(|e| cannot(path, e))?;
    } else {
        value.extend_from_slice(given.as_bytes());
    }
    Ok(value)
}

/// Asks the daemon, says on stderr how far it is, and returns the answer.
async fn lookup(global: &Global, what: &str, mut body: Value, timeout: Duration) -> Result<Value, CliError> {
    body["timeout_s"] = json!(timeout.as_secs_f64());
    let daemon = Daemon::find(global)?;
    let mut lines = daemon.lines(daemon.post_stream(&format!("/api/v1/dht/{what}"), &body).await?, LINE_MAX);
    let mut said = Instant::now();
    while let Some(mut event) = lines.next::<Value>().await? {
        match event["event"].as_str() {
            Some("done") => {
                let result = event["result"].take();
                if !global.json {
                    let took = result["elapsed_s"].as_f64().unwrap_or(0.0);
                    note(&format!("{} peer(s) asked in {took:.2} s", result["requests"]));
                }
                return Ok(result);
            }
            Some("error") => {
                let error: crate::inference::InferError =
                    serde_json::from_value(event["error"].take()).map_err(|e| not_understood(&e))?;
                return Err(error.into());
            }
            _ if !global.json && said.elapsed() >= SAY_EVERY => {
                said = Instant::now();
                let (asked, answers, failures) = (&event["requests"], &event["answers"], &event["failures"]);
                note(&format!("{asked} peer(s) asked, {answers} answered, {failures} failed"));
            }
            _ => {}
        }
    }
    Err(not_understood(&"it ends in the middle"))
}

fn not_understood(error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ErrorCode::Internal, format!("the daemon's answer is not understood: {error}"))
}

/// To a file or another program exactly the bytes; to a terminal what is safe there.
fn one_value(answer: &Value) -> Result<(), CliError> {
    let value = hex::decode(answer["value_hex"].as_str().unwrap_or_default()).map_err(|e| not_understood(&e))?;
    if std::io::stdout().is_terminal() {
        return data_line(&printable(&String::from_utf8_lossy(&value)));
    }
    data_bytes(&value)
}

fn all_values(answer: &Value) -> Listing {
    let mut table = Listing::new(["HOLDERS", "SEQUENCE", "EXPIRES", "VALUE"]);
    for item in list(&answer["items"]) {
        let expires = item["expires_s"].as_f64().map_or_else(|| "-".into(), |s| format!("{s:.0}s"));
        let value = item["value"].as_str().map_or_else(|| shown(&item["value_hex"]), printable);
        table.add_row([item["holders"].to_string(), shown(&item["sequence"]), expires, value]);
    }
    table
}

fn peers(items: &Value) -> Listing {
    let mut table = Listing::new(["PEER", "REACHED", "ADDRESS"]);
    for item in list(items) {
        let reached = item["connected"].as_bool().map_or("-", |yes| if yes { "yes" } else { "no" });
        let addr = list(&item["addresses"]).first().map_or_else(|| "-".into(), shown);
        table.add_row([shown(&item["peer_id"]), reached.into(), addr]);
    }
    table
}

fn stats(answer: &Value) -> String {
    let (records, providers, store) = (&answer["records"], &answer["providers"], &answer["store"]);
    let mut lines = vec![
        format!("mode       {}", shown(&answer["mode"])),
        format!("peers      {} in {} bucket(s)", answer["peers"], list(&answer["buckets"]).len()),
        format!("records    {} held ({} bytes), {} own", records["held"], records["held_bytes"], records["own"]),
        format!("providers  {} held of {} key(s), {} own", providers["held"], providers["keys"], providers["own"]),
        format!(
            "store      {} refused, {} replaced, {} expired",
            store["refused"], store["replaced"], store["expired"]
        ),
        format!("lookups    {} running", answer["queries_running"]),
    ];
    for (kind, tally) in answer["queries"].as_object().into_iter().flatten() {
        if let Some(ratio) = tally["success_ratio"].as_f64() {
            lines.push(format!("{kind:<10} {} ok, {} failed ({:.1} %)", tally["ok"], tally["failed"], ratio * 100.0));
        }
    }
    let mut buckets = Listing::new(["BUCKET", "PEERS"]);
    for bucket in list(&answer["buckets"]) {
        buckets.add_row([bucket["bucket"].to_string(), bucket["peers"].to_string()]);
    }
    lines.push(buckets.to_string());
    lines.join("\n")
}

/// Text as it is, numbers as numbers, nothing as a dash; safe for a terminal.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
