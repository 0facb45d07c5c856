//! Flags of the page and of what opens the API.

use std::time::Duration;

use clap::{Args, Subcommand};

/// How the daemon serves its API and its page.
#[derive(Debug, Clone, Args)]
pub(crate) struct ApiArgs {
    /// A name by which the API is asked for, besides localhost and addresses (repeatable): requests for other names are
    /// refused, as they come from pages that took a name for this machine
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) api_host: Vec<String>,
    /// Let everybody who reaches the API do everything, without a token
    #[arg(long)]
    pub(crate) insecure_no_auth: bool,
    /// Serve the API without the web page
    #[arg(long)]
    pub(crate) no_ui: bool,
}

/// `quelea ui`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quelea ui              opens the page in a browser
  quelea ui --print      shows its address, with a code that holds once, for five minutes
  ssh host quelea ui --print    then: ssh -L 8469:127.0.0.1:8469 host, and open it here")]
pub(crate) struct UiArgs {
    /// Print the address instead of opening it
    #[arg(long)]
    pub(crate) print: bool,
}

/// `quelea token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and show it: this once
    #[command(after_help = "Examples:
  quelea token create grafana --scope metrics
  quelea token create editor --scope infer --expires 30d
  quelea token create backup-script --scope admin --json")]
    Create {
        /// What it is for
        name: String,
        /// What it may do: admin (everything), read (look), infer (ask models), metrics (repeatable, or comma-separated)
        #[arg(long, value_name = "SCOPE", required = true, value_delimiter = ',', value_parser = parse_scope)]
        scope: Vec<String>,
        /// After how long it ends by itself, like 12h or 30d [default: never]
        #[arg(long, value_name = "TIME", value_parser = parse_lifetime)]
        expires: Option<Duration>,
    },
    /// The tokens there are
    #[command(after_help = "Examples:\n  quelea token list\n  quelea token list --json")]
    List,
    /// Take a token back, at once
    #[command(after_help = "Examples:\n  quelea token revoke grafana\n  quelea token revoke 3f9a01c2")]
    Revoke {
        /// Its id, or its name where only one has it
        token: String,
    },
}

fn parse_scope(text: &str) -> Result<String, String> {
    text.parse::<crate::api::access::Scope>().map(|scope| scope.as_str().to_owned())
}

fn parse_lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time like 90s, 12h or 30d");
    let (number, unit) = text.split_at(text.floor_char_boundary(text.len().saturating_sub(1)));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_and_scopes_are_read() {
        assert_eq!(parse_lifetime("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        for wrong in ["", "d", "0s", "3", "-1h", "1y", "99999999999999999999d", "5é"] {
            assert!(parse_lifetime(wrong).is_err(), "{wrong}");
        }
        assert!(parse_scope("root").unwrap_err().contains("metrics"));
    }
}
