//! Attacks on the network rather than on a protocol of ours: rows 1 to 4, 7, 8 and 35 of the threats.
//!
//! The attacker is a process of its own, on one core where the system can do that. Beside it an honest peer measures: round
//! trips on a connection that stands, how long the loop takes to answer a question, and whether a newcomer gets in. What it
//! measures is printed beside the same on an idle node, and under a neutral load of the same size on the attacker's core. What
//! the suite asserts does not depend on the machine. Alone, in release, and with nothing else on the machine, ninety-nine of a
//! hundred attempts must not take more than twice as long as under the neutral load:
//!
//! ```sh
//! QUELEA_FLOOD=strict cargo test --release --test it hostile::network -- --nocapture --test-threads 1
//! ```

mod attacks;
mod probe;

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use self::probe::{Figures, Probe};
use super::{ALONE, NETWORK, attacker::Attacker};
use crate::harness::{Daemon, Launch, PATIENCE, until};

/// What an attack may cost in resident memory: the figures of the threat table.
const MEMORY_KIB: u64 = 64 * 1024;
const UNREAD_KIB: u64 = 512 * 1024;

/// Descriptors that a node may have open for strangers: 216 connections, 256 under way, and some for itself.
const DESCRIPTORS: usize = 216 + 256 + 64;

/// Of a hundred honest attempts, how many must succeed.
const HONEST: f64 = 0.99;

/// How many times as long as under a neutral load ninety-nine of a hundred honest attempts may take.
const SLOWER: f64 = 2.0;

/// Whether this is the measurement, and not the suite.
fn strict() -> bool {
    std::env::var("QUELEA_FLOOD").is_ok_and(|how| how == "strict")
}

/// On the last core, where that can be said.
fn pinned(program: &std::ffi::OsStr) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let able =
        std::process::Command::new("taskset").arg("-V").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    let mut command = if able && cores > 1 {
        let mut command = Command::new("taskset");
        command.args(["-c", &(cores - 1).to_string()]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Work that concerns nobody, as long as it is held.
fn neutral() -> Child {
    pinned("sh".as_ref()).args(["-c", "while :; do :; done"]).spawn().unwrap()
}

/// Starts an attack, and waits until it is in full swing.
async fn attack(name: &str, victim: &Daemon) -> Child {
    let mut command = pinned(std::env::current_exe().unwrap().as_os_str());
    command.args(["--exact", "hostile::network::attacking", "--ignored", "--nocapture", "--test-threads", "1"]);
    let mut child = command.env("QUELEA_ATTACK", name).env("QUELEA_VICTIM", victim.addr()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let swing = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if line.contains("in full swing") {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(PATIENCE, swing).await.unwrap_or(false), "{name} never got into its swing");
    // What it says later would stop it once the pipe is full.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

/// The attacker's process: not a test, and nothing when nobody says what to attack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the attacker of the other tests"]
async fn attacking() {
    let (Ok(name), Ok(victim)) = (std::env::var("QUELEA_ATTACK"), std::env::var("QUELEA_VICTIM")) else { return };
    attacks::run(&name, victim).await;
}

struct Cost {
    kib: u64,
    descriptors: usize,
}

/// Measures under a neutral load, then under attack, and prints both.
async fn withstands(name: &str, victim: &Daemon, memory_kib: u64) -> (Figures, Cost) {
    let probe = Probe::new(victim).await;
    let idle = probe.measure().await;
    let calm = {
        let _load = neutral();
        probe.measure().await
    };
    let before = probe::resident_kib(victim);
    let attacking = attack(name, victim).await;
    let newcomer = tokio::time::Instant::now();
    let let_in = Attacker::connect(victim.addr()).await.is_some();
    let newcomer = newcomer.elapsed();
    let under = probe.measure().await;
    let cost =
        Cost { kib: probe::resident_kib(victim).saturating_sub(before), descriptors: probe::descriptors(victim) };
    drop(attacking);
    let slower = under.slower_than(&calm);
    println!(
        "{name}: {slower:.2} times as slow\n  under attack {under}\n  beside load  {calm}\n  idle         {idle}\n  a newcomer \
         in {newcomer:.1?}; {} KiB more, {} descriptors",
        cost.kib, cost.descriptors
    );
    assert!(let_in, "{name}: a newcomer is kept out");
    assert!(under.success() >= HONEST, "{name}: {under}");
    assert!(!strict() || slower <= SLOWER, "{name}: {slower:.2} times as slow");
    assert!(cost.kib <= memory_kib, "{name}: {} KiB more", cost.kib);
    assert!(cost.descriptors <= DESCRIPTORS, "{name}: {} descriptors", cost.descriptors);
    assert_eq!(victim.metric("quelea_tasks_panicked_total", "").await, 0.0);
    (under, cost)
}

async fn victim(args: &[&str]) -> Daemon {
    Launch::new().args(&["--network", NETWORK]).args(args).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_address_and_of_many() {
    let _alone = ALONE.lock().await;
    let victim = victim(&["--limit-local"]).await;
    let (_, cost) = withstands("connections of one address", &victim, MEMORY_KIB).await;
    assert!(cost.descriptors < 128, "eight of one address, not {}", cost.descriptors);
    let refused = async || (victim.metric("quelea_rate_limited_total", "accept").await > 0.0).then_some(());
    until("refused connections to be counted", refused).await;
    withstands("connections of a thousand addresses", &victim, MEMORY_KIB).await;
    withstands("stalled handshakes of a thousand addresses", &victim, MEMORY_KIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_nobody_reads() {
    let _alone = ALONE.lock().await;
    let victim = victim(&["--limit-local"]).await;
    withstands("streams that nobody reads", &victim, UNREAD_KIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_signatures() {
    let _alone = ALONE.lock().await;
    let victim = victim(&["--limit-local"]).await;
    withstands("requests of ten peers", &victim, MEMORY_KIB).await;
    assert!(victim.metric("quelea_rate_limited_total", "peer").await > 0.0);
    withstands("bad signatures of four peers", &victim, MEMORY_KIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_strangers_choose_are_no_labels() {
    let _alone = ALONE.lock().await;
    let victim = victim(&[]).await;
    withstands("names that strangers choose", &victim, MEMORY_KIB).await;
    let scrape = victim.fetch("/metrics").await.2;
    assert!(!scrape.contains("chosen-by-a-stranger"), "a stranger's name is a label");
    let series = scrape.lines().filter(|line| !line.starts_with('#')).count();
    println!("{series} series");
    // All there ever are: our own some 300, libp2p's counters by enum.
    assert!(series < 2500, "{series} series");
}
