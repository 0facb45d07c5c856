//! What a worker withstands while it serves: streams left half-open, bytes that are no frames, frames with impossible
//! numbers, floods. In each test an honest request runs from before the attack and another begins during it; both
//! answers must be right and not much slower than undisturbed, and afterwards the worker must be as it was.

mod attacker;
mod attacks;

use std::time::{Duration, Instant};

use quelea_wire::NetworkId;
use tokio::sync::oneshot;

use self::attacks::Target;
use crate::harness::{Daemon, Launch, ids, quelea, until};

const NETWORK: &str = "hostile";

fn network() -> NetworkId {
    NetworkId::from_name(NETWORK)
}

/// Tokens of an honest answer: some 2 s of work, so that an attack is well under way.
const TOKENS: &str = "300";

/// How much slower an honest answer may be. The aim is 2; tests share two cores with each other and with the attacker.
const SLOWER: f64 = 4.0;

/// How much resident memory an attack may cost.
const MEMORY_KIB: u64 = 64 * 1024;

/// A victim with the first half of the demo model, and a worker with the other half.
struct Site {
    victim: Daemon,
    _other: Daemon,
    undisturbed: Answer,
}

struct Answer {
    ids: Vec<u64>,
    took: Duration,
}

async fn ask(bootstrap: &str) -> Answer {
    let args = ["infer", "--json", "--network", NETWORK, "--bootstrap", bootstrap];
    let long = ["--raw", "--ignore-eos", "--max-tokens", TOKENS, "What is a relay?"];
    let started = Instant::now();
    let answer = quelea(&[&args[..], &long].concat()).await.expect(0).json();
    Answer { ids: ids(&answer), took: started.elapsed() }
}

impl Site {
    async fn new() -> Self {
        let launch = || Launch::new().args(&["--network", NETWORK, "--memory", "128M"]);
        let victim = launch().serve("demo", "0..3").start().await;
        let other = launch().bootstrap(&victim).serve("demo", "3..6").start().await;
        // Once to warm up.
        ask(victim.addr()).await;
        let undisturbed = ask(victim.addr()).await;
        Self { victim, _other: other, undisturbed }
    }

    fn target(&self) -> Target {
        Target::of(&self.victim)
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.victim.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.victim.pid())).unwrap().count()
    }

    /// Attacks, and checks that the victim does not mind. The attack tells when it is in full swing and goes on until
    /// it is dropped.
    async fn withstands(&self, what: &str, attack: impl AsyncFnOnce(Target, oneshot::Sender<()>)) {
        let (memory, descriptors) = (self.resident_kib(), self.descriptors());
        let (swing, swings) = oneshot::channel();
        let honest = async {
            let (during, ()) = tokio::join!(ask(self.victim.addr()), async { swings.await.unwrap() });
            if let Ok(out) = std::process::Command::new("curl").args(["-s", self.victim.told("metrics")[0]]).output() { let t = String::from_utf8_lossy(&out.stdout).into_owned(); for l in t.lines().filter(|l| !l.starts_with('#') && (l.contains("shard_streams") || l.contains("sessions") || l.contains("channel_full") || l.contains("peers_connected"))) { println!("  {l}"); } }
            let after = ask(self.victim.addr()).await;
            (during, after, self.resident_kib(), self.descriptors())
        };
        let (during, after, grown, open) = tokio::select! {
            figures = honest => figures,
            () = async { attack(self.target(), swing).await; std::future::pending().await } => unreachable!(),
        };
        let ratio = |answer: &Answer| answer.took.as_secs_f64() / self.undisturbed.took.as_secs_f64();
        let grown = grown.saturating_sub(memory);
        println!(
            "{what}: {:.2}x when it began, {:.2}x in full swing, {grown} KiB more, {descriptors} -> {open} descriptors",
            ratio(&during),
            ratio(&after),
        );
        for answer in [&during, &after] {
            assert_eq!(answer.ids, self.undisturbed.ids, "{what}: the answer is another");
            assert!(ratio(answer) <= SLOWER, "{what}: {:.2} times as slow", ratio(answer));
        }
        assert!(grown <= MEMORY_KIB, "{what}: {grown} KiB more");
        self.victim.until_sessions(0).await;
        until(&format!("{what}: the descriptors back"), async || (self.descriptors() <= descriptors + 8).then_some(()))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explore() {
    let site = Site::new().await;
    println!("undisturbed: {:?}", site.undisturbed.took);
    let only = std::env::var("ONLY").ok();
    macro_rules! attack {
        ($($name:ident),*) => { $(
            if only.as_ref().is_none_or(|only| only.split(',').any(|o| stringify!($name).contains(o))) {
                site.withstands(stringify!($name), attacks::$name).await;
            }
        )* };
    }
    attack!(never_greeted, greeted_and_left, sessions_from_one, sessions_from_many, sessions_to_nowhere, raw_tcp);
}
