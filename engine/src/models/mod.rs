//! The model families. One file each, in the same shape: `load` takes a layer's weights from the file, `forward` runs
//! it; what a session adds lives in a cache outside the weights.

pub(crate) mod block;
mod experts;
mod gemma2;
mod gemma3;
mod llama;
mod phi3;
mod qwen2;
mod qwen3;
pub(crate) mod rope;

use crate::{
    BackendError, LoadError,
    backend::{AttentionShape, Backend, Pairing, Rotation, Sequence},
    hparams::Hparams,
};
use block::Weights;

/// A model family, by GGUF's `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3 and what shares their graph (Mistral, TinyLlama, SmolLM, …), also with experts (Mixtral).
    Llama,
    /// Mistral's third generation: Llama's graph under a name of its own.
    Mistral3,
    /// Qwen2 and Qwen2.5, dense.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// Phi-3, Phi-3.5 and Phi-4, dense.
    Phi3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text.
    Gemma3,
}

impl Architecture {
    /// The names of all families.
    pub const SUPPORTED: &'static [&'static str] =
        &["llama", "mistral3", "qwen2", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3"];

    /// The family called `name`.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedArchitecture`].
    pub fn from_name(name: &str) -> Result<Self, LoadError> {
        match name {
            "llama" => Ok(Self::Llama),
            "mistral3" => Ok(Self::Mistral3),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            "qwen3moe" => Ok(Self::Qwen3Moe),
            "phi3" => Ok(Self::Phi3),
            "gemma2" => Ok(Self::Gemma2),
            "gemma3" => Ok(Self::Gemma3),
            other => Err(LoadError::UnsupportedArchitecture { found: other.to_owned(), supported: Self::SUPPORTED }),
        }
    }

    /// GGUF's name of the family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral3 => "mistral3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
            Self::Phi3 => "phi3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
        }
    }

    pub(crate) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Which values of a head its rotation pairs. The files of the Llama family have their query and key rows
    /// permuted for neighbours.
    pub(crate) fn pairing(self) -> Pairing {
        match self {
            Self::Llama | Self::Mistral3 => Pairing::Neighbours,
            Self::Qwen2 | Self::Qwen3 | Self::Qwen3Moe | Self::Phi3 | Self::Gemma2 | Self::Gemma3 => Pairing::Halves,
        }
    }
}

/// What a layer needs beside the rows of a batch and its own weights.
pub(crate) struct Step<'a, 'b, P> {
    /// The rotation of all rows of the batch, in their order.
    pub(crate) rotation: &'a Rotation,
    /// The layer's place in the sequences' caches.
    pub(crate) layer: usize,
    /// The sequences whose rows the batch holds.
    pub(crate) sequences: &'a mut [Sequence<'b, P>],
}

impl<P> Step<'_, '_, P> {
    /// Attention of the batch's rows, each within its sequence.
    pub(crate) fn attend<B: Backend<Page = P>>(
        &mut self,
        backend: &B,
        q: B::Rows,
        k: B::Rows,
        v: B::Rows,
        shape: &AttentionShape,
    ) -> Result<B::Rows, BackendError> {
        backend.attend(q, k, v, self.layer, self.sequences, shape)
    }
}

/// One layer of any family.
pub(crate) enum Layer<B: Backend> {
    Llama(llama::Layer<B>),
    Qwen2(qwen2::Layer<B>),
    Qwen3(qwen3::Layer<B>),
    Phi3(phi3::Layer<B>),
    Gemma2(gemma2::Layer<B>),
    Gemma3(gemma3::Layer<B>),
}

impl<B: Backend> Layer<B> {
    /// Loads layer `index`.
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, index: usize) -> Result<Self, LoadError> {
        match hparams.architecture {
            Architecture::Llama | Architecture::Mistral3 => {
                llama::Layer::load(weights, hparams, index).map(Self::Llama)
            }
            Architecture::Qwen2 => qwen2::Layer::load(weights, hparams, index).map(Self::Qwen2),
            Architecture::Qwen3 | Architecture::Qwen3Moe => {
                qwen3::Layer::load(weights, hparams, index).map(Self::Qwen3)
            }
            Architecture::Phi3 => phi3::Layer::load(weights, hparams, index).map(Self::Phi3),
            Architecture::Gemma2 => gemma2::Layer::load(weights, hparams, index).map(Self::Gemma2),
            Architecture::Gemma3 => gemma3::Layer::load(weights, hparams, index).map(Self::Gemma3),
        }
    }

    /// Runs the layer over the rows of a batch.
    pub(crate) fn forward(
        &self,
        backend: &B,
        rows: B::Rows,
        step: &mut Step<'_, '_, B::Page>,
    ) -> Result<B::Rows, BackendError> {
        match self {
            Self::Llama(layer) => layer.forward(backend, rows, step),
            Self::Qwen2(layer) => layer.forward(backend, rows, step),
            Self::Qwen3(layer) => layer.forward(backend, rows, step),
            Self::Phi3(layer) => layer.forward(backend, rows, step),
            Self::Gemma2(layer) => layer.forward(backend, rows, step),
            Self::Gemma3(layer) => layer.forward(backend, rows, step),
        }
    }
}
