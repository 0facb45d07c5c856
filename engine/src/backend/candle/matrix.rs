//! Weight matrices, kept in the form the file has them.
//!
//! Candle's own quantised product rounds the activations to 8 bits too, in blocks of 256 on some processors and of 32 on
//! others, and keeps a second, repacked copy of the weights. Here the weights are expanded to `f32` a tile at a time
//! instead, each tile small enough to stay in the cache of the core that multiplies it: the true function of the stored
//! weights, no second copy, the same for every weight type, at the price of speed.

use std::borrow::Cow;

use candle_core::{
    Device, Storage, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};
use rayon::prelude::*;

use crate::{
    BackendError, LoadError,
    backend::SUPPORTED,
    gguf::{DType, TensorView},
};

/// Candle reads blocks through typed pointers; no block needs more than this.
const BLOCK_ALIGNMENT: usize = 8;

fn candle_type(dtype: DType) -> Option<GgmlDType> {
    Some(match dtype {
        DType::F32 => GgmlDType::F32,
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        DType::Q4_0 => GgmlDType::Q4_0,
        DType::Q4_1 => GgmlDType::Q4_1,
        DType::Q5_0 => GgmlDType::Q5_0,
        DType::Q5_1 => GgmlDType::Q5_1,
        DType::Q8_0 => GgmlDType::Q8_0,
        DType::Q2_K => GgmlDType::Q2K,
        DType::Q3_K => GgmlDType::Q3K,
        DType::Q4_K => GgmlDType::Q4K,
        DType::Q5_K => GgmlDType::Q5K,
        DType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// The tensor in candle's form, which copies its bytes once.
pub(super) fn quantised(tensor: &TensorView<'_>, device: &Device) -> Result<QTensor, LoadError> {
    let dtype = candle_type(tensor.dtype).ok_or_else(|| LoadError::UnsupportedType {
        tensor: tensor.name.to_owned(),
        dtype: tensor.dtype,
        supported: SUPPORTED,
    })?;
    check_finite(tensor)?;
    Ok(hold(tensor.data, dtype, &tensor.shape, device)?)
}

fn check_finite(tensor: &TensorView<'_>) -> Result<(), LoadError> {
    match tensor.not_finite() {
        Some(row) => Err(LoadError::NotFinite { tensor: tensor.name.to_owned(), row }),
        None => Ok(()),
    }
}

fn hold(data: &[u8], dtype: GgmlDType, shape: &[usize], device: &Device) -> Result<QTensor, BackendError> {
    let storage = if data.as_ptr().align_offset(BLOCK_ALIGNMENT) == 0 {
        QStorage::from_data(Cow::Borrowed(data), device, dtype)?
    } else {
        // Tiles of a mapped file and bytes embedded in the program may stand anywhere.
        let mut copy = vec![0; data.len().saturating_add(BLOCK_ALIGNMENT)];
        let start = copy.as_ptr().align_offset(BLOCK_ALIGNMENT).min(BLOCK_ALIGNMENT);
        let aligned = copy.get_mut(start..start.saturating_add(data.len())).unwrap_or_default();
        aligned.copy_from_slice(data);
        QStorage::from_data(Cow::Borrowed(aligned), device, dtype)?
    };
    Ok(QTensor::new(storage, shape)?)
}

/// Values of a tile: 256 KiB once expanded, which the second-level cache of any current core holds.
const TILE_VALUES: usize = 64 * 1024;
/// The same on a GPU, where few large products are better than many small ones: 64 MiB.
const GPU_TILE_VALUES: usize = 16 << 20;

/// A weight matrix, `[outputs, inputs]`.
pub enum Matrix {
    /// `f32` weights.
    Dense(Tensor),
    /// Anything else: tiles of `rows` outputs each, the last one perhaps shorter, in the file's form.
    Tiled {
        /// Outputs per tile.
        rows: usize,
        /// The tiles in order.
        tiles: Vec<QTensor>,
    },
}

impl Matrix {
    pub(super) fn load(tensor: &TensorView<'_>, device: &Device) -> Result<Self, LoadError> {
        let [outputs, inputs] = *tensor.shape else {
            return Err(LoadError::TensorShape {
                tensor: tensor.name.to_owned(),
                found: tensor.shape.to_vec(),
                expected: vec![0, 0],
            });
        };
        if tensor.dtype == DType::F32 {
            let dense = quantised(tensor, device)?.dequantize(device).map_err(BackendError::from)?;
            return Ok(Self::Dense(dense));
        }
        let dtype = candle_type(tensor.dtype).ok_or_else(|| LoadError::UnsupportedType {
            tensor: tensor.name.to_owned(),
            dtype: tensor.dtype,
            supported: SUPPORTED,
        })?;
        check_finite(tensor)?;
        let values = if device.is_cpu() { TILE_VALUES } else { GPU_TILE_VALUES };
        let rows = (values / inputs.max(1)).clamp(1, outputs.max(1));
        let row_bytes = tensor.data.len() / outputs.max(1);
        let tiles = tensor
            .data
            .chunks(rows.saturating_mul(row_bytes).max(1))
            .map(|data| hold(data, dtype, &[data.len() / row_bytes.max(1), inputs], device))
            .collect::<Result<_, _>>()?;
        Ok(Self::Tiled { rows, tiles })
    }

    /// The rows with these numbers, each below `outputs`.
    pub(super) fn lookup(&self, ids: &[u32], device: &Device) -> Result<Tensor, BackendError> {
        match self {
            Self::Dense(table) => Ok(table.index_select(&Tensor::new(ids, device)?, 0)?),
            Self::Tiled { rows, tiles } => {
                let row = |id: &u32| {
                    let id = *id as usize;
                    let tile = id.checked_div(*rows).and_then(|i| tiles.get(i));
                    let tile = tile.ok_or_else(|| BackendError(format!("row {id} is outside the table")))?;
                    #[allow(clippy::cast_possible_truncation, reason = "the remainder is no larger than a u32 id")]
                    let within = id.checked_rem(*rows).unwrap_or(0) as u32;
                    Ok(tile.embedding(&Tensor::new(&[within], device)?)?)
                };
                let found = ids.iter().map(row).collect::<Result<Vec<_>, BackendError>>()?;
                Ok(Tensor::cat(&found, 0)?)
            }
        }
    }

    /// `x · wᵀ`. A single row, which is what decoding has, takes plain dot products: candle's product first repacks
    /// the weights, which pays only when several rows share that work.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        if x.dim(0)? == 1 && x.device().is_cpu() {
            let row = x.flatten_all()?.to_vec1()?;
            let out = self.row_product(&row)?;
            return Ok(Tensor::from_vec(out, (1, ()), x.device())?);
        }
        match self {
            Self::Dense(w) => Ok(x.matmul(&w.t()?)?),
            Self::Tiled { tiles, .. } => {
                let part = |tile: &QTensor| x.matmul(&tile.dequantize(x.device())?.t()?);
                let parts = if x.device().is_cpu() {
                    tiles.par_iter().map(part).collect::<Result<Vec<_>, _>>()?
                } else {
                    // A GPU takes its work in one order anyway.
                    tiles.iter().map(part).collect::<Result<Vec<_>, _>>()?
                };
                Ok(Tensor::cat(&parts, 1)?)
            }
        }
    }

    fn row_product(&self, row: &[f32]) -> Result<Vec<f32>, BackendError> {
        match self {
            Self::Dense(w) => with_values(w, |values| {
                let tile = (TILE_VALUES / row.len().max(1)).max(1).saturating_mul(row.len()).max(1);
                values.par_chunks(tile).flat_map_iter(|weights| dots(weights, row)).collect()
            }),
            Self::Tiled { tiles, .. } => {
                let part = |tile: &QTensor| {
                    let expanded = tile.dequantize(&Device::Cpu)?;
                    with_values(&expanded, |weights| dots(weights, row).collect::<Vec<_>>())
                };
                Ok(tiles.par_iter().map(part).collect::<Result<Vec<_>, BackendError>>()?.concat())
            }
        }
    }
}

/// Calls `f` with a tensor's values: contiguous `f32` on the CPU.
fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T, BackendError> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.contiguous_offsets();
    match (&*storage, range) {
        (Storage::Cpu(values), Some((start, end))) => {
            Ok(f(values.as_slice::<f32>()?.get(start..end).unwrap_or_default()))
        }
        _ => Err(BackendError("weights are not contiguous on the CPU".to_owned())),
    }
}

/// The dot product of each row of `weights` with `row`.
fn dots<'a>(weights: &'a [f32], row: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    weights.chunks_exact(row.len().max(1)).map(move |weights| dot(weights, row))
}

/// Sixteen running sums, which compilers turn into whatever vectors the target has without changing a bit.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
