//! `quelea metrics`, `logs`, `log-level`, `shutdown` and `debug bundle`.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use quelea_wire::{ErrorCode, time::unix_ms};
use serde_json::{Map, Value, json};

use super::{
    args::{DebugCommand, Global, LogLevelArgs, LogsArgs, MetricsArgs, ShutdownArgs},
    client::{Daemon, home},
    config, doctor,
    exit::{CliError, Exit},
    output::{data, data_line, note, printable},
};
use crate::api::shape;

/// How long a scrape may take.
const SCRAPE: Duration = Duration::from_secs(10);

/// The longest line of the log.
const LINE_MAX: usize = 1 << 20;

/// Between two looks at whether the daemon has ended.
const LOOK: Duration = Duration::from_millis(100);

/// What ending takes beyond the work under way: goodbyes to peers, and closing the database.
const CLOSING: Duration = Duration::from_secs(15);

/// What of the daemon is put into a bundle, by its route.
const BUNDLED: [(&str, &str); 9] = [
    ("status", "/api/v1/status"),
    ("stats", "/api/v1/stats"),
    ("netcheck", "/api/v1/netcheck"),
    ("peers", "/api/v1/peers"),
    ("peers_known", "/api/v1/peers/known"),
    ("bans", "/api/v1/peers/bans"),
    ("dht", "/api/v1/dht/stats"),
    ("models", "/api/v1/models/ps"),
    ("ledger_check", "/api/v1/ledger/check"),
];

pub(super) async fn metrics(global: &Global, args: &MetricsArgs) -> Result<ExitCode, CliError> {
    let scrape = scrape(global).await?;
    match &args.write {
        None => data(&scrape)?,
        Some(file) => {
            // Who reads it meanwhile sees the old one or the new one.
            let failed = |e: &dyn std::fmt::Display| {
                CliError::new(ErrorCode::StorageFailed, format!("cannot write {}: {e}", file.display()))
            };
            let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut new = tempfile::NamedTempFile::new_in(dir).map_err(|e| failed(&e))?;
            new.write_all(scrape.as_bytes()).map_err(|e| failed(&e))?;
            // Collectors run as somebody else.
            let mode = std::fs::Permissions::from_mode(0o644);
            new.as_file().set_permissions(mode).map_err(|e| failed(&e))?;
            new.persist(file).map_err(|e| failed(&e.error))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn scrape(global: &Global) -> Result<String, CliError> {
    let base = super::health::written_down(global).map_err(|e| CliError::new(ErrorCode::DaemonUnreachable, e))?;
    let lost = |e: reqwest::Error| {
        CliError::new(ErrorCode::DaemonUnreachable, format!("no metrics at {base}: {e}"))
            .hint("start a daemon with 'quelea daemon'")
    };
    let client = crate::http::local().timeout(global.timeout.unwrap_or(SCRAPE)).build().map_err(lost)?;
    let response = client.get(format!("{base}/metrics")).send().await.map_err(lost)?;
    response.error_for_status().map_err(lost)?.text().await.map_err(lost)
}

pub(super) async fn logs(global: &Global, args: &LogsArgs) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    let route = format!("/api/v1/logs?lines={}&follow={}", args.lines, args.follow);
    let mut lines = daemon.lines(daemon.stream(&route).await?, LINE_MAX);
    loop {
        let line: Option<Value> = tokio::select! {
            line = lines.next() => line?,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
        };
        let Some(line) = line else { return Ok(ExitCode::SUCCESS) };
        data_line(&if global.json { line.to_string() } else { readable(&line) })?;
    }
}

/// A line of the log for people. What others said in it is escaped already.
fn readable(line: &Value) -> String {
    let text = |name: &str| line[name].as_str().map(printable).unwrap_or_default();
    let time = shape::rfc3339(line["time_ms"].as_u64().unwrap_or(0));
    format!("{time} {:>5} {}: {}", text("level").to_uppercase(), text("target"), text("message"))
}

pub(super) async fn log_level(global: &Global, args: &LogLevelArgs) -> Result<ExitCode, CliError> {
    let directives = args.directives.join(",");
    let daemon = Daemon::find(global)?;
    let answer = daemon.post("/api/v1/logs/level", &json!({ "directives": directives })).await?;
    let answer: Value = answer.json().await.map_err(|e| daemon.lost(&e))?;
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        note(&format!("logged from now on: {directives}"));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn shutdown(global: &Global, args: &ShutdownArgs) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    let grace_ms = u64::try_from(args.drain.as_millis()).unwrap_or(u64::MAX);
    let answer = daemon.post("/api/v1/shutdown", &json!({ "grace_ms": grace_ms })).await?;
    let answer: Value = answer.json().await.map_err(|e| daemon.lost(&e))?;
    // It has ended when nobody holds the directory; one elsewhere ends out of sight.
    if global.api.is_none() {
        let home = home(global)?;
        let ended = async {
            while doctor::is_locked(&home) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(args.drain + CLOSING, ended).await.is_err() {
            let message = "the daemon was told to end, and has not";
            return Err(CliError::new(ErrorCode::DeadlineExceeded, message).hint("its log says what it waits for"));
        }
    }
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        note(if global.api.is_none() { "the daemon has ended" } else { "the daemon ends" });
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn debug(global: &Global, command: DebugCommand) -> Result<ExitCode, CliError> {
    let DebugCommand::Bundle { file } = command;
    let now = unix_ms();
    let file = file.unwrap_or_else(|| PathBuf::from(format!("quelea-debug-{}.json", now / 1000)));
    let failed = |e: &dyn std::fmt::Display| {
        CliError::new(ErrorCode::StorageFailed, format!("cannot write {}: {e}", file.display()))
    };
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).map_err(|e| failed(&e))?;
    let bundle = bundle(global, now).await?;
    let text = serde_json::to_string_pretty(&bundle).map_err(|e| failed(&e))?;
    out.write_all(text.as_bytes()).map_err(|e| failed(&e))?;
    if global.json {
        let document = json!({ "schema": "quelea.debug.bundle/v1", "path": file, "bytes": text.len() });
        data_line(&document.to_string())?;
    } else {
        data_line(&file.display().to_string())?;
        note("it names peers, addresses, models and paths; look into it before you show it to others");
    }
    Ok(ExitCode::SUCCESS)
}

/// What helps to find a fault. Nothing of it is read from files that hold secrets, and sessions are not looked into.
async fn bundle(global: &Global, now: u64) -> Result<Value, CliError> {
    let home = home(global)?;
    let daemon = Daemon::find(global)?;
    let or_error = |answer: Result<Value, CliError>| answer.unwrap_or_else(|e| json!({ "error": e.message }));
    let mut of_daemon = Map::new();
    for (name, route) in BUNDLED {
        of_daemon.insert(name.into(), or_error(daemon.get(route).await));
    }
    let settings = match config::effective(global) {
        Ok((path, settings)) => {
            let as_json = Global { json: true, ..global.clone() };
            serde_json::from_str(&config::shown(&as_json, &path, &settings, true)).unwrap_or(Value::Null)
        }
        Err(error) => json!({ "error": error.message }),
    };
    Ok(json!({
        "schema": "quelea.debug/v1",
        "generated_at": shape::rfc3339(now),
        "version": env!("CARGO_PKG_VERSION"),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "findings": doctor::report(global).await?,
        "settings": settings,
        "files": files(home.dir()),
        "daemon": of_daemon,
        "metrics": scrape(global).await.unwrap_or_else(|e| format!("# {}", e.message)),
    }))
}

/// What lies in the data directory: names, sizes and modes.
fn files(dir: &Path) -> Vec<Value> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let described = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        let (name, mode) = (entry.file_name().to_string_lossy().into_owned(), meta.permissions().mode() & 0o7777);
        Some(json!({ "name": name, "bytes": meta.len(), "mode": format!("{mode:o}"), "directory": meta.is_dir() }))
    });
    described.collect()
}
