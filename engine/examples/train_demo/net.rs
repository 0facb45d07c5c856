//! The model: the Qwen3 architecture at a small size, as parameters by their GGUF names and one forward pass.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, Var, backprop::GradStore};

use crate::ops::{Attention, CrossEntropy, RmsNorm, Rope, SwiGlu};
use crate::rng::Rng;

/// Width of the residual stream. All dimensions divide by 32, the block of Q8_0.
pub const HIDDEN: usize = 192;
/// Width inside the feed-forward part.
pub const FEED_FORWARD: usize = 512;
/// Six, so that three nodes hold two each.
pub const LAYERS: usize = 6;
/// Query heads.
pub const HEADS: usize = 6;
/// Key and value heads; two query heads share one.
pub const KV_HEADS: usize = 3;
/// Width of a head.
pub const HEAD_DIM: usize = 32;
/// Added to the mean square in every normalisation.
pub const NORM_EPS: f32 = 1e-6;
/// Frequency base of the rotary embedding: no text here is longer than a few hundred tokens.
pub const ROPE_BASE: f32 = 10_000.0;
/// What the GGUF declares as its context.
pub const CONTEXT: u32 = 512;
/// Standard deviation of the initial matrices.
const INIT_STD: f32 = 0.02;

/// One parameter with what the optimiser remembers of it.
pub struct Param {
    /// GGUF tensor name.
    pub name: String,
    /// `[out, in]` for matrices, `[n]` for norms.
    pub shape: Vec<usize>,
    /// Row-major.
    pub value: Vec<f32>,
    /// First moment of the gradient.
    pub mean: Vec<f32>,
    /// Second moment of the gradient.
    pub square: Vec<f32>,
}

/// Names and shapes in the order they stand in the file.
fn layout(vocabulary: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("token_embd.weight".to_owned(), vec![vocabulary, HIDDEN])];
    for i in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| all.push((format!("blk.{i}.{name}.weight"), shape.to_vec()));
        add("attn_norm", &[HIDDEN]);
        add("attn_q", &[HEADS * HEAD_DIM, HIDDEN]);
        add("attn_k", &[KV_HEADS * HEAD_DIM, HIDDEN]);
        add("attn_v", &[KV_HEADS * HEAD_DIM, HIDDEN]);
        add("attn_q_norm", &[HEAD_DIM]);
        add("attn_k_norm", &[HEAD_DIM]);
        add("attn_output", &[HIDDEN, HEADS * HEAD_DIM]);
        add("ffn_norm", &[HIDDEN]);
        add("ffn_gate", &[FEED_FORWARD, HIDDEN]);
        add("ffn_up", &[FEED_FORWARD, HIDDEN]);
        add("ffn_down", &[HIDDEN, FEED_FORWARD]);
    }
    all.push(("output_norm.weight".to_owned(), vec![HIDDEN]));
    all
}

/// Fresh parameters. Matrices that write to the residual stream start smaller, by the square root of how many do.
pub fn init(vocabulary: usize, seed: u64) -> Vec<Param> {
    let mut rng = Rng::new(seed, 1);
    let residual = 1.0 / ((2 * LAYERS) as f32).sqrt();
    layout(vocabulary)
        .into_iter()
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            let value = if shape.len() == 1 {
                vec![1.0; n]
            } else {
                let writes = name.contains("attn_output") || name.contains("ffn_down");
                let std = if writes { INIT_STD * residual } else { INIT_STD };
                (0..n).map(|_| rng.gauss() * std).collect()
            };
            Param { name, shape, value, mean: vec![0.0; n], square: vec![0.0; n] }
        })
        .collect()
}

/// Token rows of equal length, padded at the end, and where an answer token is to be predicted.
#[derive(Default)]
pub struct Batch {
    /// `rows * time` token ids.
    pub tokens: Vec<u32>,
    /// Number of rows.
    pub rows: usize,
    /// Tokens per row.
    pub time: usize,
    /// Positions in `tokens` whose next token counts.
    pub positions: Vec<u32>,
    /// The token that comes next at each of `positions`.
    pub targets: Vec<u32>,
}

/// The model's tensors for one step.
pub struct Net {
    tensors: HashMap<String, Tensor>,
}

impl Net {
    /// A model that can be differentiated, with its variables in the order of `params`.
    pub fn trainable(params: &[Param]) -> Result<(Self, Vec<Var>)> {
        let vars = params
            .iter()
            .map(|p| Var::from_slice(&p.value, p.shape.as_slice(), &Device::Cpu))
            .collect::<Result<Vec<_>>>()?;
        let tensors = params.iter().zip(&vars).map(|(p, v)| (p.name.clone(), v.as_tensor().clone())).collect();
        Ok((Self { tensors }, vars))
    }

    /// A model over tensors that were read from a file.
    pub fn from_tensors(tensors: HashMap<String, Tensor>) -> Self {
        Self { tensors }
    }

    /// A tensor by its GGUF name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("the model has no tensor {name}")))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.apply_op2(self.get(name)?, RmsNorm { eps: NORM_EPS })
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.matmul(&self.get(name)?.t()?)
    }

    /// Hidden states `[rows * time, HIDDEN]` before the last norm.
    fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let (rows, time) = (batch.rows, batch.time);
        let ids = Tensor::from_slice(&batch.tokens, rows * time, &Device::Cpu)?;
        let mut x = self.get("token_embd.weight")?.index_select(&ids, 0)?;
        for i in 0..LAYERS {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            let h = self.norm(&x, &name("attn_norm"))?;
            let turned = |part: &str, norm: &str, heads: usize| {
                let y = self.linear(&h, &name(part))?.reshape((rows, time, heads, HEAD_DIM))?;
                self.norm(&y, &name(norm))?.apply_op1(Rope { base: ROPE_BASE, sign: 1.0 })
            };
            let q = turned("attn_q", "attn_q_norm", HEADS)?;
            let k = turned("attn_k", "attn_k_norm", KV_HEADS)?;
            let v = self.linear(&h, &name("attn_v"))?.reshape((rows, time, KV_HEADS, HEAD_DIM))?;
            let mixed = q.apply_op3(&k, &v, Attention)?.reshape((rows * time, HEADS * HEAD_DIM))?;
            x = (x + self.linear(&mixed, &name("attn_output"))?)?;
            let h = self.norm(&x, &name("ffn_norm"))?;
            let gated = self.linear(&h, &name("ffn_gate"))?.apply_op2(&self.linear(&h, &name("ffn_up"))?, SwiGlu)?;
            x = (x + self.linear(&gated, &name("ffn_down"))?)?;
        }
        Ok(x)
    }

    /// Logits `[positions, vocabulary]` at the batch's positions.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let at = Tensor::from_slice(&batch.positions, batch.positions.len(), &Device::Cpu)?;
        let h = self.norm(&self.hidden(batch)?.index_select(&at, 0)?, "output_norm.weight")?;
        self.linear(&h, "token_embd.weight")
    }

    /// The loss over the batch's targets, each weighing `scale`, and its gradients.
    pub fn backward(&self, batch: &Batch, scale: f32) -> Result<(f32, GradStore)> {
        let loss = self.logits(batch)?.apply_op1(CrossEntropy { targets: batch.targets.clone(), scale })?;
        Ok((loss.to_scalar()?, loss.backward()?))
    }
}
