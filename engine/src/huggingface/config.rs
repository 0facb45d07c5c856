//! `config.json`: the hyper-parameters, in the words of Hugging Face, and the same in GGUF's.

mod defaults;
mod rope;
mod window;

use serde_json::{Map, Value};

use super::HfError;
use crate::{
    gguf::write::Writer,
    hparams::{MAX_LAYERS, MAX_WIDTH},
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

/// Families and numbers of layers whose scale of scores follows from the width of the model.
const LARGEST: [(&str, u32); 2] = [("gemma2", 46), ("gemma3", 62)];

/// A folder's `config.json`, the part about language.
pub(super) struct Config {
    values: Map<String, Value>,
    /// The family as `config.json` names it.
    kind: &'static str,
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
        let &(kind, architecture) = family.ok_or_else(|| HfError::Family {
            found: kind.to_owned(),
            supported: FAMILIES.iter().map(|(name, _)| *name).collect(),
        })?;
        defaults::complete(&mut values, kind);
        let config = Self { values, kind, architecture };
        config.refuse_other_functions()?;
        Ok(config)
    }

    /// Settings that ask for what the families here do not compute.
    fn refuse_other_functions(&self) -> Result<(), HfError> {
        let refuse = |key: &str, expected: &str| Err(Self::wrong(key, expected));
        let (key, activations) = if self.gemma() {
            ("hidden_activation", &["gelu_pytorch_tanh"][..])
        } else {
            ("hidden_act", &["silu", "swish"][..])
        };
        if let Some(activation) = self.value(key)
            && !activations.iter().any(|known| activation == known)
        {
            return refuse(key, &format!("{}, which this family has", activations.join(" or ")));
        }
        if self.value("use_bidirectional_attention") == Some(&Value::Bool(true)) {
            return refuse("use_bidirectional_attention", "false, since a token here sees those before it only");
        }
        if self.kind == "qwen3_moe" {
            if self.value("norm_topk_prob") != Some(&Value::Bool(true)) {
                return refuse("norm_topk_prob", "true, since the weights of experts are normed here");
            }
            let dense =
                self.value("mlp_only_layers").and_then(Value::as_array).is_some_and(|layers| !layers.is_empty());
            if dense || self.optional_size("decoder_sparse_step")?.unwrap_or(1) != 1 {
                return refuse("mlp_only_layers", "none, and a decoder_sparse_step of 1: every layer has experts here");
            }
        }
        Ok(())
    }

    /// Gemma's norms are stored less one, and there are four of them in a layer.
    pub(super) fn gemma(&self) -> bool {
        self.architecture.starts_with("gemma")
    }

    /// The output matrix is the embedding.
    pub(super) fn tied(&self) -> bool {
        self.says_tied().unwrap_or(self.gemma())
    }

    /// Whether the output matrix is the embedding, when the file says.
    pub(super) fn says_tied(&self) -> Option<bool> {
        self.values.get("tie_word_embeddings").and_then(Value::as_bool)
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
        let layers = self.size("num_hidden_layers")?;
        // Lists are made for them.
        if layers > MAX_LAYERS {
            return Err(Self::wrong("num_hidden_layers", &format!("at most {MAX_LAYERS}")));
        }
        Ok(layers)
    }

    /// Number of experts of a layer, where there are any.
    pub(super) fn experts(&self) -> Result<Option<u32>, HfError> {
        Ok(self.optional_size("num_local_experts")?.or(self.optional_size("num_experts")?))
    }

    fn head_dim(&self) -> Result<u32, HfError> {
        let (heads, _) = self.heads()?;
        let divided =
            self.size("hidden_size")?.checked_div(heads).ok_or_else(|| Self::wrong("num_attention_heads", "heads"));
        let (key, dim) = match self.optional_size("head_dim")? {
            Some(dim) => ("head_dim", dim),
            None => ("hidden_size", divided?),
        };
        // As for layers.
        if dim > MAX_WIDTH {
            return Err(Self::wrong(key, &format!("heads of at most {MAX_WIDTH} values")));
        }
        Ok(dim)
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
        if self.gemma() {
            for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
                // There is none where the file says null, whatever the family has otherwise.
                let cap = self.float(name)?.unwrap_or(0.0);
                if cap != 0.0 || arch == "gemma2" {
                    writer.set(&key(name), cap as f32);
                }
            }
            let share = self.float("query_pre_attn_scalar")?.unwrap_or(f64::from(head_dim));
            // GGUF's readers know the exceptions of the largest models by their layers.
            if share != f64::from(head_dim) || LARGEST.contains(&(arch, self.layers()?)) {
                writer.set(&key("attention.scale"), 1.0 / (share as f32).sqrt());
            }
        }
        self.write_window(writer)?;
        self.write_rope(writer, head_dim)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_that_lists_are_made_for_are_bounded() {
        let plain = json!({
            "model_type": "gemma3_text", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
            "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 512, "sliding_window": 16,
            "rms_norm_eps": 1e-6, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh",
            "rope_scaling": { "rope_type": "llama3", "factor": 8.0 }
        });
        let write = |key: &str, value: Value| {
            let mut config = plain.clone();
            config[key] = value;
            Config::parse(config.to_string().as_bytes())?.write(&mut Writer::new())
        };
        assert_eq!(write("head_dim", json!(64)).unwrap()[0].1.len(), 32);
        for (key, value) in [
            ("num_hidden_layers", json!(u32::MAX)),
            ("num_hidden_layers", json!(1 << 20)),
            ("head_dim", json!(u32::MAX)),
            ("partial_rotary_factor", json!(1e300)),
            ("partial_rotary_factor", json!(-1.0)),
        ] {
            let mut config = plain.clone();
            config[key] = value;
            let error = Config::parse(config.to_string().as_bytes()).unwrap().write(&mut Writer::new()).unwrap_err();
            assert!(matches!(&error, HfError::Config { key: named, .. } if named == key), "{key}: {error}");
        }
    }
}
