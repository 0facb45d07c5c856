//! A model's id must never change by accident.

use std::fs;

use quelea_engine::{Architecture, Gguf, Hparams, Manifest, hparams::Variant, manifest::Part};

use crate::support::{LAYERS, model, models};

fn example() -> Manifest {
    let hparams = Hparams {
        architecture: Architecture::Qwen3,
        n_layers: 2,
        hidden: 256,
        feed_forward: 512,
        heads: 8,
        kv_heads: 4,
        head_dim: 32,
        rope_dims: 32,
        rope_base: 1e6,
        rope_scale: 1.0,
        rms_eps: 1e-6,
        context_length: 2048,
        vocab: 1024,
        variant: Variant::default(),
    };
    let part = |n: u8| Part { root: [n; 32], bytes: u64::from(n) * 1000 };
    Manifest {
        name: "example".to_owned(),
        architecture: "qwen3".to_owned(),
        n_layers: 2,
        hidden: 256,
        vocab: 1024,
        context_length: 2048,
        hparams,
        tokenizer: part(7),
        quantisation: "Q8_0".to_owned(),
        embedding: part(1),
        layers: vec![part(2), part(3)],
        head: part(4),
        shared: part(0),
    }
}

const CANONICAL: &str = "8a6f7175656c65612e6d616e696665737402657177656e338c021901001902000804182018201a497424001a3f8000001a35\
    8637bd1908001904008258200707070707070707070707070707070707070707070707070707070707070707191b58645138\
    5f3082582001010101010101010101010101010101010101010101010101010101010101011903e882825820020202020202\
    02020202020202020202020202020202020202020202020202021907d0825820030303030303030303030303030303030303\
    0303030303030303030303030303190bb8825820040404040404040404040404040404040404040404040404040404040404\
    0404190fa0825820000000000000000000000000000000000000000000000000000000000000000000";

/// Frozen: a change here gives every model another id and needs another version in the canonical form.
#[test]
fn vectors() {
    let manifest = example();
    assert_eq!(hex::encode(manifest.canonical()), CANONICAL);
    assert_eq!(hex::encode(manifest.id()), "146f4434bd043db0715f93a3ac831a7756727530e665f9a66ae6e9eec3a937dd");
    let renamed = Manifest { name: "another".to_owned(), ..example() };
    assert_eq!(renamed.id(), manifest.id());
    let other = Manifest { quantisation: "Q4_0".to_owned(), ..example() };
    assert_ne!(other.id(), manifest.id());
}

#[test]
fn a_file_gives_its_parts() {
    let gguf = model("llama").open();
    let manifest = Manifest::from_gguf(&gguf).unwrap();
    assert_eq!(manifest.name, "small");
    assert_eq!(manifest.quantisation, "F32");
    assert_eq!(manifest.layers.len(), LAYERS);
    // Two times two heads of eight values of four bytes.
    assert_eq!(manifest.kv_bytes_per_row_per_layer(), 128);
    let embedding = gguf.tensor("token_embd.weight").unwrap().data.len() as u64;
    let norm = gguf.tensor("output_norm.weight").unwrap().data.len() as u64;
    assert_eq!(manifest.embedding.bytes, embedding);
    assert_eq!(manifest.head.bytes, embedding + norm, "tied: the head needs the embedding");
    assert_eq!(manifest.shared.bytes, 0);
    let layers: u64 = manifest.layers.iter().map(|part| part.bytes).sum();
    let all: u64 = gguf.tensors().map(|tensor| tensor.data.len() as u64).sum();
    assert_eq!(embedding + layers + norm, all);

    let again = Manifest::from_gguf(&model("llama").open()).unwrap();
    assert_eq!(again, manifest);
}

/// Each byte of weights and each word of the tokenizer is part of the id, and shows in the part that it belongs to.
#[test]
fn every_part_is_in_the_id() {
    let before = Manifest::from_gguf(&model("llama").open()).unwrap();
    let mut file = model("llama").build();
    let last = file.len() - 1;
    file[last] ^= 1;
    let after = Manifest::from_gguf(&Gguf::from_vec(file).unwrap()).unwrap();
    assert_ne!(after.id(), before.id());
    assert_ne!(after.head.root, before.head.root);
    assert_eq!((after.embedding, &after.layers), (before.embedding, &before.layers));

    let words = model("llama").str("tokenizer.ggml.model", "gpt2");
    let words = Manifest::from_gguf(&words.open()).unwrap();
    assert_ne!(words.tokenizer, before.tokenizer);
    assert_ne!(words.id(), before.id());
    let name = model("llama").str("general.author", "somebody");
    assert_eq!(Manifest::from_gguf(&name.open()).unwrap().id(), before.id());
    let scaled = model("llama").tensor("rope_freqs.weight", &[4], |_| 1.0);
    assert_ne!(Manifest::from_gguf(&scaled.open()).unwrap().shared.root, before.shared.root);
}

#[test]
fn fixtures_have_their_quantisation_and_ids_of_their_own() {
    let Some(dir) = models() else { return };
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let manifest = Manifest::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (family, quantisation) = stem.split_once('-').unwrap();
        assert_eq!(manifest.architecture, family);
        assert_eq!(manifest.quantisation.to_lowercase(), quantisation.to_lowercase());
        ids.push(manifest.id());
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}
