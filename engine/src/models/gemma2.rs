//! Gemma 2: norms before and after attention and feed-forward part, GELU, soft caps on scores and logits, a window in
//! every other layer, scaled embeddings. The norms' scales in the files include the one that the original adds.

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
    post_attention_norm: Norm<B>,
    feed_forward_norm: Norm<B>,
    feed_forward: Gated<B>,
    post_feed_forward_norm: Norm<B>,
}

impl<B: Backend> Layer<B> {
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, index: usize) -> Result<Self, LoadError> {
        let (attention_norm, feed_forward_norm) = layer_norms(weights, hparams, index)?;
        let mut norm = |part: &str, len| {
            let name = format!("blk.{index}.{part}_norm.weight");
            Norm::load(weights, &name, len, hparams.rms_eps)
        };
        Ok(Self {
            post_attention_norm: norm("post_attention", hparams.hidden)?,
            post_feed_forward_norm: norm("post_ffw", hparams.hidden)?,
            attention_norm,
            attention: Projections::load(weights, hparams, index)?,
            feed_forward_norm,
            feed_forward: Gated::load(weights, hparams, index, Activation::GeluTanh)?,
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
        let y = self.attention.output.forward(backend, &mixed)?;
        let rows = backend.add(rows, &self.post_attention_norm.forward(backend, &y)?)?;

        let x = self.feed_forward_norm.forward(backend, &rows)?;
        let y = self.feed_forward.forward(backend, &x)?;
        backend.add(rows, &self.post_feed_forward_norm.forward(backend, &y)?)
    }
}
