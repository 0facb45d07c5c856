use super::*;
use crate::gguf::write::Writer;

/// A llama with two layers; the embedding is larger than a chunk. `tied` has no output matrix of its own.
fn model(tied: bool) -> Gguf {
    let (vocab, hidden, ff) = (700, 512, 64);
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("general.name", "outlined").set("general.alignment", 32_u32);
    writer.set("general.author", "somebody").set("llama.block_count", 2_u32).set("llama.context_length", 64_u32);
    writer.set("llama.embedding_length", hidden as u32).set("llama.feed_forward_length", ff as u32);
    writer.set("llama.attention.head_count", 4_u32).set("llama.attention.layer_norm_rms_epsilon", 1e-5_f32);
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.tokens", &["a", "b"][..]);
    let mut add = |name: &str, shape: &[usize]| {
        writer.tensor(name, DType::F32, shape).unwrap();
    };
    add("token_embd.weight", &[vocab, hidden]);
    for layer in [1, 0] {
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            add(&format!("blk.{layer}.{name}.weight"), &[hidden, hidden]);
        }
        add(&format!("blk.{layer}.attn_norm.weight"), &[hidden]);
    }
    add("output_norm.weight", &[hidden]);
    if !tied {
        add("output.weight", &[vocab, hidden]);
    }
    let mut bytes = Vec::new();
    let mut seed = 1_u32;
    let fill = |record: &crate::gguf::write::Record, sink: &mut crate::gguf::write::Sink<'_>| {
        use std::io::Write as _;
        for _ in 0..record.bytes / 4 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            sink.write_all(&(f32::from((seed >> 16) as u16) / 65_536.0 - 0.5).to_le_bytes())?;
        }
        Ok(())
    };
    writer.write_to(&mut bytes, fill).unwrap();
    Gguf::from_vec(bytes).unwrap()
}

#[test]
fn an_outline_has_the_models_id_and_comes_back_from_its_bytes() {
    for tied in [false, true] {
        let gguf = model(tied);
        let outline = Outline::of(&gguf).unwrap();
        let id = Manifest::from_gguf(&gguf).unwrap().id();
        assert_eq!(outline.manifest().unwrap().id(), id);
        let back = Outline::decode(&outline.encode()).unwrap();
        assert_eq!(back, outline);
        assert_eq!(back.manifest().unwrap().name, "outlined");
        assert_eq!(
            outline.bytes(),
            tokenizer_blob(&gguf).len() as u64 + gguf.tensors().map(|t| t.bytes()).sum::<u64>()
        );
    }
}

#[test]
fn whatever_is_changed_in_an_outline_makes_another_model_or_none() {
    let outline = Outline::of(&model(false)).unwrap();
    let (bytes, manifest) = (outline.encode(), outline.manifest().unwrap());
    for i in 0..bytes.len() {
        let mut other = bytes.clone();
        other[i] ^= 1;
        if let Ok(other) = Outline::decode(&other)
            && let Ok(mut told) = other.manifest()
            && told.id() == manifest.id()
        {
            // The model's name is no part of what it is, and a number may be written in two types.
            told.name.clone_from(&manifest.name);
            assert_eq!(told, manifest, "byte {i}");
            assert_eq!(other.tensors(), outline.tensors(), "byte {i}");
            assert_eq!(other.tokenizer(), outline.tokenizer(), "byte {i}");
        }
        assert!(Outline::decode(&bytes[..i]).is_err());
    }
}

#[test]
fn a_tokenizer_of_another_length_is_another_models() {
    // Below a chunk, one hash goes with any length: only the id says which.
    let outline = Outline::of(&model(false)).unwrap();
    let told = outline.tokenizer();
    let id = outline.manifest().unwrap().id();
    for bytes in [told.bytes() - 1, told.bytes() + 1, CHUNK] {
        let tokenizer = Tree::from_parts(*told.hash(), bytes, Vec::new()).unwrap();
        let liar = Outline::new(outline.metadata.clone(), tokenizer, outline.tensors.clone()).unwrap();
        assert_ne!(Outline::decode(&liar.encode()).unwrap().manifest().unwrap().id(), id);
    }
}

#[test]
fn a_file_filled_with_chunks_is_the_model() {
    for tied in [false, true] {
        let gguf = model(tied);
        let outline = Outline::of(&gguf).unwrap();
        let blob = tokenizer_blob(&gguf);
        let file = outline.file(&blob).unwrap();
        let mut bytes = file.header.clone();
        bytes.resize(usize::try_from(file.size).unwrap(), 0);
        assert!(Gguf::from_vec(bytes.clone()).is_ok(), "the reader takes a file whose tensors are holes");
        for chunk in 0..outline.chunks() {
            let data = outline.read(&gguf, &blob, chunk).unwrap();
            assert_eq!(data.len() as u64, outline.chunk_len(chunk));
            assert!(outline.check(chunk, &data));
            if let Some(at) = outline.offset(&file, chunk) {
                let at = usize::try_from(at).unwrap();
                bytes[at..at + data.len()].copy_from_slice(&data);
            }
        }
        let filled = Gguf::from_vec(bytes).unwrap();
        assert_eq!(Manifest::from_gguf(&filled).unwrap().id(), Manifest::from_gguf(&gguf).unwrap().id());
        assert_eq!(outline.chunk_len(outline.chunks()), 0);
        assert!(!outline.check(outline.chunks(), &[1]) && outline.read(&gguf, &blob, outline.chunks()).is_none());
    }
}

#[test]
fn a_span_needs_its_layers_and_an_end_its_matrices() {
    let names = |tied: bool, need: Need| -> Vec<String> {
        let outline = Outline::of(&model(tied)).unwrap();
        let chunks: Vec<u32> = outline.needed(&need).into_iter().flatten().collect();
        assert!(chunks.is_sorted());
        let of = |t: &TensorInfo| {
            let i = outline.tensors().iter().position(|other| other == t).unwrap();
            outline.starts[i]..outline.starts[i + 1]
        };
        let tensors = outline.tensors().iter().filter(|t| of(t).all(|chunk| chunks.contains(&chunk)));
        tensors.map(|t| t.name.clone()).collect()
    };
    let layer = names(false, Need { layers: 1..2, ..Need::default() });
    assert_eq!(layer.len(), 5);
    assert!(layer.iter().all(|name| name.starts_with("blk.1.")));
    let head = |tied| names(tied, Need { head: true, ..Need::default() });
    assert_eq!(head(false), ["output.weight", "output_norm.weight"]);
    assert_eq!(head(true), ["token_embd.weight", "output_norm.weight"]);
    assert!(names(false, Need::default()).is_empty());
}

#[test]
fn a_tokenizer_that_is_cut_off_is_refused() {
    let gguf = model(false);
    let outline = Outline::of(&gguf).unwrap();
    let blob = tokenizer_blob(&gguf);
    for len in 1..blob.len() {
        if let Ok(cut) = fields(&blob[..len]) {
            assert!(cut.len() < 2, "whole keys only");
        }
    }
    assert!(outline.file(b"\x07\0\0\0\0\0\0\0general").is_err());
}

#[test]
fn counts_cost_no_memory_before_their_entries_are_there() {
    // An array of a quarter of a million tensors in twenty bytes.
    let mut bytes = Outline::of(&model(false)).unwrap().encode();
    let at = bytes.windows(2).position(|w| w == [0x8d, 0x85]).unwrap();
    bytes.splice(at..=at, [0x9a, 0, 4, 0, 0]);
    assert!(Outline::decode(&bytes).is_err());
    bytes[at + 2] = 5;
    assert!(Outline::decode(&bytes).unwrap_err().to_string().contains("more entries"));
}
