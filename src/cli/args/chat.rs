//! `quelea chat`, `quelea shell`.

use std::path::PathBuf;

use clap::Args;
use quelea_wire::Credits;

use super::{RouteArg, values::parse_format};
use crate::inference::Format;

const CHAT_EXAMPLES: &str = "Examples:
  quelea chat                                   a conversation with the embedded model, through the local daemon
  quelea chat model.gguf --system 'Be brief.'   with another, /help shows what can be done in it
  quelea chat demo 'What is a relay?' --stats   one question, one answer
  printf 'hi\\n/cost\\n' | quelea chat demo       without a terminal: a turn a line; long texts between \"\"\"";

#[derive(Debug, Args)]
#[command(after_help = CHAT_EXAMPLES)]
pub(crate) struct ChatArgs {
    /// A GGUF file, a folder of safetensors, a model id (64 hex digits), or 'demo'; it needs a chat template
    #[arg(default_value = "demo")]
    pub(crate) model: String,
    /// One question, after whose answer the command ends
    pub(crate) prompt: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Go on with a conversation that /save has written
    #[arg(long, value_name = "FILE")]
    pub(crate) load: Option<PathBuf>,
    /// Draw only what keeps an answer JSON: 'json' for any object, or the file of a JSON schema
    #[arg(long, value_name = "json|FILE", value_parser = parse_format)]
    pub(crate) format: Option<Format>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// Divide the logits; 0 takes the likeliest token each time
    #[arg(long, value_name = "X", default_value_t = 0.7)]
    pub(crate) temperature: f32,
    /// Seed of the draws [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Ask nobody where an answer would cost more than this, in credits like 0.01
    #[arg(long, value_name = "CREDITS")]
    pub(crate) max_cost: Option<Credits>,
    /// 'auto' asks the swarm, 'local' runs the whole model in the daemon
    #[arg(long, value_enum, default_value_t = RouteArg::Auto)]
    pub(crate) route: RouteArg,
    /// What an answer took and cost, after a single one as well
    #[arg(long)]
    pub(crate) stats: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea embed demo 'What is a relay?'              a line of numbers: a vector of length one\n  quelea embed demo - < page.txt                    all of a file as one text\n  quelea embed demo 'one text' 'another' --json | jq '.items[].embedding | length'"
)]
pub(crate) struct EmbedArgs {
    /// A model whose layers are served: its name where a file of it is here, a model id (64 hex digits), or 'demo'
    pub(crate) model: String,
    /// The texts, a vector each; '-' reads one from stdin
    #[arg(required = true, value_name = "TEXT", num_args = 1..=256)]
    pub(crate) texts: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea shell\n  printf 'peers\\nstats\\n' | quelea shell          a command a line; the exit code is that of the first that fails\n  quelea shell --stop --json < commands.txt      ends at the first that fails"
)]
pub(crate) struct ShellArgs {
    /// End at the first command that fails, where commands are read from a pipe
    #[arg(long)]
    pub(crate) stop: bool,
}
