//! How fast this machine's memory can be read: `bandwidth THREADS [MIB]` prints bytes per second, the best of eight
//! passes over a buffer that no cache holds.

use std::{error::Error, hint::black_box, thread, time::Instant};

/// The sum of everything in `words`, in eight independent lanes.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 8];
    for chunk in words.chunks_exact(8) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let threads: usize = args.next().ok_or("the number of threads is wanted")?.parse()?;
    let mib: usize = args.next().map_or(Ok(1024), |mib| mib.parse())?;
    let words: Vec<u64> = (0..(mib << 17) as u64).collect();
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads.max(1)).max(1)) {
                scope.spawn(|| black_box(sum(part)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{:.0}", (words.len() * 8) as f64 / best);
    Ok(())
}
