//! How fast the quantised products are, by type, path and number of rows, side by side in one run.
//!
//! ```text
//! cargo run --release -p quelea-kernels --example product -- [--threads N] [--types Q4_K,Q8_0] [--isa avx512,amx]
//!     [--rows 1,8,128] [--shape 5632x2048] [--repeat 20]
//! ```
//!
//! Prints the best single call of all repeats, and what quantising the rows took once for all matrices: bytes of weights read per second (what decoding is bound by) and
//! operations per second (two per weight and row; what prefill is bound by). Enough copies of each matrix are walked
//! through that no cache holds them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use quelea_kernels::{Activations, Forms, Isa, PackedMatrix, Pool, WeightType, matmul};

/// Bytes of weights walked through per repeat, beyond what caches hold.
const WORKING_SET: usize = 192 << 20;

struct Options {
    threads: NonZeroUsize,
    types: Vec<WeightType>,
    isas: Vec<Isa>,
    rows: Vec<usize>,
    shape: (usize, usize),
    repeat: usize,
}

fn options() -> Result<Options, String> {
    let mut o = Options {
        threads: std::thread::available_parallelism().map_err(|e| e.to_string())?,
        types: vec![WeightType::Q4K, WeightType::Q6K, WeightType::Q8_0],
        isas: Isa::available().into_iter().filter(|&isa| isa != Isa::Scalar).collect(),
        rows: vec![1, 2, 4, 8, 16, 64, 128],
        shape: (5632, 2048),
        repeat: 15,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let numbers = |by: char| -> Result<Vec<usize>, String> {
            value.split(by).map(|n| n.parse().map_err(|_| format!("{n:?} is no number"))).collect()
        };
        match flag.as_str() {
            "--threads" => o.threads = value.parse().map_err(|_| "threads: a number from 1 on".to_owned())?,
            "--types" => {
                let find = |name: &str| WeightType::ALL.into_iter().find(|ty| ty.name() == name);
                o.types = value.split(',').map(|n| find(n).ok_or(format!("no type {n}"))).collect::<Result<_, _>>()?;
            }
            "--isa" => {
                o.isas = value.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|e| format!("{e}"))?;
            }
            "--rows" => o.rows = numbers(',')?,
            "--shape" => match numbers('x')?.as_slice() {
                &[outputs, inputs] => o.shape = (outputs, inputs),
                _ => return Err("shape: OUTPUTSxINPUTS".to_owned()),
            },
            "--repeat" => o.repeat = value.parse().map_err(|_| "repeat: a number".to_owned())?,
            _ => return Err(format!("no option {flag}")),
        }
    }
    Ok(o)
}

/// Blocks with plausible scales and arbitrary codes: what they hold does not change the time.
fn random_matrix(ty: WeightType, outputs: usize, inputs: usize) -> Vec<u8> {
    let mut bytes = vec![0; outputs * inputs / ty.block_len() * ty.block_bytes()];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for b in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // No exponent of a scale, wherever it stands, is all ones.
        *b = (state >> 56) as u8 & 0xbb;
    }
    bytes
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

/// Gigabytes per second at which all threads together read memory.
fn memory_rate(pool: &Pool, repeat: usize) -> f64 {
    let data = vec![1u64; WORKING_SET / 8];
    // Stretches as long as a matrix, so that other work on the machine spoils few of them.
    let part = data.len() / 32;
    let chunk = part / 64;
    let read = |part: &[u64]| {
        pool.run(64, &|i| {
            let sum = part[i * chunk..(i + 1) * chunk].iter().fold(0u64, |a, b| a.wrapping_add(*b));
            std::hint::black_box(sum);
        });
    };
    let times = (0..repeat).flat_map(|_| data.chunks_exact(part)).map(|part| timed(|| read(part)));
    8.0 * part as f64 / times.min().unwrap_or_default().as_secs_f64() / 1e9
}

fn main() -> ExitCode {
    let o = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let pool = Pool::new(o.threads);
    let (outputs, inputs) = o.shape;
    println!("{} threads, {outputs} x {inputs}, memory reads {:.1} GB/s", pool.threads(), memory_rate(&pool, o.repeat));
    println!(
        "{:>6} {:>7} {:>5} {:>9} {:>9} {:>11} {:>9}",
        "type", "path", "rows", "GB/s", "GOP/s", "µs/matrix", "µs/rows"
    );
    for &ty in &o.types {
        let bytes = random_matrix(ty, outputs, inputs);
        let start = Instant::now();
        let first = match PackedMatrix::pack(ty, outputs, inputs, &bytes, &pool) {
            Ok(packed) => packed,
            Err(problem) => {
                eprintln!("{ty}: {problem}");
                return ExitCode::FAILURE;
            }
        };
        let packing = start.elapsed();
        let copies = (WORKING_SET / first.bytes()).max(1);
        let more = (1..copies).filter_map(|_| PackedMatrix::pack(ty, outputs, inputs, &bytes, &pool).ok());
        let matrices: Vec<PackedMatrix> = std::iter::once(first).chain(more).collect();
        println!(
            "{ty:>6} packed: {:+.2} % of the file's bytes, {:.2} GB/s",
            100.0 * (matrices[0].bytes() as f64 / bytes.len() as f64 - 1.0),
            bytes.len() as f64 / packing.as_secs_f64() / 1e9,
        );
        for &rows in &o.rows {
            let x: Vec<f32> = (0..rows * inputs).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
            let mut out = vec![0.0; rows * outputs];
            for &isa in &o.isas {
                let mut activations = Activations::default();
                let quantised = timed(|| activations.set(isa, &pool, &x, inputs, Forms::of([ty])))
                    .min(timed(|| activations.set(isa, &pool, &x, inputs, Forms::of([ty]))));
                let mut call = |matrix: &PackedMatrix| {
                    matmul(isa, &pool, &activations, &mut [(matrix, &mut out)]);
                };
                let cycle = (0..o.repeat).flat_map(|_| &matrices);
                // Where arithmetic is the limit, fewer calls tell as much.
                let calls = matrices.len() * o.repeat / if rows <= 8 { 1 } else { rows / 8 };
                let times = cycle.take(calls).map(|matrix| timed(|| call(matrix)));
                let time = times.min().unwrap_or_default().as_secs_f64();
                println!(
                    "{ty:>6} {isa:>7} {rows:>5} {:>9.1} {:>9.1} {:>11.1} {:>9.1}",
                    matrices[0].bytes() as f64 / time / 1e9,
                    2.0 * (rows * outputs * inputs) as f64 / time / 1e9,
                    time * 1e6,
                    quantised.as_secs_f64() * 1e6,
                );
            }
        }
    }
    ExitCode::SUCCESS
}
