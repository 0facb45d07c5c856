//! Row 14 of the threats, end to end: identities that connect without end, to a node with friends.

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport as _,
    core::{transport::MemoryTransport, upgrade},
    identity::Keypair,
    noise,
    swarm::{SwarmEvent, dummy},
    yamux,
};
use prometheus_client::registry::Registry;
use quelea_behaviours::peers::Source;

use crate::harness::{Node, config, connect, until, until_state};

/// Identities of the attacker, so many at a time.
const SYBILS: usize = 1000;
const ROUND: usize = 50;

/// Inbound places of the victim.
const PLACES: u32 = 32;

/// Friends that the victim chose, and those that connected to it.
const CHOSEN: usize = 3;
const INBOUND: usize = 8;

/// An identity of the attacker: it connects, and stays as long as it is let.
fn sybil() -> Swarm<dummy::Behaviour> {
    let key = Keypair::generate_ed25519();
    let transport = MemoryTransport::new()
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise::Config::new(&key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(std::time::Duration::MAX);
    Swarm::new(transport, dummy::Behaviour, key.public().to_peer_id(), config)
}

/// A thousand identities connect in rounds and stay. The peers that the victim chose stay, and so do at least four of those
/// that connected to it before and were of use.
#[tokio::test]
async fn a_thousand_identities_displace_neither_the_chosen_nor_the_useful() {
    let mut limited = config();
    limited.limits.established_inbound = PLACES;
    limited.outbound = CHOSEN;
    let mut registry = Registry::default();
    let mut nodes = vec![Node::in_memory(limited, &mut registry).await];
    for _ in 0..CHOSEN + INBOUND {
        let mut passive = config();
        passive.outbound = 0;
        nodes.push(Node::in_memory(passive, &mut Registry::default()).await);
    }
    for friend in 1..=CHOSEN {
        let (peer, addr) = (nodes[friend].id, nodes[friend].addr.clone());
        nodes[0].swarm.behaviour_mut().peers.learn(peer, std::slice::from_ref(&addr), Source::Bootstrap);
        connect(&mut nodes, 0, friend).await;
    }
    for friend in CHOSEN + 1..=CHOSEN + INBOUND {
        connect(&mut nodes, friend, 0).await;
        let peer = nodes[friend].id;
        nodes[0].swarm.behaviour_mut().inbound.worked(&peer);
    }
    let ids: Vec<PeerId> = nodes.iter().map(|node| node.id).collect();
    let addr: Multiaddr = nodes[0].addr.clone();
    let mut held = Vec::new();
    for _ in 0..SYBILS / ROUND {
        for _ in 0..ROUND {
            let mut swarm = sybil();
            swarm.dial(addr.clone()).unwrap();
            let id = *swarm.local_peer_id();
            held.push(tokio::spawn(async move {
                loop {
                    swarm.select_next_some().await;
                }
            }));
            until(&mut nodes, "an identity to come", |i, _, event| match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if i == 0 && *peer_id == id => Some(()),
                // With the moment's slack taken it is refused, which is as good.
                SwarmEvent::IncomingConnectionError { .. } if i == 0 => Some(()),
                _ => None,
            })
            .await;
        }
        // Who gave way is gone before the next round.
        until_state(&mut nodes, "places to be kept", |nodes| {
            nodes[0].swarm.connected_peers().count() <= PLACES as usize + CHOSEN
        })
        .await;
    }
    let victim = &nodes[0].swarm;
    assert!(victim.behaviour().inbound.evicted() > (SYBILS / 2) as u64, "{}", victim.behaviour().inbound.evicted());
    let stayed =
        |range: std::ops::RangeInclusive<usize>| ids[range].iter().filter(|id| victim.is_connected(id)).count();
    assert_eq!(stayed(1..=CHOSEN), CHOSEN, "nobody displaces those that the node chose");
    let useful = stayed(CHOSEN + 1..=CHOSEN + INBOUND);
    println!("{useful} of {INBOUND} useful inbound peers stayed, and all {CHOSEN} that were chosen");
    assert!(useful >= 4, "{useful} of {INBOUND} useful inbound peers stayed");
    held.iter().for_each(tokio::task::JoinHandle::abort);
}
