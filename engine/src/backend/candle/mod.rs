//! The backend on candle tensors, on the CPU or, in builds with the feature `cuda` or `metal`, on a GPU.
//!
//! Its numbers depend on how many rows are computed at once (candle's products and reductions choose their order by the
//! batch), so sessions are never batched together and all callers cut prompts the same way: see
//! [`crate::PREFILL_CHUNK`]. They do not depend on where the layers are cut.

mod attention;
mod matrix;
#[cfg(test)]
mod tests;

use candle_core::{D, DType, Device, Tensor};

use self::{attention::KvPage, matrix::Matrix};
use super::{Activation, AttentionShape, Backend, Pairing, Rotation, Sequence};
use crate::{BackendError, LoadError, gguf::TensorView};

/// Candle on a device.
#[derive(Debug, Clone)]
pub struct Candle {
    device: Device,
    profile: &'static str,
}

impl Candle {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, profile: "candle-cpu-f32" }
    }

    /// The CUDA device of this number.
    ///
    /// # Errors
    /// When the build has no CUDA support or the machine no such device.
    pub fn cuda(number: usize) -> Result<Self, BackendError> {
        if !cfg!(feature = "cuda") {
            return Err(without("CUDA", "cuda"));
        }
        Ok(Self { device: Device::new_cuda(number)?, profile: "candle-cuda-f32" })
    }

    /// The Metal device of this number.
    ///
    /// # Errors
    /// When the build has no Metal support or the machine no such device.
    pub fn metal(number: usize) -> Result<Self, BackendError> {
        if !cfg!(feature = "metal") {
            return Err(without("Metal", "metal"));
        }
        Ok(Self { device: Device::new_metal(number)?, profile: "candle-metal-f32" })
    }
}

fn without(name: &str, feature: &str) -> BackendError {
    BackendError(format!("this build has no {name} support; build with `--features {feature}`"))
}

impl From<candle_core::Error> for BackendError {
    fn from(error: candle_core::Error) -> Self {
        Self(error.to_string())
    }
}

/// A vector's values as `f32`.
fn to_f32(tensor: &TensorView<'_>, device: &Device) -> Result<Tensor, LoadError> {
    matrix::quantised(tensor, device)?.dequantize(device).map_err(|e| BackendError::from(e).into())
}

impl Backend for Candle {
    type Rows = Tensor;
    type Matrix = Matrix;
    type Vector = Tensor;
    type Page = KvPage;

    fn profile(&self) -> &'static str {
        self.profile
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn kv_row_bytes(&self, shape: &AttentionShape) -> u64 {
        // A key and a value of f32.
        (shape.kv_heads as u64).saturating_mul(shape.head_dim as u64).saturating_mul(2 * size_of::<f32>() as u64)
    }

    fn load_matrix(&self, tensor: &TensorView<'_>) -> Result<Matrix, LoadError> {
        Matrix::load(tensor, &self.device)
    }

    fn load_vector(&self, tensor: &TensorView<'_>) -> Result<Tensor, LoadError> {
        to_f32(tensor, &self.device)
    }

    fn upload(&self, values: &[f32], width: usize) -> Result<Tensor, BackendError> {
        let rows = values.len().checked_div(width).unwrap_or(0);
        Ok(Tensor::from_slice(values, (rows, width), &self.device)?)
    }

    fn download(&self, rows: Tensor) -> Result<Vec<f32>, BackendError> {
        Ok(rows.flatten_all()?.to_vec1()?)
    }

    fn lookup(&self, table: &Matrix, ids: &[u32]) -> Result<Tensor, BackendError> {
        table.lookup(ids, &self.device)
    }

    fn matmul<const N: usize>(&self, x: &Tensor, w: [&Matrix; N]) -> Result<[Tensor; N], BackendError> {
        let products = w.into_iter().map(|w| w.product(x)).collect::<Result<Vec<_>, _>>()?;
        products.try_into().map_err(|_| BackendError("a product is missing".to_owned()))
    }

    fn add_bias(&self, x: Tensor, bias: &Tensor) -> Result<Tensor, BackendError> {
        Ok(x.broadcast_add(bias)?)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor, BackendError> {
        Ok(x.add(y)?)
    }

    fn scale(&self, x: Tensor, by: f32) -> Result<Tensor, BackendError> {
        Ok((x * f64::from(by))?)
    }

    fn soft_cap(&self, x: Tensor, cap: f32) -> Result<Tensor, BackendError> {
        Ok(((x / f64::from(cap))?.tanh()? * f64::from(cap))?)
    }

    fn rms_norm(&self, x: &Tensor, scale: &Tensor, eps: f32) -> Result<Tensor, BackendError> {
        let (rows, width) = x.dims2()?;
        let group = scale.dims1()?;
        let groups = width.checked_div(group).unwrap_or(0);
        let x = x.reshape((rows, groups, group))?;
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?.broadcast_mul(scale)?;
        Ok(x.reshape((rows, width))?)
    }

    fn rotate(&self, x: Tensor, rotation: &Rotation) -> Result<Tensor, BackendError> {
        let (rows, width) = x.dims2()?;
        let Rotation { pairing, head_dim, dims, .. } = *rotation;
        let (heads, pairs) = (width.checked_div(head_dim).unwrap_or(0), dims / 2);
        let angles = |values: &[f32]| Tensor::from_slice(values, (rows, 1, pairs), &self.device);
        let (cos, sin) = (angles(&rotation.cos)?, angles(&rotation.sin)?);

        let x = x.reshape((rows, heads, head_dim))?;
        let turned = x.narrow(2, 0, dims)?;
        let (a, b) = match pairing {
            Pairing::Halves => (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?),
            Pairing::Neighbours => {
                let pairs = turned.reshape((rows, heads, pairs, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let new_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let new_b = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
        let turned = match pairing {
            Pairing::Halves => Tensor::cat(&[new_a, new_b], 2)?,
            Pairing::Neighbours => Tensor::stack(&[new_a, new_b], 3)?.reshape((rows, heads, dims))?,
        };
        let x = if dims == head_dim {
            turned
        } else {
            Tensor::cat(&[turned, x.narrow(2, dims, head_dim.saturating_sub(dims))?], 2)?
        };
        Ok(x.reshape((rows, width))?)
    }

    fn gate(&self, gate: Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, BackendError> {
        let gate = match activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        Ok(gate.mul(up)?)
    }

    fn round_bf16(&self, x: Tensor) -> Result<Tensor, BackendError> {
        Ok(x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?)
    }

    fn gather(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor, BackendError> {
        Ok(x.index_select(&Tensor::new(rows, &self.device)?, 0)?)
    }

    fn add_rows(&self, x: Tensor, y: &Tensor, rows: &[u32], weights: &[f32]) -> Result<Tensor, BackendError> {
        let weights = Tensor::from_slice(weights, (weights.len(), 1), &self.device)?;
        Ok(x.index_add(&Tensor::new(rows, &self.device)?, &y.broadcast_mul(&weights)?, 0)?)
    }

    fn attend(
        &self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: usize,
        sequences: &mut [Sequence<'_, KvPage>],
        shape: &AttentionShape,
    ) -> Result<Tensor, BackendError> {
        attention::attend(&q, &k, &v, layer, sequences, shape)
    }
}
