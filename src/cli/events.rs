//! `quelea events`.

use std::process::ExitCode;

use futures::StreamExt as _;
use quelea_wire::ErrorCode;
use serde_json::Value;

use super::{
    args::{EventsArgs, Global},
    client::Daemon,
    exit::CliError,
    output::{data_line, note},
};
use crate::text::escaped;

/// The longest line: an announcement of a few dozen offers.
const LINE_MAX: usize = 1 << 20;

pub(super) async fn run(global: &Global, args: EventsArgs) -> Result<ExitCode, CliError> {
    let types: Vec<&str> = args.types.iter().map(|kind| kind.as_str()).collect();
    let mut route = format!("/api/v1/events?follow={}&types={}", args.follow, types.join(","));
    if let Some(after) = args.after {
        route.push_str(&format!("&after={after}"));
    }
    let daemon = Daemon::find(global)?;
    let mut body = daemon.stream(&route).await?.bytes_stream();
    let mut pending = Vec::new();
    loop {
        let chunk = tokio::select! {
            chunk = body.next() => chunk,
            // Whoever follows ends it so: that is no failure.
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        let Some(chunk) = chunk else { return Ok(ExitCode::SUCCESS) };
        pending.extend_from_slice(&chunk.map_err(|e| daemon.lost(&e))?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            // What is not data is for browsers: numbers, names, comments.
            if let Some(data) = line.strip_prefix(b"data:") {
                show(global, String::from_utf8_lossy(data).trim())?;
            }
        }
        if pending.len() > LINE_MAX {
            return Err(CliError::new(ErrorCode::Internal, "the daemon sends a line without an end"));
        }
    }
}

fn show(global: &Global, line: &str) -> Result<(), CliError> {
    if global.json {
        return data_line(line);
    }
    let event: Value = serde_json::from_str(line)
        .map_err(|e| CliError::new(ErrorCode::Internal, format!("the daemon's answer is not understood: {e}")))?;
    match event["missed"].as_u64() {
        Some(missed) => note(&format!("{missed} older events are gone")),
        None => data_line(&readable(&event))?,
    }
    Ok(())
}

/// One line for people. What strangers wrote is escaped.
fn readable(event: &Value) -> String {
    let text = |name: &str| escaped(event[name].as_str().unwrap_or("-"));
    let what = match event["type"].as_str() {
        Some("peer") => {
            format!(
                "peer     {} {}",
                text("peer"),
                if event["connected"] == true { "connected" } else { "disconnected" }
            )
        }
        Some("model") => {
            let offers = event["offers"].as_array().map_or(&[][..], Vec::as_slice);
            let offers: Vec<String> = offers
                .iter()
                .map(|offer| {
                    let model = offer["model"].as_str().unwrap_or("-");
                    format!("{} of {}", offer["layers"].as_str().unwrap_or("-"), model.get(..12).unwrap_or(model))
                })
                .collect();
            format!("model    {} {}  {}", text("peer"), text("change"), escaped(&offers.join(", ")))
        }
        Some("message") => format!("message  {}  {}", text("author"), text("text")),
        _ => escaped(&event.to_string()),
    };
    format!("{}  {}", clock(event["time_ms"].as_u64().unwrap_or(0)), what.trim_end())
}

/// The time of day in UTC: events are hours old at most.
fn clock(time_ms: u64) -> String {
    let seconds = time_ms / 1000;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_read_as_lines_and_hostile_words_stay_words() {
        let message =
            json!({ "type": "message", "time_ms": 45_296_000_u64, "author": "12D3", "text": "a\u{1b}[2J\u{202e}b" });
        assert_eq!(readable(&message), "12:34:56Z  message  12D3  a\\u{1b}[2J\\u{202e}b");
        let peer = json!({ "type": "peer", "time_ms": 0, "peer": "12D3", "connected": false });
        assert_eq!(readable(&peer), "00:00:00Z  peer     12D3 disconnected");
        let offers = json!([{ "model": "0123456789abcdef", "layers": "0..8" }]);
        let model = json!({ "type": "model", "time_ms": 0, "peer": "12D3", "change": "added", "offers": offers });
        assert_eq!(readable(&model), "00:00:00Z  model    12D3 added  0..8 of 0123456789ab");
    }
}
