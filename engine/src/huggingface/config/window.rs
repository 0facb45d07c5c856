//! Which layers' attention sees only a window, and the rotation that they have of their own.

use serde_json::Value;

use super::{Config, HfError};
use crate::gguf::write::Writer;

impl Config {
    /// Size of the window, and for each layer whether it has it; none where no layer has.
    fn window(&self) -> Result<Option<(u32, Vec<bool>)>, HfError> {
        let named = self.optional_size("sliding_window")?.filter(|size| *size > 0);
        let qwen = self.kind.starts_with("qwen");
        let wanted = !qwen || self.value("use_sliding_window") == Some(&Value::Bool(true));
        let Some(size) = named.filter(|_| wanted && self.kind != "llama") else { return Ok(None) };
        let count = self.layers()?;
        let layers = match self.value("layer_types") {
            // Its code goes by the size alone.
            Some(_) | None if self.kind == "qwen3_moe" => (0..count).map(|_| true).collect(),
            Some(types) => self.listed(types, count)?,
            None if self.gemma() => {
                let period = match self.kind {
                    "gemma2" => 2,
                    _ => match self.optional_size("sliding_window_pattern")? {
                        Some(period) => period,
                        None => self.optional_size("_sliding_window_pattern")?.unwrap_or(6),
                    },
                };
                (1..=count).map(|layer| layer.checked_rem(period) != Some(0)).collect()
            }
            None if qwen => {
                let first = self.optional_size("max_window_layers")?.unwrap_or(28);
                (0..count).map(|layer| layer >= first).collect()
            }
            None => (0..count).map(|_| true).collect(),
        };
        Ok(Some((size, layers)))
    }

    /// The layers' types, by name.
    fn listed(&self, types: &Value, count: u32) -> Result<Vec<bool>, HfError> {
        let wrong = || Self::wrong("layer_types", "full_attention or sliding_attention for each layer");
        let types = types.as_array().filter(|types| types.len() as u64 == u64::from(count)).ok_or_else(wrong)?;
        let windowed = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(wrong()),
        };
        types.iter().map(windowed).collect()
    }

    /// Writes the window. Gemma and Phi-3 have one in GGUF's words as well; for the others a list of layers says that
    /// it is meant, since files of these families name sizes that nobody computes with.
    pub(super) fn write_window(&self, writer: &mut Writer) -> Result<(), HfError> {
        let arch = self.architecture;
        let own = self.gemma() || arch == "phi3";
        let key = |name: &str| format!("{arch}.attention.{name}");
        let context = self.size("max_position_embeddings")?;
        match self.window()? {
            Some((size, layers)) if own || (size < context && layers.contains(&true)) => {
                writer.set(&key("sliding_window"), size);
                writer.set(&key("sliding_window_pattern"), layers.as_slice());
            }
            // Phi-3 says that there is no window with zero.
            _ if own => {
                writer.set(&key("sliding_window"), 0_u32);
            }
            _ => {}
        }
        if arch == "gemma3" {
            let local = self.rope_of("sliding_attention");
            let base = match Self::optional_float(&local, "rope_theta")? {
                Some(base) => Some(base),
                None => self.float("rope_local_base_freq")?,
            };
            writer.set(&format!("{arch}.rope.freq_base_swa"), base.unwrap_or(1e4) as f32);
        }
        Ok(())
    }
}
