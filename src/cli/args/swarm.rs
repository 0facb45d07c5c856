//! What is said to everybody, and what happens.

use clap::Args;

use crate::events::EventType;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea broadcast \"back in five minutes\"\n  quelea broadcast --json \"hello\"\n  uptime | quelea broadcast -"
)]
pub(crate) struct BroadcastArgs {
    /// One line, at most 512 bytes; '-' reads it from stdin. Every node of the network sees it, signed by this one
    #[arg(value_name = "TEXT")]
    pub(crate) text: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea events                             what is remembered\n  quelea events --type message --follow     lines that anybody broadcasts, as they come\n  quelea events --follow --after 0 --json   all that is remembered, then all that comes, as JSON lines"
)]
pub(crate) struct EventsArgs {
    /// Only events of this type: peer, model or message (repeatable, or comma-separated)
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub(crate) types: Vec<EventType>,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events after this number, as 'id' in the JSON has it
    #[arg(long, value_name = "NUMBER")]
    pub(crate) after: Option<u64>,
}
