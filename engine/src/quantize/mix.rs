//! Which type each tensor of a quantised file gets.
//!
//! The mixes are those of llama.cpp's `llama-quantize` without an importance matrix, by its names: the tensors that
//! quality hangs on most get more bits. Norms, biases and expert routers stay as they are. A row that is no whole number
//! of a type's blocks falls back to a type of smaller blocks.

use crate::gguf::DType;

/// A named mix of types, such as `q4_k_m`.
#[allow(missing_docs, reason = "the variants are llama.cpp's names")]
#[allow(non_camel_case_types, reason = "the variants are llama.cpp's names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mix {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
}

/// Name, llama.cpp's number for `general.file_type`, and the type of most tensors.
const TABLE: [(Mix, &str, u32, DType); 17] = [
    (Mix::F32, "f32", 0, DType::F32),
    (Mix::F16, "f16", 1, DType::F16),
    (Mix::Q4_0, "q4_0", 2, DType::Q4_0),
    (Mix::Q4_1, "q4_1", 3, DType::Q4_1),
    (Mix::Q8_0, "q8_0", 7, DType::Q8_0),
    (Mix::Q5_0, "q5_0", 8, DType::Q5_0),
    (Mix::Q5_1, "q5_1", 9, DType::Q5_1),
    (Mix::Q2_K, "q2_k", 10, DType::Q2_K),
    (Mix::Q3_K_S, "q3_k_s", 11, DType::Q3_K),
    (Mix::Q3_K_M, "q3_k_m", 12, DType::Q3_K),
    (Mix::Q3_K_L, "q3_k_l", 13, DType::Q3_K),
    (Mix::Q4_K_S, "q4_k_s", 14, DType::Q4_K),
    (Mix::Q4_K_M, "q4_k_m", 15, DType::Q4_K),
    (Mix::Q5_K_S, "q5_k_s", 16, DType::Q5_K),
    (Mix::Q5_K_M, "q5_k_m", 17, DType::Q5_K),
    (Mix::Q6_K, "q6_k", 18, DType::Q6_K),
    (Mix::BF16, "bf16", 32, DType::BF16),
];

/// What a mix must know of a model.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Number of layers.
    pub layers: usize,
    /// Query heads per key head.
    pub heads_per_kv: usize,
    /// Experts of a layer; 0 without.
    pub experts: usize,
    /// The output matrix is the embedding.
    pub tied: bool,
}

impl Mix {
    /// The mix called `name`, in either case; `q3_k`, `q4_k` and `q5_k` are the medium ones.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = match name.as_str() {
            "q3_k" => "q3_k_m",
            "q4_k" => "q4_k_m",
            "q5_k" => "q5_k_m",
            other => other,
        };
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|row| row.1)
    }

    fn row(self) -> (&'static str, u32, DType) {
        // Every mix has a row (a test walks them).
        TABLE.iter().find(|row| row.0 == self).map_or(("f32", 0, DType::F32), |row| (row.1, row.2, row.3))
    }

    /// The mix's name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// llama.cpp's number, for `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().1
    }

    /// The type of the tensor `name`, dimensions innermost last; `None` when it stays as it is.
    pub fn dtype_of(self, name: &str, shape: &[usize], facts: &Facts) -> Option<DType> {
        let flat = shape.iter().filter(|dim| **dim > 1).count() < 2;
        if flat || !name.ends_with("weight") || name.contains("_norm.weight") || name.contains("ffn_gate_inp.weight") {
            return None;
        }
        let base = self.row().2;
        if base.block_len() == 1 {
            return Some(base);
        }
        let inputs = shape.last().map_or(0, |dim| *dim as u64);
        Some(fall_back(self.quantised(base, name, inputs, facts), inputs))
    }

    fn quantised(self, base: DType, name: &str, inputs: u64, facts: &Facts) -> DType {
        use Mix::{Q2_K, Q3_K_L, Q3_K_M, Q3_K_S, Q4_K_M, Q4_K_S, Q5_K_M};
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(0);
        let eighth = facts.layers / 8;
        let sensitive = more_bits(layer, facts.layers);
        if name == "output.weight" || (facts.tied && name == "token_embd.weight") {
            let whole = inputs.is_multiple_of(base.block_len());
            return if base == DType::Q8_0 || !whole { DType::Q8_0 } else { DType::Q6_K };
        }
        if name.contains("attn_qkv.weight") || name.contains("attn_v.weight") {
            let dtype = match self {
                Q2_K if facts.heads_per_kv >= 4 => DType::Q4_K,
                Q2_K => DType::Q3_K,
                Q3_K_M if layer < 2 => DType::Q5_K,
                Q3_K_M => DType::Q4_K,
                Q3_K_L => DType::Q5_K,
                Q4_K_M | Q5_K_M if sensitive => DType::Q6_K,
                Q4_K_S if layer < 4 => DType::Q5_K,
                _ => base,
            };
            // The shape of the 70-billion models: eight query heads share a value head, so its matrix is small.
            let shared = facts.layers == 80 && facts.heads_per_kv == 8;
            return match dtype {
                _ if facts.experts == 8 => DType::Q8_0,
                DType::Q3_K | DType::Q4_K if shared => DType::Q5_K,
                dtype => dtype,
            };
        }
        if name.contains("attn_k.weight") && facts.experts == 8 {
            return DType::Q8_0;
        }
        if name.contains("ffn_down") {
            return match self {
                Q2_K => DType::Q3_K,
                Q3_K_M if layer < facts.layers / 16 => DType::Q5_K,
                Q3_K_M => DType::Q4_K,
                Q3_K_L => DType::Q5_K,
                Q4_K_M | Q5_K_M if sensitive => DType::Q6_K,
                Q4_K_S if layer < eighth => DType::Q5_K,
                _ => base,
            };
        }
        if name.contains("attn_output.weight") {
            return match self {
                Q2_K | Q3_K_S | Q3_K_M | Q4_K_S | Q4_K_M if facts.experts == 8 => DType::Q5_K,
                Q2_K => DType::Q3_K,
                Q3_K_M if facts.experts != 8 => DType::Q4_K,
                Q3_K_L if facts.experts != 8 => DType::Q5_K,
                _ => base,
            };
        }
        base
    }
}

/// The first and the last eighth of the layers, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= layers.saturating_mul(7) / 8 || layer.saturating_sub(eighth) % 3 == 2
}

/// `dtype`, or what takes its place when a row of `inputs` is no whole number of its blocks.
fn fall_back(dtype: DType, inputs: u64) -> DType {
    let fits = |dtype: DType| inputs.is_multiple_of(dtype.block_len());
    if fits(dtype) {
        return dtype;
    }
    let smaller = match dtype {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::F16,
    };
    if fits(smaller) { smaller } else { DType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mix_has_its_row_and_its_name() {
        for (mix, name, file_type, _) in TABLE {
            assert_eq!((mix.name(), mix.file_type(), Mix::from_name(name)), (name, file_type, Some(mix)));
            assert_eq!(Mix::from_name(&format!("{mix:?}")), Some(mix));
        }
        assert_eq!(TABLE.len(), Mix::Q6_K as usize + 1);
        assert_eq!(Mix::from_name("q4_k"), Some(Mix::Q4_K_M));
        assert_eq!(Mix::from_name("iq4_xs"), None);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_fall_back() {
        assert_eq!(fall_back(DType::Q4_K, 576), DType::Q5_0);
        assert_eq!(fall_back(DType::Q6_K, 896), DType::Q8_0);
        assert_eq!(fall_back(DType::Q8_0, 48), DType::F16);
        assert_eq!(fall_back(DType::Q4_K, 48), DType::F16);
    }
}
