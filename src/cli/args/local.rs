//! Commands about the program itself.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea completions bash > ~/.local/share/bash-completion/completions/quelea\n  quelea completions zsh > ~/.zfunc/_quelea\n  quelea completions fish > ~/.config/fish/completions/quelea.fish"
)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quelea man | man -l -                    this program's page\n  quelea man ~/.local/share/man/man1       a page for each command\n  quelea man --markdown > docs/cli.md      the reference, as it is in the repository"
)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this directory, which is made if missing
    #[arg(value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// All commands on one page of Markdown
    #[arg(long, conflicts_with = "dir")]
    pub(crate) markdown: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quelea version\n  quelea version --all\n  quelea version --all --json")]
pub(crate) struct VersionArgs {
    /// The build, the machine's instruction sets, and the schema of the database as well
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  quelea errors lookup QUE-2003\n  quelea errors list --json")]
pub(crate) enum ErrorsCommand {
    /// What a code means, and whether trying again helps
    #[command(after_help = "Examples:\n  quelea errors lookup QUE-2003\n  quelea errors lookup 7001 --json")]
    Lookup {
        /// As an error shows it, or the number alone
        code: String,
    },
    /// All codes
    #[command(
        after_help = "Examples:\n  quelea errors list\n  quelea errors list --json | jq '.items[] | select(.retryable)'"
    )]
    List,
}
