//! Two loops on loopback, one of them with a keeper that takes its time.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use quelea_behaviours::{KadMode, build_swarm, traffic::Traffic};
use quelea_ledger::{
    Nonce, Raw,
    packet::{Content, Packet},
};
use quelea_wire::NetworkId;
use tokio::sync::{mpsc, oneshot};

use crate::{
    ledger::Input,
    swarm::{Driver, DriverConfig, Handle},
    telemetry::Telemetry,
};

/// Nothing here takes more than seconds; a loaded machine may be ten times slower.
const PATIENCE: Duration = Duration::from_secs(60);

struct End {
    handle: Handle,
    telemetry: Telemetry,
    peer: PeerId,
    addr: Multiaddr,
    _stop: oneshot::Sender<()>,
}

fn begin(ledger: Option<mpsc::Sender<Input>>) -> (Handle, Telemetry, oneshot::Sender<()>) {
    let network = NetworkId::from_name("ledger-packets");
    let keypair = Keypair::generate_ed25519();
    let mut config = quelea_behaviours::Config::new(network);
    config.kad_mode = KadMode::Client;
    let swarm = build_swarm(keypair.clone(), config, None).unwrap();
    let telemetry = Telemetry::new().unwrap();
    let config = DriverConfig {
        network,
        keypair,
        db: None,
        inbound: mpsc::channel(1).0,
        services: mpsc::channel(1).0,
        weights: crate::weights::shelf::desk().0,
        ledger,
        telemetry: telemetry.clone(),
        bans: Vec::new(),
        kad_mode: KadMode::Client,
        publishes: false,
        relay_server: false,
        traffic: Traffic::default(),
    };
    let metrics = libp2p::metrics::Metrics::new(&mut prometheus_client::registry::Registry::default());
    let (mut driver, handle) = Driver::new(swarm, config, metrics);
    driver.listen("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(driver.run(stopped));
    (handle, telemetry, stop)
}

async fn end(ledger: Option<mpsc::Sender<Input>>) -> End {
    let (handle, telemetry, stop) = begin(ledger);
    let addr = until(async || handle.snapshot().await.unwrap().listeners.first().cloned()).await;
    End { peer: handle.local(), handle, telemetry, addr, _stop: stop }
}

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap()
}

async fn told(inputs: &mut mpsc::Receiver<Input>) -> Input {
    tokio::time::timeout(PATIENCE, inputs.recv()).await.unwrap().unwrap()
}

/// The sum of all samples whose name and labels hold all of these.
fn counted(end: &End, parts: &[&str]) -> f64 {
    let scrape = end.telemetry.metrics.scrape();
    let samples = scrape.lines().filter(|line| parts.iter().all(|part| line.contains(part)) && !line.starts_with('#'));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn packet(n: u8) -> Vec<u8> {
    Packet { from: Nonce([1; 16]), to: Nonce([2; 16]), content: Content::Signed(Raw(vec![n; 300])) }.encode()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keeper_hears_of_peers_and_of_what_they_send() {
    let (keeper, mut inputs) = mpsc::channel(16);
    let (here, there) = (end(Some(keeper)).await, end(None).await);
    there.handle.connect(here.peer, vec![here.addr.clone()]).await.unwrap();
    assert!(matches!(told(&mut inputs).await, Input::Connected(peer, None, None) if peer == there.peer));
    // A second connection is no news.
    here.handle.connect(there.peer, vec![there.addr.clone()]).await.unwrap();
    there.handle.ledger_send(vec![(here.peer, packet(1)), (PeerId::random(), packet(2))]);
    let Input::Packet { peer, packet: received } = told(&mut inputs).await else { panic!("no packet") };
    assert_eq!((peer, received), (there.peer, packet(1)));
    let sent = async || (counted(&there, &["rpc_requests", "ledger", "outbound", "\"ok\""]) == 1.0).then_some(());
    until(sent).await;
    assert_eq!(counted(&there, &["rpc_requests", "ledger", "outbound", "error"]), 1.0, "to nobody");
    there.handle.disconnect(here.peer).await;
    assert!(matches!(told(&mut inputs).await, Input::Disconnected(peer) if peer == there.peer));
}

/// What finds no place is counted, its sender waits, and nothing is lost of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_that_is_busy_gets_it_later_and_nobody_waits() {
    let (keeper, mut inputs) = mpsc::channel(1);
    let (here, there) = (end(Some(keeper)).await, end(None).await);
    there.handle.connect(here.peer, vec![here.addr.clone()]).await.unwrap();
    // The first place is taken by the news of the peer.
    there.handle.ledger_send((1..=3).map(|n| (here.peer, packet(n))).collect());
    until(async || (counted(&here, &["channel_full", "\"ledger\""]) >= 3.0).then_some(())).await;
    let mut heard = Vec::new();
    while heard.len() < 3 {
        if let Input::Packet { packet, .. } = told(&mut inputs).await {
            heard.push(packet);
        }
    }
    heard.sort();
    assert_eq!(heard, [packet(1), packet(2), packet(3)]);
    until(async || (counted(&there, &["rpc_requests", "ledger", "outbound", "\"ok\""]) == 3.0).then_some(())).await;

    // Whoever keeps none says so, and its loop goes on.
    here.handle.ledger_send(vec![(there.peer, packet(4))]);
    until(async || (counted(&there, &["rpc_requests", "ledger", "inbound", "refused"]) >= 1.0).then_some(())).await;
    assert!(there.handle.snapshot().await.is_some());
}
