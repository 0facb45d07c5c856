//! `quelea dht`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;

/// How long what is put may live at most: its holders keep it for a day, and we publish it again.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Values and peers that nobody keeps a list of.
#[derive(Debug, Subcommand)]
pub(crate) enum DhtCommand {
    /// Keep a small value at the peers closest to its key, and publish it again until it is deleted
    #[command(
        after_help = "Examples:\n  quelea dht put greeting 'hello, flock'\n  quelea dht put card @card.json --ttl 12h\n  date | quelea dht put now - --quorum 3"
    )]
    Put {
        /// The key; without a slash in front it is one under /quelea/user/, where everybody may write
        key: String,
        /// The value, at most 1 KiB: as it is, @FILE, or '-' for stdin
        value: String,
        /// Stop publishing it after this time, like 90s, 12h or 7d [default: never]
        #[arg(long, value_name = "DUR", value_parser = parse_ttl)]
        ttl: Option<Duration>,
        /// Fail unless this many peers acknowledge it (it is sent to the 20 closest in any case)
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=20))]
        quorum: u8,
        #[command(flatten)]
        time: TimeArgs,
    },
    /// The value under a key: of an open key what most holders have, of a signed one the newest
    #[command(
        after_help = "Examples:\n  quelea dht get greeting\n  quelea dht get greeting --quorum 3\n  quelea dht get greeting --all --json"
    )]
    Get {
        /// The key
        key: String,
        /// Every value that is found, and how many hold it
        #[arg(long)]
        all: bool,
        /// End early when this many holders agree [default: ask all; signed values: 3 answers]
        #[arg(long, value_name = "N", conflicts_with = "all", value_parser = clap::value_parser!(u8).range(1..=20))]
        quorum: Option<u8>,
        #[command(flatten)]
        time: TimeArgs,
    },
    /// Stop publishing what this node has put or provides; holders forget it when its time is over
    #[command(after_help = "Examples:\n  quelea dht delete greeting\n  quelea dht delete greeting --json")]
    Delete {
        /// The key
        key: String,
    },
    /// Tell the peers closest to a key that this node has what it stands for, and go on telling them
    #[command(after_help = "Examples:\n  quelea dht provide holiday-pictures\n  quelea dht delete holiday-pictures")]
    Provide {
        /// The key
        key: String,
        #[command(flatten)]
        time: TimeArgs,
    },
    /// Who provides a key; each is dialled
    #[command(
        after_help = "Examples:\n  quelea dht providers holiday-pictures\n  quelea dht providers holiday-pictures --json"
    )]
    Providers {
        /// The key
        key: String,
        #[command(flatten)]
        time: TimeArgs,
    },
    /// Where a peer is, and a line to it
    #[command(after_help = "Examples:\n  quelea dht find-peer 12D3…\n  quelea dht find-peer 12D3… --timeout 5s --json")]
    FindPeer {
        /// Its peer id
        peer: String,
        #[command(flatten)]
        time: TimeArgs,
    },
    /// The peers closest to a key or to a peer id
    #[command(after_help = "Examples:\n  quelea dht find-node greeting\n  quelea dht find-node 12D3… --json")]
    FindNode {
        /// A key or a peer id
        #[arg(value_name = "KEY|PEER")]
        target: String,
        #[command(flatten)]
        time: TimeArgs,
    },
    /// This node's part of the DHT: mode, buckets, records, lookups
    #[command(after_help = "Examples:\n  quelea dht stats\n  quelea dht stats --json")]
    Stats,
}

/// How long a lookup may take.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TimeArgs {
    /// How long the lookup may take, at most 30s
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

/// Times of hours and days, besides what [`parse_duration`] reads.
fn parse_ttl(text: &str) -> Result<Duration, String> {
    let Some((number, unit)) = text.split_at_checked(text.len().saturating_sub(1)) else {
        return Err(format!("{text:?} is not a time; write it like 90s, 12h or 7d"));
    };
    let seconds = match unit {
        "h" => 3600.0,
        "d" => 24.0 * 3600.0,
        _ => return parse_duration(text),
    };
    let ttl = number.parse().ok().and_then(|n: f64| Duration::try_from_secs_f64(n * seconds).ok());
    ttl.filter(|ttl| (Duration::from_secs(1)..=TTL_MAX).contains(ttl))
        .ok_or_else(|| format!("{text:?} is out of range: between 1s and 365d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_read_as_people_write_them() {
        assert_eq!(parse_ttl("12h"), Ok(Duration::from_secs(12 * 3600)));
        assert_eq!(parse_ttl("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(parse_ttl("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "h", "400d", "-1h", "1w", "NaNd", "é"] {
            assert!(parse_ttl(wrong).is_err(), "{wrong:?}");
        }
    }
}
