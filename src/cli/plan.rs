//! `quelea plan`: who would answer, how fast, and why.

use std::{path::PathBuf, process::ExitCode};

use quelea_wire::{Credits, ErrorCode};

use super::{
    args::{Global, PlanArgs},
    client::Daemon,
    exit::{CliError, Exit},
    infer::{absolute, short},
    output::{data_line, document, note, printable},
    table::Listing,
};
use crate::{
    home::Home,
    inference::{
        PlanLeftOut, PlanReport, PlanRequest, PlanView, Source,
        models::quantised,
        planner::{imagine, size},
    },
    node::{GRACE, Node, settings::Settings},
};

pub(super) async fn run(global: &Global, args: PlanArgs) -> Result<ExitCode, CliError> {
    let report = match (args.shape, &args.peers) {
        (Some(shape), Some(peers)) => {
            let text = std::fs::read_to_string(peers)
                .map_err(|e| CliError::new(ErrorCode::Usage, format!("cannot read {}: {e}", peers.display())))?;
            let asked = request(&args);
            imagine::plan(shape, args.mix, &text, &asked)
                .map_err(|e| CliError::new(ErrorCode::Usage, format!("{}: {e}", peers.display())))?
        }
        _ if !args.bootstrap.is_empty() => as_passing_peer(&args, global.data_dir.clone()).await?,
        _ => {
            let answer =
                Daemon::find(global)?.post_stream("/api/v1/plan", &request(&args)).await.map_err(
                    |error| match error.code {
                        ErrorCode::DaemonUnreachable => {
                            error.hint("start one with 'quelea daemon', or pass --bootstrap MULTIADDR")
                        }
                        _ => error,
                    },
                )?;
            answer.json().await.map_err(|e| {
                CliError::new(ErrorCode::Internal, format!("the daemon's answer is not understood: {e}"))
            })?
        }
    };
    show(global, &report)
}

fn request(args: &PlanArgs) -> PlanRequest {
    PlanRequest {
        model: quantised(&absolute(&args.model), args.quantize),
        prompt_tokens: args.prompt_tokens,
        max_tokens: args.max_tokens,
        objective: args.objective.into(),
        timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
        thin: args.thin.choice(),
        private: args.thin.private,
        profile: args.thin.profile(),
    }
}

async fn as_passing_peer(args: &PlanArgs, data_dir: Option<PathBuf>) -> Result<PlanReport, CliError> {
    let mut settings = Settings::passing(&args.network, args.bootstrap.clone());
    settings.compute = args.compute.options();
    settings.models = Home::locate(data_dir).ok().map(|home| home.models());
    settings.masking = super::masking::of_passing(&args.masked, &args.bootstrap)?;
    let node = Node::start(settings).await?;
    let planned = async {
        node.wait_for_bootstrap(&args.bootstrap).await?;
        node.plan(&request(args)).await
    }
    .await;
    node.shutdown(GRACE).await;
    Ok(planned?)
}

fn show(global: &Global, report: &PlanReport) -> Result<ExitCode, CliError> {
    let exit = if report.chosen.is_some() { ExitCode::SUCCESS } else { ExitCode::from(Exit::NoRoute as u8) };
    if global.json {
        data_line(&document("quelea.plan/v1", report, serde_json::Value::Null)?)?;
        return Ok(exit);
    }
    let bytes = if report.weight_bytes > 0 { format!(", {}", size(report.weight_bytes)) } else { String::new() };
    data_line(&format!("model:        {} (layers {}{bytes})", printable(&report.name), report.layers))?;
    data_line(&format!("request:      {} + {} tokens", report.prompt_tokens, report.answer_tokens))?;
    if report.thin {
        data_line("thin:         the first stage embeds, and sees the tokens; the last gives logits")?;
    }
    match (&report.chosen, &report.missing) {
        (Some(plan), _) => {
            chain("plan", plan)?;
            if report.as_good > 1 {
                data_line(&format!("              {} plans are as good; this node keeps to this one", report.as_good))?;
            }
            match &report.spare {
                Some(spare) => chain("spare", spare)?,
                None => data_line("spare:        none without a peer of the plan")?,
            }
        }
        (None, Some(missing)) => data_line(&format!("no plan:      {}", printable(&missing.message)))?,
        (None, None) => {}
    }
    local(report)?;
    for (title, all) in [("left out", &report.left_out), ("passed over", &report.passed_over)] {
        for out in all {
            data_line(&format!("{:<13} {}", format!("{title}:"), left_out(out)))?;
        }
    }
    if report.local_is_faster {
        note("hint: this machine alone is faster: quelea infer --route local");
    }
    Ok(exit)
}

fn local(report: &PlanReport) -> Result<(), CliError> {
    match (&report.local, &report.local_note) {
        (Some(plan), note) => {
            let note = note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
            data_line(&format!("here alone:   {}{note}", figures(plan)))
        }
        (None, Some(note)) => data_line(&format!("here alone:   no: {}", printable(note))),
        (None, None) => Ok(()),
    }
}

fn left_out(out: &PlanLeftOut) -> String {
    let layers = out.layers.as_ref().map_or_else(String::new, |layers| format!(" [{layers}]"));
    format!("{}{layers}: {}", short(&out.peer), printable(&out.reason))
}

fn figures(plan: &PlanView) -> String {
    let price = if plan.price > 0 { format!(", {} credits", Credits(plan.price)) } else { String::new() };
    format!(
        "{:.1} tokens/s, first token {:.0} ms, answer {:.1} s{price}",
        plan.tokens_per_s,
        plan.first_token_s * 1e3,
        plan.total_s
    )
}

/// A plan's figures, and a row for each stage.
fn chain(title: &str, plan: &PlanView) -> Result<(), CliError> {
    data_line(&format!("{:<13} {}", format!("{title}:"), figures(plan)))?;
    let mut table = Listing::new([
        "  PEER", "LAYERS", "WEIGHTS", "COMPUTE", "WAIT", "WAY", "B/TOKEN", "B/PROMPT", "PRICE", "SPEED",
    ]);
    for hop in &plan.hops {
        let sure = if hop.one_way_measured { "" } else { "?" };
        let source = match hop.source {
            Source::Measured => "measured",
            Source::Claimed => "claimed",
            Source::Assumed => "assumed",
        };
        table.add_row([
            format!("  {}", short(&hop.peer)),
            hop.layers.clone(),
            if hop.weight_bytes > 0 { size(hop.weight_bytes) } else { "-".into() },
            format!("{:.2} ms", hop.compute_ms),
            format!("{:.2} ms", hop.queue_ms),
            format!("{:.2} ms{sure}", hop.one_way_ms),
            size(hop.bytes_per_token),
            size(hop.bytes_for_prompt),
            Credits(hop.price).to_string(),
            source.into(),
        ]);
    }
    data_line(&table.to_string())?;
    data_line(&format!("  and {:.2} ms back", plan.back_ms))
}
