//! The rotation: `rope_theta`, and `rope_scaling` or `rope_parameters`.

use serde_json::{Map, Value};

use super::{Config, HfError, defaults::rope_base};
use crate::{
    gguf::write::Writer,
    models::rope::{FACTORS, Llama3},
};

impl Config {
    /// The settings of the rotation, wherever this version of the file keeps them; `layers` names those whose it is where
    /// the file has one for each kind of layer.
    pub(super) fn rope_of(&self, layers: &str) -> Map<String, Value> {
        let found = self.value("rope_parameters").or_else(|| self.value("rope_scaling")).and_then(Value::as_object);
        let Some(found) = found else { return Map::new() };
        match found.get(layers) {
            Some(Value::Object(own)) => own.clone(),
            _ if layers == "full_attention" => found.clone(),
            _ => Map::new(),
        }
    }

    /// The settings of the rotation of layers without a window, those outside of their group with them.
    fn rope(&self) -> Map<String, Value> {
        let mut rope = self.rope_of("full_attention");
        for key in ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"] {
            if let (false, Some(value)) = (rope.contains_key(key), self.value(key)) {
                rope.insert(key.to_owned(), value.clone());
            }
        }
        rope
    }

    /// Writes the rotation; gives back the tensors that it needs.
    pub(super) fn write_rope(
        &self,
        writer: &mut Writer,
        head_dim: u32,
    ) -> Result<Vec<(&'static str, Vec<f32>)>, HfError> {
        let arch = self.architecture;
        let key = |name: &str| format!("{arch}.rope.{name}");
        let rope = self.rope();
        let float = |name: &str| Self::optional_float(&rope, name);
        let base = float("rope_theta")?.unwrap_or(rope_base(self.kind));
        let part = float("partial_rotary_factor")?.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&part) {
            return Err(Self::wrong("partial_rotary_factor", "a part between 0 and 1"));
        }
        let dims = (part * f64::from(head_dim)) as u32;
        writer.set(&key("freq_base"), base as f32).set(&key("dimension_count"), dims);
        let original = float("original_max_position_embeddings")?;
        if let (Some(original), true) = (original, rope.contains_key("factor") || arch == "phi3") {
            writer.set(&key("scaling.original_context_length"), original as u32);
        }
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
        let factor = || float("factor")?.ok_or_else(|| Self::wrong("rope_scaling.factor", "a number"));
        match kind {
            // What is dynamic changes only past the context, which is as far as this model goes.
            "default" | "dynamic" => Ok(Vec::new()),
            "linear" => {
                writer.set(&key("scaling.type"), "linear").set(&key("scaling.factor"), factor()? as f32);
                Ok(Vec::new())
            }
            "yarn" => {
                let factor = factor()?;
                writer.set(&key("scaling.type"), "yarn").set(&key("scaling.factor"), factor as f32);
                if rope.get("truncate") == Some(&Value::Bool(false)) {
                    return Err(Self::wrong("rope_scaling.truncate", "true, since the bounds are whole pairs here"));
                }
                for name in ["beta_fast", "beta_slow"] {
                    if let Some(value) = float(name)?.filter(|value| *value != 0.0) {
                        writer.set(&key(&format!("scaling.yarn_{name}")), value as f32);
                    }
                }
                let plain = magnitude(factor, 1.0);
                let wanted = match (float("attention_factor")?, float("mscale")?, float("mscale_all_dim")?) {
                    (Some(wanted), ..) => wanted,
                    (None, Some(own), Some(all)) if own != 0.0 && all != 0.0 => {
                        magnitude(factor, own) / magnitude(factor, all)
                    }
                    _ => plain,
                };
                if wanted != plain {
                    writer.set(&key("scaling.attn_factor"), (wanted / plain) as f32);
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
                let attention = match float("attention_factor")? {
                    Some(factor) => factor,
                    None if scale > 1.0 => (1.0 + scale.ln() / original.ln()).sqrt(),
                    None => 1.0,
                };
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
                reason: format!("'{other}' is not supported; default, linear, dynamic, yarn, llama3 and longrope are"),
            }),
        }
    }
}

/// What YaRN multiplies sines and cosines by, for positions stretched by `factor`.
fn magnitude(factor: f64, scale: f64) -> f64 {
    if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 }
}
