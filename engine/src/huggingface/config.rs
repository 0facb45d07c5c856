//! `config.json`: the hyper-parameters, in the words of Hugging Face, and the same in GGUF's.

use serde_json::{Map, Value};

use super::HfError;
use crate::{
    gguf::write::Writer,
    models::rope::{FACTORS, Llama3},
};

/// The families that folders are read of: `model_type`, and GGUF's name.
const FAMILIES: [(&str, &str); 9] = [
    ("llama", "llama"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3moe"),
    ("phi3", "phi3"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
];

/// A folder's `config.json`, the part about language.
pub(super) struct Config {
    values: Map<String, Value>,
    /// GGUF's name of the family.
    pub(super) architecture: &'static str,
}

impl Config {
    pub(super) fn parse(text: &[u8]) -> Result<Self, HfError> {
        let bad = |reason: String| HfError::Config { key: "config.json".into(), reason };
        let Value::Object(mut values) = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))? else {
            return Err(bad("it is no object".into()));
        };
        // Models that also see keep what belongs to language by itself.
        if let Some(Value::Object(language)) = values.remove("text_config") {
            values.extend(language);
        }
        let kind = values.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let family = FAMILIES.iter().find(|(known, _)| *known == kind || (kind == "gemma3" && *known == "gemma3_text"));
        let &(_, architecture) = family.ok_or_else(|| HfError::Family {
            found: kind.to_owned(),
            supported: FAMILIES.iter().map(|(name, _)| *name).collect(),
        })?;
        Ok(Self { values, architecture })
    }

    /// Gemma's norms are stored less one, and there are four of them in a layer.
    pub(super) fn gemma(&self) -> bool {
        self.architecture.starts_with("gemma")
    }

    /// The output matrix is the embedding.
    pub(super) fn tied(&self) -> bool {
        self.values.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(self.gemma())
    }

    fn wrong(key: &str, expected: &str) -> HfError {
        HfError::Config { key: key.to_owned(), reason: format!("expected {expected}") }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn optional_size(&self, key: &str) -> Result<Option<u32>, HfError> {
        let wrong = || Self::wrong(key, "a whole number");
        self.value(key).map(|v| v.as_u64().and_then(|n| n.try_into().ok()).ok_or_else(wrong)).transpose()
    }

    /// The whole number under `key`.
    pub(super) fn size(&self, key: &str) -> Result<u32, HfError> {
        self.optional_size(key)?.ok_or_else(|| HfError::Config { key: key.to_owned(), reason: "it is missing".into() })
    }

    fn optional_float(map: &Map<String, Value>, key: &str) -> Result<Option<f64>, HfError> {
        let value = map.get(key).filter(|value| !value.is_null());
        value.map(|value| value.as_f64().ok_or_else(|| Self::wrong(key, "a number"))).transpose()
    }

    fn float(&self, key: &str) -> Result<Option<f64>, HfError> {
        Self::optional_float(&self.values, key)
    }

    /// Query heads, and key heads.
    pub(super) fn heads(&self) -> Result<(u32, u32), HfError> {
        let heads = self.size("num_attention_heads")?;
        Ok((heads, self.optional_size("num_key_value_heads")?.unwrap_or(heads)))
    }

    /// Number of layers.
    pub(super) fn layers(&self) -> Result<u32, HfError> {
        self.size("num_hidden_layers")
    }

    /// Number of experts of a layer, where there are any.
    pub(super) fn experts(&self) -> Result<Option<u32>, HfError> {
        Ok(self.optional_size("num_local_experts")?.or(self.optional_size("num_experts")?))
    }

    fn head_dim(&self) -> Result<u32, HfError> {
        let (heads, _) = self.heads()?;
        let divided =
            self.size("hidden_size")?.checked_div(heads).ok_or_else(|| Self::wrong("num_attention_heads", "heads"));
        self.optional_size("head_dim")?.map_or(divided, Ok)
    }

    /// The settings of the rotation, wherever this version of the file keeps them.
    fn rope(&self) -> Map<String, Value> {
        let found = self.value("rope_parameters").or_else(|| self.value("rope_scaling")).and_then(Value::as_object);
        let mut rope = found.cloned().unwrap_or_default();
        if let Some(Value::Object(all)) = rope.remove("full_attention") {
            rope = all;
        }
        for key in ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"] {
            if let (false, Some(value)) = (rope.contains_key(key), self.value(key)) {
                rope.insert(key.to_owned(), value.clone());
            }
        }
        rope
    }

    /// Writes the `general.*` and `<architecture>.*` keys; gives back tensors that the file lacks and the model needs.
    pub(super) fn write(&self, writer: &mut Writer) -> Result<Vec<(&'static str, Vec<f32>)>, HfError> {
        let arch = self.architecture;
        let key = |name: &str| format!("{arch}.{name}");
        let (heads, kv_heads) = self.heads()?;
        let head_dim = self.head_dim()?;
        writer.set("general.architecture", arch).set("general.type", "model");
        for (name, value) in [
            ("context_length", self.size("max_position_embeddings")?),
            ("embedding_length", self.size("hidden_size")?),
            ("block_count", self.layers()?),
            ("feed_forward_length", self.size("intermediate_size")?),
            ("attention.head_count", heads),
            ("attention.head_count_kv", kv_heads),
            ("attention.key_length", head_dim),
            ("attention.value_length", head_dim),
            ("vocab_size", self.size("vocab_size")?),
        ] {
            writer.set(&key(name), value);
        }
        for (name, value) in [
            ("expert_count", self.experts()?),
            ("expert_used_count", self.optional_size("num_experts_per_tok")?),
            ("expert_feed_forward_length", self.optional_size("moe_intermediate_size")?),
        ] {
            if let Some(value) = value {
                writer.set(&key(name), value);
            }
        }
        let eps = self.float("rms_norm_eps")?.ok_or_else(|| Self::wrong("rms_norm_eps", "a number"))?;
        writer.set(&key("attention.layer_norm_rms_epsilon"), eps as f32);
        if arch == "qwen3moe" && self.value("norm_topk_prob") == Some(&Value::Bool(false)) {
            return Err(Self::wrong("norm_topk_prob", "true, since the weights of experts are normed here"));
        }
        if self.gemma() {
            for (from, to) in [
                ("attn_logit_softcapping", "attn_logit_softcapping"),
                ("final_logit_softcapping", "final_logit_softcapping"),
            ] {
                if let Some(cap) = self.float(from)? {
                    writer.set(&key(to), cap as f32);
                }
            }
        }
        if self.gemma() || arch == "phi3" {
            // Phi-3 says that there is no window with zero.
            writer.set(&key("attention.sliding_window"), self.optional_size("sliding_window")?.unwrap_or(0));
        }
        if arch == "gemma3" {
            let local = self.float("rope_local_base_freq")?.unwrap_or(10_000.0);
            writer.set(&key("rope.freq_base_swa"), local as f32);
        }
        self.write_rope(writer, head_dim)
    }

    fn write_rope(&self, writer: &mut Writer, head_dim: u32) -> Result<Vec<(&'static str, Vec<f32>)>, HfError> {
        let arch = self.architecture;
        let key = |name: &str| format!("{arch}.rope.{name}");
        let rope = self.rope();
        let float = |name: &str| Self::optional_float(&rope, name);
        let base = float("rope_theta")?.unwrap_or(if arch == "gemma3" { 1e6 } else { 1e4 });
        let part = float("partial_rotary_factor")?.unwrap_or(1.0);
        let dims = (part * f64::from(head_dim)) as u32;
        writer.set(&key("freq_base"), base as f32).set(&key("dimension_count"), dims);
        let original = float("original_max_position_embeddings")?;
        if let (Some(original), true) = (original, rope.contains_key("factor") || arch == "phi3") {
            writer.set(&key("scaling.original_context_length"), original as u32);
        }
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
        let factor = || float("factor")?.ok_or_else(|| Self::wrong("rope_scaling.factor", "a number"));
        match kind {
            "default" => Ok(Vec::new()),
            "linear" => {
                writer.set(&key("scaling.type"), "linear").set(&key("scaling.factor"), factor()? as f32);
                Ok(Vec::new())
            }
            "yarn" => {
                writer.set(&key("scaling.type"), "yarn").set(&key("scaling.factor"), factor()? as f32);
                for (from, to) in [
                    ("extrapolation_factor", "yarn_ext_factor"),
                    ("attention_factor", "yarn_attn_factor"),
                    ("beta_fast", "yarn_beta_fast"),
                    ("beta_slow", "yarn_beta_slow"),
                ] {
                    if let Some(value) = float(from)? {
                        writer.set(&key(&format!("scaling.{to}")), value as f32);
                    }
                }
                Ok(Vec::new())
            }
            "llama3" => {
                let llama = Llama3 {
                    factor: factor()?,
                    low: float("low_freq_factor")?.unwrap_or(Llama3::DEFAULT.low),
                    high: float("high_freq_factor")?.unwrap_or(Llama3::DEFAULT.high),
                    original: original.unwrap_or(Llama3::DEFAULT.original),
                };
                Ok(vec![(FACTORS, llama.divisors(base, usize::try_from(dims).unwrap_or(0)))])
            }
            "longrope" | "su" => {
                let context = f64::from(self.size("max_position_embeddings")?);
                let original = original.ok_or_else(|| Self::wrong("original_max_position_embeddings", "a number"))?;
                let scale = context / original;
                let attention = if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 };
                writer.set(&key("scaling.type"), "longrope").set(&key("scaling.attn_factor"), attention as f32);
                let list = |name: &'static str| -> Result<Vec<f32>, HfError> {
                    let values = rope.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                    let values: Option<Vec<f32>> = values.iter().map(|v| v.as_f64().map(|v| v as f32)).collect();
                    values
                        .filter(|v| v.len() as u64 == u64::from(dims / 2))
                        .ok_or_else(|| Self::wrong(name, "as many numbers as half of the rotated values"))
                };
                Ok(vec![
                    ("rope_factors_long.weight", list("long_factor")?),
                    ("rope_factors_short.weight", list("short_factor")?),
                ])
            }
            other => Err(HfError::Config {
                key: "rope_scaling".into(),
                reason: format!("'{other}' is not supported; default, linear, yarn, llama3 and longrope are"),
            }),
        }
    }
}
