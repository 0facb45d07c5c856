//! A transformer in plain `f64`, written from the papers: slow, short, and without a line of the engine's in it but for
//! reading files.

use quelea_engine::{Architecture, Gguf, Hparams, gguf::DType};
use quelea_kernels::product::{WeightType, dequantize};

type Rows = Vec<Vec<f64>>;

/// The function of a file's weights.
pub struct Plain<'a> {
    gguf: &'a Gguf,
    h: Hparams,
}

/// The weights of a tensor, quantised or not; none where the file has no such tensor.
fn weights(gguf: &Gguf, name: &str) -> Option<Vec<f64>> {
    let tensor = gguf.tensor(name).ok()?;
    let ty = weight_type(tensor.dtype).unwrap();
    let mut out = vec![0.0; tensor.shape.iter().product()];
    dequantize(ty, tensor.data, &mut out).unwrap();
    Some(out.into_iter().map(f64::from).collect())
}

fn weight_type(dtype: DType) -> Option<WeightType> {
    Some(match dtype {
        DType::F32 => WeightType::F32,
        DType::F16 => WeightType::F16,
        DType::BF16 => WeightType::BF16,
        DType::Q4_0 => WeightType::Q4_0,
        DType::Q4_1 => WeightType::Q4_1,
        DType::Q5_0 => WeightType::Q5_0,
        DType::Q5_1 => WeightType::Q5_1,
        DType::Q8_0 => WeightType::Q8_0,
        DType::Q2_K => WeightType::Q2K,
        DType::Q3_K => WeightType::Q3K,
        DType::Q4_K => WeightType::Q4K,
        DType::Q5_K => WeightType::Q5K,
        DType::Q6_K => WeightType::Q6K,
        _ => return None,
    })
}

fn product(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::MIN, f64::max);
    let each: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = each.iter().sum();
    each.iter().map(|e| e / sum).collect()
}

impl<'a> Plain<'a> {
    pub fn new(gguf: &'a Gguf) -> Self {
        Self { gguf, h: Hparams::from_gguf(gguf).unwrap() }
    }

    fn gemma(&self) -> bool {
        matches!(self.h.architecture, Architecture::Gemma2 | Architecture::Gemma3)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let Some(scale) = weights(self.gguf, &format!("{name}.weight")) else { return x.to_vec() };
        let group = |x: &[f64]| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let root = (mean + f64::from(self.h.rms_eps)).sqrt();
            x.iter().zip(&scale).map(|(x, s)| x / root * s).collect::<Vec<_>>()
        };
        x.chunks_exact(scale.len()).flat_map(group).collect()
    }

    /// `w · x`, with the bias where there is one.
    fn linear(&self, name: &str, x: &[f64]) -> Option<Vec<f64>> {
        let mut y = product(&weights(self.gguf, &format!("{name}.weight"))?, x);
        if let Some(bias) = weights(self.gguf, &format!("{name}.bias")) {
            add(&mut y, &bias);
        }
        Some(y)
    }

    fn rotate(&self, x: &mut [f64], position: usize, layer: usize) {
        let h = &self.h;
        let windowed = h.variant.window.as_ref().filter(|window| window.layers[layer]);
        let own = windowed.and_then(|window| window.rope);
        let (base, scale) = own.unwrap_or((h.rope_base, h.rope_scale));
        let factors = weights(self.gguf, "rope_freqs.weight").filter(|_| own.is_none());
        let half = h.rope_dims / 2;
        for head in x.chunks_exact_mut(h.head_dim) {
            for i in 0..half {
                let divisor = f64::from(scale) * factors.as_ref().map_or(1.0, |factors| factors[i]);
                let frequency = f64::from(base).powf(-2.0 * i as f64 / h.rope_dims as f64) / divisor;
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let llama = matches!(h.architecture, Architecture::Llama | Architecture::Mistral3);
                let (a, b) = if llama { (2 * i, 2 * i + 1) } else { (i, i + half) };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
    }

    /// Queries, keys and values of a row.
    fn qkv(&self, layer: usize, x: &[f64]) -> [Vec<f64>; 3] {
        let name = |part: &str| format!("blk.{layer}.attn_{part}");
        let (q, kv) = (self.h.heads * self.h.head_dim, self.h.kv_heads * self.h.head_dim);
        match self.linear(&name("qkv"), x) {
            Some(all) => [all[..q].to_vec(), all[q..q + kv].to_vec(), all[q + kv..].to_vec()],
            None => ["q", "k", "v"].map(|part| self.linear(&name(part), x).unwrap()),
        }
    }

    fn attention(&self, layer: usize, rows: &Rows) -> Rows {
        let h = &self.h;
        let (mut qs, mut ks, mut vs) = (Rows::new(), Rows::new(), Rows::new());
        for (position, x) in rows.iter().enumerate() {
            let [q, k, v] = self.qkv(layer, x);
            let mut q = self.norm(&format!("blk.{layer}.attn_q_norm"), &q);
            let mut k = self.norm(&format!("blk.{layer}.attn_k_norm"), &k);
            self.rotate(&mut q, position, layer);
            self.rotate(&mut k, position, layer);
            qs.push(q);
            ks.push(k);
            vs.push(v);
        }
        let window = h.variant.window.as_ref().filter(|window| window.layers[layer]).map_or(usize::MAX, |w| w.size);
        let scale = h.variant.attention_scale.map_or(1.0 / (h.head_dim as f64).sqrt(), f64::from);
        let attend = |(position, q): (usize, &Vec<f64>)| {
            let seen = (position + 1).saturating_sub(window)..position + 1;
            let head = |(n, q): (usize, &[f64])| {
                let at = n / (h.heads / h.kv_heads) * h.head_dim;
                let part = |row: &[f64]| row[at..at + h.head_dim].to_vec();
                let score = |j: usize| {
                    let score = product(&part(&ks[j]), q)[0] * scale;
                    h.variant.attention_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let shares = softmax(&seen.clone().map(score).collect::<Vec<_>>());
                let mut out = vec![0.0; h.head_dim];
                for (share, j) in shares.iter().zip(seen.clone()) {
                    add(&mut out, &part(&vs[j]).iter().map(|v| v * share).collect::<Vec<_>>());
                }
                out
            };
            let mixed: Vec<f64> = q.chunks_exact(h.head_dim).enumerate().flat_map(head).collect();
            self.linear(&format!("blk.{layer}.attn_output"), &mixed).unwrap()
        };
        qs.iter().enumerate().map(attend).collect()
    }

    fn activation(&self, x: f64) -> f64 {
        if self.gemma() {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x / 2.0 * (1.0 + inner.tanh())
        } else {
            x / (1.0 + (-x).exp())
        }
    }

    fn gated(&self, gate: &[f64], up: &[f64]) -> Vec<f64> {
        gate.iter().zip(up).map(|(gate, up)| self.activation(*gate) * up).collect()
    }

    fn feed_forward(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}");
        let Some(experts) = self.h.variant.experts else {
            let up = self.linear(&name("up"), x).unwrap();
            let inner = match self.linear(&name("gate"), x) {
                Some(gate) => self.gated(&gate, &up),
                None => self.gated(&up[..up.len() / 2], &up[up.len() / 2..]),
            };
            return self.linear(&name("down"), &inner).unwrap();
        };
        let logits = self.linear(&name("gate_inp"), x).unwrap();
        let mut chosen: Vec<usize> = (0..experts.count).collect();
        chosen.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        chosen.truncate(experts.used);
        let shares = softmax(&chosen.iter().map(|expert| logits[*expert]).collect::<Vec<_>>());
        let mut out = vec![0.0; x.len()];
        for (expert, share) in chosen.into_iter().zip(shares) {
            let part = |part: &str, x: &[f64]| {
                let all = weights(self.gguf, &format!("blk.{layer}.ffn_{part}_exps.weight")).unwrap();
                product(all.chunks_exact(all.len() / experts.count).nth(expert).unwrap(), x)
            };
            let y = part("down", &self.gated(&part("gate", x), &part("up", x)));
            add(&mut out, &y.iter().map(|y| y * share).collect::<Vec<_>>());
        }
        out
    }

    /// The logits after the last of these tokens.
    pub fn logits(&self, ids: &[u32]) -> Vec<f64> {
        let h = &self.h;
        let table = weights(self.gguf, "token_embd.weight").unwrap();
        let scale = if self.gemma() { (h.hidden as f64).sqrt() } else { 1.0 };
        let embed = |id: &u32| table[*id as usize * h.hidden..][..h.hidden].iter().map(|x| x * scale).collect();
        let mut rows: Rows = ids.iter().map(embed).collect();
        for layer in 0..h.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}_norm");
            let normed = rows.iter().map(|x| self.norm(&name("attn"), x)).collect();
            for (x, y) in rows.iter_mut().zip(self.attention(layer, &normed)) {
                add(x, &self.norm(&name("post_attention"), &y));
                let y = self.feed_forward(layer, &self.norm(&name("ffn"), x));
                add(x, &self.norm(&name("post_ffw"), &y));
            }
        }
        let last = self.norm("output_norm", rows.last().unwrap());
        let output = weights(self.gguf, "output.weight").unwrap_or(table);
        let capped = |logit: f64| match h.variant.logit_cap {
            Some(cap) => f64::from(cap) * (logit / f64::from(cap)).tanh(),
            None => logit,
        };
        product(&output, &last).into_iter().map(capped).collect()
    }
}
