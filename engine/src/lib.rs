//! Layer-range language models: weights by span, backends, tokenizers, sampling.
//!
//! The engine knows nothing of the network and touches no disk but model files.
//!
//! - [`gguf`] reads model files, [`manifest`] gives a model its id, [`outline`] is a model without its weights.
//! - [`stage`] runs the layers of one span: rows in, rows out, `[n, hidden]` of `f32`. [`runner`] puts a stage on a
//!   thread and shares it between sessions; [`chain`] joins stages in one process.
//! - [`models`] has one definition per family, written against the operations of [`backend`].
//! - [`tokenizer`], [`template`] and [`sampler`] are what stands before the first stage and after the last.

pub mod backend;
pub mod bf16;
pub mod chain;
pub mod error;
pub mod gguf;
pub mod hparams;
pub mod huggingface;
pub mod manifest;
pub mod models;
pub mod outline;
pub mod quantize;
pub mod runner;
pub mod sampler;
pub mod stage;
pub mod synth;
pub mod template;
pub mod tokenizer;

pub use bf16::round_to_bf16;
pub use chain::{Chain, ChainError, log_probs, logits_for};
pub use error::{BackendError, LoadError, StageError};
pub use gguf::{Gguf, GgufError};
pub use hparams::Hparams;
pub use manifest::Manifest;
pub use models::Architecture;
pub use outline::Outline;
pub use quelea_kernels::MAX_THREADS;
pub use runner::Runner;
pub(crate) use stage::KvBlock;
pub use stage::{Cache, Device, Isa, KvFormat, Segment, Span, Stage, StageOptions, UnknownDevice, UnknownIsa};

/// Most rows one call to a stage takes: bounds the memory and the time of a step.
pub const MAX_ROWS: usize = 128;

/// Most rows of all sessions together in one step: a row of each of many sessions and a prefill chunk.
pub const MAX_BATCH_ROWS: usize = 256;

/// Rows of a prompt that are computed at once, by everybody. A backend's numbers may depend on the batch, so split and
/// unsplit runs give the same bits only when all cut prompts alike: every [`PREFILL_CHUNK`] rows, from the first row on.
pub const PREFILL_CHUNK: usize = 64;

/// Rows in a page of KV cache, the unit of admission.
pub const KV_PAGE_ROWS: usize = 32;
