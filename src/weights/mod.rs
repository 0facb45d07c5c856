//! Models' weights: kept on disk, given to peers that ask, and fetched from peers that have them.
//!
//! | file | holds |
//! |---|---|
//! | `store` | models on disk, whole or in part |
//! | `shelf` | what this node can give, from the store and from the files it serves; the thread that reads it |
//! | `fetch`, `fetch/picker` | pulling a model from several peers, and which chunk to ask whom for next |
//! | `provide` | provider records for what is here |

pub(crate) mod fetch;
pub(crate) mod provide;
pub(crate) mod shelf;
pub(crate) mod store;

use std::ops::Range;

use quelea_engine::{Manifest, outline::Need};
use quelea_wire::{ErrorCode, SpanRange};
use serde::{Deserialize, Serialize};

use crate::inference::InferError;

/// Which parts of a model are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum Parts {
    /// All of it.
    All,
    /// What whoever asks the model needs: tokenizer, embedding and head.
    Ends,
    /// What tells prompts from answers: the tokenizer alone, for those whose layers and ends are all elsewhere.
    Tokenizer,
    /// The embedding.
    Embedding,
    /// The final norm and the output matrix.
    Head,
    /// What whoever serves these layers needs.
    Layers(SpanRange),
}

impl std::str::FromStr for Parts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "ends" => Ok(Self::Ends),
            "tokenizer" => Ok(Self::Tokenizer),
            "embedding" => Ok(Self::Embedding),
            "head" => Ok(Self::Head),
            range => range.parse().map(Self::Layers).map_err(|e: quelea_wire::SpanError| e.to_string()),
        }
    }
}

impl std::fmt::Display for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Ends => f.write_str("ends"),
            Self::Tokenizer => f.write_str("tokenizer"),
            Self::Embedding => f.write_str("embedding"),
            Self::Head => f.write_str("head"),
            Self::Layers(span) => span.fmt(f),
        }
    }
}

impl From<Parts> for String {
    fn from(parts: Parts) -> Self {
        parts.to_string()
    }
}

impl TryFrom<String> for Parts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Parts {
    /// What that is of a model.
    pub(crate) fn of(self, manifest: &Manifest) -> Result<Need, InferError> {
        let whole: Range<usize> = 0..manifest.n_layers;
        match self {
            Self::All => Ok(Need { layers: whole, embedding: true, head: true }),
            Self::Ends => Ok(Need { layers: 0..0, embedding: true, head: true }),
            Self::Tokenizer => Ok(Need { layers: 0..0, embedding: false, head: false }),
            Self::Embedding => Ok(Need { layers: 0..0, embedding: true, head: false }),
            Self::Head => Ok(Need { layers: 0..0, embedding: false, head: true }),
            Self::Layers(span) if span.as_usize().end <= manifest.n_layers => {
                // Who serves all layers answers requests with them, as the stage that is loaded from a file does.
                let all = span.as_usize() == whole;
                Ok(Need { layers: span.as_usize(), embedding: all, head: all })
            }
            Self::Layers(span) => {
                let message = format!("layers {span} were asked for, but the model has only 0..{}", manifest.n_layers);
                Err(InferError::new(ErrorCode::Usage, message))
            }
        }
    }
}
