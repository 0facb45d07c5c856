//! A folder as Hugging Face lays it out gives the answers of the GGUF file with the same weights.

use std::{collections::HashMap, fs::File, path::Path};

use candle_core::{Device, Tensor, quantized::gguf_file};
use serde_json::{Value, json};

use crate::harness::{ENDLESS, Sidecar, chat, file};

/// A tensor's name there, by its name in a GGUF file.
fn renamed(name: &str) -> String {
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight".into(),
            "output_norm.weight" => "model.norm.weight".into(),
            "output.weight" => "lm_head.weight".into(),
            other => panic!("{other}"),
        };
    };
    let rest = match rest {
        "attn_norm.weight" => "input_layernorm.weight",
        "ffn_norm.weight" => "post_attention_layernorm.weight",
        "attn_q.weight" => "self_attn.q_proj.weight",
        "attn_k.weight" => "self_attn.k_proj.weight",
        "attn_v.weight" => "self_attn.v_proj.weight",
        "attn_output.weight" => "self_attn.o_proj.weight",
        "attn_q_norm.weight" => "self_attn.q_norm.weight",
        "attn_k_norm.weight" => "self_attn.k_norm.weight",
        "ffn_gate.weight" => "mlp.gate_proj.weight",
        "ffn_up.weight" => "mlp.up_proj.weight",
        "ffn_down.weight" => "mlp.down_proj.weight",
        other => panic!("{other}"),
    };
    format!("model.layers.{layer}.{rest}")
}

/// Writes the qwen3 model of a GGUF file out again.
fn write(gguf: &Path, dir: &Path, template: bool) {
    let mut from = File::open(gguf).unwrap();
    let content = gguf_file::Content::read(&mut from).unwrap();
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut from, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        tensors.insert(renamed(name), tensor);
    }
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    let meta = |key: &str| &content.metadata[key];
    let number = |key: &str| meta(&format!("qwen3.{key}")).to_u32().unwrap();
    let float = |key: &str| meta(&format!("qwen3.{key}")).to_f32().unwrap();
    let texts = |key: &str| -> Vec<String> {
        meta(key).to_vec().unwrap().iter().map(|value| value.to_string().unwrap().clone()).collect()
    };
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": number("embedding_length"), "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"), "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"), "head_dim": number("attention.key_length"),
        "max_position_embeddings": number("context_length"), "vocab_size": number("vocab_size"),
        "rms_norm_eps": float("attention.layer_norm_rms_epsilon"), "rope_theta": float("rope.freq_base"),
        "tie_word_embeddings": !tensors.contains_key("lm_head.weight"), "sliding_window": null,
        "use_sliding_window": false, "max_window_layers": 0,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokens = texts("tokenizer.ggml.tokens");
    let kinds = meta("tokenizer.ggml.token_type").to_vec().unwrap();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|id| kinds[*id].to_i32().unwrap() != 1)
        .map(|id| {
            json!({ "id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        })
        .collect();
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": texts("tokenizer.ggml.merges") },
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let end = &tokens[meta("tokenizer.ggml.eos_token_id").to_u32().unwrap() as usize];
    let mut about = json!({ "eos_token": end });
    if template {
        about["chat_template"] = meta("tokenizer.chat_template").to_string().unwrap().as_str().into();
    }
    std::fs::write(dir.join("tokenizer_config.json"), about.to_string()).unwrap();
}

fn asked(sidecar: &Sidecar) -> String {
    sidecar.post(&chat("hi", json!({ "temperature": 0, "max_tokens": 24 }))).text()
}

#[test]
fn a_folder_answers_as_the_file_with_the_same_weights_does() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("small-qwen");
    std::fs::create_dir(&folder).unwrap();
    write(&file(ENDLESS), &folder, true);
    let sidecar = Sidecar::start_at(&folder, &[]);
    assert_eq!(sidecar.health()["model"], "small-qwen");
    assert_eq!(asked(&sidecar), asked(&Sidecar::start(ENDLESS, &[])));
}

#[test]
fn a_folder_without_a_template_gets_the_messages_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    write(&file(ENDLESS), dir.path(), false);
    let sidecar = Sidecar::start_at(dir.path(), &["--name", "plain"]);
    let answer = sidecar.post(&chat("hi", json!({ "temperature": 0, "max_tokens": 4, "model": "plain" }))).json();
    // "hi" and a line's end, and nothing around them.
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() <= 3, "{answer}");
}
