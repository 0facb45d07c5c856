//! What work costs.

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
}

/// What a request may cost.
#[derive(Debug, Args)]
pub(crate) struct MaxPriceArgs {
    /// Ask nobody where the chain's price for the prompt and all of --max-tokens is above this, in credits like 0.01
    #[arg(long, value_name = "CREDITS")]
    pub(crate) max_price: Option<Credits>,
}
