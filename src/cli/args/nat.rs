//! Flags about being reached, `quelea ping` and `quelea netcheck`.

use std::time::Duration;

use clap::Args;
use libp2p::{Multiaddr, PeerId};
use quelea_behaviours::{
    RelayServer,
    config::{RELAY_CIRCUIT_BYTES, RELAY_CIRCUIT_DURATION, RELAY_CIRCUITS},
    probe,
};

use super::{parse_duration, parse_size};
use crate::address::parse_multiaddr;

/// How a daemon can be reached, and how it helps others to be.
#[derive(Debug, Args)]
pub(crate) struct NatArgs {
    /// Relay traffic for peers behind NAT
    #[arg(long)]
    pub(crate) relay_server: bool,
    /// Circuits relayed at once [default: 16]
    #[arg(long, value_name = "N", requires = "relay_server")]
    relay_circuits: Option<usize>,
    /// Bytes that one relayed circuit may carry, like 1G [default: 128K]
    #[arg(long, value_name = "SIZE", requires = "relay_server", value_parser = parse_size)]
    relay_circuit_bytes: Option<u64>,
    /// How long one relayed circuit may last, like 30m [default: 2m]
    #[arg(long, value_name = "DUR", requires = "relay_server", value_parser = parse_duration)]
    relay_circuit_time: Option<Duration>,
    /// Relay to these peers only (repeatable, or comma-separated)
    #[arg(long, value_name = "PEER", requires = "relay_server", value_delimiter = ',')]
    relay_allow: Vec<PeerId>,
    /// Address that leads to this node, as behind a forwarded port (repeatable, or comma-separated)
    #[arg(long, value_name = "MULTIADDR", value_parser = parse_multiaddr, value_delimiter = ',')]
    pub(crate) external: Vec<Multiaddr>,
    /// Ask the router to open a port (UPnP)
    #[arg(long)]
    pub(crate) upnp: bool,
}

impl NatArgs {
    /// What the node gives as a relay.
    pub(crate) fn relay(&self) -> RelayServer {
        RelayServer {
            circuits: self.relay_circuits.unwrap_or(RELAY_CIRCUITS),
            circuit_bytes: self.relay_circuit_bytes.unwrap_or(RELAY_CIRCUIT_BYTES),
            circuit_duration: self.relay_circuit_time.unwrap_or(RELAY_CIRCUIT_DURATION),
            allow: self.relay_allow.clone(),
        }
    }
}

const PING_EXAMPLES: &str = "Examples:
  quelea ping 12D3KooW…                     four round trips, and which way they go
  quelea ping 12D3KooW… --until-direct      wait until the connection no longer goes through a relay
  quelea ping /ip4/203.0.113.7/tcp/8468/p2p/12D3KooW… -c 1 --size 32K
  quelea ping 12D3KooW… --json";

/// `quelea ping`.
#[derive(Debug, Args)]
#[command(after_help = PING_EXAMPLES)]
pub(crate) struct PingArgs {
    /// A peer id, or a full multiaddr ending in one
    pub(crate) peer: String,
    /// Replies to wait for
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) count: u32,
    /// Go on until the connection is direct, or --deadline has passed
    #[arg(long)]
    pub(crate) until_direct: bool,
    /// How long --until-direct waits for the hole punch
    #[arg(long, value_name = "DUR", default_value = "45s", value_parser = parse_duration)]
    pub(crate) deadline: Duration,
    /// Bytes there and back, like 32K
    #[arg(long, value_name = "SIZE", default_value = "32", value_parser = parse_payload)]
    pub(crate) size: u64,
    /// Time between two pings
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = parse_duration)]
    pub(crate) interval: Duration,
}

fn parse_payload(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    match usize::try_from(size) {
        Ok(n) if n <= probe::MAX_BYTES => Ok(size),
        _ => Err(format!("{text:?} is out of range: at most {}K", probe::MAX_BYTES / 1024)),
    }
}

const NETCHECK_EXAMPLES: &str = "Examples:
  quelea netcheck
  quelea netcheck --every 10s
  quelea netcheck --json";

/// `quelea netcheck`.
#[derive(Debug, Args)]
#[command(after_help = NETCHECK_EXAMPLES)]
pub(crate) struct NetcheckArgs {
    /// Look again and again
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) every: Option<Duration>,
}
