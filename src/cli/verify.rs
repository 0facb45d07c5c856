//! `quelea verify`: the rows that a receipt's stages signed for, or the one that a fraud claim is about, computed again here.

mod fraud;

use std::{path::Path, process::ExitCode};

use quelea_ledger::{
    fraud::{MAGIC, MAX_FILE as MOST},
    receipt::{PartReport, verify},
};
use quelea_wire::{ErrorCode, ModelId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    args::{Global, VerifyArgs},
    exit::CliError,
    infer::short,
    output::{data_line, note},
    receipt::read_most,
};
use crate::inference::{
    audit::{Claim, Verdict, again},
    models::ModelFile,
};

/// What is read of an answer. Whoever wrote it is whoever reads it: its size is his own affair.
#[derive(Deserialize)]
struct Answer {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
}

pub(super) async fn run(global: &Global, args: VerifyArgs) -> Result<ExitCode, CliError> {
    let VerifyArgs { file: receipt, answer, convict, model, compute } = args;
    let bytes = read_most(&receipt, MOST)?;
    if bytes.starts_with(MAGIC) {
        return fraud::run(global, (receipt.as_path(), bytes.as_slice()), model, compute.options(), convict).await;
    }
    if convict {
        let message = format!("{} is no fraud claim", receipt.display());
        return Err(CliError::new(ErrorCode::Usage, message).hint("leave --convict out to check a receipt"));
    }
    let answer = answer.ok_or_else(|| {
        let message = "a receipt says nothing of the tokens";
        CliError::new(ErrorCode::Usage, message).hint("give --answer the JSON of the same answer")
    })?;
    let wrong = |message: String| CliError::new(ErrorCode::ReceiptWrong, message);
    let report = verify(&bytes).map_err(|error| wrong(format!("{}: {error}", receipt.display())))?;
    if !report.holds() {
        return Err(wrong(format!("{}: {}", receipt.display(), report.problems.join("; "))));
    }
    let Answer { prompt_ids, ids } = tokens(&answer)?;
    if u32::try_from(prompt_ids.len()) != Ok(report.about.prompt_rows) {
        let message = format!(
            "{} is another answer's: its prompt has {} tokens, and the receipt says {}",
            answer.display(),
            prompt_ids.len(),
            report.about.prompt_rows
        );
        return Err(CliError::new(ErrorCode::Usage, message));
    }
    let (of_part, claims): (Vec<&PartReport>, Vec<Claim>) = report.parts.iter().filter_map(claim).unzip();
    if claims.is_empty() {
        return Err(wrong(format!("{}: no stage has signed for rows", receipt.display())));
    }
    let file = opened(model, report.about.model).await?;
    let ids = [prompt_ids, ids].concat();
    let told = |span| {
        if !global.json {
            note(&format!("layers {span} computed again …"));
        }
    };
    let verdicts = again(&file, report.about.profile, compute.options(), &claims, &ids, told).await?;
    let liars: Vec<&PartReport> = of_part
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| **verdict == Verdict::Wrong)
        .map(|(part, _)| *part)
        .collect();
    if global.json {
        data_line(&as_json(&of_part, &verdicts).to_string())?;
    } else {
        for (part, verdict) in of_part.iter().zip(&verdicts) {
            let said = match verdict {
                Verdict::Right => "as the model computes it",
                Verdict::GivenOthers => "was given other rows than these tokens make",
                Verdict::Wrong => "WRONG: given the right rows, it gave on others",
            };
            let rows = part.roots.map_or(0, |(_, rows, ..)| rows);
            data_line(&format!("{} [{}]  {rows} rows: {said}", short(&part.stage.to_string()), part.span))?;
        }
    }
    if let Some(first) = liars.first() {
        let message = format!("peer {} (layers {}) gave on other rows than the model's", first.stage, first.span);
        return Err(
            wrong(message).hint("its receipt, the answer and the model are proof for whoever computes it again")
        );
    }
    if verdicts.contains(&Verdict::GivenOthers) {
        let message = "what was given to the stages is not what these tokens make; no stage can be blamed";
        return Err(wrong(message.into()).hint("is this the same answer's JSON?"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The file of this very model.
async fn opened(model: String, wanted: ModelId) -> Result<ModelFile, CliError> {
    let opened = tokio::task::spawn_blocking(move || ModelFile::open(&model)).await;
    let file = opened.map_err(|e| CliError::new(ErrorCode::Internal, e.to_string()))??;
    if file.id != wanted {
        let message = format!("{} is model {}, and this is about {wanted}", file.name, file.id);
        return Err(CliError::new(ErrorCode::ModelUnknown, message).hint("give --model the file of the same model"));
    }
    Ok(file)
}

fn claim(part: &PartReport) -> Option<(&PartReport, Claim)> {
    let (first, rows, in_root, out_root) = part.roots.filter(|_| part.signed)?;
    Some((part, Claim { span: part.span, rows: first..rows, in_root, out_root }))
}

fn tokens(file: &Path) -> Result<Answer, CliError> {
    let unread = |why: String| CliError::new(ErrorCode::Usage, format!("cannot read {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| unread(e.to_string()))?;
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(last).map_err(|e| {
        unread(format!("it is not the JSON of an answer: {e}")).hint("make it with 'quelea infer --json … > FILE'")
    })
}

fn as_json(parts: &[&PartReport], verdicts: &[Verdict]) -> Value {
    let stages = parts.iter().zip(verdicts).map(|(part, verdict)| {
        let (first, rows) = part.roots.map_or((0, 0), |(first, rows, ..)| (first, rows));
        json!({
            "peer_id": part.stage.to_string(),
            "layers": part.span.to_string(),
            "first_row": first,
            "rows": rows,
            "verdict": match verdict {
                Verdict::Right => "right",
                Verdict::GivenOthers => "given_others",
                Verdict::Wrong => "wrong",
            },
        })
    });
    json!({
        "schema": "quelea.verify/v1",
        "ok": verdicts.iter().all(|verdict| *verdict == Verdict::Right),
        "stages": stages.collect::<Vec<_>>(),
    })
}
