//! `quelea key` and `quelea context`.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  quelea key show\n  quelea key export /media/usb/quelea.key")]
pub(crate) enum KeyCommand {
    /// The peer id and the public key, and where the file is
    #[command(after_help = "Examples:\n  quelea key show\n  quelea key show --json | jq -r .public_key")]
    Show,
    /// Copy the secret key to a new file that only this user may read
    #[command(
        after_help = "Examples:\n  quelea key export /media/usb/quelea.key\n  quelea daemon --identity /media/usb/quelea.key     elsewhere, once this node has ended"
    )]
    Export {
        /// The file; it must not be there yet
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  quelea context add lab --at http://192.0.2.7:8469 --token-file lab.token\n  quelea --context lab status\n  quelea context use lab"
)]
pub(crate) enum ContextCommand {
    /// Give a node a name
    #[command(
        after_help = "Examples:\n  quelea context add lab --at http://192.0.2.7:8469 --token-file lab.token\n  quelea context add other --at unix:/srv/quelea/quelea.sock"
    )]
    Add {
        /// The name: letters, digits, '-', '_' and '.'
        name: String,
        /// Where its API is: http://HOST:PORT, or unix:PATH
        #[arg(long, value_name = "URL|unix:PATH")]
        at: String,
        /// File that holds the token; looked up each time
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// The names there are
    #[command(visible_alias = "list", after_help = "Examples:\n  quelea context ls\n  quelea context ls --json")]
    Ls,
    /// Have commands go to this node unless they say another; without a name, to this machine's own again
    #[command(after_help = "Examples:\n  quelea context use lab\n  quelea context use")]
    Use {
        /// One of 'quelea context ls'
        name: Option<String>,
    },
    /// Take a name away
    #[command(after_help = "Examples:\n  quelea context rm lab\n  quelea context rm lab --json")]
    Rm {
        /// One of 'quelea context ls'
        name: String,
    },
}
