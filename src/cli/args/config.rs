//! `quelea config` and `quelea init`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  quelea config show --origin\n  quelea config set bootstrap /ip4/203.0.113.7/tcp/8468/p2p/12D3KooW…\n  quelea config validate"
)]
pub(crate) enum ConfigCommand {
    /// What a daemon that is started now would have, from the environment, the file, its profile, and what is built in
    #[command(
        after_help = "Examples:\n  quelea config show\n  quelea config show --origin\n  quelea config show --json | jq '.items[] | select(.origin != \"default\")'"
    )]
    Show {
        /// Where each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// One setting's value
    #[command(after_help = "Examples:\n  quelea config get port\n  quelea config get bootstrap --json")]
    Get {
        /// The long name of a flag of 'quelea daemon'
        key: String,
    },
    /// Write a setting to the file
    #[command(
        after_help = "Examples:\n  quelea config set port 9000\n  quelea config set mdns true\n  quelea config set bootstrap /ip4/203.0.113.7/tcp/8468/p2p/12D3… /ip4/203.0.113.8/tcp/8468/p2p/12D3…"
    )]
    Set {
        /// The long name of a flag of 'quelea daemon'
        key: String,
        /// Its value; several where the flag is repeatable; true or false for a switch
        #[arg(value_name = "VALUE", required = true)]
        values: Vec<String>,
    },
    /// Take a setting out of the file
    #[command(after_help = "Examples:\n  quelea config unset port\n  quelea config unset bootstrap --json")]
    Unset {
        /// The long name of a flag of 'quelea daemon'
        key: String,
    },
    /// Open the file in VISUAL or EDITOR; it is replaced only when a daemon would take it
    #[command(after_help = "Examples:\n  quelea config edit\n  EDITOR='code --wait' quelea config edit")]
    Edit,
    /// Whether a daemon would take the file: exit code 0, or 2 with what is wrong and where
    #[command(
        after_help = "Examples:\n  quelea config validate\n  quelea config validate new.toml && mv new.toml /etc/quelea.toml"
    )]
    Validate {
        /// The file [default: the one that a daemon reads]
        file: Option<PathBuf>,
    },
    /// Where the file is, or would be
    #[command(after_help = "Examples:\n  quelea config path\n  ${EDITOR:-vi} \"$(quelea config path)\"")]
    Path,
    /// Named sets of settings for usual cases
    #[command(after_help = "Examples:\n  quelea config profiles\n  quelea config profiles --json")]
    Profiles,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea init\n  quelea init --profile lan\n  quelea init --profile dev --data-dir /tmp/quelea-dev"
)]
pub(crate) struct InitArgs {
    /// A set of settings to begin with; 'quelea config profiles' shows them
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) profile: Option<ProfileArg>,
    /// Write the file anew where there is one
    #[arg(long)]
    pub(crate) force: bool,
}

/// Named sets of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileArg {
    /// Machines of one local network
    Lan,
    /// Reached from everywhere, and a relay for those that are not
    Public,
    /// A node of its own on this machine
    Dev,
    /// Serves layers from behind a router
    Inference,
    /// Gives weights to others
    Storage,
}
