//! What a transformer needs from whatever computes it.
//!
//! Models are written once, against [`Backend`]; a backend knows nothing of model families, files or sessions. Rows are
//! row-major: `[rows, width]`, one row per token, `f32`. An operation that takes its argument by value may reuse its
//! memory.

pub mod candle;

use crate::{BackendError, LoadError, gguf::TensorView};

/// The keys and values of one layer of one session.
pub trait LayerCache: Send + 'static {
    /// Forgets all rows from `rows` on. Does nothing when there are not more.
    fn truncate(&mut self, rows: usize);
}

/// The dozen operations of a transformer.
pub trait Backend: Send + Sync + 'static {
    /// Activations: `[rows, width]`.
    type Rows: Send;
    /// A weight matrix, `[outputs, inputs]`, in whatever form the file had (quantised weights stay quantised).
    type Matrix: Send + Sync;
    /// A weight vector in `f32`: a norm's scale or a bias.
    type Vector: Send + Sync;
    /// One layer's keys and values of one session.
    type Cache: LayerCache;

    /// The numeric profile's name: two peers of the same profile compute the same function.
    fn profile(&self) -> &'static str;

    /// Takes a weight matrix; its shape has been checked.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedType`], or the backend's own.
    fn load_matrix(&self, tensor: &TensorView<'_>) -> Result<Self::Matrix, LoadError>;

    /// Takes a weight vector; its shape has been checked.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedType`], or the backend's own.
    fn load_vector(&self, tensor: &TensorView<'_>) -> Result<Self::Vector, LoadError>;

    /// Rows of `width` from plain values.
    fn upload(&self, values: &[f32], width: usize) -> Result<Self::Rows, BackendError>;

    /// Rows as plain values.
    fn download(&self, rows: Self::Rows) -> Result<Vec<f32>, BackendError>;

    /// The rows of `table` with these numbers, each below the table's row count.
    fn lookup(&self, table: &Self::Matrix, ids: &[u32]) -> Result<Self::Rows, BackendError>;

    /// `x · wᵀ`: `[rows, inputs]` to `[rows, outputs]`.
    fn matmul(&self, x: &Self::Rows, w: &Self::Matrix) -> Result<Self::Rows, BackendError>;

    /// Adds a vector to every row.
    fn add_bias(&self, x: Self::Rows, bias: &Self::Vector) -> Result<Self::Rows, BackendError>;

    /// Adds two equally shaped arguments.
    fn add(&self, x: Self::Rows, y: &Self::Rows) -> Result<Self::Rows, BackendError>;

    /// Root-mean-square norm: each group of `scale.len()` values in a row is divided by the root of its mean square
    /// (plus `eps`) and multiplied by `scale`. With a scale as wide as the row that is the plain norm; with one as wide
    /// as a head, a norm per head.
    fn rms_norm(&self, x: &Self::Rows, scale: &Self::Vector, eps: f32) -> Result<Self::Rows, BackendError>;

    /// Rotates every head of every row by the row's angles.
    fn rotate(&self, x: Self::Rows, rotation: &Rotation) -> Result<Self::Rows, BackendError>;

    /// `silu(gate) * up`, value by value.
    fn swiglu(&self, gate: Self::Rows, up: &Self::Rows) -> Result<Self::Rows, BackendError>;

    /// An empty cache that will hold at most `max_rows` rows.
    fn new_cache(&self, shape: &AttentionShape, max_rows: usize) -> Self::Cache;

    /// Appends `k` and `v` to the cache and lets each row of `q` attend to all rows up to its own: softmax of
    /// `q · k / sqrt(head_dim)` over the values. Query head `h` uses key head `h / (heads / kv_heads)`.
    fn attend(
        &self,
        q: Self::Rows,
        k: Self::Rows,
        v: Self::Rows,
        cache: &mut Self::Cache,
        shape: &AttentionShape,
    ) -> Result<Self::Rows, BackendError>;
}

/// The sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
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
