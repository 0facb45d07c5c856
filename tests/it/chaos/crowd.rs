//! The daemons: two that ask, and for each span several workers, which come back after they were killed.

use std::{fs, time::Duration};

use futures::future::join_all;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::schedule::STAGES;
use crate::harness::{Daemon, Launch, long_model, quelea, tempdir, until};

const SPANS: [&str; STAGES] = ["0..2", "2..4", "4..6"];

/// Workers of each span: two may be lost in a round, and one is left.
const HOLDERS: usize = 3;

/// A worker, or where it was.
pub struct Worker {
    home: TempDir,
    at: usize,
    pub peer: String,
    /// How far it is from the others, as its command line has it.
    apart: Vec<String>,
    /// None while it is dead and buried.
    pub daemon: Option<Daemon>,
    /// Killed or stopped.
    away: bool,
}

impl Worker {
    async fn start(&mut self, boot: &Daemon) {
        let launch = Launch::new().home(self.home.path()).bootstrap(boot).serve(long_model(), SPANS[self.at]);
        self.daemon = Some(launch.args(&strs(&self.apart)).start().await);
    }

    pub fn signal(&mut self, signal: Signal) {
        self.away = signal != Signal::CONT;
        self.daemon.as_ref().unwrap().signal(signal);
    }

    /// Kills it, and waits for its end.
    async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.away = false;
        self.daemon.take().unwrap().end().await;
    }

    fn runs(&self) -> Option<&Daemon> {
        self.daemon.as_ref().filter(|_| !self.away)
    }

    /// Whether its stage computes at this moment; not known everywhere, and then so.
    pub fn computes(&self) -> bool {
        let Some(daemon) = self.runs() else { return false };
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", daemon.pid())) else { return true };
        threads.flatten().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.contains("(quelea-stage) R")
        })
    }

    /// Rows that it has computed; none when it does not run.
    pub async fn rows(&self) -> f64 {
        match self.runs() {
            Some(daemon) => daemon.metric("quelea_stage_rows_total", "").await,
            None => 0.0,
        }
    }
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// All of them.
pub struct Crowd {
    /// Where everybody starts from, and that ask. Nothing happens to these.
    pub askers: [Daemon; 2],
    pub workers: Vec<Worker>,
}

impl Crowd {
    /// With a delay, everybody is so far apart, one way.
    pub async fn start(delay: Option<&str>) -> Self {
        let apart: Vec<String> = delay.map(|delay| format!("--line-delay={delay}")).into_iter().collect();
        let boot = Launch::new().args(&strs(&apart)).start().await;
        let asker = Launch::new().args(&strs(&apart)).bootstrap(&boot).start().await;
        let mut workers: Vec<Worker> = (0..HOLDERS * STAGES)
            .map(|n| Worker {
                home: tempdir(),
                at: n % STAGES,
                peer: String::new(),
                apart: apart.clone(),
                daemon: None,
                away: false,
            })
            .collect();
        join_all(workers.iter_mut().map(|worker| worker.start(&boot))).await;
        for worker in &mut workers {
            worker.peer = worker.daemon.as_ref().unwrap().peer().to_owned();
        }
        Self { askers: [boot, asker], workers }
    }

    /// The worker with this peer id.
    pub fn of_peer(&self, peer: &str) -> usize {
        self.workers.iter().position(|worker| worker.peer == peer).unwrap_or_else(|| panic!("no worker {peer}"))
    }

    /// Workers that run and hold the span at `at`, and the rows they have computed.
    pub async fn rows_at(&self, at: usize) -> Vec<(usize, f64)> {
        let holders = self.workers.iter().enumerate().filter(|(_, worker)| worker.at == at && worker.runs().is_some());
        join_all(holders.map(|(n, worker)| async move { (n, worker.rows().await) })).await
    }

    /// Kills a worker and starts it again after a while, in the same directory: the same peer at another port.
    pub async fn kill_and_start(&mut self, worker: usize, after: Duration) {
        let Self { askers: [boot, _], workers } = self;
        workers[worker].kill().await;
        tokio::time::sleep(after).await;
        workers[worker].start(boot).await;
    }

    /// Waits until somebody who comes new finds every worker. Those that ask may shun one that has just died, as long as
    /// there are others.
    pub async fn until_known(&self) {
        let boot = self.askers[0].addr();
        until("all workers are found", async || {
            let shown = quelea(&["model", "coverage", long_model(), "--json", "--bootstrap", boot]).await;
            let shown = (shown.code == Some(0)).then(|| shown.json())?;
            let all = |n: &Value| n.as_u64() == Some(HOLDERS as u64);
            shown["replicas"].as_array().is_some_and(|layers| layers.iter().all(all)).then_some(())
        })
        .await;
    }

    /// What is left of sessions although none runs: nothing, in time. Says what, and where.
    pub async fn leaks(&self) -> Vec<String> {
        let all = self.askers.iter().chain(self.workers.iter().filter_map(Worker::runs));
        join_all(all.map(left_over)).await.into_iter().flatten().collect()
    }
}

/// How long a node may take to notice that sessions are over: that of one whose coordinator was not to be reached for a
/// while ends when it has been idle for its longest, two minutes; looked at every 250 ms.
const CLEAN: Duration = Duration::from_secs(130);

/// What a node still holds of sessions after [`CLEAN`].
async fn left_over(daemon: &Daemon) -> Option<String> {
    let started = std::time::Instant::now();
    loop {
        let held = held(daemon).await;
        if held.is_empty() {
            return None;
        }
        if started.elapsed() > CLEAN {
            return Some(format!("{}: {held}", daemon.peer()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn held(daemon: &Daemon) -> String {
    let scrape = daemon.fetch("/metrics").await.2;
    let sum = |name: &str| -> u64 {
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64;
        scrape.lines().filter(of_name).map(value).sum()
    };
    let mut held = Vec::new();
    for name in ["quelea_shard_sessions", "quelea_shard_results", "quelea_failover_log_bytes"] {
        assert!(scrape.contains(name), "no {name} in\n{scrape}");
        if sum(name) > 0 {
            held.push(format!("{name} {}", sum(name)));
        }
    }
    let (free, all) = (sum("quelea_kv_cache_free_pages"), sum("quelea_kv_cache_capacity_pages"));
    if free != all {
        held.push(format!("{} KV pages", all - free));
    }
    // Neighbours keep their streams for the next session: one of each kind (control, decode, bulk), and no more than
    // there are neighbours.
    let neighbours = (HOLDERS * STAGES + 1) as u64;
    for name in ["quelea_shard_streams", "quelea_shard_links"] {
        if sum(name) > 3 * neighbours {
            held.push(format!("{name} {}", sum(name)));
        }
    }
    held.join(", ")
}
