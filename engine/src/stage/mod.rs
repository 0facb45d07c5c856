//! A stage: the layers of one span, ready to run.

// Rows and positions come from other peers.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod cache;
mod loaded;
mod options;

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

pub(crate) use cache::KvBlock;
pub use cache::{Cache, Segment};
use loaded::{Compute, Loaded, Part};
pub use options::{Device, Isa, KvFormat, StageOptions, UnknownDevice, UnknownIsa};

use crate::{
    LoadError, MAX_BATCH_ROWS, MAX_ROWS, StageError,
    backend::{Backend, candle::Candle, dry::Dry},
    gguf::Gguf,
    hparams::Hparams,
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
    exact: bool,
    weight_bytes: u64,
    /// Bytes of keys and values that one token takes in one layer.
    kv_row: u64,
    /// Tells this stage's caches from another's.
    id: u64,
    inner: Box<dyn Compute>,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("span", &self.span).field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Stage {
    /// Loads a span with the default options. Only the span's tensors are read.
    ///
    /// # Errors
    /// As [`Stage::load_with`].
    pub fn load(gguf: &Gguf, span: Span) -> Result<Self, LoadError> {
        Self::load_with(gguf, span, &StageOptions::default())
    }

    /// Loads a span. Only the span's tensors are read.
    ///
    /// # Errors
    /// [`LoadError`]: an unknown family, a span the model does not have, a tensor that is missing, of the wrong shape,
    /// of a type the backend does not compute with, or with weights that are no numbers; an instruction set that the
    /// machine does not have.
    pub fn load_with(gguf: &Gguf, span: Span, options: &StageOptions) -> Result<Self, LoadError> {
        let hparams = Hparams::from_gguf(gguf)?;
        if span.layers.start > span.layers.end || span.layers.end > hparams.n_layers {
            let Range { start, end } = span.layers;
            return Err(LoadError::Span { start, end, layers: hparams.n_layers });
        }
        match options.device {
            Device::Cpu => Self::on(options.cpu()?, gguf, hparams, span),
            Device::Candle => Self::on(Candle::cpu(), gguf, hparams, span),
            Device::Cuda(number) => Self::on(Candle::cuda(number)?, gguf, hparams, span),
            Device::Metal(number) => Self::on(Candle::metal(number)?, gguf, hparams, span),
        }
    }

    /// Checks that all of a model can be loaded, as far as that shows without reading weights: every tensor that the
    /// hyper-parameters ask for is there, has the shape that follows from them and a type that is computed with, and
    /// there are no others.
    ///
    /// # Errors
    /// As [`Stage::load_with`], weights that are no numbers aside.
    pub fn check_file(gguf: &Gguf) -> Result<(), LoadError> {
        let hparams = Hparams::from_gguf(gguf)?;
        Loaded::load(Dry, gguf, &hparams, &Span::whole(hparams.n_layers)).map(drop)
    }

    fn on<B: Backend>(backend: B, gguf: &Gguf, hparams: Hparams, span: Span) -> Result<Self, LoadError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (inner, weight_bytes) = Loaded::load(backend, gguf, &hparams, &span)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (profile, exact) = (inner.backend.profile(), inner.backend.is_exact());
        let kv_row = inner.backend.kv_row_bytes(&hparams.attention(0));
        Ok(Self { hparams, span, profile, exact, weight_bytes, kv_row, id, inner: Box::new(inner) })
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

    /// Whether a row's bits depend on nothing but the rows of its session up to it: not on what else is computed with
    /// it, nor on how a prompt is cut. Only then are sessions computed together and beginnings shared.
    pub fn is_exact(&self) -> bool {
        self.exact
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
        self.kv_row.saturating_mul(self.span.layers.len() as u64)
    }

    /// An empty cache for one session, which may grow to the model's context length.
    pub fn new_cache(&self) -> Cache {
        self.new_cache_for(self.hparams.context_length)
    }

    /// An empty cache for a session of at most `max_rows` rows (and the model's context length). It takes memory for
    /// the rows it holds, rounded up to pages of [`KV_PAGE_ROWS`](crate::KV_PAGE_ROWS).
    pub fn new_cache_for(&self, max_rows: usize) -> Cache {
        self.new_cache_over(0..self.span.layers.len(), max_rows)
    }

    /// As [`Stage::new_cache_for`], for a session that runs only some of the span's layers: a chain may enter or leave
    /// a span inside it. `layers` counts from the span's first layer; what lies outside of the span is left out.
    pub fn new_cache_over(&self, layers: Range<usize>, max_rows: usize) -> Cache {
        let limit = max_rows.min(self.hparams.context_length);
        let end = layers.end.min(self.span.layers.len());
        let first = layers.start.min(end);
        let layers = end.saturating_sub(first);
        Cache { len: 0, limit, stage: self.id, first, layers, rounds: false, pages: self.inner.new_pages(layers) }
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
        let mut results = self.forward_batch(&mut [Segment { cache, pos, rows }]);
        results.pop().unwrap_or(Ok(Vec::new()))
    }

    /// As [`Stage::forward`], for rows of several sessions at once: the weights are read once for all of them. Answers
    /// each segment by itself, in their order.
    ///
    /// # Errors
    /// As [`Stage::forward`], per segment; a failure of the backend fails all that it computed together. Past
    /// [`MAX_BATCH_ROWS`] rows in all, the segments that do not fit fail with [`StageError::TooManyRows`].
    pub fn forward_batch(&self, segments: &mut [Segment<'_>]) -> Vec<Result<Vec<f32>, StageError>> {
        let mut total = 0usize;
        let mut results = Vec::with_capacity(segments.len());
        // The layers that are still to be run for each segment that passed the checks.
        let mut waiting = Vec::with_capacity(segments.len());
        for segment in segments.iter() {
            let checked = self.check_segment(segment).and_then(|rows| {
                total = total.saturating_add(rows);
                let too_many = StageError::TooManyRows { found: total, max: MAX_BATCH_ROWS };
                if total > MAX_BATCH_ROWS { Err(too_many) } else { Ok(rows) }
            });
            let Cache { first, layers, rounds, .. } = *segment.cache;
            waiting.push(matches!(checked, Ok(1..)).then_some((first, layers, rounds)));
            results.push(checked.map(|_| Vec::new()));
        }
        while let Some(layers) = waiting.iter().find_map(|layers| *layers) {
            self.forward_group(layers, segments, &mut waiting, &mut results);
        }
        results
    }

    /// Runs the segments that wait for just these layers: the first, how many, and whether they round.
    fn forward_group(
        &self,
        layers: (usize, usize, bool),
        segments: &mut [Segment<'_>],
        waiting: &mut [Option<(usize, usize, bool)>],
        results: &mut [Result<Vec<f32>, StageError>],
    ) {
        let width = self.hidden();
        let (mut parts, mut rows) = (Vec::with_capacity(segments.len()), Vec::new());
        for (segment, _) in segments.iter_mut().zip(waiting.iter()).filter(|(_, waits)| **waits == Some(layers)) {
            rows.extend_from_slice(segment.rows);
            let n = segment.rows.len().checked_div(width).unwrap_or(0);
            parts.push(Part { pages: &mut *segment.cache.pages, pos: segment.pos, rows: n });
        }
        let computed = self.inner.forward(layers.0, layers.2, parts, &rows);

        let mut done = 0usize;
        for ((segment, waits), result) in segments.iter_mut().zip(waiting).zip(results) {
            if waits.take_if(|waits| *waits == layers).is_none() {
                continue;
            }
            *result = match &computed {
                Ok(all) => {
                    let end = done.saturating_add(segment.rows.len());
                    let own = all.get(done..end).unwrap_or_default().to_vec();
                    done = end;
                    self.check(own, width)
                }
                Err(error) => Err(error.again()),
            };
            match result {
                Ok(_) => {
                    let n = segment.rows.len().checked_div(width).unwrap_or(0);
                    segment.cache.len = segment.pos.saturating_add(n);
                }
                // Some layers may have taken the rows already.
                Err(_) => segment.cache.truncate_layers(segment.pos),
            }
        }
    }

    /// The number of a segment's rows, when they may be computed at all.
    fn check_segment(&self, segment: &Segment<'_>) -> Result<usize, StageError> {
        let n = self.row_count(segment.rows)?;
        let Segment { cache, pos, .. } = segment;
        if cache.stage != self.id {
            return Err(StageError::ForeignCache);
        }
        if *pos != cache.len {
            return Err(StageError::Position { expected: cache.len, found: *pos });
        }
        let end = pos.saturating_add(n);
        if end > cache.limit {
            return Err(StageError::Context { end, limit: cache.limit });
        }
        Ok(n)
    }

    /// The rows after the model's last norm, which stands before its head: `[n, hidden]` to `[n, hidden]`.
    ///
    /// # Errors
    /// As [`Stage::logits`].
    pub fn normed(&self, rows: &[f32]) -> Result<Vec<f32>, StageError> {
        if self.row_count(rows)? == 0 {
            return Ok(Vec::new());
        }
        self.check(self.inner.normed(rows)?, self.hidden())
    }

    /// The logits after each of these rows, `[n, hidden]` to `[n, vocab]`: not normalised.
    ///
    /// # Errors
    /// [`StageError::NotLoaded`] without the head; rows that are not whole, too many, or not finite in or out.
    pub fn logits(&self, rows: &[f32]) -> Result<Vec<f32>, StageError> {
        if self.row_count(rows)? == 0 {
            return Ok(Vec::new());
        }
        self.check(self.inner.logits(rows)?, self.vocab())
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
