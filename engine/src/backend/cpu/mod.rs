//! The exact kernels: the same bits whatever the batch, the chunking, the threads and the instruction set.
//!
//! Weights stay quantised, repacked so that a lane holds an output row; activations are quantised in blocks for the
//! products with quantised weights. The definition of every operation stands beside its kernel in `quelea_kernels`.

mod arena;

use std::sync::Arc;

use arena::Arena;
pub use arena::Rows;
use quelea_kernels::{
    Forms, Isa, Pool,
    attention::{self, AttendJob, AttendShape, KvFormat, KvPage},
    float,
    product::{self, PackError, PackedMatrix, WeightType},
};

use super::{Activation, AttentionShape, Backend, Pairing, Rotation, SUPPORTED, Sequence};
use crate::{
    BackendError, KV_PAGE_ROWS, LoadError,
    bf16::round_to_bf16,
    gguf::{DType, TensorView},
};

const _: () = assert!(KV_PAGE_ROWS == attention::PAGE, "a page is a page, here and in the kernels");

/// The exact kernels on this machine.
#[derive(Clone)]
pub struct Cpu {
    isa: Isa,
    pool: Arc<Pool>,
    kv: KvFormat,
    arena: Arc<Arena>,
}

impl Cpu {
    /// Computes with this instruction set, which the machine must have, on these threads.
    pub fn new(isa: Isa, pool: Arc<Pool>, kv: KvFormat) -> Self {
        Self { isa, pool, kv, arena: Arc::default() }
    }

    /// As many rows as `like`, of `width` values, not yet written.
    fn rows(&self, like: &Rows, width: usize) -> Rows {
        self.arena.rows(like.count(), width)
    }
}

/// The numeric profile of a KV format.
pub(crate) fn profile(kv: KvFormat) -> &'static str {
    match kv {
        KvFormat::F32 => "exact",
        KvFormat::F16 => "exact-kv-f16",
        KvFormat::Q8 => "exact-kv-q8",
    }
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

/// The kernels' name of a tensor's type.
pub(super) fn supported(tensor: &TensorView<'_>) -> Result<WeightType, LoadError> {
    weight_type(tensor.dtype).ok_or_else(|| LoadError::UnsupportedType {
        tensor: tensor.name.to_owned(),
        dtype: tensor.dtype,
        supported: SUPPORTED,
    })
}

/// Shapes that do not fit: a mistake in a model's definition, not in its file.
fn shapes(what: &str, found: usize, expected: usize) -> BackendError {
    BackendError(format!("{what}: {found} where {expected} were expected"))
}

fn same(what: &str, found: usize, expected: usize) -> Result<(), BackendError> {
    if found == expected { Ok(()) } else { Err(shapes(what, found, expected)) }
}

impl Backend for Cpu {
    type Rows = Rows;
    type Matrix = PackedMatrix;
    type Vector = Vec<f32>;
    type Page = KvPage;

    fn profile(&self) -> &'static str {
        profile(self.kv)
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn kv_row_bytes(&self, shape: &AttentionShape) -> u64 {
        let page = self.kv.page_bytes(shape.kv_heads, shape.head_dim).unwrap_or(usize::MAX);
        (page as u64).div_ceil(KV_PAGE_ROWS as u64)
    }

    fn load_matrix(&self, tensor: &TensorView<'_>) -> Result<PackedMatrix, LoadError> {
        let ty = supported(tensor)?;
        let [outputs, inputs] = *tensor.shape else {
            return Err(BackendError(format!("tensor '{}' is not a matrix", tensor.name)).into());
        };
        let packed = PackedMatrix::pack(ty, outputs, inputs, tensor.data, &self.pool);
        let packed = packed.map_err(|error| match error {
            PackError::NotFinite { row } => LoadError::NotFinite { tensor: tensor.name.to_owned(), row },
            other => BackendError(format!("tensor '{}': {other}", tensor.name)).into(),
        })?;
        // The copy is what is used from now on; the file's pages would count as memory twice.
        tensor.forget_pages();
        Ok(packed)
    }

    fn load_vector(&self, tensor: &TensorView<'_>) -> Result<Vec<f32>, LoadError> {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        product::dequantize(supported(tensor)?, tensor.data, &mut values)
            .map_err(|error| BackendError(format!("tensor '{}': {error}", tensor.name)))?;
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(LoadError::NotFinite { tensor: tensor.name.to_owned(), row: 0 })
        }
    }

    fn upload(&self, values: &[f32], width: usize) -> Result<Rows, BackendError> {
        let mut rows = self.arena.rows(values.len().checked_div(width).unwrap_or(0), width);
        same("values of whole rows", values.len(), rows.values().len())?;
        rows.values_mut().copy_from_slice(values);
        Ok(rows)
    }

    fn download(&self, rows: Rows) -> Result<Vec<f32>, BackendError> {
        Ok(rows.values().to_vec())
    }

    fn lookup(&self, table: &PackedMatrix, ids: &[u32]) -> Result<Rows, BackendError> {
        let width = table.inputs();
        let mut rows = self.arena.rows(ids.len(), width);
        for (row, id) in rows.values_mut().chunks_exact_mut(width).zip(ids) {
            let id = usize::try_from(*id).unwrap_or(usize::MAX);
            if id >= table.outputs() {
                return Err(shapes("row of the table", id, table.outputs()));
            }
            table.row(id, row);
        }
        Ok(rows)
    }

    fn matmul<const N: usize>(&self, x: &Rows, w: [&PackedMatrix; N]) -> Result<[Rows; N], BackendError> {
        for matrix in w {
            same("inputs of a product", x.width(), matrix.inputs())?;
        }
        let mut out = w.map(|matrix| self.rows(x, matrix.outputs()));
        let mut activations = self.arena.activations();
        let forms = Forms::of(w.map(PackedMatrix::ty));
        activations.set(self.isa, &self.pool, x.values(), x.width(), forms);
        let mut products: Vec<_> = w.into_iter().zip(out.iter_mut().map(Rows::values_mut)).collect();
        product::matmul(self.isa, &self.pool, &activations, &mut products);
        self.arena.keep_activations(activations);
        Ok(out)
    }

    fn add_bias(&self, mut x: Rows, bias: &Vec<f32>) -> Result<Rows, BackendError> {
        same("values of a bias", bias.len(), x.width())?;
        float::add_bias(self.isa, x.values_mut(), bias);
        Ok(x)
    }

    fn add(&self, mut x: Rows, y: &Rows) -> Result<Rows, BackendError> {
        same("values of a sum", y.values().len(), x.values().len())?;
        float::add(self.isa, x.values_mut(), y.values());
        Ok(x)
    }

    fn scale(&self, mut x: Rows, by: f32) -> Result<Rows, BackendError> {
        float::scale(self.isa, x.values_mut(), by);
        Ok(x)
    }

    fn soft_cap(&self, mut x: Rows, cap: f32) -> Result<Rows, BackendError> {
        float::softcap(self.isa, &self.pool, x.values_mut(), cap);
        Ok(x)
    }

    fn rms_norm(&self, x: &Rows, scale: &Vec<f32>, eps: f32) -> Result<Rows, BackendError> {
        if scale.is_empty() || !x.width().is_multiple_of(scale.len()) {
            return Err(shapes("values of a norm", scale.len(), x.width()));
        }
        let mut out = self.rows(x, x.width());
        float::rms_norm(self.isa, &self.pool, x.values(), scale, eps, out.values_mut());
        Ok(out)
    }

    fn rotate(&self, mut x: Rows, rotation: &Rotation) -> Result<Rows, BackendError> {
        let (rows, width) = (x.count(), x.width());
        let Rotation { head_dim, dims, .. } = *rotation;
        same("cosines of a rotation", rotation.cos.len(), rows.saturating_mul(dims / 2))?;
        same("sines of a rotation", rotation.sin.len(), rotation.cos.len())?;
        if head_dim == 0 || dims > head_dim || !width.is_multiple_of(head_dim) {
            return Err(shapes("width of a head", head_dim, width));
        }
        let pairing = match rotation.pairing {
            Pairing::Neighbours => float::Pairing::Neighbours,
            Pairing::Halves => float::Pairing::Halves,
        };
        float::rotate(self.isa, x.values_mut(), rows, width, head_dim, dims, pairing, &rotation.cos, &rotation.sin);
        Ok(x)
    }

    fn gate(&self, mut gate: Rows, up: &Rows, activation: Activation) -> Result<Rows, BackendError> {
        same("values behind a gate", up.values().len(), gate.values().len())?;
        match activation {
            Activation::Silu => float::silu_mul(self.isa, &self.pool, gate.values_mut(), up.values()),
            Activation::GeluTanh => float::gelu_mul(self.isa, &self.pool, gate.values_mut(), up.values()),
        }
        Ok(gate)
    }

    fn round_bf16(&self, mut x: Rows) -> Result<Rows, BackendError> {
        round_to_bf16(x.values_mut());
        Ok(x)
    }

    fn gather(&self, x: &Rows, rows: &[u32]) -> Result<Rows, BackendError> {
        let mut out = self.arena.rows(rows.len(), x.width());
        for (to, from) in out.values_mut().chunks_exact_mut(x.width()).zip(rows) {
            let from = x.row(usize::try_from(*from).unwrap_or(usize::MAX));
            same("values of a row", from.len(), to.len())?;
            to.copy_from_slice(from);
        }
        Ok(out)
    }

    fn add_rows(&self, mut x: Rows, y: &Rows, rows: &[u32], weights: &[f32]) -> Result<Rows, BackendError> {
        same("values of rows", y.width(), x.width())?;
        let width = x.width();
        for (i, (to, weight)) in rows.iter().zip(weights).enumerate() {
            let start = usize::try_from(*to).unwrap_or(usize::MAX).saturating_mul(width);
            let to = x.values_mut().get_mut(start..start.saturating_add(width)).unwrap_or_default();
            let from = y.row(i);
            same("values of a row", from.len(), to.len())?;
            float::add_scaled(self.isa, to, from, *weight);
        }
        Ok(x)
    }

    fn attend(
        &self,
        q: Rows,
        k: Rows,
        v: Rows,
        layer: usize,
        sequences: &mut [Sequence<'_, KvPage>],
        shape: &AttentionShape,
    ) -> Result<Rows, BackendError> {
        let AttentionShape { heads, kv_heads, head_dim, scale, soft_cap, window } = *shape;
        same("width of queries", q.width(), heads.saturating_mul(head_dim))?;
        same("width of keys", k.width(), kv_heads.saturating_mul(head_dim))?;
        same("width of values", v.width(), k.width())?;
        same("rows of a batch", sequences.iter().map(|sequence| sequence.rows).sum(), q.count())?;
        same("rows of keys", k.count(), q.count())?;
        same("rows of values", v.count(), q.count())?;

        let mut first = 0usize;
        for Sequence { pos, rows, cache } in sequences.iter_mut() {
            cache.layer(layer)?.write(
                *pos,
                *rows,
                || Ok(KvPage::new(self.kv, kv_heads, head_dim)),
                |page, slot, row, n| {
                    for i in 0..n {
                        let row = first.saturating_add(row).saturating_add(i);
                        page.write(self.isa, slot.saturating_add(i), k.row(row), v.row(row));
                    }
                    Ok(())
                },
            )?;
            first = first.saturating_add(*rows);
        }
        let mut jobs = Vec::with_capacity(sequences.len());
        for Sequence { pos, rows, cache } in sequences.iter_mut() {
            jobs.push(AttendJob { pages: cache.layer(layer)?.pages(), position: *pos, rows: *rows });
        }
        let shape = AttendShape { heads, kv_heads, head_dim, scale, softcap: soft_cap, window };
        let mut out = self.rows(&q, q.width());
        attention::attend(self.isa, &self.pool, &shape, &jobs, q.values(), out.values_mut());
        Ok(out)
    }
}
