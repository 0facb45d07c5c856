//! Writing to stdout and stderr. A closed pipe ends a command quietly, as it does for any filter.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{PoisonError, RwLock},
};

use quelea_wire::ErrorCode;
use serde::Serialize;
use serde_json::Value;

use super::{
    args::{ColorArg, Global},
    exit::{CliError, Exit},
};

/// How this process writes. There is one terminal for all of it, and a shell's lines set it one after the other.
static LOOK: RwLock<Look> = RwLock::new(Look { plain: false, quiet: false, colour: false, colour_of_errors: false });

/// How a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// Tabs between columns.
    pub(super) plain: bool,
    /// Nothing on stderr but errors.
    pub(super) quiet: bool,
    /// Colours on stdout.
    pub(super) colour: bool,
    /// Colours on stderr.
    pub(super) colour_of_errors: bool,
}

/// Writes as these flags say from now on.
pub(super) fn set_look(global: &Global) {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let colour = |terminal: bool| {
        let forced = set("FORCE_COLOR") && std::env::var_os("FORCE_COLOR").is_some_and(|value| value != "0");
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        coloured(global.color, global.plain || global.json, set("NO_COLOR"), forced, terminal && !dumb)
    };
    let look = Look {
        plain: global.plain,
        quiet: global.quiet,
        colour: colour(io::stdout().is_terminal()),
        colour_of_errors: colour(io::stderr().is_terminal()),
    };
    *LOOK.write().unwrap_or_else(PoisonError::into_inner) = look;
}

fn coloured(choice: ColorArg, never: bool, no_color: bool, forced: bool, terminal: bool) -> bool {
    match choice {
        ColorArg::Always => !never,
        ColorArg::Never => false,
        ColorArg::Auto => !never && !no_color && (forced || terminal),
    }
}

/// How to write.
pub(super) fn look() -> Look {
    *LOOK.read().unwrap_or_else(PoisonError::into_inner)
}

/// The columns of the terminal that stdout is.
pub(super) fn width() -> Option<u16> {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).ok()?.ws_col;
    (columns > 0).then_some(columns)
}

/// Whether somebody is there who may be asked.
pub(super) fn asks(global: &Global) -> bool {
    !global.yes && !global.no_input && io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a yes on the terminal. Where there is none, and with `--no-input`, nobody is asked and the command goes on, as
/// scripts expect.
pub(super) fn confirmed(global: &Global, question: &str) -> Result<(), CliError> {
    if !asks(global) {
        return Ok(());
    }
    let _ = write!(io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(CliError::new(ErrorCode::Cancelled, "nothing was done").exit(Exit::Failed).hint("--yes does not ask"))
}

/// Data, for the next program.
pub(super) fn data(text: &str) -> Result<(), CliError> {
    data_bytes(text.as_bytes())
}

/// Data that need not be text.
pub(super) fn data_bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    check(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Data, with a newline.
pub(super) fn data_line(text: &str) -> Result<(), CliError> {
    data(&format!("{text}\n"))
}

/// A report as a document: the schema first, then its fields, then those of `more`.
pub(super) fn document(schema: &str, report: &impl Serialize, more: Value) -> Result<String, CliError> {
    let report = serde_json::to_value(report).map_err(|e| CliError::new(ErrorCode::Internal, e.to_string()))?;
    let mut document = serde_json::Map::new();
    document.insert("schema".into(), schema.into());
    for part in [report, more] {
        if let Value::Object(fields) = part {
            document.extend(fields);
        }
    }
    Ok(Value::Object(document).to_string())
}

/// Words for people, on stderr. Nobody to read them is no error.
pub(super) fn note(text: &str) {
    if look().quiet {
        return;
    }
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn check(result: io::Result<()>) -> Result<(), CliError> {
    result.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // `quelea … | head`: whoever reads has enough. Rust ignores the signal that would end us.
            std::process::exit(0);
        }
        let code =
            if error.kind() == io::ErrorKind::StorageFull { ErrorCode::StorageFull } else { ErrorCode::Internal };
        CliError::new(code, format!("cannot write to stdout: {error}")).exit(Exit::Failed)
    })
}

/// Makes text from a model or a peer safe for a terminal: control characters other than line breaks and tabs are shown
/// as U+FFFD, so that no escape sequence gets through.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_where_they_are_wanted() {
        use ColorArg::{Always, Auto, Never};
        assert!(coloured(Auto, false, false, false, true) && !coloured(Auto, false, false, false, false));
        assert!(!coloured(Auto, false, true, true, true), "NO_COLOR wins over FORCE_COLOR");
        assert!(coloured(Auto, false, false, true, false), "FORCE_COLOR needs no terminal");
        assert!(coloured(Always, false, true, false, false), "a flag wins over the environment");
        assert!(!coloured(Always, true, false, false, true), "but not in JSON");
        assert!(!coloured(Never, false, false, true, true));
    }

    #[test]
    fn escape_sequences_do_not_get_through() {
        assert_eq!(printable("a\x1b[2Jb\n\tc\r"), "a\u{fffd}[2Jb\n\tc\u{fffd}");
    }
}
