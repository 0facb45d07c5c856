//! `quelea id` and `quelea status`.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    args::{Global, WatchArg},
    client::Daemon,
    exit::CliError,
    infer::short,
    output::{data_line, printable},
    table::Listing,
    watch,
};

pub(super) async fn id(global: &Global) -> Result<ExitCode, CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/id").await?;
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        data_line(text(&answer["peer_id"]))?;
        for addr in list(&answer["addresses"]) {
            data_line(text(addr))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status(global: &Global, watch: WatchArg) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    let look = async || {
        let answer = daemon.get("/api/v1/status").await?;
        Ok(if global.json { answer.to_string() } else { readable(&answer) }.into())
    };
    watch::show(global, watch, look).await
}

fn readable(answer: &Value) -> String {
    let mut lines = Vec::new();
    lines.push(format!("peer id   {}", text(&answer["peer_id"])));
    lines.push(format!("health    {}", text(&answer["health"]["status"])));
    for addr in list(&answer["addresses"]) {
        lines.push(format!("listen    {}", text(addr)));
    }
    for served in list(&answer["serves"]) {
        let price = match (served["price_decode"].as_u64(), served["price_prefill"].as_u64()) {
            (Some(decode), Some(prefill)) if (decode, prefill) != (0, 0) => {
                format!(", {decode} micro-credits per 1000 layer-rows, {prefill} of prompts")
            }
            _ => String::new(),
        };
        lines.push(format!(
            "serving   layers {} of {} ({}), {} session(s), {} of {} KV pages free, {} kept for prompts that begin alike{price}",
            text(&served["layers"]),
            printable(text(&served["name"])),
            text(&served["model"]).get(..12).unwrap_or_default(),
            served["sessions"],
            served["kv_pages_free"],
            served["kv_pages_total"],
            served["kv_pages_cached"]
        ));
    }
    lines.push(format!("peers     {} connected, {} known", answer["peers_connected"], answer["peers_known"]));
    let peers = list(&answer["peers"]);
    if peers.is_empty() {
        return lines.join("\n");
    }
    let mut table = Listing::new(["PEER", "AGENT", "RTT", "ADDRESS", "UP"]);
    for peer in peers {
        let rtt = peer["rtt_s"].as_f64().map_or_else(|| "-".into(), |s| format!("{:.1}ms", s * 1e3));
        let addr = list(&peer["addresses"]).first().map_or("-", |addr| text(addr));
        let up = format!("{:.0}s", peer["connected_s"].as_f64().unwrap_or(0.0));
        let agent = printable(peer["agent"].as_str().unwrap_or("-"));
        table.add_row([short(text(&peer["peer_id"])), agent, rtt, addr.to_owned(), up]);
    }
    lines.push(table.to_string());
    lines.join("\n")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
