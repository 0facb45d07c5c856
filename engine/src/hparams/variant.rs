//! What only some families or files have.

use super::{DEFAULT_ROPE_BASE, Hparams, MAX_WIDTH, reader::Reader};
use crate::{LoadError, gguf::Value, models::Architecture};

/// More experts than any model has in a layer.
const MAX_EXPERTS: u32 = 1024;
/// Gemma 2's window, where the file names none.
const GEMMA2_WINDOW: usize = 4096;
/// Gemma 2's soft caps of scores and logits, where the file names none.
const GEMMA2_CAPS: (f32, f32) = (50.0, 30.0);
/// YaRN's bounds, in rotations over the original context: pairs that turn more often keep their frequency, pairs that
/// turn less often are scaled.
const YARN_BETAS: (f32, f32) = (32.0, 1.0);

/// What only some families or files have. The default is a plain dense model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Variant {
    /// The feed-forward part is a mixture of experts.
    pub experts: Option<Experts>,
    /// Some layers' attention sees a window.
    pub window: Option<Window>,
    /// Scores are `q · k` times this instead of `1 / sqrt(head_dim)`.
    pub attention_scale: Option<f32>,
    /// Soft cap of attention scores.
    pub attention_cap: Option<f32>,
    /// Soft cap of logits.
    pub logit_cap: Option<f32>,
    /// Sines and cosines of the rotation are multiplied by this.
    pub rope_magnitude: Option<f32>,
    /// LongRoPE: frequency divisors per pair, for long contexts or for short ones.
    pub long_rope: Option<LongRope>,
    /// YaRN scaling of the rotation by `rope_scale`.
    pub yarn: Option<Yarn>,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a row goes through.
    pub used: usize,
    /// Width inside an expert.
    pub feed_forward: usize,
}

/// Layers whose attention sees only so far back.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Positions a row sees, its own the last.
    pub size: usize,
    /// For each layer of the model, whether it has the window.
    pub layers: Vec<bool>,
    /// Base frequency and linear scale of the rotation in these layers, where it is not the other layers'; it has no
    /// magnitude, divisors or YaRN then.
    pub rope: Option<(f32, f32)>,
}

/// Which of a file's two lists of frequency divisors counts. The original rule goes by the length of the sequence, so
/// that a session's past would turn into another function's at some length; here a model has one function: the long
/// list when its context is longer than the original one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongRope {
    /// `rope_factors_short.weight`.
    Short,
    /// `rope_factors_long.weight`.
    Long,
}

impl LongRope {
    /// The tensor with the divisors.
    pub(crate) fn tensor(self) -> &'static str {
        match self {
            Self::Short => "rope_factors_short.weight",
            Self::Long => "rope_factors_long.weight",
        }
    }
}

/// YaRN: pairs between two speeds go over from the plain frequency to the one divided by `rope_scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// The context the model was trained for before it was extended, in tokens.
    pub original_context: usize,
    /// How much of the plain frequency the fast pairs keep: 1.
    pub ext_factor: f32,
    /// Pairs with more rotations than this over the original context are fast.
    pub beta_fast: f32,
    /// Pairs with fewer rotations than this are slow.
    pub beta_slow: f32,
    /// Divides the magnitude by `1 + 0.1 * this * ln(rope_scale)`; 0 without.
    pub log_multiplier: f32,
}

impl Variant {
    /// Reads what the family may have; `hparams` holds the rest.
    pub(super) fn read(reader: &Reader<'_>, hparams: &Hparams) -> Result<Self, LoadError> {
        let architecture = hparams.architecture;
        let caps = match architecture {
            Architecture::Gemma2 => (Some(GEMMA2_CAPS.0), Some(GEMMA2_CAPS.1)),
            _ => (None, None),
        };
        let cap = |name: &str, default| match reader.gguf.contains(&reader.key(name)) {
            true => reader.cap(name),
            false => Ok(default),
        };
        Ok(Self {
            experts: experts(reader, hparams)?,
            window: window(reader, hparams)?,
            attention_scale: attention_scale(reader, hparams)?,
            attention_cap: cap("attn_logit_softcapping", caps.0)?,
            logit_cap: cap("final_logit_softcapping", caps.1)?,
            rope_magnitude: reader.optional_positive("rope.scaling.attn_factor")?.filter(|factor| *factor != 1.0),
            long_rope: long_rope(reader, hparams)?,
            yarn: yarn(reader, hparams)?,
        })
    }
}

/// What the file says. Where it says nothing the largest Gemma of each generation, told by its number of layers, divides
/// by the root of what a query head would have of the model's width.
fn attention_scale(reader: &Reader<'_>, hparams: &Hparams) -> Result<Option<f32>, LoadError> {
    let largest = match hparams.architecture {
        Architecture::Gemma2 => 46,
        Architecture::Gemma3 => 62,
        _ => return Ok(None),
    };
    if let Some(scale) = reader.optional_positive("attention.scale")? {
        return Ok(Some(scale));
    }
    #[allow(clippy::cast_precision_loss, reason = "at most 2^20, which is exact")]
    let share = (hparams.hidden / hparams.heads.max(1)) as f32;
    Ok((hparams.n_layers == largest).then(|| 1.0 / share.sqrt()))
}

fn experts(reader: &Reader<'_>, hparams: &Hparams) -> Result<Option<Experts>, LoadError> {
    let Some(count) = reader.count("expert_count")? else {
        return match hparams.architecture {
            Architecture::Qwen3Moe => Err(reader.bad("expert_count", "there are none".to_owned())),
            _ => Ok(None),
        };
    };
    if count > MAX_EXPERTS as usize {
        return Err(reader.bad("expert_count", format!("{count} is not between 1 and {MAX_EXPERTS}")));
    }
    if !matches!(hparams.architecture, Architecture::Llama | Architecture::Mistral3 | Architecture::Qwen3Moe) {
        let reason = format!("{} has no mixtures of experts", hparams.architecture.name());
        return Err(reader.bad("expert_count", reason));
    }
    let used = reader.size("expert_used_count", MAX_EXPERTS)?;
    if used > count {
        return Err(reader.bad("expert_used_count", format!("{used} of {count} experts cannot be used")));
    }
    let feed_forward = match hparams.architecture {
        // Early files give the width of all experts that are used together.
        Architecture::Qwen3Moe => {
            reader.size_or("expert_feed_forward_length", MAX_WIDTH, hparams.feed_forward / used)?
        }
        _ => hparams.feed_forward,
    };
    Ok(Some(Experts { count, used, feed_forward }))
}

const PATTERN: &str = "attention.sliding_window_pattern";

fn window(reader: &Reader<'_>, hparams: &Hparams) -> Result<Option<Window>, LoadError> {
    let named = reader.count("attention.sliding_window")?;
    let (size, period) = match hparams.architecture {
        Architecture::Gemma2 => (named.or(Some(GEMMA2_WINDOW)), 2),
        Architecture::Gemma3 => (named, 6),
        // Where Phi-3's files give a size alone, converters and the engine these files are made for do not mean a window
        // by it. See docs/adr/0008.
        _ if reader.lists_windows() => (named, 0),
        _ => return Ok(None),
    };
    let Some(size) = size else { return Ok(None) };
    Ok(Some(Window {
        size,
        layers: windowed_layers(reader, hparams.n_layers, period)?,
        rope: local_rope(reader, hparams)?,
    }))
}

/// A list of layers, or a period: all but the last of so many layers have the window, and with 0 all.
fn windowed_layers(reader: &Reader<'_>, n_layers: usize, default: usize) -> Result<Vec<bool>, LoadError> {
    let key = reader.key(PATTERN);
    let period = match reader.gguf.contains(&key).then(|| reader.gguf.get(&key)).transpose()? {
        None => default,
        Some(Value::Array(_)) => {
            let layers = reader.gguf.bool_array(&key)?;
            if layers.len() != n_layers {
                return Err(reader.bad(PATTERN, format!("{} entries for {n_layers} layers", layers.len())));
            }
            return Ok(layers);
        }
        Some(_) => reader.gguf.get_u32(&key)? as usize,
    };
    let windowed = |layer: usize| layer.checked_rem(period).is_none_or(|place| place.saturating_add(1) < period);
    Ok((0..n_layers).map(windowed).collect())
}

/// Base frequency and scale in the layers with a window: Gemma 3 has its own, unscaled; Gemma 2 shares them unless the
/// file has a base for these layers.
fn local_rope(reader: &Reader<'_>, hparams: &Hparams) -> Result<Option<(f32, f32)>, LoadError> {
    let base = reader.optional_positive("rope.freq_base_swa")?;
    Ok(match hparams.architecture {
        Architecture::Gemma3 => Some((base.unwrap_or(DEFAULT_ROPE_BASE), 1.0)),
        _ => base.map(|base| (base, hparams.rope_scale)),
    })
}

fn long_rope(reader: &Reader<'_>, hparams: &Hparams) -> Result<Option<LongRope>, LoadError> {
    // Phi-3's files have the lists and name no type.
    let unnamed = hparams.architecture == Architecture::Phi3 && reader.gguf.tensor(LongRope::Short.tensor()).is_ok();
    if reader.scaling_type()? != Some("longrope") && !unnamed {
        return Ok(None);
    }
    let original = original_context(reader, hparams)?;
    Ok(Some(if hparams.context_length > original { LongRope::Long } else { LongRope::Short }))
}

fn original_context(reader: &Reader<'_>, hparams: &Hparams) -> Result<usize, LoadError> {
    reader.size_or("rope.scaling.original_context_length", u32::MAX, hparams.context_length)
}

fn yarn(reader: &Reader<'_>, hparams: &Hparams) -> Result<Option<Yarn>, LoadError> {
    if reader.scaling_type()? != Some("yarn") {
        return Ok(None);
    }
    Ok(Some(Yarn {
        original_context: original_context(reader, hparams)?,
        ext_factor: reader.positive("rope.scaling.yarn_ext_factor", Some(1.0))?,
        beta_fast: reader.positive("rope.scaling.yarn_beta_fast", Some(YARN_BETAS.0))?,
        beta_slow: reader.positive("rope.scaling.yarn_beta_slow", Some(YARN_BETAS.1))?,
        log_multiplier: reader.cap("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0),
    }))
}
