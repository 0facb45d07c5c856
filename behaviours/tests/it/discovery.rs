//! Finding peers and hearing of them: Kademlia, gossip, mDNS.

use std::net::UdpSocket;

use libp2p::{
    kad::{self, GetProvidersOk, QueryResult, Quorum, Record, RecordKey, store::RecordStore},
    mdns,
    swarm::SwarmEvent,
};
use quelea_announce::{model_key, topic_index};
use quelea_behaviours::{
    BehaviourEvent, KadMode,
    gossip::Topic,
    peers::{Source, Told},
};
use quelea_wire::ModelId;

use crate::harness::{Event, Node, config, connect, until, until_state};

fn query(event: &Event) -> Option<(kad::QueryId, &QueryResult)> {
    match event {
        SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed { id, result, .. })) => {
            Some((*id, result))
        }
        _ => None,
    }
}

/// A worker and a coordinator behind NAT that know only the bootstrap node between them.
async fn three() -> [Node; 3] {
    let mut hidden = config();
    hidden.kad_mode = KadMode::Client;
    let mut nodes = [Node::start(config()).await, Node::start(hidden.clone()).await, Node::start(hidden).await];
    connect(&mut nodes, 1, 0).await;
    connect(&mut nodes, 2, 0).await;
    nodes
}

#[tokio::test]
async fn a_provider_is_found_and_dialled_through_a_third_node() {
    let mut nodes = Box::pin(three()).await;
    let key = RecordKey::from(model_key(&ModelId([5; 32])));
    let worker = nodes[1].id;
    let publishing = nodes[1].swarm.behaviour_mut().kad.start_providing(key.clone()).unwrap();
    until(&mut nodes, "the end of publishing", |_, _, event| match query(event) {
        Some((id, QueryResult::StartProviding(done))) => {
            assert!(id == publishing && done.is_ok(), "{done:?}");
            Some(())
        }
        _ => None,
    })
    .await;
    until_state(&mut nodes, "the record to be held", |nodes| {
        nodes[0].swarm.behaviour_mut().kad.store_mut().stats().providers == 1
    })
    .await;

    let asking = nodes[2].swarm.behaviour_mut().kad.get_providers(key);
    until(&mut nodes, "the provider, and a line to it", |i, node, event| {
        if i != 2 {
            return None;
        }
        if let Some((id, QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })))) =
            query(event)
        {
            assert_eq!(id, asking);
            if providers.contains(&worker) {
                // By its id alone: the addresses live as long as the query.
                node.swarm.dial(worker).unwrap();
            }
        }
        matches!(event, SwarmEvent::ConnectionEstablished { peer_id, .. } if *peer_id == worker).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_value_of_the_user_namespace_is_held_and_no_other() {
    let mut nodes = Box::pin(three()).await;
    let kad = &mut nodes[1].swarm.behaviour_mut().kad;
    let good = RecordKey::new(b"/quelea/user/greeting");
    kad.put_record(Record::new(good.clone(), b"hello".to_vec()), Quorum::One).unwrap();
    // Our own store refuses it before anybody is bothered; a peer without manners sends it all the same.
    let bad = Record::new(RecordKey::new(b"/quelea/model/forged"), b"x".to_vec());
    assert!(kad.put_record(bad.clone(), Quorum::One).is_err());
    let server = nodes[0].id;
    nodes[1].swarm.behaviour_mut().kad.put_record_to(bad, [server].into_iter(), Quorum::One);
    until_state(&mut nodes, "one record held and one refused", |nodes| {
        let stats = nodes[0].swarm.behaviour_mut().kad.store_mut().stats();
        stats.values == 1 && stats.refused == 1
    })
    .await;
    let held = nodes[0].swarm.behaviour_mut().kad.store_mut().get(&good).map(|held| held.value.clone());
    assert_eq!(held, Some(b"hello".to_vec()));
}

#[tokio::test]
async fn gossip_reaches_the_third_node_when_valid_and_stops_at_the_second_when_not() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await, Node::start(config()).await];
    let said = nodes[0].announcement(1);
    let topic = Topic::Announce(topic_index(&said.announcement().offers[0].model)).ident(&nodes[0].network);
    for node in &mut nodes {
        node.swarm.behaviour_mut().gossipsub.subscribe(&topic).unwrap();
    }
    connect(&mut nodes, 0, 1).await;
    connect(&mut nodes, 1, 2).await;
    let (first, hash) = (nodes[0].id, topic.hash());
    // Until the middle one has both others in its mesh.
    until_state(&mut nodes, "a mesh", |nodes| nodes[1].swarm.behaviour().gossipsub.mesh_peers(&hash).count() == 2)
        .await;
    let publisher = &mut nodes[0].swarm.behaviour_mut().gossipsub;
    publisher.publish(topic.clone(), b"not an announcement".to_vec()).unwrap();
    publisher.publish(topic.clone(), said.raw().to_vec()).unwrap();
    until_state(&mut nodes, "the announcement at the far end", |nodes| !nodes[2].heard.is_empty()).await;
    assert_eq!(nodes[2].heard, [said]);
    assert_eq!((nodes[1].rejected, nodes[2].rejected), (1, 0), "the invalid one stops where it is first seen");
    assert!(nodes[1].swarm.behaviour().gossipsub.peer_score(&first).unwrap() < 0.0);
}

#[tokio::test]
async fn mdns_finds_a_neighbour_where_it_is_switched_on() {
    let mut local = config();
    local.mdns = true;
    let quiet = Node::start(config()).await;
    assert!(!quiet.swarm.behaviour().mdns.is_enabled());
    // It speaks for addresses of real interfaces only.
    let any = "/ip4/0.0.0.0/tcp/0";
    let mut nodes = [Node::listen(local.clone(), any).await, Node::listen(local, any).await];
    assert!(nodes[0].swarm.behaviour().mdns.is_enabled());
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    if let Err(error) = probe.send_to(b"", "224.0.0.251:5353") {
        println!("no multicast here ({error}): only that mDNS listens was checked");
        return;
    }
    let neighbour = nodes[1].id;
    until(&mut nodes, "a neighbour", |i, _, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) if i == 0 => {
            found.iter().any(|(peer, _)| *peer == neighbour).then_some(())
        }
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn two_that_share_a_neighbour_hear_of_each_other_and_one_dials() {
    let mut config = config();
    // Nobody answers lookups: else Kademlia's own bootstrap may join the two before either chooses the other.
    config.kad_mode = KadMode::Client;
    let mut nodes = [Node::start(config.clone()).await, Node::start(config.clone()).await, Node::start(config).await];
    connect(&mut nodes, 1, 0).await;
    connect(&mut nodes, 2, 0).await;
    let (first, second) = (nodes[1].id, nodes[2].id);
    until(&mut nodes, "a line between the two", |i, node, event| {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Exchange(quelea_exchange::Event::Received {
                peer, learnt, ..
            })) => {
                for record in learnt {
                    let told = Told { source: Source::Exchange, teller: Some(*peer) };
                    node.swarm.behaviour_mut().peers.learn(record.peer(), &record.record().addrs, told);
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, .. } if i == 1 && *peer_id == second => return Some(()),
            _ => {}
        }
        None
    })
    .await;
    let chosen = |node: &Node, peer| node.swarm.behaviour().peers.chosen().iter().any(|(of, _)| *of == peer);
    let both = |nodes: &[Node]| nodes[1].swarm.is_connected(&second) && nodes[2].swarm.is_connected(&first);
    until_state(&mut nodes, "a line that both know of and one chose", |nodes| {
        both(nodes) && (chosen(&nodes[1], second) || chosen(&nodes[2], first))
    })
    .await;
}

/// What led to a peer is written down with it.
#[tokio::test]
async fn a_peer_that_a_lookup_led_to_is_known_by_the_dht() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 1, 0).await;
    connect(&mut nodes, 2, 0).await;
    let (first, second) = (nodes[1].id, nodes[2].id);
    // Either's own refresh may be earlier, so that the other is the one that is dialled.
    nodes[2].swarm.behaviour_mut().kad.get_closest_peers(first);
    let by_dht = |node: &Node, peer| {
        node.swarm.behaviour().peers.book().get(peer).is_some_and(|known| known.source == Source::Dht)
    };
    until_state(&mut nodes, "a peer that a lookup led to", |nodes| {
        by_dht(&nodes[2], &first) || by_dht(&nodes[1], &second)
    })
    .await;
    until_state(&mut nodes, "no dial of a lookup left", |nodes| {
        nodes.iter().all(|node| node.swarm.behaviour().peers.uses().lookups_under_way() == 0)
    })
    .await;
}
