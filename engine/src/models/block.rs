//! What the families share: reading weights with their shapes checked, projections, the gated feed-forward part.

use crate::{
    BackendError, LoadError,
    backend::{Activation, AttentionShape, Backend},
    gguf::{Gguf, TensorView},
    hparams::Hparams,
};

/// Takes tensors out of a file into a backend, counting their bytes.
pub(crate) struct Weights<'a, B: Backend> {
    pub(crate) gguf: &'a Gguf,
    pub(crate) backend: &'a B,
    /// Bytes of all tensors taken so far, as the file stores them.
    pub(crate) bytes: u64,
}

impl<'a, B: Backend> Weights<'a, B> {
    pub(crate) fn new(gguf: &'a Gguf, backend: &'a B) -> Self {
        Self { gguf, backend, bytes: 0 }
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
        self.bytes = self.bytes.saturating_add(tensor.bytes());
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

    /// The vector, when the file has it.
    pub(crate) fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<B::Vector>, LoadError> {
        match self.gguf.tensor(name) {
            Ok(_) => self.vector(name, len).map(Some),
            Err(_) => Ok(None),
        }
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
        Ok(Self {
            weight: weights.matrix(&format!("{name}.weight"), outputs, inputs)?,
            bias: weights.optional_vector(&format!("{name}.bias"), outputs)?,
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
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, layer: usize) -> Result<Self, LoadError> {
        let (hidden, kv) = (hparams.hidden, hparams.kv_width());
        let q = hparams.heads.saturating_mul(hparams.head_dim);
        let mut linear =
            |part: &str, outputs, inputs| Linear::load(weights, &format!("blk.{layer}.attn_{part}"), outputs, inputs);
        Ok(Self {
            q: linear("q", q, hidden)?,
            k: linear("k", kv, hidden)?,
            v: linear("v", kv, hidden)?,
            output: linear("output", hidden, q)?,
            shape: hparams.attention(),
        })
    }

    /// Queries, keys and values of rows, as wide as their heads together.
    pub(crate) fn qkv(&self, backend: &B, x: &B::Rows) -> Result<[B::Rows; 3], BackendError> {
        products(backend, x, [&self.q, &self.k, &self.v])
    }
}

/// The gated feed-forward part: `down(silu(gate(x)) * up(x))`.
pub(crate) struct FeedForward<B: Backend> {
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: Backend> FeedForward<B> {
    pub(crate) fn load(weights: &mut Weights<'_, B>, hparams: &Hparams, layer: usize) -> Result<Self, LoadError> {
        let (hidden, inner) = (hparams.hidden, hparams.feed_forward);
        let mut linear =
            |part: &str, outputs, inputs| Linear::load(weights, &format!("blk.{layer}.ffn_{part}"), outputs, inputs);
        Ok(Self {
            gate: linear("gate", inner, hidden)?,
            up: linear("up", inner, hidden)?,
            down: linear("down", hidden, inner)?,
        })
    }

    pub(crate) fn forward(&self, backend: &B, x: &B::Rows) -> Result<B::Rows, BackendError> {
        let [gate, up] = products(backend, x, [&self.gate, &self.up])?;
        self.down.forward(backend, &backend.gate(gate, &up, Activation::Silu)?)
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
