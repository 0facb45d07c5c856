//! Flags of masking.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// How a daemon hides among web servers.
#[derive(Debug, Args)]
pub(crate) struct MaskingArgs {
    /// Reach and be reached only as WebSocket in TLS, behind a web front of our own or your web server
    #[arg(short, long, value_enum, value_name = "WAY", num_args = 0..=1, require_equals = true, default_missing_value = "front")]
    pub(crate) masking: Option<MaskingArg>,
    /// The front's certificate and those that lead to its authority (PEM)
    #[arg(long, value_name = "FILE", requires = "masking")]
    pub(crate) masking_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "masking")]
    pub(crate) masking_key: Option<PathBuf>,
    /// Trust these certificates (PEM) as well as those that browsers do, for private swarms; also to dial masked nodes unmasked
    #[arg(long, value_name = "FILE")]
    pub(crate) masking_ca: Option<PathBuf>,
    /// What the front shows to visitors (HTML) [default: what a fresh web server shows]
    #[arg(long, value_name = "FILE", requires = "masking")]
    pub(crate) masking_page: Option<PathBuf>,
}

/// Who stands at the port of a masked node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MaskingArg {
    /// A web front of our own
    Front,
    /// Your nginx or caddy, which passes the secret path on
    BehindProxy,
    /// Nobody: the node opens no port
    DialOnly,
}

/// The same for a passing peer, which opens no port anyway.
#[derive(Debug, Args)]
pub(crate) struct MaskedArgs {
    /// Connect only as WebSocket in TLS, with --bootstrap
    #[arg(short, long, requires = "bootstrap")]
    pub(crate) masking: bool,
    /// Trust these certificates (PEM) as well as those that browsers do
    #[arg(long, value_name = "FILE", requires = "masking")]
    pub(crate) masking_ca: Option<PathBuf>,
}
