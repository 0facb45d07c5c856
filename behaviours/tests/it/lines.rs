//! Lines that nobody uses end, and nothing else does.

use std::time::Duration;

use libp2p::PeerId;
use prometheus_client::registry::Registry;
use quelea_behaviours::{gossip::Topic, peers::lines::trim};
use quelea_broadcast::SignedLine;
use quelea_wire::time::unix_ms;

use crate::harness::{Node, config, connect, until_state};

/// How long lines may be unused here.
const IDLE: Duration = Duration::from_millis(300);

async fn start(outbound: usize) -> Node {
    let mut config = config();
    (config.outbound, config.idle_timeout) = (outbound, IDLE);
    // Its dial-backs are lines, too, that come and go.
    config.autonat_probe_interval = Duration::from_secs(3600);
    let mut node = Node::in_memory(config, &mut Registry::default()).await;
    let topic = Topic::Broadcast.ident(&node.network);
    node.swarm.behaviour_mut().gossipsub.subscribe(&topic).unwrap();
    node
}

fn outgoing(node: &Node) -> usize {
    let counters = node.swarm.network_info().connection_counters().clone();
    usize::try_from(counters.num_established_outgoing()).unwrap()
}

/// Without our own trimming gossip's streams keep every line for ever.
#[tokio::test]
async fn after_lookups_only_chosen_and_inbound_lines_are_left_and_gossip_still_arrives() {
    /// As many as a mesh wants, so that it can be made of them.
    const CHOSEN: usize = 6;
    const NODES: usize = 18;
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(Box::pin(start(CHOSEN)).await);
    }
    for n in 1..NODES {
        Box::pin(connect(&mut nodes, n, 0)).await;
    }
    for node in &mut nodes {
        node.swarm.behaviour_mut().kad.get_closest_peers(PeerId::random());
    }
    until_state(&mut nodes, "lookups to have connected nearly everybody", |nodes| {
        nodes.iter().all(|node| node.swarm.network_info().num_peers() >= NODES - 3)
    })
    .await;
    assert!(nodes.iter().any(|node| outgoing(node) > CHOSEN), "there are lines to be closed");

    // Kademlia refreshes its tables now and then; nobody has to be without lookups at the same moment as all others.
    let mut done = [false; NODES];
    until_state(&mut nodes, "lines that nobody uses to end", |nodes| {
        for (node, done) in nodes.iter_mut().zip(&mut done) {
            trim(node.swarm.behaviour_mut(), |_| false);
            let chosen = node.swarm.behaviour().peers.chosen().len();
            *done |= outgoing(node) == chosen && chosen <= CHOSEN;
        }
        done.iter().all(|done| *done)
    })
    .await;

    let said = SignedLine::sign(&nodes[3].keypair, &nodes[3].network, unix_ms(), "still here").unwrap();
    let topic = Topic::Broadcast.ident(&nodes[3].network);
    nodes[3].swarm.behaviour_mut().gossipsub.publish(topic, said.raw().to_vec()).unwrap();
    nodes[3].lines.push(said);
    until_state(&mut nodes, "a line everywhere", |nodes| {
        nodes.iter_mut().for_each(|node| trim(node.swarm.behaviour_mut(), |_| false));
        nodes.iter().all(|node| node.lines.len() == 1)
    })
    .await;
}

#[tokio::test]
async fn lines_with_sessions_holds_and_wishes_stay() {
    // One that chooses nobody and dials four, with nothing in common but the lines.
    let mut nodes = vec![Box::pin(start(0)).await];
    for _ in 0..4 {
        nodes.push(Box::pin(start(0)).await);
        let to = nodes.len() - 1;
        Box::pin(connect(&mut nodes, 0, to)).await;
    }
    // The mesh of a topic with so few listeners would be needed.
    let topic = Topic::Broadcast.ident(&nodes[0].network);
    nodes[0].swarm.behaviour_mut().gossipsub.unsubscribe(&topic);
    let ids: Vec<PeerId> = nodes.iter().map(|node| node.id).collect();
    let (session, held, wished, unused) = (ids[1], ids[2], ids[3], ids[4]);
    nodes[0].swarm.behaviour_mut().shard.open(session);
    until_state(&mut nodes, "a shard stream", |nodes| nodes[0].outbound.is_some() && nodes[1].inbound.is_some()).await;
    let hold = nodes[0].swarm.behaviour_mut().peers.hold(held);

    let look = |nodes: &mut [Node], wish: bool| {
        trim(nodes[0].swarm.behaviour_mut(), |peer| wish && *peer == wished);
        nodes[1..].iter_mut().for_each(|node| trim(node.swarm.behaviour_mut(), |_| false));
    };
    until_state(&mut nodes, "the line that nobody uses to end", |nodes| {
        look(nodes, true);
        !nodes[0].swarm.is_connected(&unused)
    })
    .await;
    // Those that stay are as old.
    for _ in 0..3 {
        let until = tokio::time::Instant::now() + IDLE;
        until_state(&mut nodes, "time to pass", |nodes| {
            look(nodes, true);
            tokio::time::Instant::now() >= until
        })
        .await;
    }
    assert!([session, held, wished].iter().all(|peer| nodes[0].swarm.is_connected(peer)));

    drop(hold);
    (nodes[0].outbound, nodes[1].inbound) = (None, None);
    until_state(&mut nodes, "the others to end without their reasons", |nodes| {
        look(nodes, false);
        nodes[0].swarm.connected_peers().count() == 0
    })
    .await;
}
