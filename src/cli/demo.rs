//! `quelea demo`.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde_json::json;

use super::{
    args::{DemoArgs, Global},
    exit::{CliError, Exit},
    infer::short,
    output::{data, data_line, document, note, printable},
};
use crate::{
    demo::{Demo, DemoReport},
    inference::{InferEvent, Summary},
};

pub(super) async fn run(global: &Global, args: DemoArgs) -> Result<ExitCode, CliError> {
    let as_json = global.json;
    if !as_json {
        note("starting three nodes on loopback, each with its own identity, data directory and layers …");
    }
    let demo = tokio::select! {
        demo = Demo::start() => demo.map_err(CliError::from)?,
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
    };
    if !as_json {
        for (peer, layers) in demo.nodes() {
            note(&format!("  {peer}  layers {layers}"));
        }
        note("asking as a fourth peer, which finds them through the DHT\n");
    }
    let asked = async {
        let mut wrote = Ok(());
        let report = demo
            .ask(&args.question, args.max_tokens, |event| {
                if let (InferEvent::Text { text, .. }, false) = (event, as_json) {
                    wrote = data(&printable(text));
                }
            })
            .await?;
        wrote?;
        Ok::<_, CliError>(report)
    };
    let result = tokio::select! {
        report = asked => report.map(Some),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    demo.stop().await;
    let Some(report) = result? else { return Ok(ExitCode::from(Exit::Interrupted as u8)) };
    if as_json {
        show_json(&report)?;
    } else {
        show_table(&report)?;
    }
    if report.same { Ok(ExitCode::SUCCESS) } else { Ok(ExitCode::from(Exit::Integrity as u8)) }
}

fn show_json(report: &DemoReport) -> Result<(), CliError> {
    let more = json!({ "same_as_unsplit": report.same, "unsplit_text": report.unsplit });
    data_line(&document("quelea.demo/v1", &report.summary, more)?)
}

fn show_table(report: &DemoReport) -> Result<(), CliError> {
    data_line("")?;
    let Summary { hops, tokens_per_s, ttft_s, .. } = &report.summary;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "peer",
        "layers",
        "rows",
        "ms per token",
        "ms to the next hop",
    ]);
    for hop in hops {
        let one_way = hop.hop_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.2}"));
        table.add_row([
            short(&hop.peer),
            hop.layers.clone(),
            hop.rows.to_string(),
            format!("{:.2}", hop.compute_ms_per_row),
            one_way,
        ]);
    }
    note(&format!("\n{table}"));
    let rate = tokens_per_s.map_or_else(String::new, |rate| format!(", {rate:.0} tokens/s"));
    note(&format!("first token after {:.0} ms{rate}", ttft_s * 1e3));
    if report.same {
        note("checked: the unsplit model gives the same text, token for token");
    } else {
        note(&format!("MISMATCH: the unsplit model gives another text:\n{}", printable(&report.unsplit)));
    }
    Ok(())
}
