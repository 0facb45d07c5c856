//! Two hundred clients of one relay at once: those it has places for have them, what a circuit carries is bounded, and the relay
//! goes on.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use quelea_behaviours::{
    BehaviourEvent,
    config::{RELAY_CIRCUIT_BYTES, RELAY_CIRCUITS},
    probe,
};
use tokio::sync::mpsc;

use crate::harness::{Node, config};

const CLIENTS: usize = 200;
/// Of them at once while they connect: what the relay negotiates at a time, with room.
const BATCH: usize = 20;
/// Places that libp2p's relay has. One address, which all of these clients have, is given 60 at once, then one a second.
const PLACES: usize = 128;
/// Bytes one way of each ping through a circuit.
const PING: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(NetworkBehaviour)]
struct Client {
    relay: relay::client::Behaviour,
    /// Answers those of others.
    ping: ping::Behaviour,
    probe: probe::Behaviour,
}

/// What became of what a client was told to do.
#[derive(Debug)]
enum Report {
    Place(PeerId, bool),
    /// So many pings went through the circuit before it broke; none when there was none.
    Called(u64),
}

fn client() -> Swarm<Client> {
    let quiet = ping::Config::new().with_interval(Duration::from_secs(3600));
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_, relay| Client {
            relay,
            ping: ping::Behaviour::new(quiet),
            probe: probe::Behaviour::default(),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// Asks for a place, then calls whoever it is told to, and pings until the circuit breaks.
async fn run(
    mut swarm: Swarm<Client>,
    circuit: Multiaddr,
    mut calls: mpsc::Receiver<PeerId>,
    out: mpsc::Sender<Report>,
) {
    let own = *swarm.local_peer_id();
    swarm.listen_on(circuit.clone()).unwrap();
    let (mut asked, mut callee, mut through) = (true, None, 0);
    loop {
        let event = tokio::select! {
            Some(peer) = calls.recv() => {
                (callee, through) = (Some(peer), 0);
                if swarm.dial(circuit.clone().with(Protocol::P2p(peer))).is_err() {
                    let _ = out.send(Report::Called(0)).await;
                }
                continue;
            }
            event = swarm.select_next_some() => event,
        };
        let report = match event {
            SwarmEvent::Behaviour(ClientEvent::Relay(relay::client::Event::ReservationReqAccepted { .. })) if asked => {
                asked = false;
                Report::Place(own, true)
            }
            SwarmEvent::ListenerClosed { .. } if asked => {
                asked = false;
                Report::Place(own, false)
            }
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. }
                if Some(peer_id) == callee && endpoint.is_dialer() =>
            {
                swarm.behaviour_mut().probe.ping(peer_id, PING);
                continue;
            }
            SwarmEvent::OutgoingConnectionError { peer_id, .. } if peer_id.is_some() && peer_id == callee => {
                callee = None;
                Report::Called(0)
            }
            SwarmEvent::Behaviour(ClientEvent::Probe(probe::Event { result, .. })) => match (result, callee) {
                (Ok(_), Some(peer)) => {
                    through += 1;
                    swarm.behaviour_mut().probe.ping(peer, PING);
                    continue;
                }
                _ => {
                    callee = None;
                    Report::Called(through)
                }
            },
            _ => continue,
        };
        let _ = out.send(report).await;
    }
}

#[tokio::test]
async fn two_hundred_clients_of_one_relay() {
    let mut public = config();
    (public.relay_server, public.outbound) = (true, 0);
    let mut node = Node::start(public).await;
    node.swarm.add_external_address(node.addr.clone());
    let circuit = node.addr.clone().with(Protocol::P2p(node.id)).with(Protocol::P2pCircuit);
    let (out, mut reports) = mpsc::channel(CLIENTS);
    let (mut callers, mut with, mut without) = (Vec::new(), Vec::new(), Vec::new());
    let (mut spawned, mut called, mut open, mut most, mut accepted, mut pings) = (0, 0, 0_usize, 0, 0_u64, 0);
    let play = async {
        while called < CLIENTS {
            if spawned < CLIENTS && spawned < with.len() + without.len() + BATCH {
                spawned += 1;
                let (calls, told) = mpsc::channel(1);
                tokio::spawn(run(client(), circuit.clone(), told, out.clone()));
                callers.push(calls);
                continue;
            }
            tokio::select! {
                Some(report) = reports.recv() => match report {
                    Report::Place(peer, true) => with.push(peer),
                    Report::Place(peer, false) => without.push(peer),
                    Report::Called(through) => (called, pings) = (called + 1, pings + through),
                },
                event = node.swarm.select_next_some() => match &event {
                    SwarmEvent::Behaviour(BehaviourEvent::RelayServer(relay::Event::CircuitReqAccepted { .. })) => {
                        (open, accepted) = (open + 1, accepted + 1);
                        most = most.max(open);
                    }
                    SwarmEvent::Behaviour(BehaviourEvent::RelayServer(relay::Event::CircuitClosed { .. })) => {
                        open = open.saturating_sub(1);
                    }
                    _ => node.act(event),
                },
            }
            if with.len() + without.len() == CLIENTS && !callers.is_empty() {
                // All at once: three of four call who has a place, the rest somebody connected without one (rust-libp2p #6472).
                for (n, calls) in callers.drain(..).enumerate() {
                    let callee = if n % 4 == 3 { without[n % without.len()] } else { with[n % with.len()] };
                    calls.try_send(callee).unwrap();
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, play).await.unwrap();
    assert!((1..=PLACES).contains(&with.len()), "{} places", with.len());
    assert!((1..=RELAY_CIRCUITS).contains(&most), "{most} circuits at once");
    assert!((1..=u64::try_from(CLIENTS).unwrap()).contains(&accepted), "{accepted} circuits");
    let carried = pings * 2 * u64::try_from(PING).unwrap();
    assert!(carried > 0 && carried <= accepted * RELAY_CIRCUIT_BYTES, "{carried} bytes in {accepted} circuits");
    println!("{} places, {accepted} circuits, {most} at once, {carried} bytes of pings", with.len());
}
