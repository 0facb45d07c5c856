//! Attention over pages of keys and values.

use candle_core::{D, Device, Tensor};

use crate::{
    BackendError,
    backend::{AttentionShape, Sequence, kv::PageTable},
};

/// Keys and values of up to a page of positions, `[kv_heads, positions, head_dim]` each. Never changed in place: a
/// clone may share them.
#[derive(Debug, Clone)]
pub struct KvPage {
    held: Option<(Tensor, Tensor)>,
}

impl KvPage {
    pub(super) fn empty() -> Self {
        Self { held: None }
    }

    /// Replaces everything from `slot` on.
    fn write(&mut self, slot: usize, k: &Tensor, v: &Tensor) -> Result<(), BackendError> {
        let joined = match &self.held {
            Some((keys, values)) if slot > 0 => {
                let join = |old: &Tensor, new: &Tensor| Tensor::cat(&[&old.narrow(1, 0, slot)?, new], 1);
                (join(keys, k)?, join(values, v)?)
            }
            _ => (k.contiguous()?, v.contiguous()?),
        };
        self.held = Some(joined);
        Ok(())
    }
}

/// See [`crate::backend::Backend::attend`].
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    sequences: &mut [Sequence<'_, KvPage>],
    shape: &AttentionShape,
) -> Result<Tensor, BackendError> {
    let mut out = Vec::with_capacity(sequences.len());
    let mut first = 0usize;
    for Sequence { pos, rows, cache } in sequences {
        let part = |x: &Tensor| x.narrow(0, first, *rows);
        out.push(one(&part(q)?, &part(k)?, &part(v)?, *pos, cache.layer(layer)?, shape)?);
        first = first.saturating_add(*rows);
    }
    Ok(Tensor::cat(&out, 0)?)
}

fn one(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    pos: usize,
    pages: &mut PageTable<KvPage>,
    shape: &AttentionShape,
) -> Result<Tensor, BackendError> {
    let AttentionShape { heads, kv_heads, head_dim, scale, soft_cap, window } = *shape;
    let rows = q.dim(0)?;
    let group = heads.checked_div(kv_heads).unwrap_or(0);
    let by_head = |x: &Tensor| x.reshape((rows, kv_heads, head_dim))?.transpose(0, 1)?.contiguous();
    let (k, v) = (by_head(k)?, by_head(v)?);
    pages.write(
        pos,
        rows,
        || Ok(KvPage::empty()),
        |page, slot, row, n| page.write(slot, &k.narrow(1, row, n)?, &v.narrow(1, row, n)?),
    )?;
    let held: Vec<(Tensor, Tensor)> = pages.pages().iter().filter_map(|page| page.held.clone()).collect();
    let (keys, values): (Vec<_>, Vec<_>) = held.into_iter().unzip();
    let (keys, values) = (Tensor::cat(&keys, 1)?, Tensor::cat(&values, 1)?);

    // All query heads of one key head stand below each other: [kv_heads, group * rows, head_dim].
    let q = q.reshape((rows, kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?;
    let q = q.contiguous()?.reshape((kv_heads, group.saturating_mul(rows), head_dim))?;
    let mut scores = (q.matmul(&keys.t()?)? * f64::from(scale))?;
    if let Some(cap) = soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    if rows > 1 || window.is_some() {
        scores = scores.broadcast_add(&mask(pos, rows, group, window, scores.device())?)?;
    }
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    let out = weights.matmul(&values)?.reshape((kv_heads, group, rows, head_dim))?;
    Ok(out.permute((2, 0, 1, 3))?.contiguous()?.reshape((rows, heads.saturating_mul(head_dim)))?)
}

/// `[group * rows, before + rows]`: zero where row `r` may look (up to `before + r`, and not past its window), else
/// minus infinity.
fn mask(
    before: usize,
    rows: usize,
    group: usize,
    window: Option<usize>,
    device: &Device,
) -> Result<Tensor, BackendError> {
    let width = before.saturating_add(rows);
    let mut mask = Vec::with_capacity(rows.saturating_mul(width));
    for row in 0..rows {
        let last = before.saturating_add(row);
        let first = window.map_or(0, |window| last.saturating_add(1).saturating_sub(window));
        let seen = |column| if (first..=last).contains(&column) { 0f32 } else { f32::NEG_INFINITY };
        mask.extend((0..width).map(seen));
    }
    let mask = Tensor::from_vec(mask, (rows, width), device)?;
    Ok(mask.repeat((group, 1))?)
}
