//! Files that are broken, by accident or on purpose.

use std::{fs, io::Write};

use proptest::prelude::*;
use quelea_engine::{
    Gguf, GgufError, LoadError, Manifest, Span, Stage,
    gguf::{DType, Optional, Shape, Value},
};

use crate::support::{Builder, LAYERS, VOCAB, model, models};

fn refusal(builder: &Builder) -> String {
    Gguf::from_vec(builder.build()).unwrap_err().to_string()
}

/// Two tensors of 64 bytes each.
fn two() -> Builder {
    Builder::default().u32("a", 1).tensor("first", &[4, 4], |i| i as f32).tensor("second", &[16], |i| i as f32)
}

#[test]
fn typed_metadata() {
    let signed = [&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &(-1i32).to_le_bytes(), &9i32.to_le_bytes()].concat();
    let gguf = Builder::default()
        .u32("n", 7)
        .f32("x", 0.5)
        .str("s", "text")
        .strs("list", &["a", "", "ü"])
        .raw("byte", 0, &[200])
        .raw("yes", 7, &[1])
        .raw("no", 7, &[0])
        .raw("signed", 9, &signed)
        .raw("latin1", 8, &[&1u64.to_le_bytes()[..], &[0xfc]].concat())
        .open();
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.alignment(), 32);
    assert_eq!(gguf.get_u32("n").unwrap(), 7);
    assert_eq!(gguf.get_u64("byte").unwrap(), 200);
    assert_eq!(gguf.get_f32("x").unwrap().to_bits(), 0.5f32.to_bits());
    assert_eq!(gguf.get_str("s").unwrap(), "text");
    assert!(gguf.get_bool("yes").unwrap() && !gguf.get_bool("no").unwrap());
    assert_eq!(gguf.str_array("list").unwrap(), ["a", "", "ü"]);
    assert_eq!(gguf.i32_array("signed").unwrap(), [-1, 9]);
    assert_eq!(gguf.get_u32("absent").optional().unwrap(), None);
    assert_eq!(gguf.get_str("n").unwrap_err().to_string(), "metadata key 'n': found U32(7), expected a string");
    assert!(gguf.u32_array("signed").unwrap_err().to_string().contains("found I32(-1)"));
    assert!(gguf.get_str("latin1").unwrap_err().to_string().contains("not UTF-8"));
    assert!(gguf.get_u32("absent").unwrap_err().is_missing());
    assert!(matches!(gguf.metadata().next(), Some(("n", Ok(Value::U32(7))))));
    assert_eq!(gguf.metadata().count(), 9);
    assert_eq!(gguf.tensors().len(), 0, "a file without tensors is a file");
    assert!(gguf.tensor("x").unwrap_err().is_missing());
}

#[test]
fn tensors_have_their_bytes() {
    let gguf = two().open();
    let second = gguf.tensor("second").unwrap();
    assert_eq!((second.dtype, &*second.shape, second.data.len()), (DType::F32, &[16][..], 64));
    assert_eq!(second.data[4..8], 1f32.to_le_bytes());
    let rows: Vec<_> = gguf.tensors().map(|tensor| tensor.name.to_owned()).collect();
    assert_eq!(rows, ["first", "second"]);
    let wide = Builder::default().tensor("w", &[2, 3], |_| 0.0).open();
    assert_eq!(wide.tensor("w").unwrap().shape, [2, 3], "innermost last");
}

#[test]
fn refusals_name_the_place_and_what_was_expected() {
    let with = |change: fn(&mut Builder)| {
        let mut builder = two();
        change(&mut builder);
        builder
    };
    let array = |element: u32, len: u64| [&element.to_le_bytes()[..], &len.to_le_bytes()].concat();
    let nested = [array(9, 1), array(9, 1), array(9, 1), array(9, 1), array(0, 0)].concat();
    for (builder, expected) in [
        (with(|b| b.version = Some(1)), "GGUF version 1 is not supported"),
        (with(|b| b.version = Some(3 << 24)), "the file is big-endian"),
        (with(|b| b.n_tensors = Some(u64::MAX)), "the tensor count (18446744073709551615) needs"),
        (with(|b| b.n_keys = Some(1 << 40)), "truncated at offset 16: the metadata count (1099511627776) needs"),
        (two().edit(1, |t| t.offset = 32), "tensor 'second' at offset 160 overlaps tensor 'first', which ends at"),
        (two().edit(1, |t| t.offset = 1 << 40), "tensor 'second': its data lies at offset 1099511627904"),
        (two().edit(1, |t| t.offset = !31), "tensor 'second': its data lies at offset 18446744073709551615"),
        (two().edit(1, |t| t.offset = 65), "the offset of tensor 'second' at offset"),
        (two().edit(1, |t| t.dims = vec![17]), "tensor 'second': its data lies at offset 192 and needs 68 bytes"),
        (two().edit(1, |t| t.dims = vec![1 << 61]), "tensor 'second': its data lies at offset"),
        (two().edit(1, |t| t.dims = vec![1 << 62]), "the number of elements of tensor 'second'"),
        (two().edit(1, |t| t.dims = vec![1 << 40, 1 << 40]), "a dimension of tensor 'second'"),
        (two().edit(1, |t| t.dims = vec![0]), "a dimension of tensor 'second'"),
        (two().edit(1, |t| t.dims = vec![]), "the number of dimensions of tensor 'second'"),
        (two().edit(1, |t| t.dims = vec![1; 5]), "found 5, expected 1 to 4"),
        (two().edit(1, |t| t.dtype = 12), "expected a multiple of 256, the block of Q4_K"),
        (two().edit(1, |t| t.name = "first".to_owned()), "tensor 'first' at offset"),
        (two().edit(1, |t| t.name = String::new()), "the name of tensor 1"),
        (two().edit(1, |t| t.name = "x".repeat(65)), "found 65 bytes, expected 1 to 64 bytes"),
        (two().u32("a", 2), "metadata key 'a' at offset"),
        (two().u32("general.alignment", 24), "'general.alignment' at offset"),
        (two().u32("general.alignment", 0), "expected a power of two"),
        (two().raw("k", 13, &[]), "the type of metadata key 'k'"),
        (two().raw("k", 7, &[2]), "metadata key 'k' at offset"),
        (two().raw("k", 8, &u64::MAX.to_le_bytes()), "k, a string of 18446744073709551615 bytes"),
        (two().raw("k", 9, &array(8, 1 << 50)), "metadata key 'k', an array of 1125899906842624 Str"),
        (two().raw("k", 9, &array(10, u64::MAX)), "metadata key 'k', an array of 18446744073709551615 U64"),
        (two().raw("k", 9, &array(99, 0)), "found element type 99"),
        (two().raw("k", 9, &nested), "arrays nested 4 deep"),
    ] {
        let error = refusal(&builder);
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
    }
    let not_gguf = Gguf::from_vec(b"PK\x03\x04 and more".to_vec()).unwrap_err().to_string();
    assert!(not_gguf.starts_with("not a GGUF file: it starts with the bytes [50, 4b, 03, 04]"), "{not_gguf}");
}

#[test]
fn counts_past_all_models_are_refused_although_the_file_could_hold_them() {
    let counts = |tensors: u64, keys: u64| [tensors.to_le_bytes(), keys.to_le_bytes()].concat();
    let header = |counts: Vec<u8>| [b"GGUF\x03\0\0\0".to_vec(), counts, vec![0; 10 << 20]].concat();
    for (counts, expected) in [
        (counts(300_000, 0), "the tensor count at offset 8: found 300000, expected at most 262144"),
        (counts(0, 70_000), "the metadata count at offset 16: found 70000, expected at most 65536"),
    ] {
        assert_eq!(Gguf::from_vec(header(counts)).unwrap_err().to_string(), expected);
    }
}

/// A number without a name may stand in the file; the refusal comes with its use, and says what would do.
#[test]
fn unknown_types_are_refused_by_those_who_use_them() {
    let file = model("llama").edit(3, |t| t.dtype = 4242);
    let gguf = file.open();
    let view = gguf.tensors().nth(3).unwrap();
    assert_eq!((view.dtype, view.data.len()), (DType::Unknown(4242), 0));
    let name = view.name.to_owned();
    let error = Stage::load(&gguf, Span::whole(LAYERS)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("tensor '{name}' has type number 4242")) && error.contains("Q4_K"), "{error}");
    assert!(Stage::load(&gguf, Span::layers(1..2)).is_ok(), "a span without that tensor loads");
}

#[test]
fn weights_that_are_not_numbers_are_refused_by_name() {
    for (i, name) in [(0, "token_embd.weight"), (1, "blk.0.attn_norm.weight"), (3, "blk.0.attn_q.weight")] {
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let gguf = model("llama").fill(i, bad).open();
            let error = Stage::load(&gguf, Span::whole(LAYERS)).unwrap_err();
            assert!(matches!(&error, LoadError::NotFinite { tensor, row: 0 } if tensor == name), "{error}");
        }
    }
}

#[test]
fn rows_and_experts_are_parts_of_their_tensor() {
    let gguf = Builder::default()
        .tensor("w", &[5, 3], |i| i as f32)
        .tensor("experts", &[4, 2, 3], |i| i as f32)
        .tensor("vector", &[5], |i| i as f32)
        .open();
    let values = |data: &[u8]| -> Vec<f32> { data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
    let w = gguf.tensor("w").unwrap();
    let rows = w.rows(1..3).unwrap();
    assert_eq!((rows.shape, values(rows.data)), (Shape::matrix(2, 3), vec![3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
    assert_eq!(w.rows(0..5).unwrap().data, w.data);
    let experts = gguf.handle("experts").unwrap();
    drop(gguf.clone());
    let third = experts.view().expert(2).unwrap();
    assert_eq!((third.shape, values(third.data)), (Shape::matrix(2, 3), (12u8..18).map(f32::from).collect()));
    assert_eq!(values(third.rows(1..2).unwrap().data), [15.0, 16.0, 17.0]);
    assert_eq!(experts.view().pieces().map(<[u8]>::len).sum::<usize>() as u64, experts.view().bytes());
    for refused in [
        w.rows(3..6),
        w.rows(2..2),
        #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        w.rows(3..1),
        w.rows(usize::MAX - 1..usize::MAX),
        w.expert(0),
        experts.view().rows(0..1),
        experts.view().expert(4),
        gguf.tensor("vector").unwrap().rows(0..1),
    ] {
        assert!(refused.unwrap_err().to_string().contains("' has no "));
    }
}

/// What has been forgotten is read again from the file, the neighbours untouched.
#[test]
fn forgotten_pages_hold_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let file = Builder::default()
        .tensor("a", &[300, 1000], |i| i as f32)
        .tensor("b", &[3, 200, 1000], |i| 0.5 * i as f32)
        .build();
    fs::write(&path, &file).unwrap();
    let (mapped, held) = (Gguf::open(&path).unwrap(), Gguf::from_vec(file).unwrap());
    for gguf in [&mapped, &held] {
        gguf.tensor("a").unwrap().forget_pages();
        gguf.tensor("b").unwrap().expert(1).unwrap().forget_pages();
        gguf.tensor("a").unwrap().rows(7..150).unwrap().forget_pages();
    }
    for name in ["a", "b"] {
        assert_eq!(mapped.tensor(name).unwrap().data, held.tensor(name).unwrap().data);
    }
}

#[test]
fn version_two_reads_the_same() {
    let mut old = two();
    old.version = Some(2);
    assert_eq!(old.open().tensor("first").unwrap().data.len(), 64);
}

/// Every shorter file is refused: the last tensor ends where the file ends.
#[test]
fn every_truncation_is_refused() {
    let file = two().build();
    for len in 0..file.len() {
        Gguf::from_vec(file[..len].to_vec()).unwrap_err();
    }
}

#[test]
fn files_that_cannot_be_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.gguf");
    assert!(matches!(Gguf::open(&missing).unwrap_err(), GgufError::Io { path, .. } if path == missing));
    assert!(matches!(Gguf::open(dir.path()).unwrap_err(), GgufError::Io { .. }));
    let empty = dir.path().join("empty.gguf");
    fs::File::create(&empty).unwrap();
    assert!(Gguf::open(&empty).unwrap_err().to_string().contains("truncated at offset 0"));
    let whole = dir.path().join("whole.gguf");
    fs::File::create(&whole).unwrap().write_all(&two().build()).unwrap();
    let gguf = Gguf::open(&whole).unwrap();
    let again = gguf.clone();
    drop(gguf);
    assert_eq!(again.tensor("second").unwrap().data.len(), 64);
    assert_eq!(again.size(), fs::metadata(&whole).unwrap().len());
}

/// Uses everything that can be reached in a file, whatever it holds.
fn exercise(bytes: Vec<u8>) {
    let Ok(gguf) = Gguf::from_vec(bytes) else { return };
    let keys: Vec<String> = gguf.metadata().map(|(key, _)| key.to_owned()).collect();
    for key in &keys {
        let found = [
            gguf.get_str(key).is_ok(),
            gguf.get_u32(key).is_ok(),
            gguf.str_array(key).is_ok(),
            gguf.i32_array(key).is_ok(),
            gguf.f32_array(key).is_ok(),
        ];
        assert!(found.iter().filter(|found| **found).count() <= 4);
    }
    let data: usize = gguf.tensors().map(|tensor| tensor.data.len()).sum();
    assert!(data as u64 <= gguf.size(), "tensors lie in the file and share no bytes");
    if let Ok(manifest) = Manifest::from_gguf(&gguf)
        && manifest.n_layers <= LAYERS
        && let Ok(stage) = Stage::load(&gguf, Span::whole(manifest.n_layers))
        && let Ok(rows) = stage.embed(&[0, (VOCAB - 1) as u32])
    {
        let mut cache = stage.new_cache();
        if let Ok(rows) = stage.forward(&mut cache, 0, &rows) {
            assert!(rows.iter().all(|value| value.is_finite()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Bytes changed anywhere in the header of a small whole model, and perhaps an end cut off: never a panic.
    #[test]
    fn mutations_never_panic(
        changes in prop::collection::vec((0usize..4096, any::<u8>()), 1..6),
        keep in prop::option::of(0.0f64..1.0),
    ) {
        let mut file = model("qwen3").build();
        for (at, value) in changes {
            file[at] = value;
        }
        if let Some(keep) = keep {
            file.truncate((file.len() as f64 * keep) as usize);
        }
        exercise(file);
    }

    /// The same with single bits, which keeps lengths and types plausible.
    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0usize..4096, 0u8..8), 1..4)) {
        let mut file = model("llama").build();
        for (at, bit) in flips {
            file[at] ^= 1 << bit;
        }
        exercise(file);
    }

    #[test]
    fn noise_never_panics(tail in prop::collection::vec(any::<u8>(), 0..512)) {
        exercise([b"GGUF\x03\0\0\0".to_vec(), tail].concat());
    }
}

/// A real file's header, each eight-byte field overwritten with the numbers that overflow things.
#[test]
fn lying_numbers_in_a_real_file_never_panic() {
    let Some(dir) = models() else { return };
    let file = fs::read(dir.join("llama-Q4_K_M.gguf")).unwrap();
    let header = 120_000.min(file.len() - 8);
    // Every field of the first part; further on the vocabulary repeats itself, so a stride that meets all alignments.
    let places = (0..2048).chain((2048..header).step_by(997));
    for at in places {
        for lie in [u64::MAX, 1 << 63, 1 << 32, u64::from(u32::MAX)] {
            let mut changed = file[..header].to_vec();
            changed[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            // Cut before the data: only the header is at stake, and it must be refused for the missing data at least.
            Gguf::from_vec(changed).unwrap_err();
        }
    }
}
