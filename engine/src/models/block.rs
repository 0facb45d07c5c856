//! What the families share: reading weights with their shapes checked, projections, the feed-forward part.

use std::{collections::HashSet, ops::Range};

use super::{Architecture, experts::Experts};
use crate::{
    BackendError, LoadError,
    backend::{Activation, AttentionShape, Backend},
    gguf::{Gguf, TensorHandle, TensorView},
    hparams::Hparams,
};

/// Takes tensors out of a file into a backend, counting their bytes.
pub(crate) struct Weights<'a, B: Backend> {
    pub(crate) gguf: &'a Gguf,
    pub(crate) backend: &'a B,
    /// Bytes of all tensors taken so far, as the file stores them.
    pub(crate) bytes: u64,
    taken: HashSet<String>,
}

impl<'a, B: Backend> Weights<'a, B> {
    pub(crate) fn new(gguf: &'a Gguf, backend: &'a B) -> Self {
        Self { gguf, backend, bytes: 0, taken: HashSet::new() }
    }

    fn take(&mut self, name: &str, expected: &[usize]) -> Result<TensorView<'a>, LoadError> {
        let tensor = self.gguf.tensor(name)?;
        if tensor.shape != expected {
            return Err(LoadError::TensorShape {
                tensor: name.to_owned(),
                found: tensor.shape.to_vec(),
                expected: expected.to_vec(),
            });
        }
        if self.taken.insert(name.to_owned()) {
            self.bytes = self.bytes.saturating_add(tensor.bytes());
        }
        Ok(tensor)
    }

    pub(crate) fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<B::Matrix, LoadError> {
        let tensor = self.take(name, &[outputs, inputs])?;
        self.backend.load_matrix(&tensor)
    }

    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, LoadError> {
        let tensor = self.take(name, &[len])?;
        self.backend.load_vector(&tensor)
    }

    /// Some of the rows of a matrix with `outputs` of them.
    fn matrix_rows(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
        rows: Range<usize>,
    ) -> Result<B::Matrix, LoadError> {
        let tensor = self.take(name, &[outputs, inputs])?;
        self.backend.load_matrix(&tensor.rows(rows)?)
    }

    /// Some of the values of a vector of `len`, when the file has it.
    fn optional_vector_rows(
        &mut self,
        name: &str,
        len: usize,
        values: Range<usize>,
    ) -> Result<Option<B::Vector>, LoadError> {
        if self.gguf.tensor(name).is_err() {
            return Ok(None);
        }
        let tensor = self.take(name, &[len])?;
        let value = tensor.data.len().checked_div(len).unwrap_or(0);
        let range = values.start.saturating_mul(value)..values.end.saturating_mul(value);
        let data = tensor.data.get(range).unwrap_or_default();
        self.backend.load_vector(&TensorView::new(name, tensor.dtype, &[values.len()], data)?).map(Some)
    }

    /// A tensor to be read later. Checks its shape, and that the backend computes with its type.
    pub(crate) fn later(&mut self, name: &str, expected: &[usize]) -> Result<TensorHandle, LoadError> {
        let tensor = self.take(name, expected)?;
        let inputs = expected.last().copied().unwrap_or(0);
        let zeros = vec![0; tensor.dtype.bytes_for(inputs as u64).and_then(|n| n.try_into().ok()).unwrap_or(0)];
        self.backend.load_matrix(&TensorView::new(name, tensor.dtype, &[1, inputs], &zeros)?)?;
        Ok(self.gguf.handle(name)?)
    }

    /// Refuses tensors of the file that nobody took: a model with more than its family has is another function. Layers
    /// outside of `layers` are other spans' business, and so are embedding and head.
    pub(crate) fn refuse_the_rest(&self, layers: &Range<usize>) -> Result<(), LoadError> {
        const ELSEWHERE: &[&str] = &[
            "token_embd.weight",
            "output_norm.weight",
            "output.weight",
            "rope_freqs.weight",
            "rope_factors_long.weight",
            "rope_factors_short.weight",
        ];
        // Frequencies that early converters wrote down; they follow from the metadata.
        const SPARE: &str = ".attn_rot_embd.weight";
        for tensor in self.gguf.tensors() {
            let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            let known = match layer.and_then(|(layer, _)| layer.parse::<usize>().ok()) {
                Some(layer) => !layers.contains(&layer) || tensor.name.ends_with(SPARE),
                None => ELSEWHERE.contains(&tensor.name),
            };
            if !known && !self.taken.contains(tensor.name) {
                return Err(LoadError::UnknownTensor { tensor: tensor.name.to_owned() });
            }
        }
        Ok(())
    }
}

/// A product with a bias, where the file has one.
pub(crate) struct Linear<B: Backend> {
    weight: B::Matrix,
    bias: Option<B::Vector>,
}

impl<B: Backend> Linear<B> {
    /// Loads `<name>.weight`, and `<name>.bias` when there is one.
    pub(crate) fn load(
        weights: &mut Weights<'_, B>,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, LoadError> {
        Self::load_rows(weights, name, outputs, inputs, 0..outputs)
    }

    /// As [`Linear::load`], for some of the outputs of a matrix that is several in one.
    fn load_rows(
        weights: &mut Weights<'_, B>,
        name: &str,
        outputs: usize,
        inputs: usize,
        rows: Range<usize>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            weight: weights.matrix_rows(&format!("{name}.weight"), outputs, inputs, rows.clone())?,
            bias: weights.optional_vector_rows(&format!("{name}.bias"), outputs, rows)?,
        })
    }

    pub(crate) fn forward(&self, backend: &B, x: &B::Rows) -> Result<B::Rows, BackendError> {
        let [y] = backend.matmul(x, [&self.weight])?;
        self.add_bias(backend, y)
    }

    fn add_bias(&self, backend: &B, y: B::Rows) -> Result<B::Rows, BackendError> {
        match &self.bias {
            Some(bias) => backend.add_bias(y, bias),
            None => Ok(y),
        }
    }
}

/// Several products of the same rows.
fn products<B: Backend, const N: usize>(
    backend: &B,
    x: &B::Rows,
    linears: [&Linear<B>; N],
) -> Result<[B::Rows; N], BackendError> {
    let mut products = backend.matmul(x, linears.map(|linear| &linear.weight))?.into_iter();
    let mut out = Vec::with_capacity(N);
    for (linear, y) in linears.iter().zip(&mut products) {
        out.push(linear.add_bias(backend, y)?);
    }
    out.try_into().map_err(|_| BackendError("a product is missing".to_owned()))
}

/// RMS norm with its scale.
pub(crate) struct Norm<B: Backend> {
    scale: B::Vector,
    eps: f32,
}

impl<B: Backend> Norm<B> {
    pub(crate) fn load(weights: &mut Weights<'_, B>, name: &str, len: usize, eps: f32) -> Result<Self, LoadError> {
        Ok(Self { scale: weights.vector(name, len)?, eps })
    }

    pub(crate) fn forward(&self, backend: &B, x: &B::Rows) -> Result<B::Rows, BackendError> {
        backend.rms_norm(x, &self.scale, self.eps)
    }
}

/// The query, key, value and output projections of a layer.
pub(crate) struct Projections<B: Backend> {
    pub(crate) q: Linear<B>,
    pub(crate) k: Linear<B>,
    pub(crate) v: Linear<B>,
    pub(crate) output: Linear<B>,
    pub(crate) shape: AttentionShape,
}

impl<B: Backend> Projections<B> {
    /// Loads `attn_q`, `attn_k` and `attn_v`, or the three below each other in `attn_qkv`, and `attn_output`.
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, layer: usize) -> Result<Self, LoadError> {
        let (hidden, kv) = (hparams.hidden, hparams.kv_width());
        let q = hparams.heads.saturating_mul(hparams.head_dim);
        let name = |part: &str| format!("blk.{layer}.attn_{part}");
        let (queries, keys, values) = if weights.gguf.tensor(&format!("{}.weight", name("qkv"))).is_ok() {
            let (k_end, v_end) = (q.saturating_add(kv), q.saturating_add(kv).saturating_add(kv));
            let mut rows = |rows| Linear::load_rows(weights, &name("qkv"), v_end, hidden, rows);
            (rows(0..q)?, rows(q..k_end)?, rows(k_end..v_end)?)
        } else {
            let mut linear = |part, outputs| Linear::load(weights, &name(part), outputs, hidden);
            (linear("q", q)?, linear("k", kv)?, linear("v", kv)?)
        };
        let output = Linear::load(weights, &name("output"), hidden, q)?;
        Ok(Self { q: queries, k: keys, v: values, output, shape: hparams.attention(layer) })
    }

    /// Queries, keys and values of rows, as wide as their heads together.
    pub(crate) fn qkv(&self, backend: &B, x: &B::Rows) -> Result<[B::Rows; 3], BackendError> {
        products(backend, x, [&self.q, &self.k, &self.v])
    }
}

/// What follows a layer's attention.
pub(crate) enum FeedForward<B: Backend> {
    Dense(Gated<B>),
    Sparse(Experts<B>),
}

impl<B: Backend> FeedForward<B> {
    /// Loads the experts of a model that has them, else the one feed-forward part, with SiLU.
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, layer: usize) -> Result<Self, LoadError> {
        match hparams.variant.experts {
            Some(sizes) => Experts::load(weights, hparams, sizes, layer).map(Self::Sparse),
            None => Gated::load(weights, hparams, layer, Activation::Silu).map(Self::Dense),
        }
    }

    /// Adds to `rows` what it makes of `x`.
    pub(crate) fn add_to(&self, backend: &B, rows: B::Rows, x: &B::Rows) -> Result<B::Rows, BackendError> {
        match self {
            Self::Dense(gated) => backend.add(rows, &gated.forward(backend, x)?),
            Self::Sparse(experts) => experts.add_to(backend, rows, x),
        }
    }
}

/// The gated feed-forward part: `down(activation(gate(x)) * up(x))`.
pub(crate) struct Gated<B: Backend> {
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
    activation: Activation,
}

impl<B: Backend> Gated<B> {
    /// Loads `ffn_gate`, `ffn_up` and `ffn_down`; without the first, `ffn_up` holds both, the gate first.
    pub(crate) fn load(
        weights: &mut Weights<'_, B>,
        hparams: &Hparams,
        layer: usize,
        activation: Activation,
    ) -> Result<Self, LoadError> {
        let (hidden, inner) = (hparams.hidden, hparams.feed_forward);
        let name = |part: &str| format!("blk.{layer}.ffn_{part}");
        let separate = weights.gguf.tensor(&format!("{}.weight", name("gate"))).is_ok();
        let (gate, up) = if separate || hparams.architecture != Architecture::Phi3 {
            let mut linear = |part| Linear::load(weights, &name(part), inner, hidden);
            (linear("gate")?, linear("up")?)
        } else {
            let both = inner.saturating_mul(2);
            let mut rows = |rows| Linear::load_rows(weights, &name("up"), both, hidden, rows);
            (rows(0..inner)?, rows(inner..both)?)
        };
        Ok(Self { gate, up, down: Linear::load(weights, &name("down"), hidden, inner)?, activation })
    }

    pub(crate) fn forward(&self, backend: &B, x: &B::Rows) -> Result<B::Rows, BackendError> {
        let [gate, up] = products(backend, x, [&self.gate, &self.up])?;
        self.down.forward(backend, &backend.gate(gate, &up, self.activation)?)
    }
}

/// Loads the two norms that every family has before its attention and its feed-forward part.
pub(crate) fn layer_norms<B: Backend>(
    weights: &mut Weights<'_, B>,
    hparams: &Hparams,
    layer: usize,
) -> Result<(Norm<B>, Norm<B>), LoadError> {
    let mut norm =
        |part: &str| Norm::load(weights, &format!("blk.{layer}.{part}_norm.weight"), hparams.hidden, hparams.rms_eps);
    Ok((norm("attn")?, norm("ffn")?))
}
