//! Names of tensors: from those of Hugging Face's folders to those of GGUF.

/// What a tensor of a folder becomes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The tensor of this name.
    Whole(String),
    /// One expert of the stack of this name.
    Expert(String, usize),
    /// Nothing: it can be computed, or is there twice.
    Dropped,
}

/// Parts of a layer outside the experts, up to `.weight` or `.bias`.
const PARTS: [(&str, &str); 16] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Beginnings of the names of what a model that also sees has beside its language.
const BESIDE: [&str; 2] = ["vision_tower.", "multi_modal_projector."];

/// What the tensor `name` of a folder becomes; `None` when the families know no such tensor. With `four_norms` (Gemma)
/// the norm after the attention is one of its own, else it is the one before the feed-forward part.
pub(super) fn target(name: &str, four_norms: bool, tied: bool) -> Option<Target> {
    if BESIDE.iter().any(|part| name.strip_prefix("model.").unwrap_or(name).starts_with(part)) {
        return Some(Target::Dropped);
    }
    let inner = name.strip_prefix("model.language_model.").map(|rest| format!("model.{rest}"));
    let name = inner.as_deref().unwrap_or_else(|| name.strip_prefix("language_model.").unwrap_or(name));
    match name {
        "model.embed_tokens.weight" => return Some(Target::Whole("token_embd.weight".into())),
        "model.norm.weight" => return Some(Target::Whole("output_norm.weight".into())),
        "lm_head.weight" if tied => return Some(Target::Dropped),
        "lm_head.weight" => return Some(Target::Whole("output.weight".into())),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    if part.ends_with("rotary_emb.inv_freq") {
        return Some(Target::Dropped);
    }
    let (stem, kind) = part.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let experts = stem.strip_prefix("mlp.experts.").or_else(|| stem.strip_prefix("block_sparse_moe.experts."));
    if let Some((expert, matrix)) = experts.and_then(|rest| rest.split_once('.')) {
        let matrix = match matrix {
            "gate_proj" | "w1" => "gate",
            "up_proj" | "w3" => "up",
            "down_proj" | "w2" => "down",
            _ => return None,
        };
        return Some(Target::Expert(format!("blk.{layer}.ffn_{matrix}_exps.{kind}"), expert.parse().ok()?));
    }
    let part = match stem {
        "post_attention_layernorm" if four_norms => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        stem => PARTS.iter().find(|(known, _)| *known == stem)?.1,
    };
    Some(Target::Whole(format!("blk.{layer}.{part}.{kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found() {
        let whole = |name: &str, four| match target(name, four, false) {
            Some(Target::Whole(name)) => name,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(whole("model.layers.12.self_attn.q_proj.bias", false), "blk.12.attn_q.bias");
        assert_eq!(whole("model.layers.0.post_attention_layernorm.weight", false), "blk.0.ffn_norm.weight");
        assert_eq!(whole("model.layers.0.post_attention_layernorm.weight", true), "blk.0.post_attention_norm.weight");
        assert_eq!(whole("language_model.model.norm.weight", true), "output_norm.weight");
        assert_eq!(whole("lm_head.weight", false), "output.weight");
        assert_eq!(whole("model.language_model.layers.3.mlp.up_proj.weight", true), "blk.3.ffn_up.weight");
        assert_eq!(target("model.vision_tower.x.weight", true, true), Some(Target::Dropped));
        assert_eq!(target("lm_head.weight", false, true), Some(Target::Dropped));
        let expert = |name: &str| Some(Target::Expert(name.into(), 7));
        assert_eq!(
            target("model.layers.3.mlp.experts.7.down_proj.weight", false, false),
            expert("blk.3.ffn_down_exps.weight")
        );
        assert_eq!(
            target("model.layers.3.block_sparse_moe.experts.7.w3.weight", false, false),
            expert("blk.3.ffn_up_exps.weight")
        );
        for unknown in ["model.vision.x.weight", "model.layers.x.mlp.up_proj.weight", "model.layers.0.mlp.up_proj"] {
            assert_eq!(target(unknown, false, false), None, "{unknown}");
        }
    }
}
