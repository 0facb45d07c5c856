//! Llama: RMS norms, rotary attention with grouped heads, gated feed-forward. Some files carry biases on the
//! projections; they are used when there.

use super::block::{FeedForward, Norm, Projections, Weights, layer_norms};
use crate::{
    BackendError, LoadError,
    backend::{Backend, Rotation},
    hparams::Hparams,
};

pub(crate) struct Layer<B: Backend> {
    attention_norm: Norm<B>,
    attention: Projections<B>,
    feed_forward_norm: Norm<B>,
    feed_forward: FeedForward<B>,
}

impl<B: Backend> Layer<B> {
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, index: usize) -> Result<Self, LoadError> {
        let (attention_norm, feed_forward_norm) = layer_norms(weights, hparams, index)?;
        Ok(Self {
            attention_norm,
            attention: Projections::load(weights, hparams, index)?,
            feed_forward_norm,
            feed_forward: FeedForward::load(weights, hparams, index)?,
        })
    }

    pub(crate) fn forward(
        &self,
        backend: &B,
        rows: B::Rows,
        rotation: &Rotation,
        cache: &mut B::Cache,
    ) -> Result<B::Rows, BackendError> {
        let x = self.attention_norm.forward(backend, &rows)?;
        let q = backend.rotate(self.attention.q.forward(backend, &x)?, rotation)?;
        let k = backend.rotate(self.attention.k.forward(backend, &x)?, rotation)?;
        let v = self.attention.v.forward(backend, &x)?;
        let mixed = backend.attend(q, k, v, cache, &self.attention.shape)?;
        let rows = backend.add(rows, &self.attention.output.forward(backend, &mixed)?)?;

        let x = self.feed_forward_norm.forward(backend, &rows)?;
        let y = self.feed_forward.forward(backend, &x)?;
        backend.add(rows, &y)
    }
}
