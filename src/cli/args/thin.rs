//! Flags about asking without a model's ends, and computing them for others.

use clap::{Args, ValueEnum};

use crate::inference::{RequestProfile, serve::ServeEnds};

/// Whether a worker computes the model's ends for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndsArg {
    /// Where they are here and fit beside the layers
    Auto,
    /// Always; layers next to them are not served without
    Always,
    /// Never: no token ids are seen here
    Never,
}

impl From<EndsArg> for ServeEnds {
    fn from(arg: EndsArg) -> Self {
        match arg {
            EndsArg::Auto => Self::Auto,
            EndsArg::Always => Self::Always,
            EndsArg::Never => Self::Never,
        }
    }
}

/// Who embeds the tokens and computes the logits.
#[derive(Debug, Args)]
pub(crate) struct ThinArgs {
    /// Have the first stage embed and the last compute the logits, so that nothing of the model but its tokenizer is needed
    /// here; the first stage then sees the tokens [default: where embedding and head are not on this machine]
    #[arg(long)]
    pub(crate) thin: bool,
    /// Never do that: fetch embedding and head instead
    #[arg(long, conflicts_with = "thin")]
    pub(crate) no_thin: bool,
    /// Run the first and the last N layers here, so that peers see nothing next to the tokens of prompt or answer, and as few
    /// peers as can be; needs these layers here, and memory for them [N: 1 if left out]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_value_t = 0, default_missing_value = "1", conflicts_with = "thin", hide_default_value = true)]
    pub(crate) private: u16,
    /// Compute with another profile than this node's: exact-bf16 rounds what is between layers, for half the bytes between
    /// peers; answers are other ones than with exact, and the same wherever the layers are cut
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub(crate) profile: Option<ProfileArg>,
}

/// Profiles that a request can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileArg {
    /// The exact kernels, and the residual stream rounded to bf16 at every layer
    ExactBf16,
}

impl ThinArgs {
    /// The profile that was asked for.
    pub(crate) fn profile(&self) -> RequestProfile {
        match self.profile {
            Some(ProfileArg::ExactBf16) => RequestProfile::ExactBf16,
            None => RequestProfile::Own,
        }
    }

    /// What was asked for, if anything.
    pub(crate) fn choice(&self) -> Option<bool> {
        match (self.thin, self.no_thin) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }
}
