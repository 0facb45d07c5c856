//! Receipts of sessions.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  quelea infer --receipt answer.receipt \"What is a relay?\"\n  quelea receipt show answer.receipt\n  quelea receipt verify answer.receipt   exit code 8 if it does not hold"
)]
pub(crate) enum ReceiptCommand {
    /// What a receipt says: who computed which layers, and for how much
    #[command(
        after_help = "Examples:\n  quelea receipt show answer.receipt\n  quelea receipt show answer.receipt --json"
    )]
    Show {
        /// As written by 'quelea infer --receipt'
        file: PathBuf,
    },
    /// Check a receipt, offline: signatures, sums, layers, and that each stage took what the one before gave
    #[command(
        after_help = "Examples:\n  quelea receipt verify answer.receipt\n  quelea receipt verify answer.receipt --json"
    )]
    Verify {
        /// As written by 'quelea infer --receipt'
        file: PathBuf,
    },
}
