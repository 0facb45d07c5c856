//! `quelea peers` and `quelea bootstrap`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use quelea_behaviours::bans::Subject;

use super::WatchArg;

/// The peers this node is connected to, remembers, or refuses.
#[derive(Debug, Subcommand)]
pub(crate) enum PeersCommand {
    /// The connected peers, nearest first
    #[command(
        after_help = "Examples:\n  quelea peers list\n  quelea peers list --sort bytes --protocol shard\n  quelea peers list --json | jq -r '.items[].peer_id'\n  quelea peers list --watch"
    )]
    List {
        /// What they are sorted by
        #[arg(long, value_enum, default_value_t = PeerSort::Rtt)]
        sort: PeerSort,
        /// Only those that are reached through a relay
        #[arg(long)]
        relayed: bool,
        /// Only those that speak this protocol: its whole id, or a part of it between slashes, like 'shard'
        #[arg(long, value_name = "P")]
        protocol: Option<String>,
        #[command(flatten)]
        watch: WatchArg,
    },
    /// Every peer this node remembers, the connected ones first
    #[command(after_help = "Examples:\n  quelea peers known\n  quelea peers known --json")]
    Known,
    /// What is known of one peer
    #[command(after_help = "Examples:\n  quelea peers info 12D3KooW…\n  quelea peers info 12D3KooW… --json")]
    Info {
        /// Its peer id
        peer: String,
    },
    /// Have a connection to a peer
    #[command(
        after_help = "Examples:\n  quelea peers connect /ip4/203.0.113.7/tcp/8468/p2p/12D3KooW…\n  quelea peers connect 12D3KooW…"
    )]
    Connect {
        /// Its full address, ending in /p2p/ and its id; the id alone when it is known
        addr: String,
    },
    /// End the connections to a peer, and do not dial it for ten minutes
    #[command(
        after_help = "Examples:\n  quelea peers disconnect 12D3KooW…\n  quelea peers disconnect 12D3KooW… --json"
    )]
    Disconnect {
        /// Its peer id
        peer: String,
    },
    /// Refuse a peer, or everybody in a range of addresses
    Ban(BanArgs),
    /// Let a banned peer or range in again
    #[command(after_help = "Examples:\n  quelea peers unban 12D3KooW…\n  quelea peers unban 203.0.113.0/24")]
    Unban {
        /// A peer id, or a range of addresses
        #[arg(value_name = "PEER|CIDR")]
        subject: Subject,
    },
    /// Who is banned, until when, and why
    #[command(after_help = "Examples:\n  quelea peers bans\n  quelea peers bans --json")]
    Bans,
}

/// What connected peers are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerSort {
    /// The shortest round trip first
    Rtt,
    /// The most bytes sent and received first
    Bytes,
    /// The best behaved first
    Trust,
    /// The longest connected first
    Up,
}

/// Peers that the node starts from, besides those of --bootstrap.
#[derive(Debug, Subcommand)]
pub(crate) enum BootstrapCommand {
    /// The peers on the list
    #[command(after_help = "Examples:\n  quelea bootstrap list\n  quelea bootstrap list --json")]
    List,
    /// Put a peer on the list, and dial it now
    #[command(
        after_help = "Examples:\n  quelea bootstrap add /ip4/203.0.113.7/tcp/8468/p2p/12D3KooW…\n  quelea bootstrap add /dns4/node.example.org/udp/8468/quic-v1/p2p/12D3KooW…"
    )]
    Add {
        /// Its full address, ending in /p2p/ and its id
        addr: String,
    },
    /// Take a peer off the list; connections stay
    #[command(
        after_help = "Examples:\n  quelea bootstrap rm /ip4/203.0.113.7/tcp/8468/p2p/12D3KooW…\n  quelea bootstrap list --json | jq -r '.items[].addr'"
    )]
    Rm {
        /// The address as the list has it
        addr: String,
    },
}

const BAN_EXAMPLES: &str = "Examples:
  quelea peers ban 12D3KooW…                                  for a day
  quelea peers ban 12D3KooW… --for 30d --reason 'bad rows'    for a month
  quelea peers ban 203.0.113.0/24 --for 2h                    everybody in a range of addresses";

#[derive(Debug, Args)]
#[command(after_help = BAN_EXAMPLES)]
pub(crate) struct BanArgs {
    /// A peer id, or a range of addresses
    #[arg(value_name = "PEER|CIDR")]
    pub(crate) subject: Subject,
    /// For how long, like 30m, 2h or 7d; a year at most
    #[arg(long = "for", value_name = "DUR", default_value = "1d", value_parser = parse_long)]
    pub(crate) duration: Duration,
    /// Why, for whoever looks at the list later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
}

pub(super) fn parse_long(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time; write it like 30m, 2h or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(bad()),
    };
    let seconds = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)?;
    let longest = quelea_behaviours::bans::MAX_DURATION;
    let duration = Duration::from_secs(seconds);
    if seconds > 0 && duration <= longest { Ok(duration) } else { Err(format!("{text:?} is out of range: 1s to 365d")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_times_read_as_people_write_them() {
        assert_eq!(parse_long("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse_long("90s"), Ok(Duration::from_secs(90)));
        for bad in ["", "7", "d", "1w", "0s", "366d", "99999999999999999999d", "-1d", "1.5h"] {
            assert!(parse_long(bad).is_err(), "{bad}");
        }
    }
}
