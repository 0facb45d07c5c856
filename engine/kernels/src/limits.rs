//! What the machine allows, measured on the spot: figures to hold a kernel's speed against.

use std::hint::black_box;
use std::time::Instant;

use crate::isa::Isa;
use crate::memory::{AlignedVec, LINE};
use crate::pool::Pool;
use crate::product::{Activations, Forms, PackedMatrix, WeightType, matmul};

/// What a thread reads at a time.
const CHUNK: usize = 1 << 20;

/// Chunks that are timed together: long enough for the clock, short enough that other programs spoil few of them.
const STRETCH: usize = 64;

/// How far ahead of the sum memory is fetched, in values.
const AHEAD: usize = 8192 / size_of::<i32>();

/// Bytes per second at which the pool's threads together read memory: the best stretch of 64 MiB while `bytes` of it are
/// read from end to end, `repeat` times after one that is not counted. A decode step reads all weights once, so this
/// divided by their size is as many tokens per second as one session can get.
///
/// The storage is laid out as weights are, in huge pages where the system has them. Where the caches hold `bytes`, it is
/// the caches that are measured: ask for as much as the weights take.
pub fn read_bandwidth(pool: &Pool, bytes: usize, repeat: usize) -> f64 {
    const VALUES: usize = CHUNK / size_of::<i32>();
    let mut values = AlignedVec::<i32>::zeroed((bytes / CHUNK).max(1) * VALUES);
    // Written once: pages that were never written all read from one and the same.
    values.iter_mut().step_by(1024).for_each(|value| *value = 1);
    let mut best = 0.0_f64;
    for pass in 0..=repeat.max(1) {
        for stretch in values.chunks(STRETCH * VALUES) {
            let start = Instant::now();
            pool.run(stretch.len() / VALUES, &|chunk| {
                black_box(sum(stretch.chunks_exact(VALUES).nth(chunk).unwrap_or_default()));
            });
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = size_of_val(stretch) as f64 / start.elapsed().as_secs_f64().max(1e-9);
            if pass > 0 {
                best = best.max(rate);
            }
        }
    }
    best
}

/// Operations per second (two for each weight and row) at which the pool's threads multiply 64 rows by a Q8_0 matrix
/// that the caches hold: the best of `repeat` passes after one that is not counted. No memory is waited for, so this
/// divided by twice the number of weights bounds the tokens per second of a long prompt.
///
/// # Panics
/// When the machine lacks the path.
pub fn product_rate(isa: Isa, pool: &Pool, repeat: usize) -> f64 {
    const OUTPUTS: usize = 512;
    const INPUTS: usize = 1024;
    const ROWS: usize = 64;
    const TYPE: WeightType = WeightType::Q8_0;
    // Codes and scales of zero take as long as any others.
    let zeroes = vec![0; OUTPUTS * INPUTS / TYPE.block_len() * TYPE.block_bytes()];
    let Ok(matrix) = PackedMatrix::pack(TYPE, OUTPUTS, INPUTS, &zeroes, pool) else { return 0.0 };
    let mut x = Activations::default();
    x.set(isa, pool, &[1.0; ROWS * INPUTS], INPUTS, Forms::of([TYPE]));
    let mut out = vec![0.0; ROWS * OUTPUTS];
    let mut pass = || {
        let start = Instant::now();
        matmul(isa, pool, &x, &mut [(&matrix, &mut out)]);
        start.elapsed().as_secs_f64()
    };
    pass();
    let best = (0..repeat.max(1)).map(|_| pass()).fold(f64::INFINITY, f64::min);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let operations = (2 * OUTPUTS * INPUTS * ROWS) as f64;
    operations / best.max(1e-9)
}

/// Adds in independent lanes, so that loading is all that takes time.
fn sum(values: &[i32]) -> i32 {
    let mut lanes = [0_i32; 32];
    let (blocks, _) = values.as_chunks::<32>();
    for block in blocks {
        fetch(block.as_ptr().wrapping_add(AHEAD));
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = lane.wrapping_add(*value);
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

/// Fetches the two lines of a block into the second cache, as the products do: without it a single thread does not keep
/// the memory busy. A hint: any address will do.
fn fetch(block: *const i32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint reads nothing and faults nowhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(block.cast());
            _mm_prefetch::<_MM_HINT_T1>(block.wrapping_add(LINE / size_of::<i32>()).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = block;
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn every_value_is_read() {
        assert_eq!(sum(&[3; 640]), 1920);
    }

    #[test]
    fn rates_come_out() {
        let pool = Pool::new(NonZeroUsize::MIN);
        let rate = read_bandwidth(&pool, 4 << 20, 2);
        assert!(rate.is_finite() && rate > 0.0, "{rate}");
        for isa in Isa::available() {
            let rate = product_rate(isa, &pool, 1);
            assert!(rate.is_finite() && rate > 0.0, "{isa}: {rate}");
        }
    }

    /// `cargo test --release -p quelea-kernels limits -- --ignored --nocapture`
    #[test]
    #[ignore = "prints rates, checks nothing"]
    fn print() {
        for threads in [1, 2] {
            let pool = Pool::new(NonZeroUsize::new(threads).unwrap());
            println!("{threads} thread(s): {:.1} GB/s", read_bandwidth(&pool, 700 << 20, 5) / 1e9);
            for isa in Isa::available() {
                println!("  {isa}: {:.1} GOP/s", product_rate(isa, &pool, 50) / 1e9);
            }
        }
    }
}
