//! `quelea receipt`: what a session's stages signed for, read and checked offline.

mod place;

use std::{io::Read as _, path::Path, process::ExitCode};

use quelea_ledger::{
    Hash,
    receipt::{MAX_FILE, PartReport, Report, verify},
};
use quelea_wire::{Credits, ErrorCode};
use serde_json::{Value, json};

pub(super) use self::place::Place;
use super::{
    args::{Global, ReceiptCommand},
    exit::CliError,
    infer::short,
    output::{data_line, note},
};

pub(super) fn run(global: &Global, command: &ReceiptCommand) -> Result<ExitCode, CliError> {
    let (file, checks) = match command {
        ReceiptCommand::Show { file } => (file, false),
        ReceiptCommand::Verify { file } => (file, true),
    };
    let bytes = read_most(file, MAX_FILE)?;
    let wrong = |message: String| CliError::new(ErrorCode::ReceiptWrong, message);
    let report = verify(&bytes).map_err(|error| wrong(format!("{}: {error}", file.display())))?;
    if global.json {
        data_line(&as_json(&report).to_string())?;
    } else {
        for line in lines(&report) {
            data_line(&line)?;
        }
    }
    if checks && !report.holds() {
        return Err(wrong(format!("{}: {}", file.display(), report.problems.join("; "))));
    }
    if checks && !global.json {
        note("the receipt holds; whether the rows are right it cannot say");
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a file, and no more of it than one byte above `most`.
pub(super) fn read_most(file: &Path, most: usize) -> Result<Vec<u8>, CliError> {
    let unread = |e: std::io::Error| CliError::new(ErrorCode::Usage, format!("cannot read {}: {e}", file.display()));
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    std::fs::File::open(file).map_err(unread)?.take(limit).read_to_end(&mut bytes).map_err(unread)?;
    Ok(bytes)
}

fn lines(report: &Report) -> Vec<String> {
    let about = &report.about;
    let mut lines = vec![
        format!("session:      {}", hex::encode(about.session)),
        format!("coordinator:  {}", report.coordinator),
        format!("model:        {} (layers {} of {}, {})", about.model, about.span, about.layers, about.profile),
        format!("rows:         {} of the prompt, {} of the answer", about.prompt_rows, about.answer_rows),
    ];
    for part in &report.parts {
        let PartReport { stage, span, work, note, signed, .. } = part;
        let by = if *signed { "" } else { ", lost: by the coordinator's word" };
        let paid = match (*note == Hash::ZERO, work.amount) {
            (_, 0) => String::new(),
            (true, _) => ", no note".into(),
            (false, _) => format!(", note {}", hex::encode(note.0.get(..6).unwrap_or_default())),
        };
        lines.push(format!(
            "stage:        {} [{span}]  {} + {} rows, {} credits{paid}{by}",
            short(&stage.to_string()),
            work.prefill,
            work.decode,
            Credits(work.amount)
        ));
    }
    lines.push(format!("total:        {} credits", Credits(report.total)));
    lines.push(format!("links:        {} between stages agree or are named below", report.links));
    lines.extend(report.remarks.iter().map(|remark| format!("remark:       {remark}")));
    lines.extend(report.problems.iter().map(|problem| format!("wrong:        {problem}")));
    lines
}

fn as_json(report: &Report) -> Value {
    let about = &report.about;
    let parts: Vec<Value> = report
        .parts
        .iter()
        .map(|part| {
            let roots = part.roots.map(|(first, rows, in_root, out_root)| {
                json!({
                    "first": first, "rows": rows, "in_root": hex::encode(in_root), "out_root": hex::encode(out_root),
                })
            });
            json!({
                "peer": part.stage.to_string(),
                "layers": part.span.to_string(),
                "prefill_rows": part.work.prefill,
                "decode_rows": part.work.decode,
                "price_prefill": part.work.price_prefill,
                "price_decode": part.work.price_decode,
                "amount": Credits(part.work.amount).to_string(),
                "hold": hex::encode(part.hold.0),
                "note": (part.note != Hash::ZERO).then(|| hex::encode(part.note.0)),
                "signed": part.signed,
                "roots": roots,
            })
        })
        .collect();
    json!({
        "schema": "quelea.receipt/v1",
        "holds": report.holds(),
        "session": hex::encode(about.session),
        "coordinator": report.coordinator.to_string(),
        "model": about.model.to_string(),
        "profile": about.profile.to_string(),
        "layers": about.span.to_string(),
        "layers_total": about.layers,
        "prompt_rows": about.prompt_rows,
        "answer_rows": about.answer_rows,
        "unix_ms": about.at,
        "total": Credits(report.total).to_string(),
        "links": report.links,
        "stages": parts,
        "problems": report.problems,
        "remarks": report.remarks,
    })
}
