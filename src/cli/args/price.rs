//! What work costs.

use std::path::PathBuf;

use clap::Args;
use quelea_wire::Credits;

/// What a worker asks for.
#[derive(Debug, Args)]
pub(crate) struct PriceArgs {
    /// What others pay for 1,000 rows of answers through one of the layers, in micro-credits
    #[arg(long, value_name = "N", requires = "model", default_value_t = 0)]
    pub(crate) price: u64,
    /// What others pay for 1,000 rows of prompts through one of the layers, in micro-credits
    #[arg(long, value_name = "N", requires = "model", default_value_t = 0)]
    pub(crate) price_prefill: u64,
    /// What a session may owe beyond its vouchers before it has to wait for one, in credits like 0.001 [default: 32 rows of an
    /// answer and 64 of a prompt]
    #[arg(long, value_name = "CREDITS", requires = "model")]
    pub(crate) exposure: Option<Credits>,
}

/// What a request may cost.
#[derive(Debug, Args)]
pub(crate) struct MaxPriceArgs {
    /// Ask nobody where the chain's price for the prompt and all of --max-tokens is above this, in credits like 0.01
    #[arg(long, value_name = "CREDITS")]
    pub(crate) max_price: Option<Credits>,
    /// Write what the peers signed for to this file; 'quelea receipt verify' checks it
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: Option<PathBuf>,
}
