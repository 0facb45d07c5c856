//! `quelea ui`: the web page, opened with a code that holds once.

use std::{
    process::{ExitCode, Stdio},
    time::Duration,
};

use quelea_wire::ErrorCode;
use serde_json::{Value, json};
use tokio::process::Command;

use super::{
    args::{Global, UiArgs},
    client::Daemon,
    exit::CliError,
    output::{data_line, note},
};

/// How long a program that opens browsers may take to say that there is none.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn run(global: &Global, args: UiArgs) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    let response = daemon.post("/api/v1/login/code", &json!({})).await?;
    let answer: Value = response.json().await.map_err(|e| daemon.lost(&e))?;
    let url = answer["url"].as_str().ok_or_else(|| CliError::new(ErrorCode::Internal, "the daemon names no page"))?;
    if global.json {
        data_line(&answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.print && open(url).await {
        note("the page is open in the browser; 'quelea ui --print' shows its address");
        return Ok(ExitCode::SUCCESS);
    }
    data_line(url)?;
    note("opens once, within five minutes");
    Ok(ExitCode::SUCCESS)
}

/// Hands an address to the desktop. Not on a machine without one: text browsers would take the terminal.
async fn open(url: &str) -> bool {
    let has_desktop = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    if !has_desktop && !cfg!(target_os = "macos") {
        return false;
    }
    let mut command = Command::new(program);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match tokio::time::timeout(PATIENCE, command.status()).await {
        Ok(status) => status.is_ok_and(|status| status.success()),
        // It became the browser.
        Err(_) => true,
    }
}
