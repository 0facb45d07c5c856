//! The fields that refuse connections, and that nobody after them hears of what they refuse.

use libp2p::{
    Multiaddr, PeerId,
    kad::store::RecordStore,
    swarm::{ConnectionId, DialError, FromSwarm, ListenError, NetworkBehaviour, SwarmEvent, behaviour::ListenFailure},
};
use quelea_behaviours::{Behaviour, MemoryLimit, prefixes::PrefixLimits};
use quelea_ledger::behaviour::NotSent;
use quelea_wire::rate::MAX_KEYS;

use crate::harness::{Event, Node, chain, config, connect, stranger, text, until};

fn denied(event: &Event) -> Option<String> {
    match event {
        SwarmEvent::IncomingConnectionError { error: ListenError::Denied { cause }, .. } => Some(chain(cause)),
        _ => None,
    }
}

#[tokio::test]
async fn connection_limits_deny_one_too_many() {
    let mut limited = config();
    limited.limits.established_total = 1;
    let mut nodes = [Node::start(limited).await, Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 1, 0).await;

    let (server, late) = (nodes[0].addr.clone(), nodes[2].id);
    nodes[2].swarm.dial(server).unwrap();
    let mut heard = Vec::new();
    let why = until(&mut nodes, "the second connection to be denied", |i, _, event| {
        if i == 0 && matches!(event, SwarmEvent::Behaviour(_)) && text(event).contains(&late.to_string()) {
            heard.push(text(event));
        }
        denied(event).filter(|_| i == 0)
    })
    .await;
    assert!(why.contains("connection limit exceeded"), "{why}");
    assert_eq!(heard, Vec::<String>::new(), "a later behaviour heard of a denied peer");
    let server = nodes[0].swarm.behaviour();
    assert!(!server.announce.is_connected(&late) && server.announce.is_connected(&nodes[1].id));
}

#[tokio::test]
async fn memory_limits_deny_when_there_is_none_left() {
    let mut starved = config();
    starved.limits.memory = MemoryLimit::Bytes(0);
    let mut nodes = [Node::start(starved).await, Node::start(config()).await];
    let server = nodes[0].addr.clone();
    nodes[1].swarm.dial(server).unwrap();
    let why = until(&mut nodes, "a denial for memory", |_, _, event| denied(event)).await;
    assert!(why.contains("memory"), "{why}");
}

#[tokio::test]
async fn blocked_peers_are_refused_until_forgiven() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    let (server, client) = (nodes[0].addr.clone(), nodes[1].id);
    nodes[0].swarm.behaviour_mut().blocked_peers.block_peer(client);
    nodes[1].swarm.dial(server).unwrap();
    let why = until(&mut nodes, "a denial of a blocked peer", |_, _, event| denied(event)).await;
    assert!(why.contains("in the block list"), "{why}");
    assert!(!nodes[0].swarm.behaviour().announce.is_connected(&client));

    // Neither do we call it ourselves.
    let client_addr = nodes[1].addr.clone().with_p2p(client).unwrap();
    let refused = nodes[0].swarm.dial(client_addr);
    assert!(matches!(refused, Err(DialError::Denied { .. })), "{refused:?}");

    nodes[0].swarm.behaviour_mut().blocked_peers.unblock_peer(client);
    connect(&mut nodes, 1, 0).await;
}

#[tokio::test]
async fn denied_strangers_leave_no_trace() {
    const STRANGERS: usize = 200;
    let mut closed = config();
    closed.limits.established_inbound = 0;
    let mut node = [Node::start(closed).await];
    let mut ids: Vec<PeerId> = Vec::new();
    let mut heard = Vec::new();
    for _ in 0..STRANGERS {
        let mut caller = stranger();
        ids.push(*caller.local_peer_id());
        caller.dial(node[0].addr.clone()).unwrap();
        let calling = tokio::spawn(async move {
            loop {
                futures::StreamExt::select_next_some(&mut caller).await;
            }
        });
        until(&mut node, "a stranger to be denied", |_, _, event| {
            if matches!(event, SwarmEvent::Behaviour(_)) {
                heard.push(text(event));
            }
            denied(event)
        })
        .await;
        calling.abort();
    }
    let swarm = &mut node[0].swarm;
    assert_eq!(swarm.connected_peers().count(), 0);
    let parts = swarm.behaviour_mut();
    assert!(ids.iter().all(|id| !parts.announce.is_connected(id)));
    assert_eq!((parts.announce.remembered(), parts.announce.under_way()), (0, 0));
    assert_eq!((parts.ledger.remembered(), parts.ledger.under_way()), (0, (0, 0)));
    assert!(ids.iter().all(|id| parts.ledger.send(*id, Vec::new()) == Err(NotSent::NotConnected)));
    assert_eq!(parts.shard.stats().peers, 0);
    assert_eq!(parts.gossipsub.all_peers().count(), 0);
    assert_eq!(parts.kad.kbuckets().count(), 0);
    assert_eq!(parts.kad.store_mut().stats(), Default::default());
    assert_eq!(parts.kad.store_mut().records().count(), 0);
    assert_eq!((parts.prefixes.sizes(), parts.inbound.remembered()), (Default::default(), 0));
    heard.retain(|event| ids.iter().any(|id| event.contains(&id.to_string())));
    assert_eq!(heard, Vec::<String>::new());
}

/// Row 2 of the threats, on the whole behaviour: what is asked of it for ten thousand connections that it then denies.
#[tokio::test]
async fn ten_thousand_denied_connections_leave_every_map_as_it_was() {
    let mut closed = config();
    closed.limits.established_inbound = 0;
    closed.limits.prefixes.exempt_local = false;
    let mut node = Node::start(closed).await;
    let local = node.addr.clone();
    let parts = node.swarm.behaviour_mut();
    let sizes = |parts: &mut Behaviour| {
        let announce = [parts.announce.remembered(), parts.announce.under_way()];
        let ours = (parts.inbound.remembered(), announce, parts.ledger.remembered(), parts.ledger.under_way());
        let theirs = [parts.gossipsub.all_peers().count(), parts.kad.kbuckets().count()];
        (parts.prefixes.sizes(), parts.shard.stats(), parts.kad.store_mut().stats(), ours, theirs)
    };
    let before = sizes(parts);
    for n in 0..10_000_u32 {
        let id = ConnectionId::new_unchecked(1_000_000 + n as usize);
        let remote: Multiaddr =
            format!("/ip4/{}/tcp/1", std::net::Ipv4Addr::from_bits(0x0100_0000 + n)).parse().unwrap();
        let peer = PeerId::random();
        let begun = parts.handle_pending_inbound_connection(id, &local, &remote);
        let established =
            begun.and_then(|()| parts.handle_established_inbound_connection(id, peer, &local, &remote).map(drop));
        let error = ListenError::Denied { cause: established.unwrap_err() };
        parts.on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
            local_addr: &local,
            send_back_addr: &remote,
            error: &error,
            connection_id: id,
            peer_id: Some(peer),
        }));
    }
    let mut after = sizes(parts);
    assert!(after.0.rates <= MAX_KEYS, "what is remembered of rates ends within seconds");
    after.0.rates = before.0.rates;
    assert_eq!(after, before);
}

#[tokio::test]
async fn address_ranges_have_a_share_and_leave_nothing_behind_when_refused() {
    let mut strict = config();
    strict.limits.prefixes = PrefixLimits { per_host: 1, exempt_local: false, ..PrefixLimits::default() };
    let mut nodes = [Node::start(strict).await, Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 1, 0).await;
    let before = nodes[0].swarm.behaviour().prefixes.sizes();
    let server = nodes[0].addr.clone();
    for _ in 0..3 {
        nodes[2].swarm.dial(server.clone()).unwrap();
        let why = until(&mut nodes, "a denial by range", |i, _, event| denied(event).filter(|_| i == 0)).await;
        assert!(why.contains("127.0.0.1/32 has its share"), "{why}");
    }
    let prefixes = &mut nodes[0].swarm.behaviour_mut().prefixes;
    assert_eq!(prefixes.sizes(), before);

    // A ban of the range ends the connection that stands.
    assert!(prefixes.ban("127.0.0.0/8".parse().unwrap()));
    until(&mut nodes, "the end of the first connection", |i, _, event| {
        (i == 0 && matches!(event, SwarmEvent::ConnectionClosed { .. })).then_some(())
    })
    .await;
    assert_eq!(nodes[0].swarm.behaviour().prefixes.sizes().connections, 0);
}

#[tokio::test]
async fn inbound_connections_beyond_their_places_give_way() {
    let mut limited = config();
    limited.limits.established_inbound = 1;
    let mut nodes = [Node::start(limited).await, Node::start(config()).await, Node::start(config()).await];
    connect(&mut nodes, 1, 0).await;
    let (server, first, late) = (nodes[0].addr.clone(), nodes[1].id, nodes[2].id);
    nodes[2].swarm.dial(server).unwrap();
    // With a single other one, which is the oldest of its group, the newcomer goes.
    until(&mut nodes, "the newcomer to go again", |i, _, event| {
        (i == 0 && matches!(event, SwarmEvent::ConnectionClosed { peer_id, .. } if *peer_id == late)).then_some(())
    })
    .await;
    let server = nodes[0].swarm.behaviour();
    assert_eq!(server.inbound.evicted(), 1);
    assert!(server.announce.is_connected(&first) && !server.announce.is_connected(&late));
}
