//! `quelea service`, and what a daemon offers.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use libp2p::PeerId;
use quelea_service::{CallId, Name};
use quelea_wire::Credits;

use super::{MaskedArgs, parse_duration, parse_size};
use crate::address::{PeerAddress, parse_peer_address};

/// Which services a daemon offers.
#[derive(Debug, Args)]
pub(crate) struct OfferArgs {
    /// Offer this service to peers, at its usual price or this one in credits: echo, or echo=0.002 (repeatable, or
    /// comma-separated); 'quelea service list' shows which there are
    #[arg(long = "service", value_name = "NAME[=CREDITS]", value_parser = parse_offer, value_delimiter = ',')]
    pub(crate) offered: Vec<(Name, Option<u64>)>,
    /// The model that the service llm_distributed asks the swarm for [default: demo]
    #[arg(long, value_name = "ID|FILE|demo")]
    pub(crate) llm_distributed_model: Option<String>,
    /// The server behind the service llm_local: anything that speaks the OpenAI API, like Ollama at http://127.0.0.1:11434/v1
    #[arg(long, value_name = "URL")]
    pub(crate) llm_local_url: Option<String>,
    /// The model that it is asked for [default: the first that it has]
    #[arg(long, value_name = "NAME", requires = "llm_local_url")]
    pub(crate) llm_local_model: Option<String>,
    /// The model behind the service llm_local, run on this machine by quelea-local-llm: a GGUF file, or a folder as Hugging
    /// Face lays it out
    #[arg(long, value_name = "PATH", conflicts_with = "llm_local_url")]
    pub(crate) llm_local_path: Option<PathBuf>,
    /// The program that runs it [default: quelea-local-llm beside this program, or in PATH]
    #[arg(long, value_name = "FILE", requires = "llm_local_path")]
    pub(crate) llm_local_program: Option<PathBuf>,
    /// Memory that it may have [default: three quarters of what is free when it is started]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "llm_local_path")]
    pub(crate) llm_local_memory: Option<u64>,
    /// Without a call for so long it is unloaded [default: 10m]
    #[arg(long, value_name = "DUR", value_parser = parse_duration, requires = "llm_local_path")]
    pub(crate) llm_local_idle: Option<Duration>,
    /// The server behind the service llm_prompt, which speaks the OpenAI API
    #[arg(long, value_name = "URL")]
    pub(crate) llm_prompt_url: Option<String>,
    /// The model that it is asked for [default: the first that it has]
    #[arg(long, value_name = "NAME", requires = "llm_prompt_url")]
    pub(crate) llm_prompt_model: Option<String>,
    /// File that holds the key for it [default: the environment's QUELEA_LLM_PROMPT_KEY]
    #[arg(long, value_name = "FILE", requires = "llm_prompt_url")]
    pub(crate) llm_prompt_key_file: Option<PathBuf>,
}

const CALL_EXAMPLES: &str = "Examples:
  quelea service call echo hello                                  at whoever offers it best
  quelea service call echo @file --peer 12D3KooW… --max-price 0.01
  date | quelea service call echo - --json
  quelea service call compute '{\"op\":\"eval\",\"expression\":\"2^10\"}'
  quelea service call -b /ip4/203.0.113.7/tcp/8468/p2p/12D3… echo hi    as a passing peer, no daemon";

/// Services of this node and of others.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// The services of this node, those that a peer offers, or who offers one
    #[command(
        after_help = "Examples:\n  quelea service list\n  quelea service list --peer 12D3KooW…\n  quelea service list --name echo --json"
    )]
    List {
        /// Ask this peer what it offers
        #[arg(long, value_name = "PEER")]
        peer: Option<PeerId>,
        /// Look for peers that offer this service, the best first
        #[arg(long, value_name = "NAME")]
        name: Option<Name>,
    },
    /// What a service takes, costs and does: here, or at a peer
    #[command(
        after_help = "Examples:\n  quelea service info echo\n  quelea service info compute --peer 12D3KooW… --json"
    )]
    Info {
        /// Which
        name: Name,
        /// At this peer
        #[arg(long, value_name = "PEER")]
        peer: Option<PeerId>,
    },
    /// Call a service of a peer, and pay for it
    #[command(after_help = CALL_EXAMPLES)]
    Call(Box<CallArgs>),
    /// Offer a service from now on
    #[command(after_help = "Examples:\n  quelea service enable echo\n  quelea service enable echo --price 0.002")]
    Enable {
        /// Which
        name: Name,
        /// What a call costs, in credits [default: as before]
        #[arg(long, value_name = "CREDITS")]
        price: Option<Credits>,
    },
    /// Offer a service no more; calls under way are finished
    #[command(after_help = "Examples:\n  quelea service disable echo\n  quelea service disable echo --json")]
    Disable {
        /// Which
        name: Name,
    },
    /// What a call of a service costs from now on
    #[command(after_help = "Examples:\n  quelea service price echo 0.002\n  quelea service price echo 0")]
    Price {
        /// Which
        name: Name,
        /// Credits, like 0.002; 0 for nothing
        price: Credits,
    },
}

/// A call.
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// Which service
    pub(crate) name: Name,
    /// What goes in: as it is, @FILE, or '-' for stdin
    #[arg(default_value = "")]
    pub(crate) input: String,
    /// At this peer [default: whoever offers it best, by price, time and what dealings were like]
    #[arg(long, value_name = "PEER")]
    pub(crate) peer: Option<PeerId>,
    /// Call as a passing peer through these peers, without a daemon
    #[arg(short, long, value_name = "MULTIADDR", value_parser = parse_peer_address, value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// Name of the network, with --bootstrap
    #[arg(long, default_value = "main")]
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) masked: MaskedArgs,
    /// Call nobody who asks more than this, in credits like 0.01
    #[arg(long, value_name = "CREDITS")]
    pub(crate) max_price: Option<Credits>,
    /// How long the call may take
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Repeat the call of this id: it is answered with what is kept of it, and paid once [default: a new call]
    #[arg(long, value_name = "HEX", value_parser = parse_call_id)]
    pub(crate) call_id: Option<CallId>,
}

fn parse_offer(text: &str) -> Result<(Name, Option<u64>), String> {
    let (name, price) = text.split_once('=').map_or((text, None), |(name, price)| (name, Some(price)));
    let price = price.map(|price| price.parse::<Credits>().map(|credits| credits.0).map_err(|e| e.to_string()));
    Ok((name.parse::<Name>().map_err(|e| e.to_string())?, price.transpose()?))
}

fn parse_call_id(text: &str) -> Result<CallId, String> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).map_err(|_| "a call's id is 32 hex digits, as 'service call' shows it")?;
    Ok(CallId(id))
}
