//! Flags about models on disk.

use std::path::PathBuf;

use clap::Args;

use super::parse_size;
use crate::{
    address::{PeerAddress, parse_peer_address},
    weights::Parts,
};

/// What a daemon keeps and gives of models.
#[derive(Debug, Args)]
pub(crate) struct WeightsArgs {
    /// Disk that all models in the data directory may take, like 200G [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) models_quota: Option<u64>,
    /// Bytes of weights that peers get per second, all together; an eighth of it while sessions are computed
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub(crate) upload_limit: u64,
}

const PULL_EXAMPLES: &str = "Examples:
  quelea model pull 3f2a…                                   all of a model, from peers, by its id
  quelea model pull 3f2a… --layers 0..8 -b /ip4/203.0…      eight layers, without a daemon
  quelea model pull hf:OWNER/REPO:FILE.gguf                 from Hugging Face; HF_TOKEN is used where it is set
  quelea model pull https://example.org/model.gguf          from the web, going on where it stopped";

#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(crate) struct PullArgs {
    /// A model id (64 hex digits), hf:OWNER/REPO or hf:OWNER/REPO:FILE, a URL, or a GGUF file
    pub(crate) what: String,
    /// Which parts: layers like 0..8, 'all', 'ends' for what asking it needs, or 'embedding', 'head' or 'tokenizer' of that (by
    /// id only)
    #[arg(long, value_name = "A..B|all|ends|…", default_value = "all")]
    pub(crate) layers: Parts,
    /// Pull through these peers, without a daemon
    #[arg(short, long, value_name = "MULTIADDR", value_parser = parse_peer_address, value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// Name of the network, with --bootstrap
    #[arg(long, default_value = "main")]
    pub(crate) network: String,
    /// Disk that all models may take, without a daemon, like 200G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) models_quota: Option<u64>,
    /// Write the whole model to this GGUF file as well
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}
