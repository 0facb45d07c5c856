//! A span's weights in some backend, and the backend's types erased.

// Rows and positions come from other peers.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::{any::Any, sync::Arc};

use super::Span;
use crate::{
    LoadError, StageError,
    backend::{
        Backend, Sequence,
        kv::{KvCache, PagePool},
    },
    gguf::Gguf,
    hparams::Hparams,
    models::{
        Layer, Step,
        block::{Norm, Weights},
        rope::Rope,
    },
};

/// Pages of each layer that are kept for use after their sessions have let them go: 2,048 rows.
const POOLED_PAGES: usize = 64;

/// One session's part in a batch.
pub(super) struct Part<'a> {
    pub(super) pages: &'a mut dyn Pages,
    /// Position of its first row.
    pub(super) pos: usize,
    /// Number of rows.
    pub(super) rows: usize,
}

/// The weights, with the backend's types erased.
pub(super) trait Compute: Send + Sync {
    /// `[ids.len(), hidden]`.
    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, StageError>;

    /// An empty cache for this many layers.
    fn new_pages(&self, layers: usize) -> Box<dyn Pages>;

    /// Runs the rows of all parts, which stand below each other in `rows`, through as many layers as the parts' caches
    /// have, from `first` on; rounded to bf16 before the first and after each, if it says so.
    fn forward(&self, first: usize, rounds: bool, parts: Vec<Part<'_>>, rows: &[f32]) -> Result<Vec<f32>, StageError>;

    /// `[n, hidden]` to `[n, vocab]`.
    fn logits(&self, rows: &[f32]) -> Result<Vec<f32>, StageError>;
    fn normed(&self, rows: &[f32]) -> Result<Vec<f32>, StageError>;
}

/// A session's keys and values, with the backend's types erased.
pub(super) trait Pages: Send {
    fn truncate(&mut self, rows: usize);
    /// The page `index` of every layer.
    fn share(&self, index: usize) -> Box<dyn Any + Send>;
    /// Adds a page that was shared; says whether it is of the same kind.
    fn append(&mut self, page: &(dyn Any + Send)) -> bool;
    /// Takes a page that was shared instead of its own; says whether it is of the same kind.
    fn replace(&mut self, index: usize, page: &(dyn Any + Send)) -> bool;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<P: Clone + Send + Sync + 'static> Pages for KvCache<P> {
    fn truncate(&mut self, rows: usize) {
        KvCache::truncate(self, rows);
    }

    fn share(&self, index: usize) -> Box<dyn Any + Send> {
        Box::new(KvCache::share(self, index))
    }

    fn append(&mut self, page: &(dyn Any + Send)) -> bool {
        page.downcast_ref().is_some_and(|page| KvCache::append(self, page).is_ok())
    }

    fn replace(&mut self, index: usize, page: &(dyn Any + Send)) -> bool {
        page.downcast_ref().is_some_and(|page| KvCache::replace(self, index, page).is_ok())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// The weights of a span in a backend.
pub(super) struct Loaded<B: Backend> {
    pub(super) backend: B,
    hidden: usize,
    rope: Rope,
    embedding: Option<B::Matrix>,
    /// What the embedding's rows are multiplied by.
    embedding_scale: Option<f32>,
    layers: Vec<Layer<B>>,
    /// For each layer, whether its attention sees a window.
    windowed: Vec<bool>,
    head: Option<Head<B>>,
    pages: Arc<PagePool<B::Page>>,
}

struct Head<B: Backend> {
    norm: Norm<B>,
    /// Soft cap of the logits.
    cap: Option<f32>,
    /// The output matrix, unless it is the embedding that is loaded anyway.
    output: Option<B::Matrix>,
}

impl<B: Backend> Loaded<B> {
    /// Loads a span, and tells its bytes in the file.
    pub(super) fn load(backend: B, gguf: &Gguf, hparams: &Hparams, span: &Span) -> Result<(Self, u64), LoadError> {
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
            let output = if shared { None } else { Some(weights.matrix(name, vocab, hidden)?) };
            Some(Head { norm, cap: hparams.variant.logit_cap, output })
        } else {
            None
        };
        weights.refuse_the_rest(&span.layers)?;
        let bytes = weights.bytes;
        let rope = Rope::load(gguf, hparams)?;
        let windowed = span.layers.clone().map(|layer| hparams.is_windowed(layer)).collect();
        let embedding_scale = hparams.embedding_scale();
        let pages = Arc::new(PagePool::new(span.layers.len().saturating_mul(POOLED_PAGES)));
        Ok((Self { backend, hidden, rope, embedding, embedding_scale, layers, windowed, head, pages }, bytes))
    }
}

impl<B: Backend> Compute for Loaded<B> {
    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, StageError> {
        let table = self.embedding.as_ref().ok_or(StageError::NotLoaded { part: "embedding" })?;
        let rows = self.backend.lookup(table, ids)?;
        let rows = match self.embedding_scale {
            Some(scale) => self.backend.scale(rows, scale)?,
            None => rows,
        };
        Ok(self.backend.download(rows)?)
    }

    fn new_pages(&self, layers: usize) -> Box<dyn Pages> {
        Box::new(KvCache::with_pool(layers, &self.pages))
    }

    fn forward(&self, first: usize, rounds: bool, parts: Vec<Part<'_>>, rows: &[f32]) -> Result<Vec<f32>, StageError> {
        let mut layers = 0;
        let mut sequences = Vec::with_capacity(parts.len());
        for Part { pages, pos, rows } in parts {
            let cache: &mut KvCache<B::Page> = pages.as_any_mut().downcast_mut().ok_or(StageError::ForeignCache)?;
            layers = cache.layers();
            sequences.push(Sequence { pos, rows, cache });
        }
        let rotations = self.rope.at(sequences.iter().map(|sequence| (sequence.pos, sequence.rows)))?;
        let round = |rows| if rounds { self.backend.round_bf16(rows) } else { Ok(rows) };
        let mut rows = round(self.backend.upload(rows, self.hidden)?)?;
        let layers = self.layers.iter().zip(&self.windowed).skip(first).take(layers);
        for (index, (layer, windowed)) in layers.enumerate() {
            let rotation = rotations.of(*windowed);
            let mut step = Step { rotation, layer: index, sequences: &mut sequences };
            rows = round(layer.forward(&self.backend, rows, &mut step)?)?;
        }
        Ok(self.backend.download(rows)?)
    }

    fn normed(&self, rows: &[f32]) -> Result<Vec<f32>, StageError> {
        let head = self.head.as_ref().ok_or(StageError::NotLoaded { part: "head" })?;
        let rows = self.backend.upload(rows, self.hidden)?;
        Ok(self.backend.download(head.norm.forward(&self.backend, &rows)?)?)
    }

    fn logits(&self, rows: &[f32]) -> Result<Vec<f32>, StageError> {
        let head = self.head.as_ref().ok_or(StageError::NotLoaded { part: "head" })?;
        let output = head.output.as_ref().or(self.embedding.as_ref()).ok_or(StageError::NotLoaded { part: "head" })?;
        let rows = self.backend.upload(rows, self.hidden)?;
        let rows = head.norm.forward(&self.backend, &rows)?;
        let [logits] = self.backend.matmul(&rows, [output])?;
        let logits = match head.cap {
            Some(cap) => self.backend.soft_cap(logits, cap)?,
            None => logits,
        };
        Ok(self.backend.download(logits)?)
    }
}
