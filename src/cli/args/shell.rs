//! `quelea shell`.

use clap::Args;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea shell\n  printf 'peers\\nstats\\n' | quelea shell          a command a line; the exit code is that of the first that fails\n  quelea shell --stop --json < commands.txt      ends at the first that fails"
)]
pub(crate) struct ShellArgs {
    /// End at the first command that fails, where commands are read from a pipe
    #[arg(long)]
    pub(crate) stop: bool,
}
