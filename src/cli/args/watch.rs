//! `--watch`.

use clap::Args;

/// Whether something is shown once.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WatchArg {
    /// Show it again every two seconds, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}
