//! The honest peer that measures.

use std::{fmt, time::Duration};

use futures::AsyncReadExt;
use libp2p::StreamProtocol;
use reqwest::Client;
use tokio::time::{Instant, timeout};

use crate::{
    harness::{Daemon, http_client},
    hostile::attacker::Attacker,
};

/// Attempts of each kind; a 99th percentile of fewer than some hundreds is the worst of them.
fn attempts() -> usize {
    if super::strict() { 400 } else { 60 }
}

/// Between two attempts.
const PACE: Duration = Duration::from_millis(15);

/// Less than this says nothing about the node: whoever shares a core waits as long for its turn, a slice of Linux's scheduler
/// being 3 ms.
const SHORT: Duration = Duration::from_millis(2);

/// An attempt that takes longer has failed.
const LATE: Duration = Duration::from_secs(10);

pub fn resident_kib(victim: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", victim.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

pub fn descriptors(victim: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", victim.pid())).unwrap().count()
}

/// A peer that is connected before the attack, and a user of the node.
pub struct Probe {
    peer: Attacker,
    api: Client,
}

/// What attempts took; those that failed are missing.
pub struct Figures {
    attempts: usize,
    streams: Vec<Duration>,
    answers: Vec<Duration>,
}

impl Figures {
    /// The share of attempts that succeeded.
    pub fn success(&self) -> f64 {
        (self.streams.len() + self.answers.len()) as f64 / (2 * self.attempts) as f64
    }

    /// How many times as long as in `calm` ninety-nine of a hundred took at most: of streams and of answers, the worse. What took
    /// less than [`SHORT`] there counts as that.
    pub fn slower_than(&self, calm: &Self) -> f64 {
        let ratio = |under: &[Duration], calm: &[Duration]| {
            percentile(under, 99).as_secs_f64() / percentile(calm, 99).max(SHORT).as_secs_f64()
        };
        ratio(&self.streams, &calm.streams).max(ratio(&self.answers, &calm.answers))
    }
}

/// The time that so many of a hundred did not exceed.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(LATE)
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |times: &[Duration]| format!("p50 {:.1?} p99 {:.1?}", percentile(times, 50), percentile(times, 99));
        let percent = 100.0 * self.success();
        write!(f, "a stream {}, the loop {}, {percent:.1} % answered", of(&self.streams), of(&self.answers))
    }
}

impl Probe {
    pub async fn new(victim: &Daemon) -> Self {
        let socket = std::path::Path::new(victim.home()).join("quelea.sock");
        let api = http_client().unix_socket(socket).build().unwrap();
        Self { peer: Attacker::connect(victim.addr()).await.unwrap(), api }
    }

    /// Asks the node who it is, on a stream each, and the loop for what it knows.
    pub async fn measure(&self) -> Figures {
        let (streams, answers) = tokio::join!(self.streams(), self.answers());
        Figures { attempts: attempts(), streams, answers }
    }

    async fn streams(&self) -> Vec<Duration> {
        const IDENTIFY: StreamProtocol = StreamProtocol::new("/ipfs/id/1.0.0");
        let mut times = Vec::new();
        for _ in 0..attempts() {
            let started = Instant::now();
            // Not ping: libp2p answers no pings of a peer that answers none.
            let ask = async {
                let mut stream = self.peer.open(&IDENTIFY).await?;
                stream.read_exact(&mut [0; 32]).await.ok()
            };
            if let Ok(Some(())) = timeout(LATE, ask).await {
                times.push(started.elapsed());
            }
            tokio::time::sleep(PACE).await;
        }
        times
    }

    async fn answers(&self) -> Vec<Duration> {
        let mut times = Vec::new();
        for _ in 0..attempts() {
            let started = Instant::now();
            let asked = self.api.get("http://localhost/api/v1/peers/bans").timeout(LATE).send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                times.push(started.elapsed());
            }
            tokio::time::sleep(PACE).await;
        }
        times
    }
}
