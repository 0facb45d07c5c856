//! How a command ends: documented exit codes, and errors that say what to do.

use std::process::ExitCode;

use quelea_wire::ErrorCode;
use serde_json::json;

use super::output::{look, printable};
use crate::inference::CutOff;

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    Auth = 4,
    NotFound = 5,
    NoRoute = 6,
    Credit = 7,
    Integrity = 8,
    Interrupted = 130,
}

impl Exit {
    /// The exit code that belongs to an error code.
    pub(crate) fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Usage | ErrorCode::ContextFull | ErrorCode::ServiceInput => Self::Usage,
            ErrorCode::DaemonUnreachable => Self::Unreachable,
            ErrorCode::Unauthorized => Self::Auth,
            ErrorCode::ModelUnknown
            | ErrorCode::ModelFileNeeded
            | ErrorCode::NotFound
            | ErrorCode::PeerUnknown
            | ErrorCode::ServiceUnknown => Self::NotFound,
            ErrorCode::NoRoute
            | ErrorCode::NoBootstrap
            | ErrorCode::NotConnected
            | ErrorCode::DialFailed
            | ErrorCode::HopSilent
            | ErrorCode::HopLost
            | ErrorCode::DeadlineExceeded
            | ErrorCode::QuorumNotMet
            | ErrorCode::NoKvPages
            | ErrorCode::TooManySessions
            | ErrorCode::LayersNotHeld
            | ErrorCode::NextUnreachable
            | ErrorCode::NextSilent
            | ErrorCode::AnswerBusy
            | ErrorCode::Overloaded => Self::NoRoute,
            ErrorCode::PriceTooHigh
            | ErrorCode::PaymentRequired
            | ErrorCode::NoCredit
            | ErrorCode::LedgerNotReady
            | ErrorCode::AccountFrozen
            | ErrorCode::NotCovered
            | ErrorCode::AllowanceSpent => Self::Credit,
            ErrorCode::AnswerUnreadable | ErrorCode::ReceiptWrong | ErrorCode::ServiceAnswer => Self::Integrity,
            ErrorCode::Cancelled => Self::Interrupted,
            _ => Self::Failed,
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) code: ErrorCode,
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) retryable: bool,
    /// When there may be room, in milliseconds.
    pub(crate) retry_after_ms: Option<u32>,
    /// An answer that was cut off.
    pub(crate) cut: Option<Box<CutOff>>,
    /// The command that goes on with it.
    pub(crate) go_on: Option<String>,
}

impl CliError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            exit: Exit::of(code),
            message: message.into(),
            hint: None,
            retryable: code.retryable(),
            retry_after_ms: None,
            cut: None,
            go_on: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Shows the error on stderr, as text or as one line of JSON.
    pub(crate) fn report(&self, as_json: bool) -> ExitCode {
        use std::io::Write as _;
        let mut stderr = std::io::stderr().lock();
        let shown = if as_json {
            let mut error = json!({
                "code": self.code.to_string(),
                "message": self.message,
                "hint": self.hint,
                "retryable": self.retryable,
            });
            if let Some(ms) = self.retry_after_ms {
                error["retry_after_ms"] = ms.into();
            }
            if let Some(cut) = &self.cut {
                error["text"] = cut.text.as_str().into();
                error["resume"] = cut.resume.as_deref().into();
            }
            writeln!(stderr, "{}", json!({ "error": error }))
        } else {
            let hint = self.hint.as_deref().map(|hint| format!("\nhint: {}", printable(hint))).unwrap_or_default();
            let go_on =
                self.go_on.as_deref().map(|command| format!("\nit goes on with: {command}")).unwrap_or_default();
            let (red, plain) = if look().colour_of_errors { ("\u{1b}[1;31m", "\u{1b}[0m") } else { ("", "") };
            writeln!(stderr, "{red}error:{plain} {} [{}]{hint}{go_on}", printable(&self.message), self.code)
        };
        // With stderr closed there is nobody left to tell; the exit code still says it.
        drop(shown);
        ExitCode::from(self.exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_credit_ends_with_7() {
        for code in ErrorCode::ALL.iter().filter(|code| (7000..7006).contains(&code.to_u16())) {
            assert_eq!(Exit::of(*code), Exit::Credit, "{code}");
        }
        assert_eq!(Exit::of(ErrorCode::ReceiptWrong), Exit::Integrity);
    }
}
