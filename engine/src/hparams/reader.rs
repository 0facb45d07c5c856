//! Reads `<architecture>.<name>` keys, and refuses those that would change the function unnoticed.

use super::MAX_WIDTH;
use crate::{
    LoadError,
    gguf::{Gguf, GgufError, Optional, Value},
    models::Architecture,
};

/// Keys about attention, rotation and experts that are computed, or change nothing, in every family. Any other of
/// these three groups is refused unless its value is neutral.
const COMPUTED: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    // Of the norms with a mean, which none of the families has.
    "attention.layer_norm_epsilon",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
];

/// Computed in the families that have windows, and where a file lists the layers with one.
const WINDOW: [&str; 2] = ["attention.sliding_window", "attention.sliding_window_pattern"];

/// Computed in the Gemma families only.
const COMPUTED_FOR_GEMMA: &[&str] = &[
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.freq_base_swa",
];

/// Keys outside of the three groups that change the function, in families that are not supported.
const OTHERS: &[&str] = &[
    "attn_logit_softcapping",
    "embedding_length_per_layer_input",
    "embedding_scale",
    "final_logit_softcapping",
    "full_attention_interval",
    "hidden_activation",
    "hyper_connection.count",
    "interleave_moe_layer_step",
    "leading_dense_block_count",
    "logit_scale",
    "moe_every_n_layers",
    "moe_latent_size",
    "n_deepstack_layers",
    "nextn_predict_layers",
    "num_loops",
    "residual_scale",
    "router_logit_softcapping",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "swin_norm",
    "use_parallel_residual",
];

pub(super) struct Reader<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) architecture: Architecture,
}

impl Reader<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    pub(super) fn bad(&self, name: &str, reason: String) -> LoadError {
        LoadError::Hyperparameter { key: self.key(name), reason }
    }

    pub(super) fn optional_size(&self, name: &str, max: u32) -> Result<Option<usize>, LoadError> {
        match self.gguf.get_u32(&self.key(name)).optional()? {
            None => Ok(None),
            Some(n) if n >= 1 && n <= max => Ok(Some(n as usize)),
            Some(n) => Err(self.bad(name, format!("{n} is not between 1 and {max}"))),
        }
    }

    pub(super) fn size_or(&self, name: &str, max: u32, default: usize) -> Result<usize, LoadError> {
        Ok(self.optional_size(name, max)?.unwrap_or(default))
    }

    pub(super) fn size(&self, name: &str, max: u32) -> Result<usize, LoadError> {
        self.optional_size(name, max)?.ok_or_else(|| GgufError::MissingKey { key: self.key(name) }.into())
    }

    /// A number that stands for "none" when it is zero or absent.
    pub(super) fn count(&self, name: &str) -> Result<Option<usize>, LoadError> {
        Ok(self.gguf.get_u32(&self.key(name)).optional()?.filter(|n| *n > 0).map(|n| n as usize))
    }

    pub(super) fn optional_positive(&self, name: &str) -> Result<Option<f32>, LoadError> {
        match self.gguf.get_f32(&self.key(name)).optional()? {
            None => Ok(None),
            Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value)),
            Some(value) => Err(self.bad(name, format!("{value} is not a positive number"))),
        }
    }

    pub(super) fn positive(&self, name: &str, default: Option<f32>) -> Result<f32, LoadError> {
        let value = self.optional_positive(name)?.or(default);
        value.ok_or_else(|| GgufError::MissingKey { key: self.key(name) }.into())
    }

    /// As [`Reader::positive`], for a number that stands for "none" when it is zero or absent.
    pub(super) fn cap(&self, name: &str) -> Result<Option<f32>, LoadError> {
        match self.gguf.get_f32(&self.key(name)).optional()? {
            Some(0.0) => Ok(None),
            _ => self.optional_positive(name),
        }
    }

    pub(super) fn scaling_type(&self) -> Result<Option<&str>, LoadError> {
        let found = self.gguf.get_str(&self.key("rope.scaling.type")).optional()?;
        match found {
            None | Some("none" | "linear" | "yarn" | "longrope") => Ok(found),
            Some(other) => {
                let reason = format!("'{other}' is not supported; supported are none, linear, yarn, longrope");
                Err(self.bad("rope.scaling.type", reason))
            }
        }
    }

    pub(super) fn rope_scale(&self) -> Result<f32, LoadError> {
        match self.scaling_type()? {
            Some("none") => Ok(1.0),
            Some("yarn") => self.positive("rope.scaling.factor", None),
            // A factor of zero stands for none, and so does no factor at all, as llama.cpp reads it. Files older than the
            // `type` key name a linear factor by itself.
            _ if self.gguf.contains(&self.key("rope.scaling.factor")) => {
                Ok(self.cap("rope.scaling.factor")?.unwrap_or(1.0))
            }
            _ => Ok(self.cap("rope.scale_linear")?.unwrap_or(1.0)),
        }
    }

    /// The context length, cut to the part in which queries are not made warmer with their position (Mistral 3): that
    /// is where the temperature, which is not computed, is 1.
    pub(super) fn limited_context(&self, context: usize) -> Result<usize, LoadError> {
        if self.cap("attention.temperature_scale")?.is_none() {
            return Ok(context);
        }
        Ok(context.min(self.size("rope.scaling.original_context_length", u32::MAX)?))
    }

    fn computed(&self, name: &str) -> bool {
        COMPUTED.contains(&name)
            || match self.architecture {
                Architecture::Gemma2 | Architecture::Gemma3 => COMPUTED_FOR_GEMMA.contains(&name),
                // Every file names a size; where that is all, it is left out on purpose.
                Architecture::Phi3 => WINDOW.contains(&name),
                Architecture::Mistral3 if name == "attention.temperature_scale" => true,
                _ => WINDOW.contains(&name) && self.lists_windows(),
            }
    }

    /// True when the file says layer by layer which have a window. A size alone counts in the families whose graph has
    /// windows only.
    pub(super) fn lists_windows(&self) -> bool {
        let pattern = self.key("attention.sliding_window_pattern");
        self.gguf.contains(&pattern) && matches!(self.gguf.get(&pattern), Ok(Value::Array(_)))
    }

    /// Settings that change the function: better refused than ignored.
    pub(super) fn refuse_what_we_do_not_compute(&self) -> Result<(), LoadError> {
        let prefix = self.key("");
        for (key, value) in self.gguf.metadata() {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            let group = name.split_once(['.', '_']).map_or(name, |(group, _)| group);
            let matters = ["attention", "rope", "expert"].contains(&group) || OTHERS.contains(&name);
            if matters && !self.computed(name) && !self.neutral(name, &value?)? {
                let reason = "it changes the model's function in a way that is not supported".to_owned();
                return Err(self.bad(name, reason));
            }
        }
        if let Some(files) = self.gguf.get_u32("split.count").optional()?
            && files > 1
        {
            let reason = format!("the model is split into {files} files; merge them with `gguf-split --merge`");
            return Err(LoadError::Hyperparameter { key: "split.count".to_owned(), reason });
        }
        Ok(())
    }

    /// True when a setting that is not computed says what is computed anyway.
    fn neutral(&self, name: &str, value: &Value<'_>) -> Result<bool, LoadError> {
        let number = value.as_f32().or_else(|| value.as_u64().and_then(|n| u16::try_from(n).ok()).map(f32::from));
        Ok(match name {
            "attention.causal" | "expert_weights_norm" => *value == Value::Bool(true),
            // llama.cpp's number for softmax.
            "expert_gating_func" => number == Some(1.0),
            "expert_weights_scale" | "rope.scaling.yarn_attn_factor" | "attention.output_scale" => {
                number == Some(0.0) || number == Some(1.0)
            }
            "logit_scale" | "residual_scale" | "embedding_scale" | "moe_every_n_layers" => {
                number == Some(0.0) || number == Some(1.0)
            }
            "attention.sliding_window" => {
                let context = self.size_or("context_length", u32::MAX, super::DEFAULT_CONTEXT as usize)?;
                value.as_u64().is_some_and(|size| size == 0 || size >= context as u64)
            }
            "attention.key_length_swa" | "attention.value_length_swa" | "rope.dimension_count_swa" => {
                let general = self.optional_size(name.trim_end_matches("_swa"), MAX_WIDTH)?;
                value.as_u64().is_some_and(|local| general.is_some_and(|general| general as u64 == local))
            }
            "swiglu_clamp_exp" | "swiglu_clamp_shexp" => match value {
                Value::Array(_) => self.gguf.f32_array(&self.key(name))?.iter().all(|limit| *limit == 0.0),
                _ => number == Some(0.0),
            },
            _ => number == Some(0.0) || *value == Value::Bool(false),
        })
    }
}
