//! Flags of `quelea infer`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{
    ComputeArgs, MaskedArgs, MaxPriceArgs, ObjectiveArg, SamplingArgs, ThinArgs,
    values::{parse_duration, parse_format},
};
use crate::{
    address::{PeerAddress, parse_peer_address},
    inference::{Format, Speculate},
};

const INFER_EXAMPLES: &str = "Examples:
  quelea infer \"What is a relay?\"                               through the local daemon
  quelea infer -b /ip4/203.0.113.7/tcp/8468/p2p/12D3… \"hi\"       as a passing peer, no daemon
  quelea infer --model model.gguf --temperature 0.8 --seed 7 \"Once upon\"
  quelea infer --stop '.' --logprobs 3 \"What is a relay?\"        the first sentence, token by token
  quelea infer --format person.schema.json \"Who are you?\"        JSON that this schema allows
  quelea infer --speculate auto \"Sing it again\"                  several tokens in one pass
  quelea infer --model model.gguf --route local \"hi\"             unsplit, on this machine alone
  quelea infer --resume last                                     go on with an answer that was cut off
  quelea infer --resume last --shown $(wc -c < said) >> said     only what is missing of it";

/// What of the flags a resumed answer has from when it was begun.
const ASKED_BEFORE: [&str; 12] = [
    "prompt",
    "model",
    "quantize",
    "chat",
    "raw",
    "system",
    "max_tokens",
    "stop",
    "format",
    "logprobs",
    "ignore_eos",
    "SamplingArgs",
];

#[derive(Debug, Args)]
#[command(after_help = INFER_EXAMPLES, allow_negative_numbers = true)]
pub(crate) struct InferArgs {
    /// The prompt; '-' reads it from stdin
    #[arg(required_unless_present = "resume")]
    pub(crate) prompt: Option<String>,
    /// Go on with an answer that was cut off, by its id, or with the latest: with the same tokens that would have come.
    /// All of it is shown; see --shown
    #[arg(long, value_name = "ID|last", conflicts_with_all = ASKED_BEFORE)]
    pub(crate) resume: Option<String>,
    /// With --resume: show the answer from this byte on, as it has been shown so far. --json has all of it
    #[arg(long, value_name = "BYTES", requires = "resume", conflicts_with = "prompt", default_value_t = 0)]
    pub(crate) shown: u64,
    /// A GGUF file, a folder of safetensors, a model id (64 hex digits), or 'demo' for the embedded model
    #[arg(long, value_name = "ID|FILE", default_value = "demo")]
    pub(crate) model: String,
    /// Quantise the weights while the model opens, like q8_0 or q4_k_m (a folder of safetensors, or a GGUF of floats)
    #[arg(long, value_name = "MIX", value_parser = crate::cli::make::parse_mix)]
    pub(crate) quantize: Option<quelea_engine::quantize::Mix>,
    /// Ask as a passing peer through these peers, without a daemon
    #[arg(short, long, value_name = "MULTIADDR", value_parser = parse_peer_address, value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// Name of the network, with --bootstrap
    #[arg(long, default_value = "main")]
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) masked: MaskedArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// 'auto' asks the swarm, 'local' runs the whole model here
    #[arg(long, value_enum, default_value_t = RouteArg::Auto)]
    pub(crate) route: RouteArg,
    /// What the chain is chosen by
    #[arg(long, value_enum, default_value_t = ObjectiveArg::Latency)]
    pub(crate) objective: ObjectiveArg,
    #[command(flatten)]
    pub(crate) max_price: MaxPriceArgs,
    #[command(flatten)]
    pub(crate) thin: ThinArgs,
    /// Wrap the prompt in the model's chat template [default when it has one]
    #[arg(long, conflicts_with = "raw")]
    pub(crate) chat: bool,
    /// Give the prompt to the model as it is
    #[arg(long)]
    pub(crate) raw: bool,
    /// System message, with a chat template
    #[arg(long, conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Most tokens to answer with
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// End the answer before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Draw only what keeps the answer JSON: 'json' for any object, or the file of a JSON schema
    #[arg(long, value_name = "json|FILE", value_parser = parse_format)]
    pub(crate) format: Option<Format>,
    /// Tell each token's log-probability in the raw logits, and those of this many alternatives
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=20))]
    pub(crate) logprobs: Option<u8>,
    /// Go on after the model's end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Guess tokens and verify several in one pass: 'auto' for as many as pay, or 1 to 7. The answer is the same; wrong guesses are
    /// work for the stages, too [default: off, or auto with --draft]
    #[arg(long, value_name = "auto|off|N", value_parser = parse_speculate)]
    pub(crate) speculate: Option<Speculate>,
    /// A smaller model with the same vocabulary, run here, that guesses where the text does not repeat itself
    #[arg(long, value_name = "FILE")]
    pub(crate) draft: Option<String>,
    /// How long one step (a token, or a chunk of the prompt) may take before the request fails
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    // Last: its heading would stand over what follows.
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

fn parse_speculate(text: &str) -> Result<Speculate, String> {
    match (text, text.parse::<u8>()) {
        ("auto", _) => Ok(Speculate::Auto),
        ("off", _) => Ok(Speculate::Off),
        (_, Ok(n @ 1..=7)) => Ok(Speculate::Tokens(n)),
        _ => Err("expected 'auto', 'off', or a number from 1 to 7".into()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouteArg {
    /// By peers, or here where that is known to be faster
    Auto,
    /// By peers
    Swarm,
    /// All layers here
    Local,
}
