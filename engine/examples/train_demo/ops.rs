//! The operations of the model that training needs, each with its backward pass.
//!
//! candle's own fused normalisation and rotary embedding have no backward pass, and the same things put together
//! from its elementary operations spend more time in passes over memory than in products. All tensors are f32,
//! contiguous and on the CPU; the loops are plain and single-threaded: the trainer runs one half of a batch per thread.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Floats per accumulator row of [`dot`]: one AVX-512 register, two of AVX2.
const LANES: usize = 16;

fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a training operation was given a tensor that is not contiguous"),
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let tail = a.len() / LANES * LANES;
    sums.iter().sum::<f32>() + a[tail..].iter().zip(&b[tail..]).map(|(a, b)| a * b).sum::<f32>()
}

fn add_scaled(to: &mut [f32], by: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += by * from;
    }
}

/// `x / rms(x) * weight` over the last dimension; `x` is `[…, n]`, the weight `[n]`.
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    fn inverse_rms(&self, row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "train-rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (view(s1, l1)?, view(s2, l2)?);
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(weight.len()) {
            let inverse = self.inverse_rms(row);
            out.extend(row.iter().zip(weight).map(|(x, w)| x * inverse * w));
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, gs) = (values(x)?, values(weight)?, values(grad)?);
        let n = ws.len();
        let mut dx = vec![0f32; xs.len()];
        let mut dw = vec![0f32; n];
        let mut scaled = vec![0f32; n];
        for ((row, g), d) in xs.chunks_exact(n).zip(gs.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let inverse = self.inverse_rms(row);
            for i in 0..n {
                scaled[i] = g[i] * ws[i];
                dw[i] += g[i] * row[i] * inverse;
            }
            let pull = dot(&scaled, row) * inverse * inverse / n as f32;
            for i in 0..n {
                d[i] = inverse * (scaled[i] - row[i] * pull);
            }
        }
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(Tensor::from_vec(dw, n, x.device())?)))
    }
}

/// Rotary embedding in the NEOX layout (dimension `i` turns with `i + d/2`) on `[batch, time, heads, d]`.
pub struct Rope {
    /// Frequency base.
    pub base: f32,
    /// 1 turns forward, −1 back: the backward pass of a rotation.
    pub sign: f32,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "train-rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = view(storage, layout)?;
        let (_, time, heads, d) = layout.shape().dims4()?;
        let half = d / 2;
        let angles: Vec<(f32, f32)> = (0..time * half)
            .map(|i| {
                let frequency = f64::from(self.base).powf(-((i % half) as f64) / half as f64);
                let (sin, cos) = ((i / half) as f64 * frequency).sin_cos();
                (sin as f32 * self.sign, cos as f32)
            })
            .collect();
        let mut out = vec![0f32; x.len()];
        for (head, (x, out)) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
            let angles = &angles[head / heads % time * half..][..half];
            for (i, (sin, cos)) in angles.iter().enumerate() {
                out[i] = x[i] * cos - x[i + half] * sin;
                out[i + half] = x[i + half] * cos + x[i] * sin;
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&Rope { base: self.base, sign: -self.sign })?))
    }
}

/// `silu(gate) * up`, element by element.
pub struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "train-swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = view(s1, l1)?.iter().zip(view(s2, l2)?).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut gs, mut us, ds) = (values(gate)?, values(up)?, values(grad)?);
        for ((g, u), d) in gs.iter_mut().zip(&mut us).zip(&ds) {
            let sigmoid = 1.0 / (1.0 + (-*g).exp());
            let silu = *g * sigmoid;
            let slope = sigmoid * (1.0 + *g * (1.0 - sigmoid));
            (*g, *u) = (d * *u * slope, d * silu);
        }
        Ok((
            Some(Tensor::from_vec(gs, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(us, up.shape(), up.device())?),
        ))
    }
}

/// Causal grouped-query attention on q `[batch, time, heads, d]`, k and v `[batch, time, kv heads, d]`; the result has
/// the shape of q. Rows are padded at the end, so that the causal mask is the only one needed.
pub struct Attention;

struct Heads {
    batch: usize,
    time: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
}

impl Heads {
    fn new(q: &Shape, k: &Shape) -> Result<Self> {
        let (batch, time, heads, d) = q.dims4()?;
        let (_, _, kv_heads, _) = k.dims4()?;
        Ok(Self { batch, time, heads, kv_heads, d })
    }

    fn q_at(&self, b: usize, t: usize, h: usize) -> std::ops::Range<usize> {
        let start = ((b * self.time + t) * self.heads + h) * self.d;
        start..start + self.d
    }

    fn kv_at(&self, b: usize, t: usize, h: usize) -> std::ops::Range<usize> {
        let start = ((b * self.time + t) * self.kv_heads + h * self.kv_heads / self.heads) * self.d;
        start..start + self.d
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// Calls `each(batch, time, head)` for every query.
    fn queries(&self, mut each: impl FnMut(usize, usize, usize)) {
        for b in 0..self.batch {
            for t in 0..self.time {
                for h in 0..self.heads {
                    each(b, t, h);
                }
            }
        }
    }

    /// The attention weights of one query over keys `0..=t`, into `weights`.
    fn weigh(&self, (b, t, h): (usize, usize, usize), q: &[f32], k: &[f32], weights: &mut Vec<f32>) {
        let query = &q[self.q_at(b, t, h)];
        weights.clear();
        weights.extend((0..=t).map(|s| dot(query, &k[self.kv_at(b, s, h)]) * self.scale()));
        let top = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|w| *w = (*w - top).exp());
        let total: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= total);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "train-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (view(s1, l1)?, view(s2, l2)?, view(s3, l3)?);
        let heads = Heads::new(l1.shape(), l2.shape())?;
        let mut out = vec![0f32; q.len()];
        let mut weights = Vec::with_capacity(heads.time);
        heads.queries(|b, t, h| {
            heads.weigh((b, t, h), q, k, &mut weights);
            let out = &mut out[heads.q_at(b, t, h)];
            for (s, weight) in weights.iter().enumerate() {
                add_scaled(out, *weight, &v[heads.kv_at(b, s, h)]);
            }
        });
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let heads = Heads::new(q.shape(), k.shape())?;
        let (qs, ks, vs, os, gs) = (values(q)?, values(k)?, values(v)?, values(out)?, values(grad)?);
        let (mut dq, mut dk, mut dv) = (vec![0f32; qs.len()], vec![0f32; ks.len()], vec![0f32; vs.len()]);
        let mut weights = Vec::with_capacity(heads.time);
        heads.queries(|b, t, h| {
            heads.weigh((b, t, h), &qs, &ks, &mut weights);
            let at = heads.q_at(b, t, h);
            let g = &gs[at.clone()];
            let mean = dot(g, &os[at.clone()]);
            for (s, weight) in weights.iter().enumerate() {
                let kv = heads.kv_at(b, s, h);
                let slope = weight * (dot(g, &vs[kv.clone()]) - mean) * heads.scale();
                add_scaled(&mut dv[kv.clone()], *weight, g);
                add_scaled(&mut dk[kv.clone()], slope, &qs[at.clone()]);
                add_scaled(&mut dq[at.clone()], slope, &ks[kv]);
            }
        });
        let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

/// The summed cross entropy of logits `[rows, vocabulary]` against `targets`, times `scale`: a scalar.
pub struct CrossEntropy {
    /// One token id per row.
    pub targets: Vec<u32>,
    /// One over the number of targets of the whole batch.
    pub scale: f32,
}

impl CrossEntropy {
    /// The largest logit of a row, and the sum of exponentials relative to it.
    fn partition(row: &[f32]) -> (f32, f32) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (top, row.iter().map(|x| (x - top).exp()).sum())
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "train-cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, vocabulary) = layout.shape().dims2()?;
        let rows = view(storage, layout)?.chunks_exact(vocabulary);
        let mut loss = 0f32;
        for (row, target) in rows.zip(&self.targets) {
            let (top, sum) = Self::partition(row);
            loss += sum.ln() + top - row[*target as usize];
        }
        Ok((CpuStorage::F32(vec![loss * self.scale]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let by = grad.to_scalar::<f32>()? * self.scale;
        let (_, vocabulary) = logits.dims2()?;
        let mut xs = values(logits)?;
        for (row, target) in xs.chunks_exact_mut(vocabulary).zip(&self.targets) {
            let (top, sum) = Self::partition(row);
            row.iter_mut().for_each(|x| *x = (*x - top).exp() / sum * by);
            row[*target as usize] -= by;
        }
        Ok(Some(Tensor::from_vec(xs, logits.shape(), logits.device())?))
    }
}
