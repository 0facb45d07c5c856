//! What the families' own code takes where `config.json` says nothing: saved files leave some of it out.

use serde_json::{Map, Value};

/// Whole numbers: families, setting, value.
const SIZES: &[(&[&str], &str, u32)] = &[
    (&["llama"], "max_position_embeddings", 2048),
    (&["mistral", "mixtral"], "max_position_embeddings", 131_072),
    (&["qwen2", "qwen3", "qwen3_moe"], "max_position_embeddings", 32_768),
    (&["phi3"], "max_position_embeddings", 4096),
    (&["gemma2"], "max_position_embeddings", 8192),
    (&["gemma3_text"], "max_position_embeddings", 131_072),
    (&["mistral", "mixtral"], "num_key_value_heads", 8),
    (&["qwen2", "qwen3"], "num_key_value_heads", 32),
    (&["qwen3_moe", "gemma2", "gemma3_text"], "num_key_value_heads", 4),
    (&["qwen3"], "head_dim", 128),
    (&["gemma2", "gemma3_text"], "head_dim", 256),
    (&["mistral", "gemma2", "gemma3_text"], "sliding_window", 4096),
    (&["gemma2", "gemma3_text"], "query_pre_attn_scalar", 256),
    (&["phi3"], "original_max_position_embeddings", 4096),
    (&["mixtral"], "num_local_experts", 8),
    (&["mixtral"], "num_experts_per_tok", 2),
    (&["qwen3_moe"], "num_experts", 128),
    (&["qwen3_moe"], "num_experts_per_tok", 8),
    (&["qwen3_moe"], "moe_intermediate_size", 768),
    // Files of models that also see are short about language.
    (&["gemma3_text"], "vocab_size", 262_208),
    (&["gemma3_text"], "hidden_size", 2304),
    (&["gemma3_text"], "intermediate_size", 9216),
    (&["gemma3_text"], "num_hidden_layers", 26),
    (&["gemma3_text"], "num_attention_heads", 8),
];

/// Numbers.
const NUMBERS: &[(&[&str], &str, f64)] = &[
    (&["mixtral", "phi3"], "rms_norm_eps", 1e-5),
    (&["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"], "rms_norm_eps", 1e-6),
    (&["gemma2"], "attn_logit_softcapping", 50.0),
    (&["gemma2"], "final_logit_softcapping", 30.0),
];

/// Base of the rotation, where neither the file nor its settings for the rotation have one.
pub(super) fn rope_base(kind: &str) -> f64 {
    if matches!(kind, "mixtral" | "gemma3_text") { 1e6 } else { 1e4 }
}

/// Adds what the family's code takes for settings that the file does not have. One that is null stays null.
pub(super) fn complete(values: &mut Map<String, Value>, kind: &str) {
    let sizes = SIZES.iter().map(|(kinds, key, value)| (kinds, key, Value::from(*value)));
    let numbers = NUMBERS.iter().map(|(kinds, key, value)| (kinds, key, Value::from(*value)));
    for (_, key, value) in sizes.chain(numbers).filter(|(kinds, ..)| kinds.contains(&kind)) {
        values.entry(*key).or_insert(value);
    }
}
