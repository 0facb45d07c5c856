//! Who is asked for layers: not who is dead, nor who only says that it is fast; and what many sessions leave in memory.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Asking, DEMO, Daemon, Launch, Swarm, ids, quelea, route, swarm, until};

const ASK: [&str; 9] = ["infer", "--json", "--route", "swarm", "--raw", "--ignore-eos", "--max-tokens", "6", "Once"];

async fn ask(daemon: &Daemon) -> Value {
    daemon.command(&ASK).await.expect(0).json()
}

/// The peer of the last stage.
fn last(answer: &Value) -> String {
    route(answer).pop().unwrap().0
}

#[tokio::test]
async fn a_worker_that_was_killed_gets_no_new_work() {
    let Swarm { boot, mut workers } = swarm(DEMO, &["0..3", "3..6", "3..6"]).await;
    let expected = ids(&ask(&boot).await);
    let used = last(&ask(&boot).await);
    let at = workers.iter().position(|worker| worker.peer() == used).unwrap();
    let gone = workers.remove(at);
    gone.signal(Signal::KILL);
    let killed = Instant::now();
    gone.end().await;
    until("it is missed", async || {
        let status = boot.status().await;
        status["peers"].as_array().unwrap().iter().all(|peer| peer["peer_id"] != used.as_str()).then_some(())
    })
    .await;
    println!("missed after {:.1} s", killed.elapsed().as_secs_f64());
    for _ in 0..3 {
        let answer = ask(&boot).await;
        assert_eq!(ids(&answer), expected);
        assert_eq!(last(&answer), workers[1].peer(), "the dead one is asked: {answer}");
        assert_eq!(answer["recoveries"], Value::Null, "{answer}");
    }
}

#[tokio::test]
async fn nobody_hears_of_a_dead_worker_when_its_word_has_run_out() {
    let ttl = ["--announce-ttl", "10s"];
    let boot = Launch::new().args(&ttl).start().await;
    let worker = |span: &'static str| Launch::new().args(&ttl).bootstrap(&boot).serve(DEMO, span);
    let (first, staying, gone) = (worker("0..3"), worker("3..6"), worker("3..6"));
    let (first, staying, gone) = tokio::join!(first.start(), staying.start(), gone.start());
    // Whoever comes new, and has seen nothing of it.
    let plan = async || quelea(&["plan", DEMO, "--json", "--bootstrap", boot.addr()]).await;
    let told = async |peer: &str| plan().await.stdout.contains(peer);
    until("all are known", async || (told(gone.peer()).await && told(staying.peer()).await).then_some(())).await;
    gone.signal(Signal::KILL);
    let (killed, peer) = (Instant::now(), gone.peer().to_owned());
    gone.end().await;
    until("nobody tells of it", async || (!told(&peer).await).then_some(())).await;
    println!("forgotten after {:.1} s", killed.elapsed().as_secs_f64());
    let plan = plan().await.expect(0);
    assert!(plan.stdout.contains(first.peer()) && plan.stdout.contains(staying.peer()), "{}", plan.stdout);
}

/// Has a process run only a small part of the time, for as long as this lives: it computes as fast as ever by its own clock
/// wherever it is not stopped in the middle.
struct Slowed {
    pid: Pid,
    task: tokio::task::JoinHandle<()>,
}

impl Slowed {
    fn new(daemon: &Daemon) -> Self {
        let pid = Pid::from_raw(daemon.pid()).unwrap();
        let task = tokio::spawn(async move {
            loop {
                for (signal, millis) in [(Signal::STOP, 60), (Signal::CONT, 4)] {
                    let _ = kill_process(pid, signal);
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                }
            }
        });
        Self { pid, task }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.task.abort();
        let _ = kill_process(self.pid, Signal::CONT);
    }
}

/// What a worker says of its speed, as anybody is told.
async fn claims(boot: &Daemon, peer: &str) -> u64 {
    let shown = boot.command(&["model", "coverage", DEMO, "--json"]).await.expect(0).json();
    let holders = shown["holders"].as_array().unwrap();
    let its = holders.iter().find(|holder| holder["peer"] == peer);
    its.and_then(|holder| holder["decode_rows_per_s"].as_u64()).unwrap_or(0)
}

/// Requests after which what was measured counts, and no claim.
const SAMPLES: usize = 3;

#[tokio::test]
async fn a_worker_that_is_slower_than_it_says_loses_its_work_to_an_honest_one() {
    let Swarm { boot, workers } = swarm(DEMO, &["0..3", "3..6"]).await;
    let liar = &workers[1];
    let slowed = Slowed::new(liar);
    let expected = ids(&ask(&boot).await);
    for _ in 1..SAMPLES {
        assert_eq!(last(&ask(&boot).await), liar.peer());
    }
    let said = claims(&boot, liar.peer()).await;
    let honest = Launch::new().bootstrap(&boot).serve(DEMO, "3..6").start().await;
    // Of whom nobody knows how fast it is.
    until("the other one is known", async || {
        let shown = boot.command(&["model", "coverage", DEMO, "--json"]).await.expect(0).json();
        shown["replicas"].as_array().unwrap().last().is_some_and(|n| *n == 2).then_some(())
    })
    .await;
    for _ in 0..3 {
        let answer = ask(&boot).await;
        assert_eq!(ids(&answer), expected);
        assert_eq!(last(&answer), honest.peer(), "{said} layer-rows a second are still believed: {answer}");
    }
    drop(slowed);
}

/// What a process has in memory of its own, in KiB.
fn resident_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sessions at once, and between two times that so many are opened: no faster than stages let one coordinator, 16 a second.
const AT_ONCE: usize = 8;
const BETWEEN: Duration = Duration::from_millis(600);

/// What memory may grow by after the first third: allocators keep some, a session holds tens of KiB while it runs.
const GROWTH_KIB: u64 = 12 * 1024;

#[tokio::test]
async fn many_sessions_leave_nothing_in_memory() {
    if !std::path::Path::new("/proc/self/status").is_file() {
        println!("skipped: this system does not tell what a process has in memory");
        return;
    }
    let sessions = std::env::var("QUELEA_SESSIONS").map_or(240, |n| n.parse().expect("QUELEA_SESSIONS is a number"));
    let Swarm { boot, workers } = swarm(DEMO, &["0..3", "3..6"]).await;
    let question = |n: usize| {
        let prompt = format!("{n} is a number");
        json!({
            "model": DEMO, "prompt": prompt, "form": "raw", "ignore_eos": true, "max_tokens": 3, "route": "swarm",
            "step_timeout_ms": 60_000,
        })
    };
    let all: Vec<&Daemon> = workers.iter().chain([&boot]).collect();
    let mut before = Vec::new();
    let mut turn = tokio::time::interval(BETWEEN);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for n in (0..sessions).step_by(AT_ONCE) {
        if before.is_empty() && n >= sessions / 3 {
            before = all.iter().map(|daemon| resident_kib(daemon)).collect();
        }
        turn.tick().await;
        let mut asked: Vec<Asking> = (n..n + AT_ONCE).map(|n| Asking::new(&boot, &question(n))).collect();
        let ends = join_all(asked.iter_mut().map(|asking| asking.end(Duration::from_secs(120)))).await;
        let texts: BTreeSet<usize> = ends.into_iter().map(|end| ids(&end.unwrap().unwrap()).len()).collect();
        assert_eq!(texts, BTreeSet::from([3]));
    }
    for (daemon, before) in all.iter().zip(&before) {
        let after = resident_kib(daemon);
        println!("{}: {before} KiB after a third, {after} KiB after {sessions} sessions", daemon.peer());
        assert!(after <= before + GROWTH_KIB, "{}: from {before} to {after} KiB", daemon.peer());
    }
}
