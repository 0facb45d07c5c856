//! Qwen2: Llama's graph with another pairing in the rotation, and biases on query, key and value where the file has them
//! (the released models do).

use super::{
    Step,
    block::{FeedForward, Norm, Projections, Weights, layer_norms},
};
use crate::{BackendError, LoadError, backend::Backend, hparams::Hparams};

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
        step: &mut Step<'_, '_, B::Page>,
    ) -> Result<B::Rows, BackendError> {
        let x = self.attention_norm.forward(backend, &rows)?;
        let [q, k, v] = self.attention.qkv(backend, &x)?;
        let (q, k) = (backend.rotate(q, step.rotation)?, backend.rotate(k, step.rotation)?);
        let mixed = step.attend(backend, q, k, v, &self.attention.shape)?;
        let rows = backend.add(rows, &self.attention.output.forward(backend, &mixed)?)?;

        let x = self.feed_forward_norm.forward(backend, &rows)?;
        self.feed_forward.add_to(backend, rows, &x)
    }
}
