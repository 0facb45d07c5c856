//! `--watch`: the same again, until interrupted.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};

use super::{
    args::{Global, WatchArg},
    exit::{CliError, Exit},
    output::{data, data_line, note},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// Empties a terminal.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What a command shows.
pub(super) struct Shown {
    /// Data.
    pub(super) data: String,
    /// What is said beside it; nothing where empty.
    pub(super) note: String,
}

impl From<String> for Shown {
    fn from(data: String) -> Self {
        Self { data, note: String::new() }
    }
}

/// Shows what `look` sees, once, or again and again.
pub(super) async fn show(
    global: &Global,
    watch: WatchArg,
    mut look: impl AsyncFnMut() -> Result<Shown, CliError>,
) -> Result<ExitCode, CliError> {
    loop {
        let shown = look().await?;
        if watch.watch && !global.json && !global.plain && io::stdout().is_terminal() {
            data(CLEAR)?;
        }
        data_line(&shown.data)?;
        if !shown.note.is_empty() {
            note(&shown.note);
        }
        if !watch.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
        }
    }
}
