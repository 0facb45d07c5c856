//! Phi-3: Llama's graph with queries, keys and values in one matrix, gate and up in another, and another pairing in the
//! rotation, of which some sizes turn only a part of each head.

use super::{
    Step,
    block::{Gated, Norm, Projections, Weights, layer_norms},
};
use crate::{
    BackendError, LoadError,
    backend::{Activation, Backend},
    hparams::Hparams,
};

pub(crate) struct Layer<B: Backend> {
    attention_norm: Norm<B>,
    attention: Projections<B>,
    feed_forward_norm: Norm<B>,
    feed_forward: Gated<B>,
}

impl<B: Backend> Layer<B> {
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, index: usize) -> Result<Self, LoadError> {
        let (attention_norm, feed_forward_norm) = layer_norms(weights, hparams, index)?;
        Ok(Self {
            attention_norm,
            attention: Projections::load(weights, hparams, index)?,
            feed_forward_norm,
            feed_forward: Gated::load(weights, hparams, index, Activation::Silu)?,
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
        let y = self.feed_forward.forward(backend, &x)?;
        backend.add(rows, &y)
    }
}
