//! Flags of rendezvous.

use clap::Args;

use crate::address::{PeerAddress, parse_peer_address};

/// How a daemon finds others through points that both know, and whether it is one.
#[derive(Debug, Args)]
pub(crate) struct RendezvousArgs {
    /// Register at this rendezvous point and ask it for others (repeatable, or comma-separated; at most 8)
    #[arg(long, value_name = "MULTIADDR", value_parser = parse_peer_address, value_delimiter = ',')]
    pub(crate) rendezvous: Vec<PeerAddress>,
    /// Be a rendezvous point for others
    #[arg(long)]
    pub(crate) rendezvous_server: bool,
}
