//! Writing to stdout and stderr. A closed pipe ends a command quietly, as it does for any filter.

use std::io::{self, Write};

use quelea_wire::ErrorCode;
use serde::Serialize;
use serde_json::Value;

use super::exit::{CliError, Exit};

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
    fn escape_sequences_do_not_get_through() {
        assert_eq!(printable("a\x1b[2Jb\n\tc\r"), "a\u{fffd}[2Jb\n\tc\u{fffd}");
    }
}
