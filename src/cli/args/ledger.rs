//! Who owes whom.

use clap::{Args, Subcommand, ValueEnum};
use libp2p::PeerId;

use super::WatchArg;

/// An amount as people write it: credits with at most six decimals.
pub(super) fn credits(text: &str) -> Result<u64, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() && part.is_empty() || !digits(whole) || !digits(part) || part.len() > 6 {
        return Err("an amount is credits with at most six decimals, such as 0.25".into());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| "the amount is too large")? };
    let part: u64 = format!("{part:0<6}").parse().map_err(|_| "the amount is too large")?;
    let micro = whole.checked_mul(1_000_000).and_then(|micro| micro.checked_add(part));
    micro.ok_or_else(|| "the amount is too large".into())
}

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  quelea ledger balance\n  quelea ledger list --peer 12D3KooW…\n  quelea ledger iou create 12D3KooW… 0.5   promises half a credit\n  quelea ledger redeem 12D3KooW… 0.5       says that half a credit was paid outside"
)]
pub(crate) enum LedgerCommand {
    /// What each peer owes this node, and the other way round
    #[command(
        after_help = "Examples:\n  quelea ledger balance\n  quelea ledger balance --watch\n  quelea ledger balance --json | jq .totals"
    )]
    Balance(WatchArg),
    /// The newest signed entries
    #[command(after_help = "Examples:\n  quelea ledger list\n  quelea ledger list --peer 12D3KooW… -n 200")]
    List {
        /// Only of this peer's account
        #[arg(long, value_name = "PEER")]
        peer: Option<PeerId>,
        /// How many
        #[arg(short, long, default_value_t = 20)]
        number: usize,
    },
    /// One entry, whole
    #[command(
        after_help = "Examples:\n  quelea ledger show 3f9a…     the beginning of its id, as 'ledger list --json' has it\n  quelea ledger show 3f9a0c51 --json"
    )]
    Show {
        /// The beginning of its id, eight hex digits at least
        id: String,
    },
    /// What a peer may owe this node; with an amount, sets it in the place of what it has earned
    #[command(
        after_help = "Examples:\n  quelea ledger limit 12D3KooW…\n  quelea ledger limit 12D3KooW… 25\n  quelea ledger limit 12D3KooW… --earned   back to what it has earned"
    )]
    Limit {
        /// Who
        peer: PeerId,
        /// In credits
        #[arg(value_parser = credits)]
        amount: Option<u64>,
        /// What it has earned counts again
        #[arg(long, conflicts_with = "amount")]
        earned: bool,
    },
    /// Let a peer owe so much, and tell it
    #[command(
        after_help = "Examples:\n  quelea ledger grant 12D3KooW… 25\n  quelea ledger grant 12D3KooW… 0   no credit any more"
    )]
    Grant {
        /// Who
        peer: PeerId,
        /// In credits
        #[arg(value_parser = credits)]
        amount: u64,
    },
    /// Say that a peer has paid outside what it owes
    #[command(
        after_help = "Examples:\n  quelea ledger redeem 12D3KooW… 0.5\n  quelea ledger redeem 12D3KooW… 0.5 --reference 'invoice 17'"
    )]
    Redeem {
        /// Who paid
        peer: PeerId,
        /// In credits
        #[arg(value_parser = credits)]
        amount: u64,
        /// What it refers to; its hash is signed
        #[arg(long, default_value = "")]
        reference: String,
    },
    /// Let a peer off what it owes; that earns it no trust
    #[command(
        after_help = "Examples:\n  quelea ledger forgive 12D3KooW… 0.5\n  quelea ledger forgive 12D3KooW… 0.5 --json"
    )]
    Forgive {
        /// Whom
        peer: PeerId,
        /// In credits
        #[arg(value_parser = credits)]
        amount: u64,
    },
    /// Ask a peer to pay what it owes, or a part
    #[command(after_help = "Examples:\n  quelea ledger settle 12D3KooW…\n  quelea ledger settle 12D3KooW… 0.5")]
    Settle {
        /// Whom
        peer: PeerId,
        /// In credits [default: all]
        #[arg(value_parser = credits)]
        amount: Option<u64>,
    },
    /// IOUs by hand, between people who have agreed on something
    #[command(subcommand)]
    Iou(IouCommand),
    /// All entries that are kept, with their signed envelopes
    #[command(
        after_help = "Examples:\n  quelea ledger export --format csv > ledger.csv\n  quelea ledger export > ledger.json"
    )]
    Export {
        /// The form
        #[arg(long, value_enum, default_value_t = ExportFormat::Json)]
        format: ExportFormat,
    },
    /// Check every stored signature, and that all entries add up to the counters
    #[command(
        after_help = "Examples:\n  quelea ledger verify   exits with 8 if something is wrong\n  quelea ledger verify --json"
    )]
    Verify,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  quelea ledger iou create 12D3KooW… 0.5\n  quelea ledger iou redeem 12D3KooW… 0.5")]
pub(crate) enum IouCommand {
    /// Sign an IOU: this node owes the peer so much more
    #[command(
        after_help = "Examples:\n  quelea ledger iou create 12D3KooW… 0.5\n  quelea ledger iou create 12D3KooW… 0.5 --due-days 30"
    )]
    Create {
        /// Whom
        peer: PeerId,
        /// In credits
        #[arg(value_parser = credits)]
        amount: u64,
        /// Days after which it is due, a year at most
        #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u16).range(..=365))]
        due_days: u16,
    },
    /// Discharge what the peer owes: the same as 'quelea ledger redeem'
    #[command(
        after_help = "Examples:\n  quelea ledger iou redeem 12D3KooW… 0.5\n  quelea ledger iou redeem 12D3KooW… 0.5 --json"
    )]
    Redeem {
        /// Who paid
        peer: PeerId,
        /// In credits
        #[arg(value_parser = credits)]
        amount: u64,
    },
}

/// A form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A table.
    Csv,
    /// One document.
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quelea trust\n  quelea trust 12D3KooW…    with the dealings behind its number")]
pub(crate) struct TrustArgs {
    /// Only this peer, with its last dealings
    pub(crate) peer: Option<PeerId>,
}

#[cfg(test)]
mod tests {
    use super::credits;

    #[test]
    fn amounts_are_read_as_people_write_them() {
        for (text, micro) in [("0", 0), ("1", 1_000_000), (".5", 500_000), ("0.000001", 1), ("12.34", 12_340_000)] {
            assert_eq!(credits(text), Ok(micro), "{text}");
        }
        assert_eq!(credits("18446744073709.551615"), Ok(u64::MAX));
        for text in ["", ".", "-1", "1e3", "0.0000001", "1,5", "18446744073709.551616", "99999999999999999999"] {
            assert!(credits(text).is_err(), "{text}");
        }
    }
}
