//! The command line, as clap reads it.

mod bench;
mod compute;
mod coverage;
mod debts;
mod dht;
mod ledger;
mod masking;
mod nat;
mod peers;
mod plan;
mod price;
mod receipt;
mod rendezvous;
mod sampling;
mod store;
mod swarm;
mod thin;
mod weights;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use libp2p::Multiaddr;

pub(crate) use self::{
    bench::{BenchChainArgs, BenchCommand, BenchLedgerArgs, BenchModelArgs, TransportArg},
    compute::{ComputeArgs, LogitsArgs},
    coverage::CoverageArgs,
    debts::DebtArgs,
    dht::DhtCommand,
    ledger::{ExportFormat, IouCommand, LedgerCommand, TrustArgs},
    masking::{MaskedArgs, MaskingArg, MaskingArgs},
    nat::{NatArgs, NetcheckArgs, PingArgs},
    peers::{BanArgs, BootstrapCommand, PeerSort, PeersCommand},
    plan::{ObjectiveArg, PlanArgs},
    price::{MaxPriceArgs, PriceArgs},
    receipt::{AuditArgs, ReceiptCommand, VerifyArgs},
    rendezvous::RendezvousArgs,
    sampling::SamplingArgs,
    store::StoreCommand,
    swarm::{BroadcastArgs, EventsArgs},
    thin::{EndsArg, ThinArgs},
    weights::{PullArgs, WeightsArgs},
};
use crate::{
    address::{PeerAddress, parse_multiaddr, parse_peer_address},
    inference::{Speculate, serve::LayerChoice},
};

/// Exit codes, as `--help` shows them.
const EXIT_CODES: &str = "Exit codes: 0 ok · 1 failed · 2 usage · 3 daemon unreachable · 4 access denied · 5 not found · \
6 timed out, no route or no capacity · 7 credit refused · 8 verification failed · 130 interrupted";

/// A swarm node that runs language models across peers.
#[derive(Debug, Parser)]
#[command(name = "quelea", version, propagate_version = true, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where flags of every command stand in `--help`.
const GLOBAL: &str = "Options of every command";

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Machine-readable output on stdout, errors as JSON on stderr
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub(crate) json: bool,
    /// More on stderr: -v debug, -vv trace (RUST_LOG overrides)
    #[arg(help_heading = GLOBAL, short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How log lines look
    #[arg(help_heading = GLOBAL, long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Where the node keeps its files, and where commands find the daemon [default: ~/.local/share/quelea]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "DIR", env = "QUELEA_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Reach the daemon here instead of through its socket in the data directory
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "URL|unix:PATH", env = "QUELEA_API")]
    pub(crate) api: Option<String>,
    /// File that holds the token for --api over HTTP [default: api.token in the data directory]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "FILE")]
    pub(crate) api_token_file: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node until it is told to stop
    Daemon(Box<DaemonArgs>),
    /// See three nodes on this machine answer a question together
    Demo(DemoArgs),
    /// Ask a model that the swarm holds
    Infer(Box<InferArgs>),
    /// What a session's stages signed for, and whether it holds
    #[command(subcommand)]
    Receipt(ReceiptCommand),
    /// Compute again what a receipt's stages signed for, and compare
    Verify(VerifyArgs),
    /// Who would answer a request, how fast, and why; what is missing if nobody can
    Plan(Box<PlanArgs>),
    /// This node's peer id and addresses, or what is known of another
    #[command(after_help = "Examples:\n  quelea id\n  quelea id --json\n  quelea id 12D3KooW…")]
    Id {
        /// Another node's peer id
        peer: Option<String>,
    },
    /// What the node is doing: peers, spans, sessions
    #[command(after_help = "Examples:\n  quelea status\n  quelea status --json")]
    Status,
    /// The peers this node is connected to, remembers, or refuses
    #[command(subcommand)]
    Peers(PeersCommand),
    /// Peers that the node starts from, besides those of --bootstrap
    #[command(subcommand)]
    Bootstrap(BootstrapCommand),
    /// The node's counters: traffic, requests, gossip, queues, limits
    #[command(after_help = "Examples:\n  quelea stats\n  quelea stats --json")]
    Stats,
    /// What happens: peers, models, messages
    Events(EventsArgs),
    /// Say a line to every node of the network
    Broadcast(BroadcastArgs),
    /// How long a round trip to a peer takes, and which way it goes
    Ping(PingArgs),
    /// How this node can be reached: kind of NAT, addresses, relays, and what to do
    Netcheck(NetcheckArgs),
    /// Whether the node is well: exit code 0 or 1
    Health(HealthArgs),
    /// Values and peers that nobody keeps a list of
    #[command(subcommand)]
    Dht(DhtCommand),
    /// Copies of what the node keeps on disk
    #[command(subcommand)]
    Store(StoreCommand),
    /// Who owes whom: accounts, entries, IOUs by hand
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// What peers are worth to this node, and why
    Trust(TrustArgs),
    /// Fetch, keep and look into models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Measure this machine
    #[command(subcommand)]
    Bench(BenchCommand),
}

const DAEMON_EXAMPLES: &str = "Examples:
  quelea daemon                                          a node others can start from
  quelea daemon -b /ip4/203.0.113.7/tcp/8468/p2p/12D3…   join a swarm
  quelea daemon --model model.gguf --layers 0..8 -b …    serve the first eight layers
  quelea daemon --model demo --layers auto --memory 2G   serve what is thinnest and fits
  quelea daemon --masking --external /dns4/www.example.org/tcp/443/tls/ws \\
    --masking-cert fullchain.pem --masking-key privkey.pem -b …   among web servers";

#[derive(Debug, Args)]
#[command(after_help = DAEMON_EXAMPLES)]
pub(crate) struct DaemonArgs {
    /// Port for TCP and QUIC; 0 takes a free one [default: 8468; with --masking 443]
    #[arg(short, long)]
    pub(crate) port: Option<u16>,
    /// Address to listen on [default: 0.0.0.0]
    #[arg(short = 'H', long)]
    pub(crate) host: Option<std::net::IpAddr>,
    /// Listen on exactly these multiaddrs instead of --host and --port (repeatable)
    #[arg(long, value_name = "MULTIADDR", value_parser = parse_multiaddr, value_delimiter = ',')]
    pub(crate) listen: Vec<Multiaddr>,
    /// Full multiaddrs of peers to start from, ending in /p2p/PEER-ID (repeatable, or comma-separated)
    #[arg(short, long, value_name = "MULTIADDR", value_parser = parse_peer_address, value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// Identity file [default: identity.key in the data directory, made if missing]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Database file [default: quelea.redb in the data directory]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) db: Option<PathBuf>,
    /// Name of the network; nodes of different networks never talk
    #[arg(long, default_value = "main")]
    pub(crate) network: String,
    /// Where /metrics, /livez, /readyz and /health are served [default: 127.0.0.1:8470, or a free port]
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Where the control API is served besides the unix socket [default: 127.0.0.1:8469, or a free port]
    #[arg(long, value_name = "ADDR")]
    pub(crate) api_listen: Option<SocketAddr>,
    /// Serve layers of this model: a GGUF file, a folder of safetensors, 'demo' for the embedded one, or a model id, of
    /// which the missing layers are pulled from peers
    #[arg(long, value_name = "FILE|ID|demo")]
    pub(crate) model: Option<String>,
    /// Quantise the weights while the model opens, like q8_0 or q4_k_m (a folder of safetensors, or a GGUF of floats)
    #[arg(long, value_name = "MIX", requires = "model", value_parser = super::make::parse_mix)]
    pub(crate) quantize: Option<quelea_engine::quantize::Mix>,
    /// Which layers: half-open like 0..8, 'all', or 'auto' for the thinnest span that fits --memory
    #[arg(long, value_name = "A..B|all|auto", requires = "model", default_value = "auto", value_parser = parse_layers)]
    pub(crate) layers: LayerChoice,
    /// Memory for weights and caches, like 2G or 500M [default: half of what is free]
    #[arg(long, value_name = "SIZE", requires = "model", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
    /// Compute the model's ends, too, for those who have nothing of it: the embedding with the first layers (this node then
    /// sees the tokens of their prompts), the head with the last
    #[arg(long, value_enum, requires = "model", default_value_t = EndsArg::Auto)]
    pub(crate) ends: EndsArg,
    /// How long what a worker announces is believed after its last word, 10s to 10m; records of it half as long again
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_announce_ttl)]
    pub(crate) announce_ttl: Duration,
    #[command(flatten)]
    pub(crate) price: PriceArgs,
    #[command(flatten)]
    pub(crate) debts: DebtArgs,
    #[command(flatten)]
    pub(crate) audit: AuditArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    #[command(flatten)]
    pub(crate) nat: NatArgs,
    /// Count loopback and private addresses in the limits per address, too (not behind a proxy: all would be one)
    #[arg(long)]
    pub(crate) limit_local: bool,
    /// For measurements: send over TCP so much later, as if others were so far away (QUIC is not delayed)
    #[arg(long, value_name = "DUR", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) line_delay: Option<Duration>,
    #[command(flatten)]
    pub(crate) masking: MaskingArgs,
    #[command(flatten)]
    pub(crate) rendezvous: RendezvousArgs,
    /// Find peers on the LAN (mDNS)
    #[arg(long)]
    pub(crate) mdns: bool,
    /// Part in the DHT; auto serves it on private networks and once a public address is confirmed
    #[arg(long, value_enum, default_value_t = KadMode::Auto)]
    pub(crate) kad_mode: KadMode,
}

/// Part in the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KadMode {
    Auto,
    Server,
    Client,
}

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

const INFER_EXAMPLES: &str = "Examples:
  quelea infer \"What is a relay?\"                               through the local daemon
  quelea infer -b /ip4/203.0.113.7/tcp/8468/p2p/12D3… \"hi\"       as a passing peer, no daemon
  quelea infer --model model.gguf --temperature 0.8 --seed 7 \"Once upon\"
  quelea infer --stop '.' --logprobs 3 \"What is a relay?\"        the first sentence, token by token
  quelea infer --speculate auto \"Sing it again\"                  several tokens in one pass
  quelea infer --model model.gguf --route local \"hi\"             unsplit, on this machine alone
  quelea infer --resume last                                     go on with an answer that was cut off
  quelea infer --resume last --shown $(wc -c < said) >> said     only what is missing of it";

/// What of the flags a resumed answer has from when it was begun.
const ASKED_BEFORE: [&str; 11] = [
    "prompt",
    "model",
    "quantize",
    "chat",
    "raw",
    "system",
    "max_tokens",
    "stop",
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
    #[arg(long, value_name = "MIX", value_parser = super::make::parse_mix)]
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

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// What a GGUF file holds: id, family, layers, sizes
    #[command(after_help = "Examples:\n  quelea model show model.gguf\n  quelea model show demo --json")]
    Show {
        /// A GGUF file, a folder of safetensors, or 'demo'; @MIX behind it quantises it, as in folder@q8_0
        file: String,
    },
    /// Who holds which layers of a model in the swarm, as bars
    Coverage(Box<CoverageArgs>),
    /// Token ids of a text
    #[command(
        after_help = "Examples:\n  quelea model tokenize model.gguf --text 'Hello' --json\n  quelea model tokenize vocab.gguf --special --text '<|im_start|>user'"
    )]
    Tokenize {
        /// A GGUF file (a vocabulary alone will do), a folder of safetensors with its tokenizer.json, or 'demo'
        file: String,
        /// The text
        #[arg(long)]
        text: String,
        /// Parse special tokens, and add BOS if the file asks for it
        #[arg(long)]
        special: bool,
    },
    /// Log-probabilities of the next token
    #[command(
        after_help = "Examples:\n  quelea model logits model.gguf --text 'Hello' --top 5\n  quelea model logits model.gguf --ids 1,2,3 --split 1,3 --json"
    )]
    Logits(LogitsArgs),
    /// Write a GGUF of a real model's shape with random weights, for measuring speed
    #[command(after_help = SYNTH_EXAMPLES)]
    Synth(super::make::SynthArgs),
    /// Fetch a model: by id from peers (or some of its layers), from Hugging Face, a URL, or a file
    Pull(PullArgs),
    /// The models on this machine's disk, whole or in part
    #[command(after_help = "Examples:\n  quelea model list\n  quelea model list --json")]
    List,
    /// Remove a model from the disk
    #[command(after_help = "Examples:\n  quelea model rm 3f2a…\n  quelea model rm 3f2a… --json")]
    Rm {
        /// Its id, or the first digits of it
        id: String,
    },
    /// Copy a GGUF file into the store of models
    #[command(after_help = "Examples:\n  quelea model import model.gguf\n  quelea model import model.gguf --json")]
    Import {
        /// A GGUF file
        path: PathBuf,
        /// Disk that all models may take, like 200G
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        models_quota: Option<u64>,
    },
    /// What the daemon has loaded: layers, sessions, memory
    #[command(after_help = "Examples:\n  quelea model ps\n  quelea model ps --json")]
    Ps,
    /// Write a model of floats as a GGUF of smaller types
    #[command(after_help = QUANTIZE_EXAMPLES)]
    Quantize(super::make::QuantizeArgs),
}

const QUANTIZE_EXAMPLES: &str = "Examples:
  quelea model quantize model-f16.gguf -o model-q4_k_m.gguf
  quelea model quantize model-f16.gguf -o model-q8_0.gguf --type q8_0";

const SYNTH_EXAMPLES: &str = "Examples:
  quelea model synth --list
  quelea model synth tinyllama-1.1b -o tinyllama.gguf
  quelea model synth llama-3.2-1b -o llama.gguf --type q8_0 --seed 7";

fn parse_layers(text: &str) -> Result<LayerChoice, String> {
    match text {
        "auto" => Ok(LayerChoice::Auto),
        "all" => Ok(LayerChoice::All),
        range => range.parse().map(LayerChoice::Exactly).map_err(|e: quelea_wire::SpanError| e.to_string()),
    }
}

pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match text[digits.len()..].to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        unit => return Err(format!("{unit:?} is not a unit of memory; use K, M, G or T, like 2G")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size; write it like 2G or 500M"))?;
    number.checked_mul(factor).filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is out of range"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is not a time; write it like 10s or 500ms"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        unit => return Err(format!("{unit:?} is not a unit of time; use ms, s or m")),
    };
    if (0.01..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("{text:?} is out of range: between 10ms and 60m"))
    }
}

/// Shorter would be announced more often than gossip carries it; longer is not believed by others.
fn parse_announce_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text)?;
    let range = Duration::from_secs(10)..=Duration::from_millis(quelea_announce::MAX_LIFETIME_MS);
    if range.contains(&ttl) { Ok(ttl) } else { Err(format!("{text:?} is out of range: between 10s and 10m")) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("500MiB"), Ok(500 << 20));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(parse_size("2X").is_err() && parse_size("G").is_err() && parse_size("99999999T").is_err());
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("20ms"), Ok(Duration::from_millis(20)));
        assert!(parse_duration("1h").is_err() && parse_duration("0").is_err() && parse_duration("NaN").is_err());
    }

    #[test]
    fn bootstrap_takes_commas_and_repeats() {
        const A: &str = "/ip4/10.0.0.3/tcp/1/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";
        let cli = Cli::parse_from(["quelea", "daemon", "-b", &format!("{A},{A}"), "--bootstrap", A]);
        let Command::Daemon(args) = cli.command else { panic!("parsed as something else") };
        assert_eq!(args.bootstrap.len(), 3);
    }
}
