//! Attention over a growing cache.

use candle_core::{D, DType, Device, Tensor};

use crate::{
    BackendError, KV_PAGE_ROWS,
    backend::{AttentionShape, LayerCache},
};

/// Keys and values of one layer of one session, `[kv_heads, capacity, head_dim]` each, grown by
/// doubling.
pub struct KvCache {
    shape: AttentionShape,
    /// Most rows there will be.
    max_rows: usize,
    device: Device,
    held: Option<(Tensor, Tensor)>,
    len: usize,
}

impl KvCache {
    pub(super) fn new(shape: AttentionShape, max_rows: usize, device: Device) -> Self {
        Self { shape, max_rows, device, held: None, len: 0 }
    }

    /// Appends `k` and `v`, `[kv_heads, rows, head_dim]`, and returns views of all keys and values.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), BackendError> {
        let rows = k.dim(1)?;
        let end = self.len.saturating_add(rows);
        // What is held stays held until the rows are in: a failure must not lose those before.
        let (keys, values) = match &self.held {
            Some((keys, values)) if keys.dim(1)? >= end => (keys.clone(), values.clone()),
            held => self.grow(held.as_ref(), end)?,
        };
        keys.slice_set(k, 1, self.len)?;
        values.slice_set(v, 1, self.len)?;
        let views = (keys.narrow(1, 0, end)?, values.narrow(1, 0, end)?);
        self.held = Some((keys, values));
        self.len = end;
        Ok(views)
    }

    fn grow(&self, held: Option<&(Tensor, Tensor)>, rows: usize) -> Result<(Tensor, Tensor), BackendError> {
        let doubled = self.len.saturating_mul(2).min(self.max_rows);
        let capacity = rows.max(doubled).next_multiple_of(KV_PAGE_ROWS);
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let empty = || Tensor::zeros((kv_heads, capacity, head_dim), DType::F32, &self.device);
        let (keys, values) = (empty()?, empty()?);
        if let Some((old_keys, old_values)) = held
            && self.len > 0
        {
            keys.slice_set(&old_keys.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
            values.slice_set(&old_values.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
        }
        Ok((keys, values))
    }
}

impl LayerCache for KvCache {
    fn truncate(&mut self, rows: usize) {
        self.len = self.len.min(rows);
        if self.len == 0 {
            self.held = None;
        }
    }
}

/// See [`crate::backend::Backend::attend`].
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cache: &mut KvCache,
    shape: &AttentionShape,
) -> Result<Tensor, BackendError> {
    let AttentionShape { heads, kv_heads, head_dim } = *shape;
    let rows = q.dim(0)?;
    let group = heads.checked_div(kv_heads).unwrap_or(0);
    let by_head = |x: &Tensor| x.reshape((rows, kv_heads, head_dim))?.transpose(0, 1)?.contiguous();

    let before = cache.len;
    let (keys, values) = cache.append(&by_head(k)?, &by_head(v)?)?;
    // All query heads of one key head stand below each other: [kv_heads, group * rows, head_dim].
    let q = q.reshape((rows, kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?;
    let q = q.contiguous()?.reshape((kv_heads, group.saturating_mul(rows), head_dim))?;

    #[allow(clippy::cast_precision_loss, reason = "a head is a few hundred wide")]
    let scale = 1.0 / (head_dim as f64).sqrt();
    let mut scores = (q.matmul(&keys.t()?)? * scale)?;
    if rows > 1 {
        scores = scores.broadcast_add(&causal_mask(before, rows, group, scores.device())?)?;
    }
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    let out = weights.matmul(&values)?.reshape((kv_heads, group, rows, head_dim))?;
    Ok(out.permute((2, 0, 1, 3))?.contiguous()?.reshape((rows, heads.saturating_mul(head_dim)))?)
}

/// `[group * rows, before + rows]`: zero where row `r` may look (up to `before + r`), else minus infinity.
fn causal_mask(before: usize, rows: usize, group: usize, device: &Device) -> Result<Tensor, BackendError> {
    let width = before.saturating_add(rows);
    let mut mask = Vec::with_capacity(rows.saturating_mul(width));
    for row in 0..rows {
        let last = before.saturating_add(row);
        mask.extend((0..width).map(|column| if column <= last { 0f32 } else { f32::NEG_INFINITY }));
    }
    let mask = Tensor::from_vec(mask, (rows, width), device)?;
    Ok(mask.repeat((group, 1))?)
}
