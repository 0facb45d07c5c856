//! Flags of `quelea plan`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{ComputeArgs, MaskedArgs, ThinArgs, parse_duration};
use crate::{
    address::{PeerAddress, parse_peer_address},
    inference::Objective,
};

const PLAN_EXAMPLES: &str = "Examples:
  quelea plan model.gguf                                    who would answer, how fast, and why
  quelea plan demo -b /ip4/203.0.113.7/tcp/8468/p2p/12D3…   as a passing peer, no daemon
  quelea plan model.gguf --prompt-tokens 4000 --objective throughput --json
  quelea plan --shape llama-3.1-70b --type q4_k_m --peers peers.json   what such peers could do";

#[derive(Debug, Args)]
#[command(after_help = PLAN_EXAMPLES)]
pub(crate) struct PlanArgs {
    /// A GGUF file, a folder of safetensors, a model id (64 hex digits), or 'demo'
    #[arg(default_value = "demo")]
    pub(crate) model: String,
    /// Quantise the weights while the model opens, like q8_0 or q4_k_m
    #[arg(long, value_name = "MIX", value_parser = crate::cli::make::parse_mix)]
    pub(crate) quantize: Option<quelea_engine::quantize::Mix>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub(crate) prompt_tokens: u64,
    /// Tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) max_tokens: u32,
    /// What the chain is chosen by
    #[arg(long, value_enum, default_value_t = ObjectiveArg::Latency)]
    pub(crate) objective: ObjectiveArg,
    /// Plan as a passing peer through these peers, without a daemon
    #[arg(short, long, value_name = "MULTIADDR", value_parser = parse_peer_address, value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// Name of the network, with --bootstrap
    #[arg(long, default_value = "main")]
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) thin: ThinArgs,
    #[command(flatten)]
    pub(crate) masked: MaskedArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// How long looking around may take
    #[arg(long, value_name = "DUR", default_value = "6s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Plan for a model of this shape that nobody has, over the peers of --peers ('quelea model synth --list')
    #[arg(long, value_name = "NAME", requires = "peers", conflicts_with = "bootstrap", value_parser = crate::cli::make::parse_shape)]
    pub(crate) shape: Option<&'static quelea_engine::synth::ModelShape>,
    /// Types of the shape's weights
    #[arg(long = "type", value_name = "MIX", default_value = "q4_k_m", value_parser = crate::cli::make::parse_mix)]
    pub(crate) mix: quelea_engine::quantize::Mix,
    /// JSON file of imagined peers: {"peers": [{"name", "memory_gb", "read_gb_s", "rtt_ms", "mbit_s", "layers", "price"}]}
    #[arg(long, value_name = "FILE", requires = "shape")]
    pub(crate) peers: Option<PathBuf>,
}

/// What a chain is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectiveArg {
    /// The whole answer soonest
    Latency,
    /// The most sessions at once
    Throughput,
    /// The cheapest
    Price,
    /// The fewest peers that see anything of the request
    Private,
}

impl From<ObjectiveArg> for Objective {
    fn from(arg: ObjectiveArg) -> Self {
        match arg {
            ObjectiveArg::Latency => Self::Latency,
            ObjectiveArg::Throughput => Self::Throughput,
            ObjectiveArg::Price => Self::Price,
            ObjectiveArg::Private => Self::Private,
        }
    }
}
