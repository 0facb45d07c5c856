//! Our own protocols within the composite, and the shared ones that concern a single line.

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{
    identify, ping,
    swarm::{SwarmEvent, dial_opts::DialOpts},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use quelea_behaviours::{BehaviourEvent, build_swarm, identify::same_network};
use quelea_ledger::{
    Nonce, Raw,
    behaviour::Event as Ledger,
    packet::{Content, Packet},
};

use crate::harness::{Node, config, connect, until, until_state};

#[tokio::test]
async fn shard_streams_are_opened_and_accepted() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 0, 1).await;
    let (worker, coordinator) = (nodes[1].id, nodes[0].id);
    let wanted = nodes[0].swarm.behaviour_mut().shard.open(worker);
    until(&mut nodes, "our end of a shard stream", |_, _, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Shard(quelea_shard::Event::Opened { id, result, .. })) => {
            assert!(*id == wanted && result.is_ok(), "{result:?}");
            Some(())
        }
        _ => None,
    })
    .await;
    until_state(&mut nodes, "the worker's end", |nodes| nodes[1].inbound.is_some()).await;
    let (from, mut inbound) = nodes[1].inbound.take().unwrap();
    let mut outbound = nodes[0].outbound.take().unwrap();
    assert_eq!(from, coordinator);
    tokio::spawn(async move {
        outbound.write_all(b"layers").await.unwrap();
        outbound.close().await.unwrap();
    });
    let reading = tokio::spawn(async move {
        let mut read = Vec::new();
        inbound.read_to_end(&mut read).await.map(|_| read)
    });
    until_state(&mut nodes, "what was written", |_| reading.is_finished()).await;
    assert_eq!(reading.await.unwrap().unwrap(), b"layers");
}

/// At a peer's loopback address a node on the same port finds itself, and yesterday's address may be another's today.
#[tokio::test]
async fn an_address_at_which_somebody_else_answers_does_not_end_a_dial() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await, Node::start(config()).await];
    let (own, others, right) = (nodes[0].addr.clone(), nodes[1].addr.clone(), nodes[2].addr.clone());
    let wanted = nodes[2].id;
    for wrong in [own, others] {
        let opts = DialOpts::peer_id(wanted).addresses(vec![wrong, right.clone()]).build();
        nodes[0].swarm.dial(opts).unwrap();
        until(&mut nodes, "a connection to the right one", |i, _, event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if i == 0 && *peer_id == wanted => Some(()),
            SwarmEvent::OutgoingConnectionError { error, .. } if i == 0 => panic!("{error}"),
            _ => None,
        })
        .await;
        nodes[0].swarm.disconnect_peer_id(wanted).unwrap();
        until_state(&mut nodes, "the line to end", |nodes| !nodes[0].swarm.is_connected(&wanted)).await;
    }
}

#[tokio::test]
async fn announcements_are_fetched() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 0, 1).await;
    let worker = nodes[1].id;
    let said = nodes[1].announcement(1);
    nodes[1].swarm.behaviour_mut().announce.set_local(Some(said.clone()));
    let wanted = nodes[0].swarm.behaviour_mut().announce.fetch(worker);
    let heard = until(&mut nodes, "an announcement", |_, _, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Announce(quelea_announce::Event::Fetched {
            id,
            result: Ok(said),
            ..
        })) => {
            assert_eq!(*id, wanted);
            said.clone()
        }
        _ => None,
    })
    .await;
    assert_eq!(heard, said);
}

/// Packets go both ways at once, and nothing is left of them.
#[tokio::test]
async fn packets_of_the_ledger_arrive_and_are_answered() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 0, 1).await;
    let ids = [nodes[0].id, nodes[1].id];
    let packet =
        Packet { from: Nonce([1; 16]), to: Nonce([2; 16]), content: Content::Signed(Raw(vec![7; 300])) }.encode();
    for (from, to) in [(0, 1), (1, 0)] {
        nodes[from].swarm.behaviour_mut().ledger.send(ids[to], packet.clone()).unwrap();
    }
    let mut sent = 0;
    until(&mut nodes, "both to be told that their packet was taken", |_, _, event| {
        sent += usize::from(matches!(event, SwarmEvent::Behaviour(BehaviourEvent::Ledger(Ledger::Sent { .. }))));
        (sent == 2).then_some(())
    })
    .await;
    for (node, from) in nodes.iter().zip([ids[1], ids[0]]) {
        assert_eq!(node.packets, [(from, packet.clone())]);
    }
    assert!(nodes.iter().all(|node| node.swarm.behaviour().ledger.under_way() == (0, 0)));
}

#[tokio::test]
async fn services_are_called_on_streams_of_their_own() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 0, 1).await;
    let (provider, caller) = (nodes[1].id, nodes[0].id);
    let wanted = nodes[0].swarm.behaviour_mut().service.open(provider);
    let (mut opened, mut called) = (false, false);
    until(&mut nodes, "both ends of a call", |i, _, event| {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Service(quelea_service::Event::Opened { id, result, .. })) => {
                assert!(i == 0 && *id == wanted && result.is_ok(), "{result:?}");
                opened = true;
            }
            SwarmEvent::Behaviour(BehaviourEvent::Service(quelea_service::Event::Inbound { peer, .. })) => {
                assert_eq!((i, *peer), (1, caller));
                called = true;
            }
            _ => {}
        }
        (opened && called).then_some(())
    })
    .await;
}

#[tokio::test]
async fn peers_identify_themselves() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    let (dialled, id) = (nodes[1].addr.clone(), nodes[1].id);
    nodes[0].swarm.dial(dialled.clone()).unwrap();
    let info = until(&mut nodes, "identification", |i, _, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) if i == 0 => {
            assert_eq!(*peer_id, id);
            Some(info.clone())
        }
        _ => None,
    })
    .await;
    assert!(same_network(&config(), &info));
    assert!(info.agent_version.starts_with("quelea/"), "{}", info.agent_version);
    assert!(info.listen_addrs.contains(&dialled));
    for name in ["shard", "ledger", "announce", "exchange", "service", "kad", "gossip"] {
        let wanted = config().network.protocol(name, 1);
        assert!(info.protocols.contains(&wanted), "{wanted} is not among {:?}", info.protocols);
    }
}

#[tokio::test]
async fn lines_are_pinged_over_quic_too() {
    let quic = "/ip4/127.0.0.1/udp/0/quic-v1";
    let mut nodes = [Node::start(config()).await, Node::listen(config(), quic).await];
    let addr = nodes[1].addr.clone();
    nodes[0].swarm.dial(addr).unwrap();
    until(&mut nodes, "a ping", |i, _, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { result: Ok(_), .. })) if i == 0 => Some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn nearby_tcp_is_tried_first() {
    let quic = "/ip4/127.0.0.1/udp/0/quic-v1";
    let mut nodes = [Node::start(config()).await, Node::listen(config(), quic).await];
    let id = nodes[1].id;
    nodes[1].swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let tcp = until(&mut nodes, "a second listener", |i, _, event| match event {
        SwarmEvent::NewListenAddr { address, .. } if i == 1 => Some(address.clone()),
        _ => None,
    })
    .await;
    let dial = DialOpts::peer_id(id).addresses(vec![nodes[1].addr.clone(), tcp.clone()]).build();
    nodes[0].swarm.dial(dial).unwrap();
    let over = until(&mut nodes, "a connection", |i, _, event| match event {
        SwarmEvent::ConnectionEstablished { endpoint, .. } if i == 0 => Some(endpoint.get_remote_address().clone()),
        _ => None,
    })
    .await;
    assert!(over.to_string().starts_with(&tcp.to_string()), "{over}");
}

#[tokio::test]
async fn a_round_trip_is_measured_when_somebody_asks() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 0, 1).await;
    let peer = nodes[1].id;
    let wanted = nodes[0].swarm.behaviour_mut().probe.ping(peer, 64);
    let took = until(&mut nodes, "a round trip", |i, _, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Probe(event)) if i == 0 && event.id == wanted => {
            Some(*event.result.as_ref().unwrap())
        }
        _ => None,
    })
    .await;
    assert!(!took.is_zero());
}

#[tokio::test]
async fn bytes_and_gossip_are_counted_where_there_is_a_registry() {
    let mut registry = Registry::default();
    let mut node = Node::start(config()).await;
    node.swarm = build_swarm(node.keypair.clone(), config(), Some(&mut registry)).unwrap();
    let mut nodes = [node, Node::start(config()).await];
    connect(&mut nodes, 0, 1).await;
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let bytes = text.lines().find(|line| line.contains("libp2p_bandwidth_bytes_total") && line.contains("Outbound"));
    assert!(bytes.is_some_and(|line| !line.ends_with(" 0")), "{text}");
    assert!(text.contains("libp2p_gossipsub_peers_per_protocol"), "{text}");
}
