//! Flags of `quelea daemon`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use libp2p::Multiaddr;

use super::{
    ApiArgs, AuditArgs, ComputeArgs, DebtArgs, EndsArg, MaskingArgs, NatArgs, OfferArgs, PriceArgs, ProfileArg,
    RendezvousArgs, ReplayArgs, TraceArgs, WeightsArgs,
    values::{parse_duration, parse_size},
};
use crate::cli::config::Setting;
use crate::{
    address::{PeerAddress, parse_multiaddr, parse_peer_address},
    inference::serve::LayerChoice,
};

const DAEMON_EXAMPLES: &str = "Examples:
  quelea daemon                                          a node others can start from
  quelea daemon -b /ip4/203.0.113.7/tcp/8468/p2p/12D3…   join a swarm
  quelea daemon --profile lan --dry-run                  what it would be started with, and whether that is right
  quelea daemon --model model.gguf --layers 0..8 -b …    serve the first eight layers
  quelea daemon --model demo --layers auto --memory 2G   serve what is thinnest and fits
  quelea daemon --masking --external /dns4/www.example.org/tcp/443/tls/ws \\
    --masking-cert fullchain.pem --masking-key privkey.pem -b …   among web servers";

#[derive(Debug, Args)]
#[command(after_help = DAEMON_EXAMPLES)]
pub(crate) struct DaemonArgs {
    /// Settings for a usual case, where nothing else sets them; 'quelea config profiles' shows them
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) profile: Option<ProfileArg>,
    /// Look whether the settings are right, show them, and end
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// All settings, and where each comes from.
    #[arg(skip)]
    pub(crate) effective: Vec<Setting>,
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
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
    /// Where the control API is served besides the unix socket [default: 127.0.0.1:8469, or a free port]
    #[arg(long, value_name = "ADDR")]
    pub(crate) api_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) api_access: ApiArgs,
    /// Serve layers of this model: a GGUF file, a folder of safetensors, 'demo' for the embedded one, or a model id, of
    /// which the missing layers are pulled from peers
    #[arg(long, value_name = "FILE|ID|demo")]
    pub(crate) model: Option<String>,
    /// Quantise the weights while the model opens, like q8_0 or q4_k_m (a folder of safetensors, or a GGUF of floats)
    #[arg(long, value_name = "MIX", requires = "model", value_parser = crate::cli::make::parse_mix)]
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
    pub(crate) services: OfferArgs,
    #[command(flatten)]
    pub(crate) debts: DebtArgs,
    #[command(flatten)]
    pub(crate) audit: AuditArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    #[command(flatten)]
    pub(crate) replay: ReplayArgs,
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
fn parse_layers(text: &str) -> Result<LayerChoice, String> {
    match text {
        "auto" => Ok(LayerChoice::Auto),
        "all" => Ok(LayerChoice::All),
        range => range.parse().map(LayerChoice::Exactly).map_err(|e: quelea_wire::SpanError| e.to_string()),
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
    use clap::Parser;

    use crate::cli::args::{Cli, Command};

    #[test]
    fn bootstrap_takes_commas_and_repeats() {
        const A: &str = "/ip4/10.0.0.3/tcp/1/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";
        let cli = Cli::parse_from(["quelea", "daemon", "-b", &format!("{A},{A}"), "--bootstrap", A]);
        let Command::Daemon(args) = cli.command else { panic!("parsed as something else") };
        assert_eq!(args.bootstrap.len(), 3);
    }
}
