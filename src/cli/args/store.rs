//! What the node keeps on disk.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  quelea store backup /var/backups/quelea-monday.redb    while the daemon runs, or does not\n  quelea store restore /var/backups/quelea-monday.redb   while it does not"
)]
pub(crate) enum StoreCommand {
    /// Copy the database to a new file; the identity is a file of its own, copy it once
    #[command(
        after_help = "Examples:\n  quelea store backup /var/backups/quelea-monday.redb\n  quelea store backup copy.redb --db /var/lib/quelea/quelea.redb"
    )]
    Backup {
        /// Must not exist yet
        file: PathBuf,
        /// The database, when no daemon runs [default: quelea.redb in the data directory]
        #[arg(short, long, value_name = "FILE")]
        db: Option<PathBuf>,
    },
    /// Put a backup in the place of the database, which is kept beside it; the daemon must not run
    #[command(
        after_help = "Examples:\n  quelea store restore /var/backups/quelea-monday.redb\n  quelea store restore copy.redb --db /var/lib/quelea/quelea.redb"
    )]
    Restore {
        /// Made by 'quelea store backup'
        file: PathBuf,
        /// The database [default: quelea.redb in the data directory]
        #[arg(short, long, value_name = "FILE")]
        db: Option<PathBuf>,
    },
}
