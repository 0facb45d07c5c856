//! Times for people.

use super::*;

/// Times for people: `cargo test --release -p quelea-engine --lib sampler::tests::times -- --ignored --nocapture`.
#[test]
#[ignore = "prints times, checks nothing"]
fn times() {
    // As with words: the nth most likely token is n to the power of -1.2 as likely as the first.
    let zipf = |i: u32| -1.2 * (1.0 + (i.wrapping_mul(2_654_435_761) % 151_937) as f32).ln();
    let peaked: Vec<f32> = (0..151_936).map(zipf).collect();
    let flat: Vec<f32> = logits_of(151_936).iter().map(|l| l * 0.1).collect();
    let plain = |top_k, top_p| config(0.8, top_k, top_p, 0);
    let all = SamplerConfig { repeat_penalty: 1.1, min_p: 0.05, ..plain(40, 0.95) };
    let cases = [
        ("greedy", config(0.0, 0, 1.0, 0)),
        ("top-k 40", plain(40, 1.0)),
        ("top-k 40, top-p, min-p, penalty", all),
        ("top-p 0.9", plain(0, 0.9)),
        ("no cut", plain(0, 1.0)),
    ];
    for (name, config) in cases {
        for (shape, logits) in [("peaked", &peaked), ("flat", &flat)] {
            let mut sampler = Sampler::new(config.clone(), &[1, 2, 3]).unwrap();
            let start = std::time::Instant::now();
            (0..50).for_each(|_| assert!(sampler.sample(logits).is_ok()));
            println!("{name:<32} {shape:<7} {:>7.0} µs", start.elapsed().as_secs_f64() / 50.0 * 1e6);
        }
    }
    let start = std::time::Instant::now();
    (0..50).for_each(|_| assert!(log_prob(&peaked, 7, 20).is_ok()));
    println!("{:<40} {:>7.0} µs", "log-probability and 20 alternatives", start.elapsed().as_secs_f64() / 50.0 * 1e6);
}
