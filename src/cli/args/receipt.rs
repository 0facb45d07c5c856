//! Receipts of sessions.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ComputeArgs;
use crate::node::settings::AUDIT_PRICE;

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

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea infer --json --receipt a.receipt \"What is a relay?\" > a.json\n  quelea verify a.receipt --answer a.json --model demo   exit code 8 if a stage gave on other rows than the model's\n  quelea verify 12D3KooW….fraud --model demo   exit code 0 if what it says is so, 8 if not\n  quelea verify 12D3KooW….fraud --model demo --convict   and this machine's daemon deals with that peer no more"
)]
pub(crate) struct VerifyArgs {
    /// A receipt, as written by 'quelea infer --receipt', or a fraud claim of a daemon's claims/
    pub(crate) file: PathBuf,
    /// Of a receipt: the same answer's JSON, as 'quelea infer --json' prints it. Its tokens are needed, and stay here
    #[arg(long, value_name = "FILE")]
    pub(crate) answer: Option<PathBuf>,
    /// Of a fraud claim that holds: tell this machine's daemon, which gives that peer no work, no note and no credit any more
    #[arg(long, conflicts_with = "answer")]
    pub(crate) convict: bool,
    /// The model's file, or 'demo'; its weights are needed, span after span
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct AuditArgs {
    /// Of a hundred answers over peers, how many are audited: computed again here where this node has the model's layers, else
    /// in part by other peers, for pay
    #[arg(help_heading = "Credit", long, value_name = "PERCENT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(..=100))]
    pub(crate) audit: u8,
    /// The most that an audit by other peers may cost, in hundredths of what the answer did; 0 asks only those that are free
    #[arg(help_heading = "Credit", long, value_name = "PERCENT", default_value_t = AUDIT_PRICE, value_parser = clap::value_parser!(u16).range(..=1000))]
    pub(crate) audit_price: u16,
}
