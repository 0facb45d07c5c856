//! Flags of `quelea model coverage`.

use clap::Args;

use super::{ComputeArgs, MaskedArgs};
use crate::address::{PeerAddress, parse_peer_address};

const COVERAGE_EXAMPLES: &str = "Examples:
  quelea model coverage model.gguf                            who holds which layers, as the daemon finds them
  quelea model coverage demo -b /ip4/203.0.113.7/tcp/8468/p2p/12D3…   as a passing peer, no daemon
  quelea model coverage model.gguf --json";

#[derive(Debug, Args)]
#[command(after_help = COVERAGE_EXAMPLES)]
pub(crate) struct CoverageArgs {
    /// A GGUF file, a folder of safetensors, a model id (64 hex digits), or 'demo'
    #[arg(default_value = "demo")]
    pub(crate) model: String,
    /// Look as a passing peer through these peers, without a daemon
    #[arg(short, long, value_name = "MULTIADDR", value_parser = parse_peer_address, value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// Name of the network, with --bootstrap
    #[arg(long, default_value = "main")]
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) masked: MaskedArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}
