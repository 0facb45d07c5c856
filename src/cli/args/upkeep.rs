//! Commands of whoever keeps a node running.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::values::parse_duration;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea check node\n  quelea check peers --warning 4 --critical 1 --format nagios\n  quelea check model --model demo --format json\n  quelea check storage --format prometheus > /var/lib/node_exporter/quelea.prom\n\nExit codes: 0 ok · 1 warning · 2 critical · 3 unknown"
)]
pub(crate) struct CheckArgs {
    /// What is looked at
    #[arg(value_enum, ignore_case = true)]
    pub(crate) subject: CheckSubject,
    /// Of 'model': a GGUF file, a model id, or 'demo'
    #[arg(long, value_name = "MODEL", default_value = "demo")]
    pub(crate) model: String,
    /// Fewer is a warning: peers [default: 2], or bytes free [default: 2000000000]
    #[arg(long, value_name = "N")]
    pub(crate) warning: Option<f64>,
    /// Fewer is critical: peers [default: 1], or bytes free [default: 100000000]
    #[arg(long, value_name = "N")]
    pub(crate) critical: Option<f64>,
    /// For whom the answer is
    #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
    pub(crate) format: CheckFormat,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckSubject {
    /// Whether the daemon is there and well
    Node,
    /// How many peers it is connected to
    Peers,
    /// Whether all layers of a model are held
    Model,
    /// Whether what is stored of the ledger holds, and who is in default
    Ledger,
    /// Whether the database works, and what is free on its disk
    Storage,
}

impl CheckSubject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Peers => "peers",
            Self::Model => "model",
            Self::Ledger => "ledger",
            Self::Storage => "storage",
        }
    }
}

/// For whom an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckFormat {
    Text,
    Nagios,
    Json,
    Prometheus,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea metrics | grep gen_ai\n  quelea metrics --write /var/lib/node_exporter/quelea.prom   whole or not at all"
)]
pub(crate) struct MetricsArgs {
    /// Write them to this file, as a collector of text files reads them
    #[arg(long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea logs\n  quelea logs -f\n  quelea logs -n 1000 --json | jq -r 'select(.level == \"WARN\")'"
)]
pub(crate) struct LogsArgs {
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    pub(crate) lines: usize,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea log-level quelea=debug\n  quelea log-level quelea=info libp2p_kad=trace\n  quelea log-level warn,quelea=info"
)]
pub(crate) struct LogLevelArgs {
    /// What is logged from now on until the daemon ends, as RUST_LOG has it
    #[arg(value_name = "TARGET=LEVEL", required = true)]
    pub(crate) directives: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea shutdown                 as on SIGTERM: what is under way has 20 s\n  quelea shutdown --drain 5m      or five minutes\n  quelea shutdown --drain 0s      at once"
)]
pub(crate) struct ShutdownArgs {
    /// How long what is under way may take
    #[arg(long, value_name = "DUR", default_value = "20s", value_parser = parse_drain)]
    pub(crate) drain: Duration,
}

/// Nothing is a time here, too.
fn parse_drain(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        other => parse_duration(other),
    }
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  quelea debug bundle\n  quelea debug bundle report.json")]
pub(crate) enum DebugCommand {
    /// What helps to find a fault, in one file: state, settings, counters, findings. No keys, tokens, prompts or answers
    #[command(after_help = "Examples:\n  quelea debug bundle\n  quelea debug bundle report.json && less report.json")]
    Bundle {
        /// The file, which must not exist [default: quelea-debug-TIME.json here]
        file: Option<PathBuf>,
    },
}
