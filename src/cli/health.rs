//! `quelea health`: for container health checks and scripts. Exit code 0 or 1, nothing else.

use std::{process::ExitCode, time::Duration};

use quelea_wire::ErrorCode;
use serde_json::Value;

use super::{
    args::{Global, HealthArgs},
    client::home,
    exit::{CliError, Exit},
    output::data_line,
};

/// A node that does not answer its own machine in this time is not well.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(global: &Global, args: HealthArgs) -> Result<ExitCode, CliError> {
    let unwell = |message: String| CliError::new(ErrorCode::DaemonUnreachable, message).exit(Exit::Failed);
    let url = match args.url {
        Some(url) => url,
        None => written_down(global).map_err(unwell)?,
    };
    let client = crate::http::local().timeout(TIMEOUT).build().map_err(|e| unwell(e.to_string()))?;
    let response = client.get(format!("{}/health", url.trim_end_matches('/'))).send().await;
    let report: Value = match response {
        Ok(response) => response.json().await.map_err(|e| unwell(format!("{url} gives no health report: {e}")))?,
        Err(error) => return Err(unwell(format!("no node answers at {url}: {error}"))),
    };
    let well = report[if args.ready { "ready" } else { "live" }].as_bool().unwrap_or(false);
    if global.json {
        data_line(&report.to_string())?;
    } else {
        data_line(report["status"].as_str().unwrap_or("unknown"))?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failed as u8) })
}

/// The address in `daemon.json`.
pub(super) fn written_down(global: &Global) -> Result<String, String> {
    let path = home(global).map_err(|e| e.message)?.daemon_json();
    let text = std::fs::read_to_string(&path).map_err(|e| format!("no daemon runs here: {}: {e}", path.display()))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    value["metrics"].as_str().map(str::to_owned).ok_or_else(|| "the daemon serves no health".into())
}
