//! Files that are broken, by accident or on purpose.

use std::{fs, io::Write};

use proptest::prelude::*;
use quelea_engine::{
    Gguf, GgufError, Manifest, Span, Stage,
    gguf::{DType, Optional, Value},
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
    assert_eq!((second.dtype, second.shape, second.data.len()), (DType::F32, &[16][..], 64));
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
        (two().edit(1, |t| t.dtype = 4), "the type of tensor 'second'"),
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
