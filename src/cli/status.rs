//! `quelea id` and `quelea status`.

use std::process::ExitCode;

use quelea_wire::ErrorCode;
use serde_json::Value;

use super::{
    args::{Global, WatchArg},
    client::Daemon,
    exit::CliError,
    infer::short,
    output::{data_line, printable},
    peers,
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

/// `quelea id --format`: what is asked for of this node, or of another.
pub(super) async fn fields(global: &Global, peer: Option<&str>, format: &str) -> Result<ExitCode, CliError> {
    let route = peer.map_or_else(|| Ok("/api/v1/id".to_owned()), peers::route)?;
    let answer = Daemon::find(global)?.get(&route).await?;
    data_line(&filled(format, &answer)?)?;
    Ok(ExitCode::SUCCESS)
}

/// A text with an answer's fields in the place of their names in braces; those of a list stand side by side.
fn filled(format: &str, answer: &Value) -> Result<String, CliError> {
    let mut parts = format.split('{');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').ok_or_else(|| {
            CliError::new(ErrorCode::Usage, format!("in --format, '{{{}' has no '}}'", printable(part)))
        })?;
        let Some(field) = answer.get(name) else {
            let names: Vec<&str> = answer.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            let message = format!("in --format, {:?} is no field; there are {}", printable(name), names.join(", "));
            return Err(CliError::new(ErrorCode::Usage, message));
        };
        let word = |value: &Value| printable(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        match field.as_array() {
            Some(all) => text.push_str(&all.iter().map(word).collect::<Vec<_>>().join(" ")),
            None => text.push_str(&word(field)),
        }
        text.push_str(rest);
    }
    Ok(text)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_stand_where_their_names_did() {
        let answer =
            json!({ "peer_id": "12D3", "addresses": ["/ip4/1", "/ip4/2"], "conduct": 0.5, "agent": "a\u{1b}b" });
        let filled = |format: &str| filled(format, &answer);
        assert_eq!(filled("{peer_id}").unwrap(), "12D3");
        assert_eq!(filled("id={peer_id} at {addresses}, {conduct}!").unwrap(), "id=12D3 at /ip4/1 /ip4/2, 0.5!");
        assert_eq!(filled("none").unwrap(), "none");
        assert!(!filled("{agent}").unwrap().contains('\u{1b}'), "a stranger's word");
        let unknown = filled("{peer}").unwrap_err();
        assert!(unknown.message.contains("peer_id, addresses"), "{}", unknown.message);
        assert!(filled("{peer_id").unwrap_err().message.contains("has no '}'"));
    }
}
