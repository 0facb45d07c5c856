//! A model that none of them could hold: daemons that may each take 40 % of its file's size answer together, and nobody
//! takes more than its layers, their keys and values, and a stated base.
//!
//! `QUELEA_HEADLINE_MODEL=FILE` has it done with that model instead of a small synthesised one.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::join_all;
use quelea_engine::{
    Gguf, Manifest,
    quantize::Mix,
    synth::{ModelShape, SHAPES, Spelling, Synth},
};
use tempfile::TempDir;

use crate::harness::{Daemon, Launch, MemoryLimit, Process, ids, quelea, spans, tempdir};

/// Of the file's size, what each daemon may take of the memory.
const PERCENT: u64 = 40;

/// Workers: three would not do with the base that each has.
const WORKERS: usize = 4;

/// What a daemon may take beside weights, keys and values: the program itself (unoptimised in tests, with its line tables
/// in the file), its connections, and the scratch of a chunk. docs/operations.md states it, too.
const BASE: u64 = 112 << 20;

const ASK: [&str; 6] = ["--raw", "--ignore-eos", "--max-tokens", "12", "--timeout", "60s"];
const PROMPT: &str = "Once upon a time there was a weaver bird";

/// The model's file, and the directory that it goes away with.
fn model() -> (PathBuf, Option<TempDir>) {
    if let Some(path) = std::env::var_os("QUELEA_HEADLINE_MODEL") {
        return (path.into(), None);
    }
    // 380 MB: beside it the base is small, and it is made and read in a few seconds.
    let shape = ModelShape {
        name: "headline",
        layers: 16,
        hidden: 1024,
        feed_forward: 4096,
        heads: 16,
        kv_heads: 4,
        head_dim: 64,
        vocab: 4096,
        context: 2048,
        spelling: Spelling::Pieces,
        ..*SHAPES.iter().find(|shape| shape.architecture == "llama" && shape.experts.is_none()).unwrap()
    };
    let home = tempdir();
    let path = home.path().join("headline.gguf");
    Synth::new(&shape, Mix::Q8_0, 11).unwrap().write_file(&path, true, |_| Ok(())).unwrap();
    (path, Some(home))
}

/// What a process has in memory at this moment, pages of files included.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// What a worker has, and what it may have.
async fn within_its_layers(worker: &Daemon, span: &str) {
    let loaded = worker.command(&["model", "ps", "--json"]).await.expect(0).json();
    let weights = loaded["items"][0]["weight_bytes"].as_u64().unwrap();
    let kv = worker.metric("quelea_kv_cache_used_bytes", "").await as u64;
    let kept = worker.metric("quelea_prefix_cache_bytes", "").await as u64;
    let has = resident(worker.pid());
    println!(
        "layers {span}: {} MiB resident; {} MiB weights, {} MiB keys and values",
        mib(has),
        mib(weights),
        mib(kv + kept)
    );
    assert!(has <= weights + kv + kept + BASE, "layers {span}: {has} bytes, of {weights} + {kv} + {kept} + {BASE}");
}

#[tokio::test]
async fn daemons_answer_together_with_a_model_that_none_of_them_could_hold() {
    if !Path::new("/proc/self/status").is_file() {
        println!("skipped: this system does not tell what a process has in memory");
        return;
    }
    let (path, _home) = model();
    let (file, size) = (path.to_str().unwrap(), fs::metadata(&path).unwrap().len());
    let bytes = size * PERCENT / 100;
    let limit = || Arc::new(MemoryLimit::new(bytes));
    println!("{} MiB, {} MiB for each, by {}", mib(size), mib(bytes), limit().name());
    let asked = [&["infer", "--json", "--route", "local", "--model", file], &ASK[..], &[PROMPT]].concat();
    let whole = ids(&quelea(&asked).await.expect(0).json());

    // Alone it is refused, with the figures, and before it is loaded.
    let alone = limit();
    let asked = [&["infer", "--route", "local", "--model", file], &ASK[..], &[PROMPT]].concat();
    let refused = Process::spawn_within(&alone, &asked).end().await.expect(1);
    let refused = refused.says(&["does not fit in memory", "MiB of weights", "MiB are free"]);
    println!("alone: {}", refused.stderr.lines().next().unwrap_or_default());
    if let Some(peak) = alone.peak() {
        assert!(peak < bytes, "{peak} bytes were taken of {bytes} before it was refused");
    }
    let serving = limit();
    let refused = Launch::new().within(&serving).serve(file, "all").fails().await;
    refused.expect(1).says(&["does not fit in memory", "MiB are free"]);

    let layers = Manifest::from_gguf(&Gguf::open(&path).unwrap()).unwrap().n_layers;
    let cut = |n: usize| n * layers / WORKERS;
    let all: Vec<String> = (0..WORKERS).map(|n| format!("{}..{}", cut(n), cut(n + 1))).collect();
    let asker = limit();
    let asker_daemon = Launch::new().within(&asker).start().await;
    let limits: Vec<Arc<MemoryLimit>> = all.iter().map(|_| limit()).collect();
    let launches = all.iter().zip(&limits);
    let launches = launches.map(|(span, limit)| Launch::new().within(limit).bootstrap(&asker_daemon).serve(file, span));
    let workers = join_all(launches.map(|launch| async move { launch.start().await })).await;
    let asked = [&["infer", "--json", "--route", "swarm", "--model", file], &ASK[..], &[PROMPT]].concat();
    let answer = asker_daemon.command(&asked).await.expect(0).json();
    assert_eq!(ids(&answer), whole, "another answer than in one piece: {answer}");
    assert_eq!(spans(&answer), all);
    for (worker, span) in workers.iter().zip(&all) {
        within_its_layers(worker, span).await;
    }
    if let Some(peak) = asker.peak() {
        println!("the one that asks: {} MiB at most", mib(peak));
    }
    // Groups can go once their processes are gone.
    join_all(workers.into_iter().map(Daemon::stop)).await;
    asker_daemon.stop().await;
}
