//! Rendezvous in whole nodes: two that know a point and nobody else find each other.

use libp2p::swarm::SwarmEvent;
use quelea_behaviours::{
    BehaviourEvent, KadMode,
    peers::{Source, Told},
};
use quelea_rendezvous::{Event, Point};

use crate::harness::{Node, config, until};

#[tokio::test]
async fn two_that_know_only_a_point_find_each_other_and_one_dials() {
    let mut config = config();
    // Nobody answers lookups, and nobody learns from the exchange here: what is found is the point's doing.
    config.kad_mode = KadMode::Client;
    let mut server = config.clone();
    (server.rendezvous_server, server.outbound) = (true, 0);
    let point = Node::start(server).await;
    config.rendezvous = vec![Point { peer: point.id, addr: point.addr.clone() }];
    let mut nodes = [point, Node::start(config.clone()).await, Node::start(config).await];
    let (first, second) = (nodes[1].id, nodes[2].id);
    until(&mut nodes, "a line between the two", |i, node, event| {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Rendezvous(Event::Discovered { point, peers, invalid })) => {
                assert_eq!(*invalid, 0);
                let told = Told { source: Source::Rendezvous, teller: Some(*point) };
                for (peer, addrs) in peers {
                    node.swarm.behaviour_mut().peers.learn(*peer, addrs, told);
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, .. } if i == 1 && *peer_id == second => return Some(()),
            _ => {}
        }
        None
    })
    .await;
    let told = |node: &Node, peer| {
        node.swarm.behaviour().peers.book().get(peer).is_some_and(|known| known.source == Source::Rendezvous)
    };
    assert!(told(&nodes[1], &second) || told(&nodes[2], &first));
    let registry = nodes[0].swarm.behaviour().rendezvous.as_ref().unwrap().registry().unwrap();
    assert_eq!(registry.len(), 2);
}

#[tokio::test]
async fn who_neither_is_a_point_nor_has_one_speaks_none_of_it() {
    assert!(!Node::start(config()).await.swarm.behaviour().rendezvous.is_enabled());
}
