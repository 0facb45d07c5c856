//! Time of attention and of the other float operations, path by path.
//!
//! ```text
//! cargo run --release -p quelea-kernels --example attend [THREADS [FILTER]]
//! ```
//!
//! Each figure is the best of many repeats: a busy machine only ever makes one slower. `GB/s` counts the keys and values
//! once per call, `GFLOP/s` two operations per multiplication and addition of the two products. FILTER is a part of the first words of a line, say
//! "avx512 Qwen3".
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints figures")]

use std::num::NonZeroUsize;
use std::time::Instant;

use quelea_kernels::attention::{AttendJob, AttendShape, KvFormat, KvPage, PAGE, attend};
use quelea_kernels::float::{Pairing, gelu_mul, rms_norm, rotate, silu_mul};
use quelea_kernels::{Isa, Pool};

fn main() {
    let threads = std::env::args().nth(1).map_or(1, |n| n.parse().unwrap());
    let pool = Pool::new(NonZeroUsize::new(threads).unwrap());
    let filter = std::env::args().nth(2).unwrap_or_default();
    println!("{threads} threads, best path {}", Isa::best());
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Amx) {
        for (name, heads, kv_heads, head_dim) in [
            ("TinyLlama-1.1B", 32, 4, 64),
            ("Llama-3.2-1B", 32, 8, 64),
            ("Qwen3", 16, 8, 128),
            ("one head each", 12, 12, 64),
        ] {
            if !format!("{isa} {name}").contains(&filter) {
                continue;
            }
            for format in [KvFormat::F16, KvFormat::Q8, KvFormat::F32] {
                let shape = AttendShape { heads, kv_heads, head_dim, scale: 0.125, softcap: None, window: None };
                // The scalar path is the definition, not meant to be fast.
                let rows = if isa == Isa::Scalar { &[1][..] } else { &[1, 128] };
                for &rows in rows {
                    attention(isa, &pool, name, &shape, format, rows);
                }
            }
        }
        if format!("{isa} others").contains(&filter) {
            others(isa, &pool);
        }
    }
}

/// Seconds of the fastest of many calls, which get numbers of their own.
fn best(mut f: impl FnMut(usize)) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut calls = 0;
    while calls < 50 || (begin.elapsed().as_millis() < 400 && calls < 5000) {
        let start = Instant::now();
        f(calls);
        best = best.min(start.elapsed().as_secs_f64());
        calls += 1;
    }
    best
}

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 10_007) as f32 / 5000.0 - 1.0).collect()
}

fn attention(isa: Isa, pool: &Pool, name: &str, shape: &AttendShape, format: KvFormat, rows: usize) {
    const CONTEXT: usize = 1024;
    // Call after call takes another layer, as a model does: its pages are not in the nearest cache from the last time.
    let layers = if rows == 1 { 24 } else { 1 };
    let width = shape.kv_heads * shape.head_dim;
    let (k, v) = (noise(width * PAGE), noise(width * PAGE));
    let page = || {
        let mut page = KvPage::new(format, shape.kv_heads, shape.head_dim);
        page.write(isa, 0, &k, &v);
        page
    };
    let pages: Vec<Vec<KvPage>> = (0..layers).map(|_| (0..CONTEXT / PAGE).map(|_| page()).collect()).collect();
    let q = noise(rows * shape.heads * shape.head_dim);
    let mut out = vec![0.0; q.len()];
    let seconds = best(|call| {
        let job = AttendJob { pages: &pages[call % layers], position: CONTEXT - rows, rows };
        attend(isa, pool, shape, &[job], &q, &mut out);
    });
    let bytes = pages[0].iter().map(KvPage::bytes).sum::<usize>() as f64;
    let keys: usize = (CONTEXT - rows + 1..=CONTEXT).sum();
    let operations = (4 * keys * shape.heads * shape.head_dim) as f64;
    println!(
        "{isa:7} {name:15} {format:?}: {rows:3} rows at {CONTEXT}: {:8.0} ns/row {:6.1} GB/s {:6.1} GFLOP/s",
        seconds * 1e9 / rows as f64,
        bytes / seconds / 1e9,
        operations / seconds / 1e9,
    );
    let mut target = page();
    let seconds = best(|_| target.write(isa, 0, &k, &v));
    if rows == 1 {
        println!("{isa:7} {name:15} {format:?}: write {:27.0} ns/row", seconds * 1e9 / PAGE as f64);
    }
}

/// 128 rows of 2048 values (5632 for the activations); the activations' figures hold a copy of the gate.
fn others(isa: Isa, pool: &Pool) {
    const ROWS: usize = 128;
    let x = noise(ROWS * 5632);
    let mut out = x.clone();
    let print = |name: &str, seconds: f64| println!("{isa:7} {name:17} {:6.0} ns/row", seconds * 1e9 / ROWS as f64);
    let narrow = ROWS * 2048;
    print("rms_norm", best(|_| rms_norm(isa, pool, &x[..narrow], &x[..2048], 1e-5, &mut out[..narrow])));
    let (cos, sin) = (vec![0.8; ROWS * 32], vec![0.6; ROWS * 32]);
    for pairing in [Pairing::Neighbours, Pairing::Halves] {
        let seconds = best(|_| rotate(isa, &mut out[..narrow], ROWS, 2048, 64, 64, pairing, &cos, &sin));
        print(&format!("rotate {pairing:?}"), seconds);
    }
    for (name, f) in [("silu_mul", silu_mul as fn(Isa, &Pool, &mut [f32], &[f32])), ("gelu_mul", gelu_mul)] {
        let seconds = best(|_| {
            out.copy_from_slice(&x);
            f(isa, pool, &mut out, &x);
        });
        print(name, seconds);
    }
}
