//! `quelea peers ban|unban|bans`.

use std::process::ExitCode;

use quelea_behaviours::bans::Subject;
use quelea_wire::{ErrorCode, time::unix_ms};
use serde_json::{Value, json};

use super::{
    args::{BanArgs, Global},
    client::Daemon,
    exit::{CliError, Exit},
    output::{data_line, note, printable},
    table::Listing,
};

pub(super) async fn ban(global: &Global, args: BanArgs) -> Result<ExitCode, CliError> {
    let body = json!({
        "subject": args.subject.to_string(),
        "for_s": args.duration.as_secs(),
        "reason": args.reason,
    });
    let answer = ask(global, "/api/v1/peers/ban", &body).await?;
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        note(&format!("banned {} for {}", args.subject, span(args.duration.as_secs())));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn unban(global: &Global, subject: Subject) -> Result<ExitCode, CliError> {
    let answer = ask(global, "/api/v1/peers/unban", &json!({ "subject": subject.to_string() })).await?;
    if answer["lifted"] != true {
        return Err(CliError::new(ErrorCode::Usage, format!("{subject} is not banned"))
            .exit(Exit::NotFound)
            .hint("see who is with 'quelea peers bans'"));
    }
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        note(&format!("{subject} may connect again"));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn bans(global: &Global) -> Result<ExitCode, CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/peers/bans").await?;
    if global.json {
        data_line(&answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let bans = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    if bans.is_empty() {
        note("nobody is banned");
        return Ok(ExitCode::SUCCESS);
    }
    let now = unix_ms() as f64 / 1e3;
    let text = |value: &Value| printable(value.as_str().unwrap_or("-"));
    let mut table = Listing::new(["WHO", "LEFT", "BY", "REASON"]);
    for ban in bans {
        let left = (ban["until_at_s"].as_f64().unwrap_or(0.0) - now).max(0.0) as u64;
        table.add_row([text(&ban["subject"]), span(left), text(&ban["by"]), text(&ban["reason"])]);
    }
    data_line(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(global: &Global, route: &str, body: &Value) -> Result<Value, CliError> {
    let daemon = Daemon::find(global)?;
    let response = daemon.post(route, body).await?;
    response.json().await.map_err(|e| daemon.lost(&e))
}

/// Seconds as people say them.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
