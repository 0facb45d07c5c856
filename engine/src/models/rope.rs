//! Rotary position embedding: the angles, computed in `f64` with routines that give the same bits on every machine.

use crate::{
    BackendError, LoadError,
    backend::{Pairing, Rotation},
    gguf::{DType, Gguf, Optional},
    hparams::Hparams,
};

/// Per-pair frequency divisors of Llama 3.
pub(crate) const FACTORS: &str = "rope_freqs.weight";

/// Llama 3's way to a longer context: frequencies too low for the original one are divided by `factor`, high ones stay,
/// those between are blended.
pub(crate) struct Llama3 {
    pub(crate) factor: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Context length that the model was first trained for.
    pub(crate) original: f64,
}

impl Llama3 {
    /// The settings of Llama 3.1, whose factor is 8.
    pub(crate) const DEFAULT: Self = Self { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };

    /// What each pair's frequency is divided by, for a rotation of `dims` values: the tensor [`FACTORS`].
    pub(crate) fn divisors(&self, base: f64, dims: usize) -> Vec<f32> {
        let divisor = |pair: usize| {
            #[allow(clippy::cast_precision_loss, reason = "a head is a few hundred wide")]
            let wavelength = std::f64::consts::TAU * libm::pow(base, 2.0 * pair as f64 / dims as f64);
            let turns = self.original / wavelength;
            if turns > self.high {
                1.0
            } else if turns < self.low {
                self.factor
            } else {
                let high = (turns - self.low) / (self.high - self.low);
                1.0 / ((1.0 - high) / self.factor + high)
            }
        };
        #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
        (0..dims / 2).map(|pair| divisor(pair) as f32).collect()
    }
}

/// The frequencies of a model's rotation.
#[derive(Debug)]
pub(crate) struct Rope {
    pairing: Pairing,
    head_dim: usize,
    /// Radians per position, for each pair.
    frequencies: Vec<f64>,
}

impl Rope {
    pub(crate) fn load(gguf: &Gguf, hparams: &Hparams) -> Result<Self, LoadError> {
        let pairs = hparams.rope_dims / 2;
        let factors = factors(gguf, pairs)?;
        let scale = f64::from(hparams.rope_scale);
        let base = f64::from(hparams.rope_base);
        #[allow(clippy::cast_precision_loss, reason = "a head is a few hundred wide")]
        let frequency = |pair: usize| libm::pow(base, -2.0 * pair as f64 / hparams.rope_dims as f64);
        let frequencies = match factors {
            Some(factors) => factors.iter().enumerate().map(|(i, f)| frequency(i) / f64::from(*f) / scale).collect(),
            None => (0..pairs).map(|i| frequency(i) / scale).collect(),
        };
        Ok(Self { pairing: hparams.architecture.pairing(), head_dim: hparams.head_dim, frequencies })
    }

    /// The rotation of a batch: for each of `spans`, that many rows from that position on.
    pub(crate) fn at(&self, spans: impl Iterator<Item = (usize, usize)> + Clone) -> Result<Rotation, BackendError> {
        let rows: usize = spans.clone().map(|(_, rows)| rows).sum();
        let values = rows.saturating_mul(self.frequencies.len());
        let (mut cos, mut sin) = (Vec::with_capacity(values), Vec::with_capacity(values));
        for row in spans.flat_map(|(pos, rows)| pos..pos.saturating_add(rows)) {
            let position = u32::try_from(row).map_err(|_| BackendError(format!("position {row} is too large")))?;
            for frequency in &self.frequencies {
                let angle = f64::from(position) * frequency;
                #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
                {
                    cos.push(libm::cos(angle) as f32);
                    sin.push(libm::sin(angle) as f32);
                }
            }
        }
        let dims = self.frequencies.len().saturating_mul(2);
        Ok(Rotation { pairing: self.pairing, head_dim: self.head_dim, dims, cos, sin })
    }
}

fn factors(gguf: &Gguf, pairs: usize) -> Result<Option<Vec<f32>>, LoadError> {
    let Some(tensor) = gguf.tensor(FACTORS).optional()? else { return Ok(None) };
    if tensor.shape != [pairs] {
        return Err(LoadError::TensorShape {
            tensor: FACTORS.to_owned(),
            found: tensor.shape.to_vec(),
            expected: vec![pairs],
        });
    }
    if tensor.dtype != DType::F32 {
        return Err(LoadError::UnsupportedType { tensor: FACTORS.to_owned(), dtype: tensor.dtype, supported: "F32" });
    }
    let factors: Vec<f32> = tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        Some(factor) => {
            Err(LoadError::Hyperparameter { key: FACTORS.to_owned(), reason: format!("{factor} is not positive") })
        }
        None => Ok(Some(factors)),
    }
}
