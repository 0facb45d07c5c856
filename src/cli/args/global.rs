//! Flags of every command.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Where flags of every command stand in `--help`.
const GLOBAL: &str = "Options of every command";

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Machine-readable output on stdout, errors as JSON on stderr
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub(crate) json: bool,
    /// More on stderr: -v debug, -vv trace (RUST_LOG overrides)
    #[arg(help_heading = GLOBAL, short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How log lines look
    #[arg(help_heading = GLOBAL, long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Where the node keeps its files, and where commands find the daemon [default: ~/.local/share/quelea]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "DIR", env = "QUELEA_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Reach the daemon here instead of through its socket in the data directory
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "URL|unix:PATH", env = "QUELEA_API")]
    pub(crate) api: Option<String>,
    /// File that holds the token for --api over HTTP [default: api.token in the data directory]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "FILE")]
    pub(crate) api_token_file: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}
