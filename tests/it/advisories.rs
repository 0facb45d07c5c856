//! Published attacks on the libraries beneath, replayed on a real daemon over real connections: the inputs of the advisories
//! that the version floors of `.ci/check_floors.py` are about, and their neighbours. A floor says that a fix was published;
//! this says that the node has it, and that our configuration does not bring the bug back.
//!
//! No case may make the daemon panic (the harness looks at its stderr, and its counter of panics must stay 0), fall silent, or
//! grow by more than [`GROWTH_KIB`]. Overflow checks are on here; for a release build with overflow checks:
//!
//! ```sh
//! QUELEA_HEARTBEATS=80 cargo test --profile checked --test it advisories -- --nocapture
//! ```
//!
//! Not here: what needs a hostile QUIC or TLS stack (GHSA-5hq8-qhww-jm7q, quinn, rustls) or DNS server (hickory): those
//! have version floors alone. Those about rendezvous are played in
//! `protocols/rendezvous/tests/it/swarms.rs`.

mod messages;
pub mod raw;
pub mod yamux;

use std::time::Duration;

use futures::AsyncReadExt;

use self::messages::Case;
use crate::{
    harness::{Daemon, Launch, until},
    hostile::{
        NETWORK,
        attacker::{Attacker, write_raw},
        target::Target,
    },
};

/// What the victim may hold more after a case than before: as much as one connection may have unread, and as much again.
const GROWTH_KIB: u64 = 32 * 1024;

/// Seconds of gossip's heartbeat that must pass before a poisoned backoff shows: one, or what the environment says.
fn heartbeats() -> Duration {
    let seconds = std::env::var("QUELEA_HEARTBEATS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

async fn victim() -> Daemon {
    Launch::new().args(&["--network", NETWORK, "--relay-server"]).start().await
}

fn resident_kib(victim: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", victim.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The victim lives, answers, lets peers in, and has had no panic.
async fn is_well(victim: &Daemon, after: &str, before_kib: u64) {
    assert_eq!(victim.metric("quelea_tasks_panicked_total", "").await, 0.0, "{after}");
    let newcomer = Attacker::connect(victim.addr()).await;
    assert!(newcomer.is_some(), "nobody is let in after {after}");
    let grown = resident_kib(victim).saturating_sub(before_kib);
    assert!(grown <= GROWTH_KIB, "{grown} KiB more after {after}");
}

/// Plays each case under an identity of its own, so that a ban for one is no shelter from the next.
async fn replay(victim: &Daemon, cases: Vec<Case>) {
    for Case { name, protocol, messages } in cases {
        let before = resident_kib(victim);
        let attacker = Attacker::connect(victim.addr()).await.unwrap_or_else(|| panic!("not let in for {name}"));
        let mut stream = attacker.open(&protocol).await;
        assert!(stream.is_some(), "{protocol} is not spoken, so {name} proves nothing");
        let mut said = 0;
        for message in &messages {
            if let Some(open) = &mut stream
                && !write_raw(open, message).await
            {
                // A message that cannot be is the end of its stream, and perhaps of the connection.
                stream = attacker.open(&protocol).await;
            }
            said += usize::from(stream.is_some());
        }
        if let Some(open) = &mut stream {
            let _ = tokio::time::timeout(Duration::from_millis(50), open.read(&mut [0; 1024])).await;
        }
        println!("{protocol}: {name}: {said} of {} messages said", messages.len());
        is_well(victim, name, before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn yamux_frames() {
    let victim = victim().await;
    let port = Target::tcp_port_of(victim.addr());
    for (name, bytes) in yamux::cases() {
        let before = resident_kib(&victim);
        let closed = yamux::play(([127, 0, 0, 1], port).into(), &bytes).await;
        println!("yamux: {name}: {}", if closed.expect("let in") { "closed" } else { "borne" });
        is_well(&victim, name, before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_messages() {
    let victim = victim().await;
    replay(&victim, messages::gossipsub()).await;
    // The panic of GHSA-xqmp-fxgv-xvq5 came with a heartbeat, 43 s and later; the suite waits for a few of them.
    let before = resident_kib(&victim);
    tokio::time::sleep(heartbeats()).await;
    is_well(&victim, "heartbeats", before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kademlia_identify_relay_and_autonat_messages() {
    let victim = victim().await;
    replay(&victim, messages::kademlia()).await;
    replay(&victim, messages::identify()).await;
    // A relay serves once somebody has told it where it can be reached.
    let _friend = Launch::new().args(&["--network", NETWORK]).bootstrap(&victim).start().await;
    until("the relay to serve", async || {
        let asking = Attacker::connect(victim.addr()).await?;
        asking.open(&messages::HOP).await.map(drop)
    })
    .await;
    replay(&victim, messages::relay()).await;
    let bystander = Attacker::connect(victim.addr()).await.unwrap();
    replay(&victim, vec![messages::circuit_to(&bystander.peer)]).await;
    replay(&victim, messages::autonat()).await;
}
