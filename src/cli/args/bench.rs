//! What can be measured.

use std::{num::NonZeroUsize, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::compute::{ComputeArgs, IsaArg};

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One-way time of a decode row between two nodes on loopback, beside a bare libp2p stream
    #[command(after_help = "Examples:\n  quelea bench hop\n  quelea bench hop --transport quic --rows 2000 --json")]
    Hop {
        /// Which transport; both when left out
        #[arg(long, value_enum)]
        transport: Option<TransportArg>,
        /// Rows measured, after a tenth as many to warm up
        #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
        rows: u32,
        /// Bytes per row, a multiple of 4
        #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(4..=65536))]
        bytes: u32,
    },
    /// Bytes per second over a masked line, beside TCP, Noise and Yamux without masking, and a bare socket
    #[command(after_help = "Examples:\n  quelea bench masking\n  quelea bench masking --bytes 1G --turns 3 --json")]
    Masking {
        /// Bytes each way in each turn, both ways at once
        #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = super::parse_size)]
        bytes: u64,
        /// Turns of each that count, after a short one that does not
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        turns: u32,
    },
    /// How long it takes until an agent's module runs, from the order to its first instruction
    #[command(
        after_help = "Examples:\n  quelea bench agent agents/hello/hello.wasm\n  quelea bench agent agents/jury/jury.wasm --runs 100 --json"
    )]
    Agent {
        /// A module (.wasm)
        file: std::path::PathBuf,
        /// The function that is called
        #[arg(long, value_name = "NAME", default_value = "run")]
        entry: String,
        /// Runs of each kind
        #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
    },
    /// What splitting a model over worker processes costs, and what distance does to it
    #[command(
        after_help = "Examples:\n  quelea model synth tinyllama-1.1b -o model.gguf && quelea bench chain model.gguf\n  quelea bench chain model.gguf --stages 3 --threads 1 --delay 50ms --prompt-tokens 1000 --json"
    )]
    Chain(BenchChainArgs),
    /// Notes per second of the ledger, in memory and on this disk, and how long a start with many accounts takes
    #[command(
        after_help = "Examples:\n  quelea bench ledger\n  quelea bench ledger --data-dir /mnt/disk --json\n  quelea bench ledger --notes 2000 --in-flight 1 --accounts 1000"
    )]
    Ledger(BenchLedgerArgs),
    /// Tokens per second of a model on this machine alone, beside what its memory allows
    #[command(
        after_help = "Examples:\n  quelea bench model model.gguf\n  quelea bench model model.gguf --pp 128,512 --tg 64 --threads 2 --repeat 5 --json\n  quelea bench model model.gguf --tg 64 --sessions 1,8"
    )]
    Model(BenchModelArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchChainArgs {
    /// A GGUF file, or 'demo'
    pub(crate) file: String,
    /// Numbers of workers, which share the layers equally
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "2,3", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) stages: Vec<u16>,
    /// Answers at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) sessions: u16,
    /// Tokens of the prompt whose reading is measured
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse_count)]
    pub(crate) prompt_tokens: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub(crate) tokens: u32,
    /// How far apart all are, one way
    #[arg(long, value_name = "DUR", value_parser = super::parse_duration)]
    pub(crate) delay: Option<Duration>,
    /// Threads of each worker, and of the unsplit model [default: all cores]
    #[arg(long, value_name = "N", value_parser = super::compute::parse_threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Runs of each test that count, after one that does not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) turns: u16,
}

#[derive(Debug, Args)]
pub(crate) struct BenchLedgerArgs {
    /// Notes that are taken, once in memory and once through a database
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) notes: u32,
    /// Peers that these notes are from, in turns
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) debtors: u32,
    /// Notes that may wait for their commit
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) in_flight: u16,
    /// Accounts in the database that is opened
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) accounts: u32,
}

#[derive(Debug, Args)]
pub(crate) struct BenchModelArgs {
    /// A GGUF file, or 'demo'
    pub(crate) file: String,
    /// Lengths of prompts to read
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "128,512", value_parser = parse_count)]
    pub(crate) pp: Vec<usize>,
    /// Lengths of answers to write, end-of-text banned
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "64", value_parser = parse_count)]
    pub(crate) tg: Vec<usize>,
    /// Write as many answers at once, for each length: tokens per second of all together
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = parse_count)]
    pub(crate) sessions: Vec<usize>,
    /// Runs of each test that count, after one that does not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) repeat: u16,
    #[command(flatten)]
    pub(crate) isa: IsaArg,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportArg {
    Tcp,
    Quic,
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1_000_000) => Ok(n),
        _ => Err("expected a number between 1 and 1000000".into()),
    }
}
