//! `quelea demo`, `quelea health`.

use clap::Args;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea demo\n  quelea demo \"What is a relay?\"\n  quelea demo --json \"Who are you?\""
)]
pub(crate) struct DemoArgs {
    /// What to ask
    #[arg(default_value = "What is a relay?")]
    pub(crate) question: String,
    /// Most tokens to answer with
    #[arg(long, default_value_t = 96)]
    pub(crate) max_tokens: u32,
}
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quelea health\n  quelea health --ready --url http://127.0.0.1:8470")]
pub(crate) struct HealthArgs {
    /// Ask for readiness, not only for life
    #[arg(long)]
    pub(crate) ready: bool,
    /// Where the node serves its health [default: as the daemon of the data directory wrote it down]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
}
