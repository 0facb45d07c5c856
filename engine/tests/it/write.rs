//! Files that this engine writes: read back as they were meant, whole or not at all.

use std::{
    fs,
    io::{self, Write},
};

use proptest::prelude::*;
use quelea_engine::{
    Gguf, Span, Stage,
    gguf::{
        DType,
        write::{Record, Sink, WriteError, Writer},
    },
    quantize::{Facts, Mix},
    synth::{Experts, ModelShape, SHAPES, Spelling, Synth},
    tokenizer::{EncodeOptions, Tokenizer},
};

fn small() -> Writer {
    let mut writer = Writer::new();
    writer.set("general.name", "small").set("n", 7u32);
    writer.tensor("a", DType::F32, &[3, 4]).unwrap().tensor("b", DType::Q8_0, &[2, 64]).unwrap();
    writer
}

#[test]
fn what_is_written_is_read() {
    let mut writer = small();
    writer
        .set("n", 8u64)
        .set("list", ["a", "ü"].as_slice())
        .set("floats", [0.5f32, -1.0].as_slice())
        .set("yes", true)
        .set("signed", [-3i32, 4].as_slice())
        .set("gone", 1u8)
        .remove("gone");
    let mut file = Vec::new();
    writer
        .write_to(&mut file, |tensor, sink| sink.write_all(&vec![tensor.name.as_bytes()[0]; tensor.bytes as usize]))
        .unwrap();
    assert_eq!(writer.size(), Some(file.len() as u64));
    let gguf = Gguf::from_vec(file).unwrap();
    assert_eq!((gguf.version(), gguf.alignment(), gguf.metadata().count()), (3, 32, 6));
    assert_eq!(gguf.get_u64("n").unwrap(), 8);
    assert_eq!(gguf.str_array("list").unwrap(), ["a", "ü"]);
    assert_eq!(gguf.f32_array("floats").unwrap(), [0.5, -1.0]);
    assert_eq!(gguf.i32_array("signed").unwrap(), [-3, 4]);
    assert!(gguf.get_bool("yes").unwrap());
    let b = gguf.tensor("b").unwrap();
    assert_eq!((b.dtype, &*b.shape, b.data), (DType::Q8_0, &[2, 64][..], &[b'b'; 136][..]));
    assert_eq!(gguf.tensor("a").unwrap().data, [b'a'; 48]);
}

#[test]
fn what_no_file_can_hold_is_refused() {
    let mut writer = Writer::new();
    for (dtype, shape) in [
        (DType::F32, &[][..]),
        (DType::F32, &[1; 5]),
        (DType::F32, &[0, 4]),
        (DType::Q4_K, &[4, 128]),
        (DType::Unknown(99), &[4]),
        (DType::F32, &[1 << 32, 1 << 32]),
    ] {
        assert!(
            matches!(writer.tensor("t", dtype, shape).unwrap_err(), WriteError::Content { name, .. } if name == "t")
        );
    }
    writer.tensor("t", DType::F32, &[1]).unwrap().tensor("t", DType::F32, &[1]).unwrap();
    assert!(writer.header().unwrap_err().to_string().contains("two tensors"));
}

/// A file that cannot be finished is not there, and one that was there before stays as it was.
#[test]
fn a_file_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let files = || fs::read_dir(dir.path()).unwrap().count();
    let zeros = |tensor: &Record, sink: &mut Sink<'_>| sink.write_all(&vec![0; tensor.bytes as usize]);
    let full = |_: &Record, _: &mut Sink<'_>| Err(io::Error::from(io::ErrorKind::StorageFull));
    let error = small().write_file(&path, false, full).unwrap_err();
    assert!(matches!(&error, WriteError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error}");
    assert!(error.to_string().contains("m.gguf"), "{error}");
    let short = |tensor: &Record, sink: &mut Sink<'_>| sink.write_all(&vec![0; tensor.bytes as usize - 1]);
    assert!(small().write_file(&path, false, short).unwrap_err().to_string().contains("tensor 'a' lacks 1 bytes"));
    let long = |tensor: &Record, sink: &mut Sink<'_>| sink.write_all(&vec![0; tensor.bytes as usize + 1]);
    assert!(small().write_file(&path, false, long).unwrap_err().to_string().contains("more bytes"));
    assert_eq!(files(), 0);

    small().write_file(&path, false, zeros).unwrap();
    let whole = fs::read(&path).unwrap();
    assert!(matches!(small().write_file(&path, false, zeros).unwrap_err(), WriteError::Exists { .. }));
    small().write_file(&path, true, full).unwrap_err();
    assert_eq!((files(), fs::read(&path).unwrap()), (1, whole));
    small().write_file(&path, true, zeros).unwrap();
    assert!(small().write_file(&dir.path().join("none/m.gguf"), false, zeros).is_err());
}

proptest! {
    #[test]
    fn prop_round_trip(
        keys in prop::collection::btree_map("[a-z.]{1,12}", ".{0,20}", 0..8),
        tensors in prop::collection::btree_map("[a-z.]{1,12}", (0usize..4, prop::collection::vec(1usize..5, 1..5)), 0..6),
    ) {
        let mut writer = Writer::new();
        for (key, value) in &keys {
            writer.set(key, value.as_str());
        }
        for (name, (dtype, shape)) in &tensors {
            let dtype = [DType::F32, DType::F16, DType::Q8_0, DType::Q4_K][*dtype];
            let mut shape = shape.clone();
            *shape.last_mut().unwrap() *= dtype.block_len() as usize;
            writer.tensor(name, dtype, &shape).unwrap();
        }
        let bytes = |name: &str, len: u64| -> Vec<u8> { (0..len).map(|i| (i as u8).wrapping_mul(name.as_bytes()[0])).collect() };
        let mut file = Vec::new();
        writer.write_to(&mut file, |tensor, sink| sink.write_all(&bytes(&tensor.name, tensor.bytes))).unwrap();
        let gguf = Gguf::from_vec(file).unwrap();
        prop_assert_eq!(gguf.metadata().count(), keys.len());
        for (key, value) in &keys {
            prop_assert_eq!(gguf.get_str(key).unwrap(), value);
        }
        prop_assert_eq!(gguf.tensors().len(), writer.tensors().len());
        for (view, record) in gguf.tensors().zip(writer.tensors()) {
            prop_assert_eq!((view.name, view.dtype, view.shape), (record.name.as_str(), record.dtype, record.shape));
            prop_assert_eq!(view.data, bytes(&record.name, record.bytes));
        }
    }
}

/// A shape of one of the families, small.
fn tiny(architecture: &'static str, spelling: Spelling, experts: Option<Experts>) -> ModelShape {
    let like = SHAPES.iter().find(|shape| shape.architecture == architecture).unwrap();
    let (layers, hidden, feed_forward) = (3, 256, 512);
    ModelShape {
        layers,
        hidden,
        feed_forward,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocab: 600,
        spelling,
        experts,
        ..*like
    }
}

#[test]
fn synthetic_models_compute_and_are_the_same_for_a_seed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for (architecture, spelling) in
        [("llama", Spelling::Pieces), ("qwen2", Spelling::Bytes("qwen2")), ("qwen3", Spelling::Bytes("qwen2"))]
    {
        let shape = tiny(architecture, spelling, None);
        let all: Vec<Mix> = Mix::names().map(|name| Mix::from_name(name).unwrap()).collect();
        for &mix in if architecture == "llama" { &all[..] } else { &[Mix::Q4_K_M] } {
            let model = Synth::new(&shape, mix, 5).unwrap();
            let mut last = 0;
            let progress = |done| {
                assert!(done > last);
                last = done;
                Ok(())
            };
            model.write_file(&path, true, progress).unwrap();
            let gguf = Gguf::open(&path).unwrap();
            assert_eq!(gguf.size(), model.size());
            let stage = Stage::load(&gguf, Span::whole(shape.layers)).unwrap();
            let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
            let ids = tokenizer.encode("some words, 123", EncodeOptions::default());
            assert!(ids.len() > 5, "{ids:?}");
            let mut cache = stage.new_cache();
            let rows = stage.forward(&mut cache, 0, &stage.embed(&ids).unwrap()).unwrap();
            let logits = stage.logits(&rows[rows.len() - shape.hidden..]).unwrap();
            assert_eq!(logits.len(), shape.vocab);
            let spread = logits.iter().map(|v| v * v).sum::<f32>() / logits.len() as f32;
            assert!((0.1..1000.0).contains(&spread), "{architecture} {mix:?}: {spread}");
        }
    }
    let shape = tiny("llama", Spelling::Pieces, None);
    let file = |seed| {
        Synth::new(&shape, Mix::Q4_K_M, seed).unwrap().write_file(&path, true, |_| Ok(())).unwrap();
        fs::read(&path).unwrap()
    };
    assert!(file(1) == file(1) && file(1) != file(2));
}

/// The sizes that people know these files by.
#[test]
fn shapes_have_their_sizes() {
    for (name, mix, megabytes) in [
        ("tinyllama-1.1b", Mix::Q4_K_M, 668.0),
        ("tinyllama-1.1b", Mix::Q8_0, 1170.0),
        ("llama-3.2-1b", Mix::Q4_K_M, 807.0),
        ("qwen2.5-0.5b", Mix::Q8_0, 531.0),
        ("mistral-7b", Mix::Q4_K_M, 4372.0),
        ("llama-3.1-8b", Mix::Q4_K_M, 4920.0),
        ("qwen3-30b-a3b", Mix::Q4_K_M, 18_556.0),
    ] {
        let size = Synth::new(ModelShape::named(name).unwrap(), mix, 0).unwrap().size() as f64 / 1e6;
        assert!((size / megabytes - 1.0).abs() < 0.012, "{name}: {size} MB, expected {megabytes}");
    }
}

/// The same types for the same tensors as in files that `llama-quantize` wrote.
#[test]
fn mixes_are_those_of_the_reference() {
    let mut files = 0;
    for dir in [crate::support::models(), Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models").into())] {
        for entry in dir.iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let Some(mix) = name.rsplit_once('-').and_then(|(_, mix)| Mix::from_name(mix)) else { continue };
            // The files of the other types hold one type throughout.
            if path.extension().is_none_or(|extension| extension != "gguf") || !mix.name().contains("_k") {
                continue;
            }
            let gguf = Gguf::open(&path).unwrap();
            let facts = Facts::of(&gguf);
            for tensor in gguf.tensors() {
                let expected = mix.dtype_of(tensor.name, &tensor.shape, &facts);
                assert_eq!(tensor.dtype, expected.unwrap_or(DType::F32), "{name}: {}", tensor.name);
            }
            files += 1;
        }
    }
    assert!(files > 5, "{files} files compared");
}
