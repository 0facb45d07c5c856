//! A model's hyper-parameters, read from GGUF metadata and checked against each other.

mod reader;
mod variant;

use reader::Reader;
pub use variant::{Experts, LongRope, Variant, Window, Yarn};

use crate::{LoadError, backend::AttentionShape, gguf::Gguf, models::Architecture};

/// More layers than any model has: a bound on what a file can make us allocate and loop over.
pub(crate) const MAX_LAYERS: u32 = 4096;
/// The widest row believed, in values; the largest known models stay under 2^15.
pub(crate) const MAX_WIDTH: u32 = 1 << 20;
/// Context length assumed when the file names none.
const DEFAULT_CONTEXT: u32 = 2048;
/// RoPE base frequency assumed when the file names none, the value of the original paper.
const DEFAULT_ROPE_BASE: f32 = 10_000.0;

/// Hyper-parameters of a decoder-only transformer. Sizes are counts of values unless they say otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// The model family.
    pub architecture: Architecture,
    /// Number of layers.
    pub n_layers: usize,
    /// Width of the residual stream: a row between stages has this many `f32`.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Values of each head that are rotated; even, at most `head_dim`.
    pub rope_dims: usize,
    /// Base frequency of the rotation.
    pub rope_base: f32,
    /// Positions are divided by this (linear RoPE scaling; YaRN: in the slow pairs only); 1 without scaling.
    pub rope_scale: f32,
    /// Added to the mean square before the root in RMS norms.
    pub rms_eps: f32,
    /// Context length in tokens: what the file says, or less where the function is defined for less only.
    pub context_length: usize,
    /// Size of the vocabulary: rows of `token_embd.weight`.
    pub vocab: usize,
    /// What only some families or files have.
    pub variant: Variant,
}

impl Hparams {
    /// Reads and checks the hyper-parameters.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedArchitecture`], [`LoadError::Hyperparameter`] naming the key, or
    /// [`LoadError::Gguf`] for a missing or mistyped one.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        let architecture = Architecture::from_name(gguf.get_str("general.architecture")?)?;
        let reader = Reader { gguf, architecture };
        reader.refuse_what_we_do_not_compute()?;

        let n_layers = reader.size("block_count", MAX_LAYERS)?;
        let hidden = reader.size("embedding_length", MAX_WIDTH)?;
        let feed_forward = reader.size("feed_forward_length", MAX_WIDTH)?;
        let heads = reader.size("attention.head_count", MAX_WIDTH)?;
        let kv_heads = reader.size_or("attention.head_count_kv", MAX_WIDTH, heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(reader.bad("attention.head_count_kv", format!("{kv_heads} does not divide {heads} heads")));
        }
        let head_dim = match reader.optional_size("attention.key_length", MAX_WIDTH)? {
            Some(dim) => dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(reader.bad("attention.head_count", format!("{heads} does not divide {hidden}"))),
        };
        if heads.saturating_mul(head_dim) > MAX_WIDTH as usize {
            return Err(reader.bad("attention.key_length", format!("{heads} heads of {head_dim} are too wide")));
        }
        let value_dim = reader.size_or("attention.value_length", MAX_WIDTH, head_dim)?;
        if value_dim != head_dim {
            let reason = format!("values of {value_dim} beside keys of {head_dim} are not supported");
            return Err(reader.bad("attention.value_length", reason));
        }
        let rope_dims = reader.size_or("rope.dimension_count", MAX_WIDTH, head_dim)?;
        if rope_dims > head_dim || !rope_dims.is_multiple_of(2) {
            return Err(reader.bad("rope.dimension_count", format!("{rope_dims} of {head_dim} cannot be rotated")));
        }
        let embedding = gguf.tensor("token_embd.weight")?;
        let vocab = *embedding.shape.first().unwrap_or(&0);
        if embedding.shape != [vocab, hidden] {
            return Err(LoadError::TensorShape {
                tensor: embedding.name.to_owned(),
                found: embedding.shape.to_vec(),
                expected: vec![vocab, hidden],
            });
        }
        let mut hparams = Self {
            architecture,
            n_layers,
            hidden,
            feed_forward,
            heads,
            kv_heads,
            head_dim,
            rope_dims,
            rope_base: reader.positive("rope.freq_base", Some(DEFAULT_ROPE_BASE))?,
            rope_scale: reader.rope_scale()?,
            rms_eps: reader.positive("attention.layer_norm_rms_epsilon", None)?,
            context_length: reader.size_or("context_length", u32::MAX, DEFAULT_CONTEXT as usize)?,
            vocab,
            variant: Variant::default(),
        };
        hparams.variant = Variant::read(&reader, &hparams)?;
        hparams.context_length = reader.limited_context(hparams.context_length)?;
        Ok(hparams)
    }

    /// Width of all key (or value) heads of one token.
    pub fn kv_width(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }

    /// True when the layer's attention sees only a window.
    pub(crate) fn is_windowed(&self, layer: usize) -> bool {
        let window = self.variant.window.as_ref();
        window.is_some_and(|window| window.layers.get(layer).copied().unwrap_or(false))
    }

    /// The sizes and rules of a layer's attention.
    pub(crate) fn attention(&self, layer: usize) -> AttentionShape {
        let Self { heads, kv_heads, head_dim, ref variant, .. } = *self;
        #[allow(clippy::cast_precision_loss, reason = "a head is a few hundred wide")]
        let scale = variant.attention_scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt());
        let window = variant.window.as_ref().filter(|_| self.is_windowed(layer)).map(|window| window.size);
        AttentionShape { heads, kv_heads, head_dim, scale, soft_cap: variant.attention_cap, window }
    }

    /// What embeddings are multiplied by, in the families that do so.
    pub(crate) fn embedding_scale(&self) -> Option<f32> {
        #[allow(clippy::cast_precision_loss, reason = "at most 2^20, which is exact")]
        self.architecture.is_gemma().then(|| (self.hidden as f32).sqrt())
    }

    /// Bytes of KV cache that one token takes in one layer: a key and a value row of `f32`.
    pub fn kv_bytes_per_row_per_layer(&self) -> u64 {
        2 * size_of::<f32>() as u64 * self.kv_width() as u64
    }
}
