//! A stage: the layers of one span, ready to run.

// Rows and positions come from other peers.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::{
    any::Any,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    LoadError, MAX_ROWS, StageError,
    backend::{AttentionShape, Backend, LayerCache, candle::Candle},
    gguf::Gguf,
    hparams::Hparams,
    models::{
        Layer,
        block::{Norm, Weights},
        rope::Rope,
    },
};

/// Which part of a model to load. Layers are half-open: `0..8` is eight layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The layers; may be empty for a stage that is only embedding or head.
    pub layers: Range<usize>,
    /// With the token embedding.
    pub embedding: bool,
    /// With the final norm and the output matrix.
    pub head: bool,
}

impl Span {
    /// Only these layers.
    pub fn layers(layers: Range<usize>) -> Self {
        Self { layers, embedding: false, head: false }
    }

    /// Only the embedding and the head, what a coordinator keeps.
    pub fn ends() -> Self {
        Self { layers: 0..0, embedding: true, head: true }
    }

    /// A whole model of `n_layers`.
    pub fn whole(n_layers: usize) -> Self {
        Self { layers: 0..n_layers, embedding: true, head: true }
    }
}

/// The loaded weights of a span. Computes on the calling thread (and the backend's pool); holds no session.
pub struct Stage {
    hparams: Hparams,
    span: Span,
    profile: &'static str,
    weight_bytes: u64,
    /// Tells this stage's caches from another's.
    id: u64,
    inner: Box<dyn Compute>,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("span", &self.span).field("profile", &self.profile).finish_non_exhaustive()
    }
}

/// The keys and values of one session in one stage.
pub struct Cache {
    len: usize,
    /// Most rows it may hold.
    limit: usize,
    stage: u64,
    /// The first of the stage's layers that this session runs.
    first: usize,
    layers: Box<dyn Layers>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Cache {
    /// Rows held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no rows are held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all rows from `rows` on; does nothing when there are not more.
    pub fn truncate(&mut self, rows: usize) {
        if rows < self.len {
            self.layers.truncate(rows);
            self.len = rows;
        }
    }

    /// As [`Cache::truncate`], for layers that may have gone ahead of the cache when a computation broke off.
    pub(crate) fn truncate_layers(&mut self, rows: usize) {
        self.layers.truncate(rows);
        self.len = self.len.min(rows);
    }
}

impl Stage {
    /// Loads a span on the CPU. Only the span's tensors are read.
    ///
    /// # Errors
    /// [`LoadError`]: an unknown family, a span the model does not have, a tensor that is missing, of the wrong shape
    /// or of a type the backend does not compute with.
    pub fn load(gguf: &Gguf, span: Span) -> Result<Self, LoadError> {
        let hparams = Hparams::from_gguf(gguf)?;
        if span.layers.start > span.layers.end || span.layers.end > hparams.n_layers {
            let Range { start, end } = span.layers;
            return Err(LoadError::Span { start, end, layers: hparams.n_layers });
        }
        let (inner, weight_bytes) = Loaded::load(Candle::cpu(), gguf, &hparams, &span)?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { hparams, span, profile: inner.backend.profile(), weight_bytes, id, inner: Box::new(inner) })
    }

    /// The model's hyper-parameters.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// What was loaded.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The numeric profile's name.
    pub fn profile(&self) -> &'static str {
        self.profile
    }

    /// Values in a row between stages.
    pub fn hidden(&self) -> usize {
        self.hparams.hidden
    }

    /// Size of the vocabulary: values in a row of logits.
    pub fn vocab(&self) -> usize {
        self.hparams.vocab
    }

    /// Bytes of the span's tensors as the file stores them.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes that one token takes in a session's cache.
    pub fn kv_bytes_per_row(&self) -> u64 {
        self.hparams.kv_bytes_per_row_per_layer().saturating_mul(self.span.layers.len() as u64)
    }

    /// An empty cache for one session, which may grow to the model's context length.
    pub fn new_cache(&self) -> Cache {
        self.new_cache_for(self.hparams.context_length)
    }

    /// An empty cache for a session of at most `max_rows` rows (and the model's context length). It never takes memory
    /// for more than that many rows, rounded up to pages of [`KV_PAGE_ROWS`](crate::KV_PAGE_ROWS), but for the moment
    /// in which it grows.
    pub fn new_cache_for(&self, max_rows: usize) -> Cache {
        self.new_cache_over(0..self.span.layers.len(), max_rows)
    }

    /// As [`Stage::new_cache_for`], for a session that runs only some of the span's layers: a chain may enter or leave
    /// a span inside it. `layers` counts from the span's first layer; what lies outside of the span is left out.
    pub fn new_cache_over(&self, layers: Range<usize>, max_rows: usize) -> Cache {
        let limit = max_rows.min(self.hparams.context_length);
        let end = layers.end.min(self.span.layers.len());
        let first = layers.start.min(end);
        Cache { len: 0, limit, stage: self.id, first, layers: self.inner.new_cache(end.saturating_sub(first), limit) }
    }

    /// The embedding's rows of these tokens: `[ids.len(), hidden]`.
    ///
    /// # Errors
    /// [`StageError::NotLoaded`] without the embedding, [`StageError::Token`], [`StageError::TooManyRows`].
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, StageError> {
        let vocab = self.vocab();
        if ids.len() > MAX_ROWS {
            return Err(StageError::TooManyRows { found: ids.len(), max: MAX_ROWS });
        }
        if let Some(&id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
            return Err(StageError::Token { id, vocab });
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.check(self.inner.embed(ids)?, self.hidden())
    }

    /// Runs rows, `[n, hidden]`, the first at position `pos`, through the span's layers and adds them to the cache.
    /// Returns as many rows. On an error the cache is as it was.
    ///
    /// # Errors
    /// [`StageError`]: rows that are not whole, too many (over [`MAX_ROWS`]), not finite, at another position than the
    /// cache's end or past what the cache may hold; a cache of another stage; a result that is not finite.
    pub fn forward(&self, cache: &mut Cache, pos: usize, rows: &[f32]) -> Result<Vec<f32>, StageError> {
        let n = self.row_count(rows)?;
        if cache.stage != self.id {
            return Err(StageError::ForeignCache);
        }
        if pos != cache.len {
            return Err(StageError::Position { expected: cache.len, found: pos });
        }
        let end = pos.saturating_add(n);
        if end > cache.limit {
            return Err(StageError::Context { end, limit: cache.limit });
        }
        if n == 0 {
            return Ok(Vec::new());
        }
        let result = self
            .inner
            .forward(cache.layers.as_any_mut(), cache.first, pos, n, rows)
            .and_then(|rows| self.check(rows, self.hidden()));
        match result {
            Ok(rows) => {
                cache.len = end;
                Ok(rows)
            }
            Err(error) => {
                // Some layers may have taken the rows already.
                cache.truncate_layers(pos);
                Err(error)
            }
        }
    }

    /// The logits after one row, `[hidden]` to `[vocab]`: not normalised.
    ///
    /// # Errors
    /// [`StageError::NotLoaded`] without the head; [`StageError::Width`] unless it is one row; not finite in or out.
    pub fn logits(&self, row: &[f32]) -> Result<Vec<f32>, StageError> {
        if self.row_count(row)? != 1 {
            return Err(StageError::Width { width: self.hidden(), found: row.len() });
        }
        self.check(self.inner.logits(row)?, self.vocab())
    }

    /// The number of rows in `rows`, when they may be computed at all.
    fn row_count(&self, rows: &[f32]) -> Result<usize, StageError> {
        let width = self.hidden();
        if !rows.len().is_multiple_of(width) {
            return Err(StageError::Width { width, found: rows.len() });
        }
        let n = rows.len().checked_div(width).unwrap_or(0);
        if n > MAX_ROWS {
            return Err(StageError::TooManyRows { found: n, max: MAX_ROWS });
        }
        finite(rows, width)?;
        Ok(n)
    }

    fn check(&self, rows: Vec<f32>, width: usize) -> Result<Vec<f32>, StageError> {
        finite(&rows, width)?;
        Ok(rows)
    }
}

fn finite(values: &[f32], width: usize) -> Result<(), StageError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(i) => Err(StageError::NotFinite {
            row: i.checked_div(width).unwrap_or(0),
            column: i.checked_rem(width).unwrap_or(i),
        }),
        None => Ok(()),
    }
}

/// A span's weights in some backend, with the backend's types erased.
trait Compute: Send + Sync {
    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, StageError>;
    fn new_cache(&self, layers: usize, max_rows: usize) -> Box<dyn Layers>;
    /// Runs as many layers as the cache has, from `first` on.
    fn forward(
        &self,
        cache: &mut dyn Any,
        first: usize,
        pos: usize,
        n: usize,
        rows: &[f32],
    ) -> Result<Vec<f32>, StageError>;
    fn logits(&self, row: &[f32]) -> Result<Vec<f32>, StageError>;
}

/// A cache's layers, with the backend's types erased.
trait Layers: Send {
    fn truncate(&mut self, rows: usize);
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<C: LayerCache> Layers for Vec<C> {
    fn truncate(&mut self, rows: usize) {
        for layer in self {
            layer.truncate(rows);
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

struct Loaded<B: Backend> {
    backend: B,
    shape: AttentionShape,
    hidden: usize,
    rope: Rope,
    embedding: Option<B::Matrix>,
    layers: Vec<Layer<B>>,
    head: Option<Head<B>>,
}

struct Head<B: Backend> {
    norm: Norm<B>,
    /// The output matrix, unless it is the embedding that is loaded anyway.
    output: Option<B::Matrix>,
}

impl<B: Backend> Loaded<B> {
    fn load(backend: B, gguf: &Gguf, hparams: &Hparams, span: &Span) -> Result<(Self, u64), LoadError> {
        let (vocab, hidden) = (hparams.vocab, hparams.hidden);
        let mut weights = Weights::new(gguf, &backend);
        let embedding = if span.embedding { Some(weights.matrix("token_embd.weight", vocab, hidden)?) } else { None };
        let layers = span.layers.clone().map(|i| Layer::load(&mut weights, hparams, i)).collect::<Result<_, _>>()?;
        let head = if span.head {
            // Models that tie the two have no matrix of their own for the output.
            let tied = gguf.tensor("output.weight").is_err();
            let name = if tied { "token_embd.weight" } else { "output.weight" };
            let norm = Norm::load(&mut weights, "output_norm.weight", hidden, hparams.rms_eps)?;
            let shared = tied && span.embedding;
            Some(Head { norm, output: if shared { None } else { Some(weights.matrix(name, vocab, hidden)?) } })
        } else {
            None
        };
        let bytes = weights.bytes;
        let rope = Rope::load(gguf, hparams)?;
        let shape = AttentionShape { heads: hparams.heads, kv_heads: hparams.kv_heads, head_dim: hparams.head_dim };
        Ok((Self { backend, shape, hidden, rope, embedding, layers, head }, bytes))
    }
}

impl<B: Backend> Compute for Loaded<B> {
    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, StageError> {
        let table = self.embedding.as_ref().ok_or(StageError::NotLoaded { part: "embedding" })?;
        Ok(self.backend.download(self.backend.lookup(table, ids)?)?)
    }

    fn new_cache(&self, layers: usize, max_rows: usize) -> Box<dyn Layers> {
        Box::new((0..layers).map(|_| self.backend.new_cache(&self.shape, max_rows)).collect::<Vec<_>>())
    }

    fn forward(
        &self,
        cache: &mut dyn Any,
        first: usize,
        pos: usize,
        n: usize,
        rows: &[f32],
    ) -> Result<Vec<f32>, StageError> {
        let caches: &mut Vec<B::Cache> = cache.downcast_mut().ok_or(StageError::ForeignCache)?;
        let rotation = self.rope.at(pos, n)?;
        let mut rows = self.backend.upload(rows, self.hidden)?;
        for (layer, cache) in self.layers.iter().skip(first).zip(caches) {
            rows = layer.forward(&self.backend, rows, &rotation, cache)?;
        }
        Ok(self.backend.download(rows)?)
    }

    fn logits(&self, row: &[f32]) -> Result<Vec<f32>, StageError> {
        let head = self.head.as_ref().ok_or(StageError::NotLoaded { part: "head" })?;
        let output = head.output.as_ref().or(self.embedding.as_ref()).ok_or(StageError::NotLoaded { part: "head" })?;
        let row = self.backend.upload(row, self.hidden)?;
        let row = head.norm.forward(&self.backend, &row)?;
        Ok(self.backend.download(self.backend.matmul(&row, output)?)?)
    }
}
