//! The hostile corpus: each module is stopped in time, within its memory, and leaves nothing behind.
//!
//! `QUELEA_CORPUS_RUNS=25 cargo test --release --test it -- agents::corpus --nocapture` is the documented run; without it each is run once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use quelea::agents::{End, Limits};

use super::{compute, modules};
use crate::harness::until;

/// How long a module may compute here, so that the many that use all of it take no hour.
const DEADLINE: Duration = Duration::from_millis(300);

/// What is allowed after the deadline, besides what a process takes to be there and to be gone: in the documented run, on a
/// machine that has nothing else to do, and in the suite, where all tests share two processors.
const LATE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(3)];

/// Reading and compiling, which has a deadline of its own.
const COMPILING: Duration = Duration::from_secs(5);

/// Resident memory of workers, by process, as high as it was seen. One thread looks without a pause.
struct Watch {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<BTreeMap<u32, u64>>,
}

impl Watch {
    fn start() -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut highest = BTreeMap::new();
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                for (pid, bytes) in workers() {
                    let seen: &mut u64 = highest.entry(pid).or_default();
                    *seen = (*seen).max(bytes);
                }
                std::thread::park_timeout(Duration::from_millis(2));
            }
            highest
        });
        Self { stop, thread }
    }

    fn highest(self) -> u64 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.join().unwrap().into_values().max().unwrap_or(0)
    }
}

/// Workers that this process has started, and the most memory that each had.
fn workers() -> Vec<(u32, u64)> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // First: until it has its command line, its memory is that of this process.
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("PPid:") == Some(&me) && command.ends_with(b"agent-worker\0") {
            let kib = field("VmHWM:").and_then(|text| text.trim_end_matches(" kB").trim().parse::<u64>().ok());
            found.push((pid, kib.unwrap_or(0) * 1024));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_modules_are_stopped_in_time_and_within_their_memory() {
    let documented: Option<u32> = std::env::var("QUELEA_CORPUS_RUNS").ok().map(|runs| runs.parse().unwrap());
    let (runs, allowed) = (documented.unwrap_or(1), LATE[usize::from(documented.is_none())]);
    let limits = Limits { deadline_ms: 300, ..Limits::default() };
    // What a worker has before it is given anything.
    let watch = Watch::start();
    let idle = super::module(r#"(module (func (export "run") (loop $l (br $l))))"#);
    assert_eq!(compute(idle, b"", limits).await.end, End::Timeout);
    let base = watch.highest();
    assert!(base > 1 << 20, "a worker was seen: {base}");

    let all = modules::all();
    assert!(all.len() >= 40, "{}", all.len());
    let (mut slowest, mut largest) = ((Duration::ZERO, String::new()), (0, String::new()));
    let mut wrong = Vec::new();
    for hostile in &all {
        let watch = Watch::start();
        for _ in 0..runs {
            let started = Instant::now();
            let run = compute(hostile.bytes.clone(), b"input", limits).await;
            let took = started.elapsed();
            if !hostile.ends.contains(&run.end.label()) {
                wrong.push(format!("{}: {:?} is none of {:?}", hostile.name, run.end, hostile.ends));
            }
            if !run.output.is_empty() {
                wrong.push(format!("{}: it gives {} bytes", hostile.name, run.output.len()));
            }
            // From the moment at which there is a process: how long the system takes to start one on a busy machine is
            // not the module's doing.
            let late = run.took.saturating_sub(run.compiled_in).saturating_sub(DEADLINE);
            let (over, most) =
                if run.compiled_in.is_zero() { (run.took, COMPILING + allowed) } else { (late, allowed) };
            if over > most || run.compiled_in > COMPILING + allowed {
                wrong.push(format!("{}: compiled in {:?}, {took:?} in all", hostile.name, run.compiled_in));
            }
            if late > slowest.0 && !run.compiled_in.is_zero() {
                slowest = (late, hostile.name.clone());
            }
        }
        let highest = watch.highest().saturating_sub(base);
        if highest > largest.0 {
            largest = (highest, hostile.name.clone());
        }
        // What a module may have of its own, or a compiler for it.
        let cap = if hostile.name.contains("functions") { 256 << 20 } else { 64 << 20 };
        if highest > cap + cap / 10 {
            wrong.push(format!("{}: {highest} bytes beyond a worker's own {base}", hostile.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} modules:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    println!(
        "{} modules, {runs} run(s) each; latest {:?} after the deadline ({}); most memory {} MiB beyond a worker's own {} MiB ({})",
        all.len(),
        slowest.0,
        slowest.1,
        largest.0 >> 20,
        base >> 20,
        largest.1
    );
    until("no worker left", async || workers().is_empty().then_some(())).await;
    assert!(!std::path::Path::new("/tmp/quelea-agent-worker-was-here").exists());
}
