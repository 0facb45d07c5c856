//! What a transformer needs from whatever computes it.
//!
//! Models are written once, against [`Backend`]; a backend knows nothing of model families, files or sessions. Rows are
//! row-major: `[rows, width]`, one row per token, `f32`. A batch holds rows of several sequences below each other, and
//! rows of one sequence stand together. An operation that takes its argument by value may reuse its memory.

pub mod candle;
pub mod cpu;
pub(crate) mod dry;
pub mod kv;

use kv::KvCache;

use crate::{BackendError, LoadError, gguf::TensorView};

/// The weight types that all backends compute with, for messages.
pub(crate) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// The operations of a transformer.
pub trait Backend: Send + Sync + 'static {
    /// Activations: `[rows, width]`.
    type Rows: Send;
    /// A weight matrix, `[outputs, inputs]`, in whatever form the file had (quantised weights stay quantised).
    type Matrix: Send + Sync;
    /// A weight vector in `f32`: a norm's scale or a bias.
    type Vector: Send + Sync;
    /// Keys and values of [`KV_PAGE_ROWS`](crate::KV_PAGE_ROWS) positions of one layer. A clone is a copy.
    type Page: Clone + Send + Sync;

    /// The numeric profile's name: two peers of the same profile compute the same function.
    fn profile(&self) -> &'static str;

    /// Whether a row's bits depend on nothing but the rows of its sequence up to it: not on what else is in the batch,
    /// nor on how a prompt is cut.
    fn is_exact(&self) -> bool;

    /// Bytes of keys and values that one token takes in one layer.
    fn kv_row_bytes(&self, shape: &AttentionShape) -> u64;

    /// Takes a weight matrix; its shape has been checked.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedType`], [`LoadError::NotFinite`], or the backend's own.
    fn load_matrix(&self, tensor: &TensorView<'_>) -> Result<Self::Matrix, LoadError>;

    /// Takes a weight vector; its shape has been checked.
    ///
    /// # Errors
    /// As [`Backend::load_matrix`].
    fn load_vector(&self, tensor: &TensorView<'_>) -> Result<Self::Vector, LoadError>;

    /// Rows of `width` from plain values.
    fn upload(&self, values: &[f32], width: usize) -> Result<Self::Rows, BackendError>;

    /// Rows as plain values.
    fn download(&self, rows: Self::Rows) -> Result<Vec<f32>, BackendError>;

    /// The rows of `table` with these numbers, each below the table's row count.
    fn lookup(&self, table: &Self::Matrix, ids: &[u32]) -> Result<Self::Rows, BackendError>;

    /// `x · wᵀ` for each of the matrices, which take equally wide rows: `[rows, inputs]` to `[rows, outputs]`.
    fn matmul<const N: usize>(&self, x: &Self::Rows, w: [&Self::Matrix; N]) -> Result<[Self::Rows; N], BackendError>;

    /// Adds a vector to every row.
    fn add_bias(&self, x: Self::Rows, bias: &Self::Vector) -> Result<Self::Rows, BackendError>;

    /// Adds two equally shaped arguments.
    fn add(&self, x: Self::Rows, y: &Self::Rows) -> Result<Self::Rows, BackendError>;

    /// Multiplies every value.
    fn scale(&self, x: Self::Rows, by: f32) -> Result<Self::Rows, BackendError>;

    /// `cap * tanh(x / cap)`, value by value.
    fn soft_cap(&self, x: Self::Rows, cap: f32) -> Result<Self::Rows, BackendError>;

    /// Root-mean-square norm: each group of `scale.len()` values in a row is divided by the root of its mean square
    /// (plus `eps`) and multiplied by `scale`. With a scale as wide as the row that is the plain norm; with one as wide
    /// as a head, a norm per head.
    fn rms_norm(&self, x: &Self::Rows, scale: &Self::Vector, eps: f32) -> Result<Self::Rows, BackendError>;

    /// Rotates every head of every row by the row's angles.
    fn rotate(&self, x: Self::Rows, rotation: &Rotation) -> Result<Self::Rows, BackendError>;

    /// `activation(gate) * up`, value by value.
    fn gate(&self, gate: Self::Rows, up: &Self::Rows, activation: Activation) -> Result<Self::Rows, BackendError>;

    /// Each value rounded to bf16; see [`round_to_bf16`](crate::bf16::round_to_bf16).
    fn round_bf16(&self, x: Self::Rows) -> Result<Self::Rows, BackendError>;

    /// The rows with these numbers, in this order: what one expert is to work on.
    fn gather(&self, x: &Self::Rows, rows: &[u32]) -> Result<Self::Rows, BackendError>;

    /// Adds row `i` of `y`, times `weights[i]`, to row `rows[i]` of `x`; no number is there twice.
    fn add_rows(
        &self,
        x: Self::Rows,
        y: &Self::Rows,
        rows: &[u32],
        weights: &[f32],
    ) -> Result<Self::Rows, BackendError>;

    /// Appends `k` and `v` to the sequences' caches and lets each row of `q` attend to the rows of its own sequence, up
    /// to its own: softmax of the scores over the values. `layer` counts from the caches' first. Query head `h` uses
    /// key head `h / (heads / kv_heads)`.
    fn attend(
        &self,
        q: Self::Rows,
        k: Self::Rows,
        v: Self::Rows,
        layer: usize,
        sequences: &mut [Sequence<'_, Self::Page>],
        shape: &AttentionShape,
    ) -> Result<Self::Rows, BackendError>;
}

/// Rows of one sequence in a batch. The sequences' rows stand in the order of the sequences.
#[derive(Debug)]
pub struct Sequence<'a, P> {
    /// Position of its first row: the rows its cache holds.
    pub pos: usize,
    /// Number of rows; at least one.
    pub rows: usize,
    /// Its keys and values.
    pub cache: &'a mut KvCache<P>,
}

/// What the gate of a feed-forward part goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
}

/// The sizes and rules of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Scores are `q · k` times this; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Scores go through `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// A row sees this many positions, its own the last; all when absent.
    pub window: Option<usize>,
}

/// Which values of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Values `2i` and `2i + 1` (Llama's files).
    Neighbours,
    /// Values `i` and `i + dims / 2` (GPT-NeoX, Qwen).
    Halves,
}

/// The rotation of a run of rows: for row `r` and pair `i`, the cosine and sine at `r * dims / 2 + i`.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Which values are a pair.
    pub pairing: Pairing,
    /// Width of a head.
    pub head_dim: usize,
    /// Values of a head that are rotated; the rest pass through.
    pub dims: usize,
    /// Cosines, `[rows, dims / 2]`.
    pub cos: Vec<f32>,
    /// Sines, `[rows, dims / 2]`.
    pub sin: Vec<f32>,
}
