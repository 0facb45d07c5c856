//! Hugging Face folders as transformers saves them, against the logits that it computes: `tests/data/folders/make.py`
//! made both.

use std::{fs, path::PathBuf};

use quelea_engine::{
    Chain, Gguf, huggingface,
    quantize::{Mix, Plan},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    ids: Vec<u32>,
    /// For each position, the logits of the whole vocabulary.
    logits: Vec<Vec<f32>>,
}

/// The folders, by name.
fn folders() -> Vec<PathBuf> {
    let all = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/folders")).unwrap();
    let mut all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    all.sort();
    assert!(all.len() >= 15, "{all:?}");
    all
}

fn reference(folder: &std::path::Path) -> Reference {
    serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap()).unwrap()
}

/// The logits after each of `ids`.
fn logits(gguf: &Gguf, ids: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let mut chain = Chain::load(gguf, cuts).unwrap();
    ids.iter().map(|id| chain.advance(&[*id]).unwrap()).collect()
}

/// The largest difference and the typical one, over the spread of what is expected.
fn difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let all = || found.iter().flatten().zip(expected.iter().flatten()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let count = all().count() as f64;
    let spread = (all().map(|(_, b)| b * b).sum::<f64>() / count).sqrt();
    let typical = (all().map(|(a, b)| (a - b).powi(2)).sum::<f64>() / count).sqrt();
    (all().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / spread, typical / spread)
}

/// Both compute in f32, in another order.
const ROUNDING: f64 = 2e-5;

#[test]
fn a_folder_computes_what_transformers_does() {
    let mut wrong = Vec::new();
    for folder in folders() {
        let Reference { ids, logits: expected } = reference(&folder);
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let gguf = match huggingface::open(&folder) {
            Ok(gguf) => gguf,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (off, typical) = difference(&logits(&gguf, &ids, &[1]), &expected);
        println!("{name}: {off:.1e}, typically {typical:.1e}");
        if typical.is_nan() || off > ROUNDING {
            wrong.push(format!("{name}: off by {off:.1e} of the spread"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Quantised while it opens, or written as a file and opened: the same bits; and they are not far from the original.
#[test]
fn a_folder_is_quantised_as_its_gguf_file_is() {
    for folder in folders() {
        let Reference { ids, logits: expected } = reference(&folder);
        let source = huggingface::open(&folder).unwrap();
        let spool = tempfile::tempdir().unwrap();
        let quantised = huggingface::open_quantised(&folder, Mix::Q8_0, spool.path(), |_, _| Ok(())).unwrap();
        let mut file = Vec::new();
        Plan::new(&source, Mix::Q8_0).unwrap().write_to(&mut file, |_| Ok(())).unwrap();
        let written = Gguf::from_vec(file).unwrap();
        let found = logits(&quantised, &ids, &[]);
        assert_eq!(found, logits(&written, &ids, &[1]), "{}", folder.display());
        // The largest difference is that of rows that a router sends to other experts.
        let (off, typical) = difference(&found, &expected);
        println!("{}: {off:.1e}, typically {typical:.1e}", folder.display());
        assert!(typical < 0.2, "{}: off by {typical:.1e} of the spread", folder.display());
    }
}
