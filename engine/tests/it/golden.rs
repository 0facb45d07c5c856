//! One hash for each model: over every bit of the logits of a prompt and of a greedy answer, however they are computed.
//!
//! The hashes stand in `tests/data/golden.json`. They must be the same for one to all stages, chunks of the prompt of 1, 7
//! and 64 tokens, one thread and two, every instruction set, and for a session alone, one among strangers in a stage
//! loop, and one that takes over another's pages. Each model runs through a choice that has every value of every one of
//! these on the scalar path and on each other; `QUELEA_GOLDEN=full` runs every two values together, three times as many
//! settings, and says how far it is; `QUELEA_GOLDEN=write` writes the file.

mod ways;

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use quelea_engine::{Gguf, Hparams, Isa, KvFormat, StageOptions};
use quelea_kernels::product::kernels_run;

use crate::support::{models, noise};
use ways::{Way, logits};

/// Tokens of the prompt: three whole pages and some, two chunks of 64, a chunk of 7 that is not full.
const PROMPT: usize = 100;
/// Tokens of the answer.
const ANSWER: usize = 8;

/// How one hash is computed.
#[derive(Debug, Clone, Copy)]
struct Setting {
    isa: Isa,
    /// Stages, at most one for each layer.
    stages: usize,
    chunk: usize,
    threads: usize,
    way: Way,
}

const STAGES: [usize; 4] = [1, 2, 3, usize::MAX];
const CHUNKS: [usize; 3] = [64, 7, 1];
const THREADS: [usize; 2] = [1, 2];
const WAYS: [Way; 3] = [Way::Alone, Way::AmongStrangers, Way::FromPages];

/// Every two values of two dimensions together, in a sixth of all settings: a difference that takes three to show has
/// three causes. Stages go with every way; chunks and threads go round, three and two having no common divisor.
fn pairs(isa: Isa) -> Vec<Setting> {
    let mut pairs = Vec::new();
    for (i, stages) in STAGES.into_iter().enumerate() {
        for (j, way) in WAYS.into_iter().enumerate() {
            let (chunk, threads) = (CHUNKS[(i + j) % CHUNKS.len()], THREADS[(i + j) % THREADS.len()]);
            pairs.push(Setting { isa, stages, chunk, threads, way });
        }
    }
    pairs
}

#[test]
fn every_two_values_meet() {
    let settings = pairs(Isa::Scalar);
    let met = |holds: &dyn Fn(&Setting) -> bool| assert!(settings.iter().any(holds));
    for stages in STAGES {
        CHUNKS.into_iter().for_each(|chunk| met(&|s| s.stages == stages && s.chunk == chunk));
        THREADS.into_iter().for_each(|threads| met(&|s| s.stages == stages && s.threads == threads));
        WAYS.into_iter().for_each(|way| met(&|s| s.stages == stages && s.way == way));
    }
    for chunk in CHUNKS {
        THREADS.into_iter().for_each(|threads| met(&|s| s.chunk == chunk && s.threads == threads));
        WAYS.into_iter().for_each(|way| met(&|s| s.chunk == chunk && s.way == way));
    }
    for threads in THREADS {
        WAYS.into_iter().for_each(|way| met(&|s| s.threads == threads && s.way == way));
    }
}

/// Every value of everything at least once. The first of the scalar settings is the plainest.
fn some(isa: Isa) -> Vec<Setting> {
    [(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 0, 2), (3, 0, 1, 1)]
        .map(|(stages, chunk, threads, way)| Setting {
            isa,
            stages: STAGES[stages],
            chunk: CHUNKS[chunk],
            threads: THREADS[threads],
            way: WAYS[way],
        })
        .into()
}

/// A model file and what it is called in the list of hashes.
struct Model {
    name: String,
    gguf: Gguf,
    layers: usize,
    kv: KvFormat,
}

fn open(folder: PathBuf, prefix: &str, kv: KvFormat, suffix: &str) -> Vec<Model> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let gguf = Gguf::open(&path).unwrap();
            let layers = Hparams::from_gguf(&gguf).map_err(|e| format!("{}: {e}", path.display())).unwrap().n_layers;
            found.push(Model { name: format!("{prefix}{stem}{suffix}"), gguf, layers, kv });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The models of this repository, one of them with the other ways to keep keys and values, and the shared ones where
/// they are.
fn all_models() -> Vec<Model> {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models"));
    let mut found = open(own.clone(), "", KvFormat::F32, "");
    assert!(found.len() > 30);
    for (kv, suffix) in [(KvFormat::F16, " kv f16"), (KvFormat::Q8, " kv q8")] {
        let wanted = |model: &Model| ["llama-Q4_K_M", "gemma2-Q4_K_M"].iter().any(|name| model.name.starts_with(name));
        found.extend(open(own.clone(), "", kv, suffix).into_iter().filter(wanted));
    }
    if let Some(shared) = models() {
        found.extend(open(shared, "shared/", KvFormat::F32, ""));
    }
    found
}

impl Model {
    fn prompt(&self, seed: u64) -> Vec<u32> {
        let vocab = Hparams::from_gguf(&self.gguf).unwrap().vocab;
        (0..PROMPT).map(|i| (noise(seed, i).abs() * vocab as f32) as u32 % vocab as u32).collect()
    }

    fn hash(&self, setting: Setting) -> String {
        let options = StageOptions {
            isa: Some(setting.isa),
            threads: NonZeroUsize::new(setting.threads),
            kv: self.kv,
            ..StageOptions::default()
        };
        let stages = setting.stages.min(self.layers);
        let cuts: Vec<usize> = (1..stages).map(|i| i * self.layers / stages).collect();
        let strangers: Vec<Vec<u32>> = (0..2).map(|i| self.prompt(1000 + i)).collect();
        let rows = logits(&self.gguf, &options, &cuts, setting.way, &self.prompt(1), &strangers, setting.chunk, ANSWER);
        assert_eq!(rows.len(), PROMPT + ANSWER);
        let mut hasher = blake3::Hasher::new();
        for logit in rows.iter().flatten() {
            hasher.update(&logit.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn file() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden.json").into()
}

/// Runs `work` for every model, on as many threads as there are processors.
fn for_each(models: &[Model], work: impl Fn(&Model) + Sync) {
    let next = Mutex::new(models.iter());
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(model) = { next.lock().unwrap().next() } {
                    work(model);
                }
            });
        }
    });
}

#[test]
fn every_model_has_one_hash_however_it_is_computed() {
    let mode = std::env::var("QUELEA_GOLDEN").unwrap_or_default();
    let models = all_models();
    let mut golden: BTreeMap<String, String> = serde_json::from_slice(&fs::read(file()).unwrap()).unwrap();
    if mode == "write" {
        let written = Mutex::new(BTreeMap::new());
        for_each(&models, |model| {
            let hash = model.hash(some(Isa::Scalar)[0]);
            written.lock().unwrap().insert(model.name.clone(), hash);
        });
        golden.extend(written.into_inner().unwrap());
        fs::write(file(), serde_json::to_string_pretty(&golden).unwrap() + "\n").unwrap();
    }

    let missing = Isa::ALL.into_iter().filter(|isa| !isa.is_available()).map(Isa::name).collect::<Vec<_>>();
    if !missing.is_empty() {
        println!("not checked: {}, which this machine does not have", missing.join(", "));
    }
    for isa in Isa::available() {
        let settings = if mode == "full" { pairs(isa) } else { some(isa) };
        let (started, done) = (Instant::now(), AtomicUsize::new(0));
        let before = kernels_run();
        let wrong = Mutex::new(Vec::new());
        for_each(&models, |model| {
            let expected =
                golden.get(&model.name).unwrap_or_else(|| panic!("{} has no hash in golden.json", model.name));
            for setting in &settings {
                let hash = model.hash(*setting);
                if hash != *expected {
                    wrong.lock().unwrap().push(format!("{}: {hash} with {setting:?}", model.name));
                }
            }
            if mode == "full" {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                eprintln!("{isa}: {done} of {} models after {:.0?}; {}", models.len(), started.elapsed(), model.name);
            }
        });
        let wrong = wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "other bits than golden.json has:\n{}", wrong.join("\n"));
        // Other tests use the widest path meanwhile, so only narrower ones tell that a path was not taken.
        let after = kernels_run();
        assert!(after.of(isa) > before.of(isa), "no product ran on {isa}");
        let instead = |other: Isa| after.of(other) > before.of(other);
        let fallback = |other: Isa| isa == Isa::Amx && other == Isa::Avx512;
        let narrower = Isa::ALL.into_iter().filter(|other| *other < isa && !fallback(*other));
        assert_eq!(narrower.filter(|other| instead(*other)).collect::<Vec<_>>(), [], "{isa} was asked for");
        println!("{isa}: {} models, {} settings each; {}", models.len(), settings.len(), after);
    }
}
