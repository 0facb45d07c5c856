//! Agents, and pages of the web.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{ledger::credits, parse_duration};

const EXAMPLES: &str = "Examples:
  quelea agent install agents/hello/hello.wasm               shows what it asks for
  quelea agent run hello --input '\"world\"'
  quelea agent install agents/reader/reader.wasm --grant http,infer --hosts example.org --allowance 5
  echo https://example.org | quelea agent run reader --input -";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum AgentCommand {
    /// The agents that are installed
    #[command(after_help = "Examples:\n  quelea agent list\n  quelea agent list --json | jq '.items[].name'")]
    List,
    /// Keep a WASM module under a name, and grant it what it may do
    #[command(after_help = EXAMPLES)]
    Install(InstallArgs),
    /// Run an agent, and print what it gives
    #[command(after_help = "Examples:
  quelea agent run hello
  quelea agent run reader --input https://example.org --allowance 0.5
  quelea agent run jury --input - < question.txt > answer.txt")]
    Run {
        /// Its name
        name: String,
        /// What it is given; '-' reads it from stdin
        #[arg(long, value_name = "TEXT|-", default_value = "")]
        input: String,
        /// Let this run spend so many credits, and leave the agent's own allowance alone
        #[arg(long, value_name = "CREDITS", value_parser = credits)]
        allowance: Option<u64>,
    },
    /// What an agent said
    #[command(after_help = "Examples:\n  quelea agent logs reader\n  quelea agent logs reader --last 1000 --json")]
    Logs {
        /// Its name
        name: String,
        /// How many lines
        #[arg(long, default_value_t = 100)]
        last: usize,
    },
    /// What an agent may do, what it asks for, and what is left to spend
    #[command(after_help = "Examples:\n  quelea agent caps reader\n  quelea agent caps reader --json")]
    Caps {
        /// Its name
        name: String,
    },
    /// Take an agent away, with all that it kept
    #[command(after_help = "Examples:\n  quelea agent rm reader\n  quelea agent rm reader --json")]
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// A WASM module
    pub(crate) file: PathBuf,
    /// Its name [default: the file's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What it may do: kv, http, infer, call (comma-separated)
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    pub(crate) grant: Vec<String>,
    /// Hosts that it may fetch from with http: example.org, *.example.org, or '*' for all public ones
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
    /// What all its runs together may spend
    #[arg(long, value_name = "CREDITS", value_parser = credits, default_value = "0")]
    pub(crate) allowance: u64,
    /// The function that is called
    #[arg(long, value_name = "EXPORT", default_value = "run")]
    pub(crate) entry: String,
    /// Fuel that a run may use, about one per instruction
    #[arg(long, value_name = "UNITS")]
    pub(crate) fuel: Option<u64>,
    /// How long a run may compute, at most 60s; waiting for models is not counted [default: 5s]
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
}

#[derive(Debug, Subcommand)]
#[command(after_help = WEB)]
pub(crate) enum WebCommand {
    /// The readable text of a page
    #[command(after_help = WEB)]
    Read {
        /// An https address
        url: String,
        /// Bytes of text at most
        #[arg(long, value_name = "N", default_value_t = 65_536)]
        max_bytes: usize,
    },
}

const WEB: &str = "Examples:
  quelea web read https://example.org
  quelea web read https://example.org --max-bytes 2000
  quelea web read https://example.org --json | jq '.links[].url'";
