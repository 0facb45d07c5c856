//! Rotary position embedding: the angles, computed in `f64` with routines that give the same bits on every machine.

use std::f64::consts::PI;

use crate::{
    BackendError, LoadError,
    backend::{Pairing, Rotation},
    gguf::{DType, Gguf, Optional},
    hparams::{Hparams, Yarn},
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
    general: Frequencies,
    /// Those of the layers with a window, where they have their own.
    local: Option<Frequencies>,
}

/// The rotation of a batch's rows.
pub(crate) struct Rotations {
    general: Rotation,
    local: Option<Rotation>,
}

impl Rotations {
    /// For a layer with a window, or one without.
    pub(crate) fn of(&self, windowed: bool) -> &Rotation {
        self.local.as_ref().filter(|_| windowed).unwrap_or(&self.general)
    }
}

impl Rope {
    pub(crate) fn load(gguf: &Gguf, hparams: &Hparams) -> Result<Self, LoadError> {
        let name = match hparams.variant.long_rope {
            Some(long) => {
                gguf.tensor(long.tensor())?;
                long.tensor()
            }
            None => FACTORS,
        };
        let factors = factors(gguf, name, hparams.rope_dims / 2)?;
        let local = hparams.variant.window.as_ref().and_then(|window| window.rope);
        Ok(Self {
            pairing: hparams.architecture.pairing(),
            head_dim: hparams.head_dim,
            general: Frequencies::new(hparams, factors.as_deref()),
            local: local.map(|(base, scale)| Frequencies::plain(hparams.rope_dims, base, scale, None)),
        })
    }

    /// The rotations of a batch: for each of `spans`, that many rows from that position on.
    pub(crate) fn at(&self, spans: impl Iterator<Item = (usize, usize)> + Clone) -> Result<Rotations, BackendError> {
        let rotation = |frequencies: &Frequencies| {
            let (cos, sin) = frequencies.at(spans.clone())?;
            let dims = frequencies.radians.len().saturating_mul(2);
            Ok::<_, BackendError>(Rotation { pairing: self.pairing, head_dim: self.head_dim, dims, cos, sin })
        };
        Ok(Rotations { general: rotation(&self.general)?, local: self.local.as_ref().map(rotation).transpose()? })
    }
}

#[derive(Debug)]
struct Frequencies {
    /// Radians per position, for each pair.
    radians: Vec<f64>,
    /// Cosines and sines are multiplied by this.
    magnitude: f64,
}

impl Frequencies {
    fn new(hparams: &Hparams, factors: Option<&[f32]>) -> Self {
        let Hparams { rope_dims, rope_base, rope_scale, variant, .. } = hparams;
        let mut out = Self::plain(*rope_dims, *rope_base, *rope_scale, factors);
        if let Some(yarn) = &variant.yarn {
            let unscaled = Self::plain(*rope_dims, *rope_base, 1.0, factors).radians;
            let scaled = std::mem::take(&mut out.radians);
            let kept = yarn_kept(yarn, *rope_dims, f64::from(*rope_base));
            let mix = |((scaled, unscaled), kept): ((f64, f64), f64)| scaled * (1.0 - kept) + unscaled * kept;
            out.radians = scaled.into_iter().zip(unscaled).zip(kept).map(mix).collect();
            out.magnitude = yarn_magnitude(f64::from(*rope_scale), f64::from(yarn.log_multiplier));
        }
        out.magnitude *= f64::from(variant.rope_magnitude.unwrap_or(1.0));
        out
    }

    /// The frequencies of the original paper, divided by `scale` and by a factor for each pair.
    fn plain(dims: usize, base: f32, scale: f32, factors: Option<&[f32]>) -> Self {
        let (base, scale) = (f64::from(base), f64::from(scale));
        #[allow(clippy::cast_precision_loss, reason = "a head is a few hundred wide")]
        let frequency = |pair: usize| libm::pow(base, -2.0 * pair as f64 / dims as f64);
        let radians = match factors {
            Some(factors) => factors.iter().enumerate().map(|(i, f)| frequency(i) / f64::from(*f) / scale).collect(),
            None => (0..dims / 2).map(|i| frequency(i) / scale).collect(),
        };
        Self { radians, magnitude: 1.0 }
    }

    /// Cosines and sines, `[rows, pairs]` each.
    fn at(&self, spans: impl Iterator<Item = (usize, usize)> + Clone) -> Result<(Vec<f32>, Vec<f32>), BackendError> {
        let rows: usize = spans.clone().map(|(_, rows)| rows).sum();
        let values = rows.saturating_mul(self.radians.len());
        let (mut cos, mut sin) = (Vec::with_capacity(values), Vec::with_capacity(values));
        for row in spans.flat_map(|(pos, rows)| pos..pos.saturating_add(rows)) {
            let position = u32::try_from(row).map_err(|_| BackendError(format!("position {row} is too large")))?;
            for frequency in &self.radians {
                let angle = f64::from(position) * frequency;
                #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
                {
                    cos.push((libm::cos(angle) * self.magnitude) as f32);
                    sin.push((libm::sin(angle) * self.magnitude) as f32);
                }
            }
        }
        Ok((cos, sin))
    }
}

/// How much of its plain frequency each pair keeps: all of it up to the pair that turns `beta_fast` times over the
/// original context, nothing from the one that turns `beta_slow` times, and a line between the two.
fn yarn_kept(yarn: &Yarn, dims: usize, base: f64) -> impl Iterator<Item = f64> {
    #[allow(clippy::cast_precision_loss, reason = "a head is a few hundred wide, a context below 2^32")]
    let (dims, original) = (dims as f64, yarn.original_context as f64);
    let pair = |turns: f32| dims * libm::log(original / (f64::from(turns) * 2.0 * PI)) / (2.0 * libm::log(base));
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(dims - 1.0);
    let ext = f64::from(yarn.ext_factor);
    (0u32..).map(move |i| {
        // A difference of at least this, so that equal bounds make a step.
        let line = (f64::from(i) - low) / (high - low).max(0.001);
        (1.0 - line.clamp(0.0, 1.0)) * ext
    })
}

/// What YaRN multiplies scores by at the root: `1 + 0.1 ln(scale)`, over the same with the file's multiplier.
fn yarn_magnitude(scale: f64, log_multiplier: f64) -> f64 {
    if scale <= 1.0 {
        return 1.0;
    }
    let log = 0.1 * libm::log(scale);
    (1.0 + log) / (1.0 + log_multiplier * log)
}

fn factors(gguf: &Gguf, name: &str, pairs: usize) -> Result<Option<Vec<f32>>, LoadError> {
    let Some(tensor) = gguf.tensor(name).optional()? else { return Ok(None) };
    if tensor.shape != [pairs] {
        return Err(LoadError::TensorShape {
            tensor: name.to_owned(),
            found: tensor.shape.to_vec(),
            expected: vec![pairs],
        });
    }
    if tensor.dtype != DType::F32 {
        return Err(LoadError::UnsupportedType { tensor: name.to_owned(), dtype: tensor.dtype, supported: "F32" });
    }
    let factors: Vec<f32> = tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        Some(factor) => {
            Err(LoadError::Hyperparameter { key: name.to_owned(), reason: format!("{factor} is not positive") })
        }
        None => Ok(Some(factors)),
    }
}

#[cfg(test)]
#[path = "rope/tests.rs"]
mod tests;
