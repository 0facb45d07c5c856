//! `quelea stats`.

use std::process::ExitCode;

use serde_json::Value;

use super::{args::Global, client::Daemon, exit::CliError, output::data_line, table::Listing};
use crate::text::escaped;

pub(super) async fn run(global: &Global) -> Result<ExitCode, CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/stats").await?;
    if global.json {
        data_line(&answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let (gossip, dedup) = (&answer["gossip"], &answer["dedup"]);
    data_line(&format!(
        "up          {:.0} s, {:.1} s of processor time",
        number(&answer["uptime_s"]),
        number(&answer["cpu_s"])
    ))?;
    data_line(&format!("memory      {:.1} MiB", number(&answer["memory_bytes"]) / f64::from(1 << 20)))?;
    data_line(&format!(
        "gossip      {} neighbours, {} penalised; {} peers announce layers",
        gossip["neighbours"], gossip["penalised"], gossip["announced"]
    ))?;
    data_line(&format!(
        "dedup       {} ids exactly, {} in filters; {:.1} KiB, {:.1} % full, {}",
        dedup["exact_ids"],
        dedup["bloom_ids"],
        number(&dedup["bytes"]) / 1024.0,
        number(&dedup["fill_ratio"]) * 100.0,
        rarity(number(&dedup["false_positive_ratio"])),
    ))?;
    table("traffic", &answer["traffic"])?;
    table("requests", &answer["requests"])?;
    table("gossip messages", &gossip["messages"])?;
    table("queues that had no room", &answer["queues"])?;
    table("refused by rate limits", &answer["rate_limits"]).map(|()| ExitCode::SUCCESS)
}

/// The rows that count something.
fn table(title: &str, rows: &Value) -> Result<(), CliError> {
    let rows: Vec<&serde_json::Map<String, Value>> =
        rows.as_array().into_iter().flatten().filter_map(Value::as_object).collect();
    let counts =
        |row: &&&serde_json::Map<String, Value>| row.values().any(|value| value.as_u64().is_some_and(|n| n > 0));
    let busy: Vec<_> = rows.iter().filter(counts).collect();
    let Some(first) = busy.first() else { return data_line(&format!("\n{title}: none")) };
    let mut table = Listing::new(first.keys().map(|key| key.to_uppercase()));
    for row in &busy {
        table.add_row(row.values().map(|value| value.as_str().map_or_else(|| value.to_string(), escaped)));
    }
    data_line(&format!("\n{title}:\n{table}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// A likelihood as people say it.
fn rarity(likelihood: f64) -> String {
    if likelihood > 0.0 { format!("errs once in {:.0} messages", 1.0 / likelihood) } else { "errs never".to_owned() }
}
