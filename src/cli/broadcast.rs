//! `quelea broadcast`.

use std::{io::Read as _, process::ExitCode};

use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{BroadcastArgs, Global},
    client::Daemon,
    exit::CliError,
    output::{data_line, note},
};

/// Read from stdin at most: more than any line has, so that what is too long is refused and not cut.
const READ_MAX: u64 = 4096;

pub(super) async fn run(global: &Global, args: BroadcastArgs) -> Result<ExitCode, CliError> {
    let text = if args.text == "-" { from_stdin()? } else { args.text };
    let response = Daemon::find(global)?.post("/api/v1/broadcast", &json!({ "text": text })).await?;
    let answer: Value = response
        .json()
        .await
        .map_err(|e| CliError::new(ErrorCode::Internal, format!("the daemon's answer is not understood: {e}")))?;
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        note(&format!("said to everybody, as message {}", answer["id"].as_str().unwrap_or("-")));
    }
    Ok(ExitCode::SUCCESS)
}

/// One line, without the line break that most programs end with.
fn from_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .take(READ_MAX)
        .read_to_string(&mut text)
        .map_err(|e| CliError::new(ErrorCode::Usage, format!("cannot read the line from stdin: {e}")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
