//! Folders of safetensors, made from GGUF files by undoing what a conversion does: they open as the same models.

use std::{collections::HashMap, fs, path::Path};

use quelea_engine::{
    Gguf, Manifest, chain,
    gguf::{DType, TensorView},
    huggingface::{self, HfError},
    quantize::{Mix, Plan},
};
use safetensors::{Dtype, tensor::TensorView as Safe};
use serde_json::{Value, json};

use crate::support::{ids, model, models};

/// GGUF's parts of a layer, and what the folders of most families call them.
const PARTS: [(&str, &str); 12] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
];

fn number(gguf: &Gguf, key: &str) -> Option<u32> {
    gguf.get_u32(&format!("{}.{key}", gguf.get_str("general.architecture").unwrap())).ok()
}

fn config(gguf: &Gguf) -> Value {
    let arch = gguf.get_str("general.architecture").unwrap();
    let float = |key: &str| gguf.get_f32(&format!("{arch}.{key}")).ok();
    let mut config = json!({
        "model_type": if arch == "qwen3moe" { "qwen3_moe" } else { arch },
        "num_hidden_layers": number(gguf, "block_count"),
        "hidden_size": number(gguf, "embedding_length"),
        "intermediate_size": number(gguf, "feed_forward_length"),
        "num_attention_heads": number(gguf, "attention.head_count"),
        "num_key_value_heads": number(gguf, "attention.head_count_kv"),
        "head_dim": number(gguf, "attention.key_length"),
        "max_position_embeddings": number(gguf, "context_length"),
        "vocab_size": gguf.tensor("token_embd.weight").unwrap().shape[0],
        "rms_norm_eps": f64::from(float("attention.layer_norm_rms_epsilon").unwrap()),
        "rope_theta": f64::from(float("rope.freq_base").unwrap_or(10_000.0)),
        "tie_word_embeddings": gguf.tensor("output.weight").is_err(),
        "rope_scaling": null,
    });
    if let Some(experts) = number(gguf, "expert_count") {
        config["num_experts"] = json!(experts);
        config["norm_topk_prob"] = json!(true);
        config["num_experts_per_tok"] = json!(number(gguf, "expert_used_count"));
        config["moe_intermediate_size"] = json!(number(gguf, "expert_feed_forward_length"));
    }
    config
}

/// The rows of each head as they were before neighbours were paired: all first halves, then all second ones.
fn parted(data: &[u8], heads: usize, rows: usize) -> Vec<u8> {
    let (row, width) = (data.len() / rows, rows / heads);
    let of = |head: usize, i: usize| {
        let from = head * width + if i < width / 2 { 2 * i } else { 2 * (i - width / 2) + 1 };
        &data[from * row..][..row]
    };
    (0..rows).flat_map(|i| of(i / width, i % width)).copied().collect()
}

/// The folder's tensors: name, shape, bytes.
fn tensors(gguf: &Gguf) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let llama = gguf.get_str("general.architecture").unwrap() == "llama";
    let mut out = Vec::new();
    for tensor in gguf.tensors() {
        assert_eq!(tensor.dtype, DType::F32);
        let whole = |name: String| (name, tensor.shape.to_vec(), tensor.data.to_vec());
        match tensor.name {
            "token_embd.weight" => out.push(whole("model.embed_tokens.weight".into())),
            "output_norm.weight" => out.push(whole("model.norm.weight".into())),
            "output.weight" => out.push(whole("lm_head.weight".into())),
            name => {
                let parts: Vec<&str> = name.splitn(4, '.').collect();
                let [_, layer, part, kind]: [&str; 4] = parts.try_into().unwrap();
                if let Some(matrix) = part.strip_suffix("_exps").and_then(|part| part.strip_prefix("ffn_")) {
                    for i in 0..tensor.shape[0] {
                        let expert = tensor.expert(i).unwrap();
                        let name = format!("model.layers.{layer}.mlp.experts.{i}.{matrix}_proj.{kind}");
                        out.push((name, expert.shape.to_vec(), expert.data.to_vec()));
                    }
                    continue;
                }
                let found = PARTS.iter().find(|row| row.0 == part).unwrap().1;
                let mut tensor = whole(format!("model.layers.{layer}.{found}.{kind}"));
                let heads = match part {
                    "attn_q" => number(gguf, "attention.head_count"),
                    "attn_k" => number(gguf, "attention.head_count_kv"),
                    _ => None,
                };
                if let (Some(heads), true) = (heads, llama) {
                    tensor.2 = parted(&tensor.2, heads as usize, tensor.1[0]);
                }
                out.push(tensor);
            }
        }
    }
    out
}

/// Writes a folder, its tensors in `files` files.
fn write(dir: &Path, config: &Value, tensors: &[(String, Vec<usize>, Vec<u8>)], files: usize) {
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut map = HashMap::new();
    for i in 0..files {
        let name = if files == 1 { "model.safetensors".to_owned() } else { format!("model-{i}.safetensors") };
        let part: Vec<_> = tensors.iter().skip(i).step_by(files).collect();
        part.iter().for_each(|tensor| drop(map.insert(tensor.0.clone(), name.clone())));
        let views = part.iter().map(|(name, shape, data)| (name, Safe::new(Dtype::F32, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join(name)).unwrap();
    }
    if files > 1 {
        fs::write(dir.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    }
}

fn same(a: &TensorView<'_>, b: &TensorView<'_>) {
    assert_eq!((a.dtype, a.shape, a.bytes()), (b.dtype, b.shape, b.bytes()), "{}", a.name);
    let bytes = |tensor: &TensorView<'_>| tensor.pieces().flatten().copied().collect::<Vec<u8>>();
    assert!(bytes(a) == bytes(b), "{}", a.name);
}

/// The files that are here: those of the fixtures, the committed ones, and the smallest.
fn sources() -> Vec<(String, Gguf)> {
    let mut sources: Vec<_> =
        ["llama", "qwen2", "qwen3"].iter().map(|arch| ((*arch).to_owned(), model(arch).open())).collect();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    for name in ["llama-odd-F32", "qwen2-F32", "qwen3-F32", "qwen3moe-F32"] {
        let path = committed.join(format!("{name}.gguf"));
        if path.is_file() {
            sources.push((name.to_owned(), Gguf::open(path).unwrap()));
        }
    }
    sources
}

#[test]
fn a_folder_opens_as_the_model_it_was_made_from() {
    for (name, gguf) in sources() {
        for files in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &config(&gguf), &tensors(&gguf), files);
            assert!(huggingface::is_folder(dir.path()));
            let folder = huggingface::open(dir.path()).unwrap();
            assert_eq!(folder.tensors().len(), gguf.tensors().len(), "{name}");
            for tensor in gguf.tensors() {
                same(&folder.tensor(tensor.name).unwrap(), &tensor);
                if let [experts, ..] = *tensor.shape
                    && tensor.shape.len() == 3
                {
                    for i in 0..experts {
                        same(&folder.tensor(tensor.name).unwrap().expert(i).unwrap(), &tensor.expert(i).unwrap());
                    }
                }
            }
            // Quantised while it opens, or written as a file and opened: the same bytes.
            let spooled = huggingface::open_quantised(dir.path(), Mix::Q8_0, dir.path(), |_, _| Ok(())).unwrap();
            let mut file = Vec::new();
            Plan::new(&folder, Mix::Q8_0).unwrap().write_to(&mut file, |_| Ok(())).unwrap();
            let written = Gguf::from_vec(file).unwrap();
            spooled.tensors().zip(written.tensors()).for_each(|(a, b)| same(&a, &b));
            assert_eq!(spooled.get_u32("general.file_type").unwrap(), Mix::Q8_0.file_type());
        }
    }
}

#[test]
fn logits_are_the_same_bit_for_bit() {
    for arch in ["llama", "qwen2", "qwen3"] {
        let gguf = model(arch).open();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &config(&gguf), &tensors(&gguf), 2);
        let folder = huggingface::open(dir.path()).unwrap();
        let (ids, split) = (ids(9), [1]);
        let bits = |gguf: &Gguf| -> Vec<u32> {
            chain::logits_for(gguf, &ids, &split).unwrap().iter().map(|value| value.to_bits()).collect()
        };
        assert_eq!(bits(&folder), bits(&gguf), "{arch}");
        let manifest = Manifest::from_gguf(&folder).unwrap();
        let again = Manifest::from_gguf(&huggingface::open(dir.path()).unwrap()).unwrap();
        assert_eq!(manifest.id(), again.id());
        let expected = Manifest::from_gguf(&gguf).unwrap();
        assert_eq!((manifest.layers, manifest.hparams), (expected.layers, expected.hparams), "{arch}");
    }
    let Some(dir) = models() else { return };
    let gguf = Gguf::open(dir.join("llama-f32.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &config(&gguf), &tensors(&gguf), 2);
    let folder = huggingface::open(dir.path()).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| i * 17 % 1000).collect();
    let bits = |gguf: &Gguf| -> Vec<u32> {
        chain::logits_for(gguf, &ids, &[]).unwrap().iter().map(|value| value.to_bits()).collect()
    };
    assert_eq!(bits(&folder), bits(&gguf));
}

#[test]
fn broken_folders_are_refused_with_the_reason() {
    let gguf = model("llama").open();
    let (good, whole) = (config(&gguf), tensors(&gguf));
    let refusal = |config: &Value, tensors: &[(String, Vec<usize>, Vec<u8>)], change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), config, tensors, 1);
        change(dir.path());
        huggingface::open(dir.path()).unwrap_err().to_string()
    };
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        refusal(&config, &whole, &|_| {})
    };
    assert!(
        with("model_type", json!("falcon")).starts_with("model_type 'falcon' is not supported; supported are llama")
    );
    assert!(with("hidden_size", json!("wide")).contains("'hidden_size': expected a whole number"));
    assert!(with("num_attention_heads", Value::Null).contains("'num_attention_heads': it is missing"));
    assert!(with("rope_scaling", json!({ "type": "magic" })).contains("'magic' is not supported"));
    assert!(with("hidden_act", json!("gelu")).contains("'hidden_act': expected silu"));
    assert!(with("rope_scaling", json!({ "type": "yarn", "factor": 2, "truncate": false })).contains("truncate"));
    assert!(with("num_attention_heads", json!(5)).contains("rows are not 5 heads of an even width"));
    let headless: Vec<_> = whole.iter().filter(|tensor| tensor.0 != "lm_head.weight").cloned().collect();
    if headless.len() < whole.len() {
        assert!(refusal(&good, &headless, &|_| {}).contains("tensor 'lm_head.weight': it is missing"));
    }
    let mut more = whole.clone();
    more.push(("model.vision.weight".into(), vec![1], vec![0; 4]));
    assert!(refusal(&good, &more, &|_| {}).contains("tensor 'model.vision.weight': none of the families"));
    for (expected, change) in [
        ("config.json", &(|dir: &Path| fs::write(dir.join("config.json"), "[]").unwrap()) as &dyn Fn(&Path)),
        ("model.safetensors", &|dir| fs::remove_file(dir.join("model.safetensors")).unwrap()),
        ("which is no file's name", &|dir| {
            let index = json!({ "weight_map": { "a": "../other/model.safetensors" } });
            fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }),
    ] {
        let error = refusal(&good, &whole, change);
        assert!(error.contains(expected), "{error}");
    }
}

/// Every byte of the header changed, and every cut: an error or a model, never a panic.
#[test]
fn damaged_safetensors_never_panic() {
    let gguf = model("qwen3").open();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &config(&gguf), &tensors(&gguf), 1);
    let path = dir.path().join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    for at in (0..header + 8).step_by(7) {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, &damaged).unwrap();
        let _ = huggingface::open(dir.path());
        fs::write(&path, &file[..at]).unwrap();
        huggingface::open(dir.path()).unwrap_err();
    }
    fs::write(&path, [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    assert!(matches!(huggingface::open(dir.path()).unwrap_err(), HfError::Safetensors { .. }));
}
