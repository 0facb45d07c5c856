//! A fraud claim: nobody is to believe it who has not computed it again.

use std::{path::Path, process::ExitCode};

use quelea_engine::StageOptions;
use quelea_ledger::fraud::FraudClaim;
use quelea_wire::ErrorCode;
use serde_json::json;

use super::{opened, short};
use crate::{
    cli::{
        args::Global,
        client::Daemon,
        exit::CliError,
        output::{data_line, note},
    },
    inference::audit::{Claim, Verdict, again},
};

/// Computes a claim again. It holds where the accused was given the right rows and gave on others; only then this machine's
/// daemon is told, if it is to be.
pub(super) async fn run(
    global: &Global,
    (path, bytes): (&Path, &[u8]),
    model: String,
    compute: StageOptions,
    convict: bool,
) -> Result<ExitCode, CliError> {
    let wrong = |message: String| CliError::new(ErrorCode::ReceiptWrong, message);
    let claim = FraudClaim::open(bytes).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
    let FraudClaim { finder, accused, committed, tokens, .. } = claim;
    let file = opened(model, committed.model).await?;
    let (span, rows) = (committed.span, committed.rows);
    let claims = [Claim { span, rows: 0..rows, in_root: committed.in_root, out_root: committed.out_root }];
    let told = |span| {
        if !global.json {
            note(&format!("layers {span} computed again …"));
        }
    };
    let verdicts = again(&file, committed.profile, compute, &claims, &tokens, told).await?;
    let holds = verdicts == [Verdict::Wrong];
    if holds && convict {
        Daemon::find(global)?.post("/api/v1/ledger/convict", &json!({ "peer": accused.to_string() })).await?;
    }
    let (verdict, said) = match verdicts.first() {
        Some(Verdict::Wrong) => ("wrong", "WRONG: given the right rows, it gave on others, and signed for both"),
        Some(Verdict::GivenOthers) => ("given_others", "it was given other rows than these tokens make"),
        _ => ("right", "as the model computes it"),
    };
    if global.json {
        let line = json!({
            "schema": "quelea.fraud/v1",
            "ok": holds,
            "peer_id": accused.to_string(),
            "finder": finder.to_string(),
            "layers": span.to_string(),
            "rows": rows,
            "verdict": verdict,
            "convicted": holds && convict,
        });
        data_line(&line.to_string())?;
    } else {
        data_line(&format!("{} [{span}]  {rows} rows: {said}", short(&accused.to_string())))?;
    }
    if !holds {
        let message = format!("{}: what {finder} says of peer {accused} is not so", path.display());
        return Err(wrong(message).hint("who makes claims that do not hold is not to be believed the next time"));
    }
    if convict && !global.json {
        note(&format!("this machine's node deals with {accused} no more"));
    }
    Ok(ExitCode::SUCCESS)
}
