//! Mixtures of experts: a router chooses for each row which few of many feed-forward parts it goes through.
//!
//! An expert's weights are read when a row is first sent to it, and again at the next row where that failed. Rows are grouped by expert, and what experts return is
//! added in the order of their numbers, so that a row's bits do not depend on which rows share its batch.

mod slot;

use std::{collections::BTreeMap, fmt::Display};

use slot::Slot;

use super::block::Weights;
use crate::{
    BackendError, LoadError,
    backend::{Activation, Backend},
    gguf::TensorHandle,
    hparams::{self, Hparams},
};

/// The experts of a layer.
pub(crate) struct Experts<B: Backend> {
    router: B::Matrix,
    used: usize,
    /// The layer's number in the model, for messages.
    layer: usize,
    source: Source,
    /// Each expert's weights, from its first row on.
    experts: Vec<Slot<Expert<B>>>,
}

struct Expert<B: Backend> {
    gate: B::Matrix,
    up: B::Matrix,
    down: B::Matrix,
}

impl<B: Backend> Experts<B> {
    /// Loads the router, and checks shapes and types of the experts without reading them.
    pub(crate) fn load(
        weights: &mut Weights<'_, B>,
        hparams: &Hparams,
        sizes: hparams::Experts,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let hparams::Experts { count, used, feed_forward: inner } = sizes;
        let hidden = hparams.hidden;
        let mut tensors = |part, outputs, inputs| Tensors::load(weights, (layer, part), [count, outputs, inputs]);
        let source = Source {
            gate: tensors("gate", inner, hidden)?,
            up: tensors("up", inner, hidden)?,
            down: tensors("down", hidden, inner)?,
        };
        Ok(Self {
            router: weights.matrix(&format!("blk.{layer}.ffn_gate_inp.weight"), count, hidden)?,
            used,
            layer,
            source,
            experts: (0..count).map(|_| Slot::default()).collect(),
        })
    }

    /// Adds to `rows` what the experts make of `x`.
    pub(crate) fn add_to(&self, backend: &B, mut rows: B::Rows, x: &B::Rows) -> Result<B::Rows, BackendError> {
        let [logits] = backend.matmul(x, [&self.router])?;
        let logits = backend.download(logits)?;
        for (expert, share) in route(&logits, self.experts.len(), self.used) {
            let Expert { gate, up, down } = self.expert(backend, expert)?;
            let own = backend.gather(x, &share.rows)?;
            let [gate, up] = backend.matmul(&own, [gate, up])?;
            let [y] = backend.matmul(&backend.gate(gate, &up, Activation::Silu)?, [down])?;
            rows = backend.add_rows(rows, &y, &share.rows, &share.weights)?;
        }
        Ok(rows)
    }

    fn expert(&self, backend: &B, index: usize) -> Result<&Expert<B>, BackendError> {
        let named = |error: &dyn Display| BackendError(format!("layer {}, expert {index}: {error}", self.layer));
        let slot = self.experts.get(index).ok_or_else(|| named(&"there is none of this number"))?;
        slot.get_or_load(|| self.source.expert(backend, index).map_err(|error| error.to_string()))
            .map_err(|e| named(&e))
    }
}

/// A layer's experts in the file, which it keeps open.
struct Source {
    gate: Tensors,
    up: Tensors,
    down: Tensors,
}

/// One matrix of every expert: all in one tensor, or (in older files) each in its own.
enum Tensors {
    Joined(TensorHandle),
    Separate(Vec<TensorHandle>),
}

impl Tensors {
    /// Checks shapes and types without reading the weights.
    fn load<B: Backend>(
        weights: &mut Weights<'_, B>,
        (layer, part): (usize, &str),
        [count, outputs, inputs]: [usize; 3],
    ) -> Result<Self, LoadError> {
        let separate = |expert: usize| format!("blk.{layer}.ffn_{part}.{expert}.weight");
        if weights.gguf.tensor(&separate(0)).is_ok() {
            let each = (0..count).map(|expert| weights.later(&separate(expert), &[outputs, inputs]));
            return each.collect::<Result<_, _>>().map(Self::Separate);
        }
        weights.later(&format!("blk.{layer}.ffn_{part}_exps.weight"), &[count, outputs, inputs]).map(Self::Joined)
    }

    fn matrix<B: Backend>(&self, backend: &B, expert: usize) -> Result<B::Matrix, LoadError> {
        match self {
            Self::Joined(all) => backend.load_matrix(&all.view().expert(expert)?),
            Self::Separate(each) => {
                let missing = || BackendError("it is missing".to_owned());
                backend.load_matrix(&each.get(expert).ok_or_else(missing)?.view())
            }
        }
    }
}

impl Source {
    fn expert<B: Backend>(&self, backend: &B, index: usize) -> Result<Expert<B>, LoadError> {
        let load = |tensors: &Tensors| tensors.matrix(backend, index);
        Ok(Expert { gate: load(&self.gate)?, up: load(&self.up)?, down: load(&self.down)? })
    }
}

/// The rows that an expert works on, in ascending order, and what its results count in each.
#[derive(Debug, PartialEq, Default)]
struct Share {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

/// Sends each row to the `used` experts with the largest logits (the lower number where they are equal), weighed by the
/// softmax over these. That is the softmax over all experts with the chosen probabilities scaled to a sum of one. The
/// sum runs over the chosen in the order of their numbers.
fn route(logits: &[f32], count: usize, used: usize) -> BTreeMap<usize, Share> {
    let mut shares: BTreeMap<usize, Share> = BTreeMap::new();
    for (row, logits) in (0u32..).zip(logits.chunks_exact(count.max(1))) {
        // A negative zero is as large as a positive one.
        let mut chosen: Vec<(usize, f32)> = logits.iter().map(|logit| logit + 0.0).enumerate().collect();
        chosen.sort_unstable_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
        chosen.truncate(used);
        let largest = chosen.first().map_or(0.0, |(_, logit)| *logit);
        chosen.sort_unstable_by_key(|(expert, _)| *expert);
        for (_, weight) in &mut chosen {
            *weight = libm::expf(*weight - largest);
        }
        let sum: f32 = chosen.iter().map(|(_, weight)| weight).sum();
        for (expert, weight) in chosen {
            let share = shares.entry(expert).or_default();
            share.rows.push(row);
            share.weights.push(weight / sum);
        }
    }
    shares
}

#[cfg(test)]
#[path = "experts/tests.rs"]
mod tests;
