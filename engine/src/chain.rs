//! All stages of a model in one process: the unsplit run that a swarm's answer is compared with, and the diagnostics.

use crate::{Cache, Gguf, Hparams, LoadError, PREFILL_CHUNK, Span, Stage, StageError, StageOptions};

/// Why a model could not be run in this process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A stage could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A stage could not compute.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// Cuts that do not split the layers.
    #[error("cuts {cuts:?} do not split {layers} layers: each must be larger than the one before, and below {layers}")]
    Cuts {
        /// The cuts given.
        cuts: Vec<usize>,
        /// Layers of the model.
        layers: usize,
    },
    /// No tokens were given.
    #[error("there are no tokens to run")]
    Empty,
}

/// A model as a chain of stages in one process, with one session.
#[derive(Debug)]
pub struct Chain {
    ends: Stage,
    stages: Vec<(Stage, Cache)>,
}

impl Chain {
    /// Loads a model cut at the given layers: `[1, 3]` makes stages `0..1`, `1..3` and `3..`. No cuts make one stage.
    ///
    /// # Errors
    /// [`ChainError::Cuts`] or [`ChainError::Load`].
    pub fn load(gguf: &Gguf, cuts: &[usize]) -> Result<Self, ChainError> {
        Self::load_with(gguf, cuts, &StageOptions::default())
    }

    /// As [`Chain::load`], computed as `options` say.
    ///
    /// # Errors
    /// As [`Chain::load`].
    pub fn load_with(gguf: &Gguf, cuts: &[usize], options: &StageOptions) -> Result<Self, ChainError> {
        let layers = Hparams::from_gguf(gguf)?.n_layers;
        let bounds: Vec<usize> = std::iter::once(0).chain(cuts.iter().copied()).chain([layers]).collect();
        if bounds.windows(2).any(|pair| pair.first() >= pair.last()) {
            return Err(ChainError::Cuts { cuts: cuts.to_vec(), layers });
        }
        let ends = Stage::load_with(gguf, Span::ends(), options)?;
        let mut stages = Vec::with_capacity(bounds.len());
        for (start, end) in bounds.iter().zip(bounds.iter().skip(1)) {
            let stage = Stage::load_with(gguf, Span::layers(*start..*end), options)?;
            let cache = stage.new_cache();
            stages.push((stage, cache));
        }
        Ok(Self { ends, stages })
    }

    /// Rows in the session.
    pub fn len(&self) -> usize {
        self.stages.first().map_or(0, |(_, cache)| cache.len())
    }

    /// True when the session holds no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        for (_, cache) in &mut self.stages {
            cache.truncate(rows);
        }
    }

    /// Adds tokens to the session, [`PREFILL_CHUNK`] at a time, and returns the logits after the last: `[vocab]`.
    ///
    /// # Errors
    /// [`ChainError::Empty`] without tokens, or [`ChainError::Stage`].
    pub fn advance(&mut self, ids: &[u32]) -> Result<Vec<f32>, ChainError> {
        self.advance_by(ids, PREFILL_CHUNK)
    }

    /// As [`Chain::advance`], `chunk` tokens at a time: 1 to [`MAX_ROWS`](crate::MAX_ROWS).
    ///
    /// # Errors
    /// As [`Chain::advance`].
    pub fn advance_by(&mut self, ids: &[u32], chunk: usize) -> Result<Vec<f32>, ChainError> {
        let mut last = Vec::new();
        for chunk in ids.chunks(chunk.max(1)) {
            let mut rows = self.ends.embed(chunk)?;
            for (stage, cache) in &mut self.stages {
                let pos = cache.len();
                rows = stage.forward(cache, pos, &rows)?;
            }
            last = rows;
        }
        let start = last.len().checked_sub(self.ends.hidden());
        let row = start.and_then(|start| last.get(start..)).ok_or(ChainError::Empty)?;
        Ok(self.ends.logits(row)?)
    }
}

/// The log-probabilities over the vocabulary after the last of `ids`, the model run as stages cut at `cuts`.
///
/// # Errors
/// As [`Chain::load`] and [`Chain::advance`].
pub fn logits_for(gguf: &Gguf, ids: &[u32], cuts: &[usize]) -> Result<Vec<f32>, ChainError> {
    Ok(log_probs(&Chain::load(gguf, cuts)?.advance(ids)?))
}

/// Natural logarithms of the softmax of `logits`, summed in `f64`.
pub fn log_probs(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(logit - max))).sum();
    let offset = f64::from(max) + libm::log(sum);
    #[allow(clippy::cast_possible_truncation, reason = "log-probabilities are wanted in f32")]
    logits.iter().map(|logit| (f64::from(*logit) - offset) as f32).collect()
}
