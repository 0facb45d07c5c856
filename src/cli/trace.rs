//! `quelea trace`: where the time of this node's requests went.

use quelea_wire::{ErrorCode, time::unix_ms};
use serde_json::Value;

use super::{
    args::{Global, TraceCommand},
    client::Daemon,
    exit::{CliError, Exit},
    output::{data_line, note, printable},
    table::Listing,
};

/// How wide the bars are.
const COLUMNS: usize = 32;

/// Spans are parts of spans; deeper ones than this stand below each other.
const MAX_DEPTH: usize = 8;

pub(super) async fn run(global: &Global, command: TraceCommand) -> Result<(), CliError> {
    match command {
        TraceCommand::Ls => list(global).await,
        TraceCommand::Show { id } => show(global, id.as_deref()).await,
    }
}

async fn list(global: &Global) -> Result<(), CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/traces").await?;
    if global.json {
        return data_line(&answer.to_string());
    }
    let traces = items(&answer, "items");
    if traces.is_empty() {
        note("no request has been traced since the daemon started");
        return Ok(());
    }
    let mut table = Listing::new(["TRACE", "REQUEST", "AGO", "TOOK", "SPANS", "END"]).right([2, 3, 4]);
    for trace in traces {
        let ago = unix_ms().saturating_sub(trace["started_ms"].as_u64().unwrap_or_default()) / 1000;
        table.add_row([
            text(&trace["trace_id"]),
            text(&trace["name"]),
            format!("{ago}s"),
            millis(&trace["duration_s"]),
            trace["spans"].to_string(),
            trace["error"].as_str().map_or_else(|| "ok".to_owned(), printable),
        ]);
    }
    data_line(&table.to_string())
}

async fn show(global: &Global, wanted: Option<&str>) -> Result<(), CliError> {
    let daemon = Daemon::find(global)?;
    let answer = daemon.get("/api/v1/traces").await?;
    let ids: Vec<&str> = items(&answer, "items").iter().filter_map(|trace| trace["trace_id"].as_str()).collect();
    let id = match wanted {
        None => ids.first().copied().ok_or_else(|| missing("no request has been traced since the daemon started"))?,
        Some(wanted) => {
            let wanted = wanted.to_ascii_lowercase();
            let fitting: Vec<&str> = ids.into_iter().filter(|id| id.starts_with(&wanted)).collect();
            match fitting[..] {
                [one] => one,
                [] => return Err(missing("no such trace is kept; 'quelea trace ls' shows those that are")),
                _ => return Err(CliError::new(ErrorCode::Usage, "several traces begin like this: give more digits")),
            }
        }
    };
    let trace = daemon.get(&format!("/api/v1/traces/{id}")).await?;
    if global.json {
        return data_line(&trace.to_string());
    }
    data_line(&draw(&trace))
}

fn missing(what: &str) -> CliError {
    CliError::new(ErrorCode::Usage, what).exit(Exit::NotFound)
}

fn items<'a>(answer: &'a Value, field: &str) -> &'a [Value] {
    answer[field].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or("-"))
}

fn millis(seconds: &Value) -> String {
    format!("{:.1}ms", seconds.as_f64().unwrap_or(0.0) * 1e3)
}

/// The spans below each other, each within its own, with a bar that tells when it was.
fn draw(trace: &Value) -> String {
    let spans = items(trace, "spans");
    let end = spans.iter().map(|span| at(span, "after_s") + at(span, "duration_s")).fold(0.0, f64::max);
    let mut table = Listing::new(["SPAN", "TOOK", "WHEN", "WHAT"]).right([1]);
    for span in spans {
        let name = format!("{}{}", "  ".repeat(depth(span, spans)), text(&span["name"]));
        table.add_row([name, millis(&span["duration_s"]), bar(span, end), what(span)]);
    }
    table.to_string()
}

fn at(span: &Value, field: &str) -> f64 {
    span[field].as_f64().unwrap_or(0.0)
}

fn depth(span: &Value, spans: &[Value]) -> usize {
    let parent_of = |span: &Value| spans.iter().find(|other| other["span_id"] == span["parent_span_id"]);
    std::iter::successors(parent_of(span), |span| parent_of(span)).take(MAX_DEPTH).count()
}

fn bar(span: &Value, end: f64) -> String {
    let column = |seconds: f64| if end > 0.0 { (seconds / end * COLUMNS as f64).round() as usize } else { 0 };
    let from = column(at(span, "after_s")).min(COLUMNS - 1);
    let until = column(at(span, "after_s") + at(span, "duration_s")).clamp(from + 1, COLUMNS);
    format!("{}{}{}", "·".repeat(from), "█".repeat(until - from), "·".repeat(COLUMNS - until))
}

/// The error, or who it was and what it held, or how many tokens.
fn what(span: &Value) -> String {
    let of = |key: &str| span["attributes"].get(key);
    let mut said = Vec::new();
    if let Some(error) = of("error.type").and_then(Value::as_str) {
        said.push(printable(error));
    }
    if let (Some(peer), Some(layers)) = (of("quelea.peer.id").and_then(Value::as_str), of("quelea.layers")) {
        let tail = peer.get(peer.len().saturating_sub(4)..).unwrap_or(peer);
        said.push(format!("…{} [{}]", printable(tail), text(layers)));
    }
    for (key, unit) in [("quelea.rows", "rows"), ("gen_ai.usage.output_tokens", "tokens"), ("quelea.stages", "stages")]
    {
        if let Some(count) = of(key).and_then(Value::as_u64) {
            said.push(format!("{count} {unit}"));
        }
    }
    if let Some(us) = of("quelea.compute_us").and_then(Value::as_u64) {
        said.push(format!("{:.1}ms computing", us as f64 / 1e3));
    }
    said.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spans_stand_within_each_other_and_when_they_were() {
        let span = |id: &str, parent: Option<&str>, name: &str, after: f64, took: f64| {
            json!({
                "span_id": id, "parent_span_id": parent, "name": name, "after_s": after, "duration_s": took,
                "attributes": { "quelea.peer.id": "12D3KooWabcd", "quelea.layers": "0..3", "quelea.rows": 9 },
            })
        };
        let spans =
            vec![span("a", None, "chat demo", 0.0, 2.0), span("b", Some("a"), "pipeline.stage session", 1.0, 1.0)];
        let drawn = draw(&json!({ "spans": spans }));
        let lines: Vec<&str> = drawn.lines().map(str::trim_end).collect();
        assert!(lines[1].contains(&"█".repeat(COLUMNS)), "{drawn}");
        assert!(lines[2].trim_start().starts_with("pipeline.stage") && lines[2].starts_with("   "), "{drawn}");
        assert!(lines[2].contains("…abcd [0..3], 9 rows") && lines[2].contains("·█"), "{drawn}");
    }

    #[test]
    fn spans_that_are_each_others_part_do_not_hang_it() {
        let spans =
            [json!({ "span_id": "a", "parent_span_id": "b" }), json!({ "span_id": "b", "parent_span_id": "a" })];
        assert_eq!(depth(&spans[0], &spans), MAX_DEPTH);
    }
}
