//! Flags of every command.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::values::parse_duration;

/// Where flags of every command stand in `--help`.
const GLOBAL: &str = "Options of every command";

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Machine-readable output on stdout, errors as JSON on stderr
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub(crate) json: bool,
    /// Tables with tabs between their columns, and no colours
    #[arg(help_heading = GLOBAL, long, global = true, conflicts_with = "json")]
    pub(crate) plain: bool,
    /// Nothing on stderr but errors
    #[arg(help_heading = GLOBAL, short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// More on stderr: -v debug, -vv trace (RUST_LOG overrides)
    #[arg(help_heading = GLOBAL, short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colours: auto has them on a terminal, unless NO_COLOR is set, and everywhere with FORCE_COLOR
    #[arg(help_heading = GLOBAL, long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorArg::Auto)]
    pub(crate) color: ColorArg,
    /// How log lines look
    #[arg(help_heading = GLOBAL, long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// How long the daemon may take to answer [default: 15s]
    // Commands with a --timeout of their own have that one instead.
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Never ask anything on the terminal
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub(crate) no_input: bool,
    /// Answer yes to what would be asked
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub(crate) yes: bool,
    /// The daemon's configuration file [default: config.toml in the data directory]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "FILE", env = "QUELEA_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where the node keeps its files, and where commands find the daemon [default: ~/.local/share/quelea]
    #[arg(help_heading = GLOBAL, long, visible_alias = "home", global = true, value_name = "DIR", env = "QUELEA_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Reach the daemon here instead of through its socket in the data directory
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "URL|unix:PATH", env = "QUELEA_API")]
    pub(crate) api: Option<String>,
    /// File that holds the token for --api over HTTP [default for this machine: api.token in the data directory]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "FILE")]
    pub(crate) api_token_file: Option<PathBuf>,
    /// Ask the node of this name ('quelea context') [default: the one in use, where neither --api nor --data-dir names a node]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "NAME", env = "QUELEA_CONTEXT")]
    pub(crate) context: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// When there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorArg {
    Auto,
    Always,
    Never,
}
