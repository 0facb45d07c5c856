//! Being reached: AutoNAT, relays, hole punching, UPnP.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, autonat, dcutr,
    multiaddr::Protocol,
    relay,
    swarm::{
        FromSwarm, NetworkBehaviour, NewExternalAddrCandidate, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    upnp,
};
use quelea_behaviours::{BehaviourEvent, Config};

use crate::harness::{Event, Node, config, connect, until};

/// One node dials another; nothing that happens meanwhile is missed.
fn dial(nodes: &mut [Node], from: usize, to: usize) {
    let addr = nodes[to].addr.clone();
    nodes[from].swarm.dial(addr).unwrap();
}

#[tokio::test]
async fn autonat_confirms_an_address_by_dialling_back() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    let client = nodes[1].id;
    dial(&mut nodes, 1, 0);
    let (mut asked, mut served, mut confirmed) = (None, None, None);
    until(&mut nodes, "both ends of a dial-back", |i, _, event| {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::AutonatClient(event)) if i == 1 => {
                assert!(event.result.is_ok(), "{:?}", event.result);
                asked = Some(event.tested_addr.clone());
            }
            SwarmEvent::Behaviour(BehaviourEvent::AutonatServer(event)) if i == 0 && event.client == client => {
                let event: &autonat::v2::server::Event = event;
                assert!(event.result.is_ok(), "{:?}", event.result);
                served = Some(event.tested_addr.clone());
            }
            SwarmEvent::ExternalAddrConfirmed { address } if i == 1 => confirmed = Some(address.clone()),
            _ => {}
        }
        (asked.is_some() && served.is_some() && confirmed.is_some()).then_some(())
    })
    .await;
    assert_eq!(asked, served);
    assert_eq!(asked, confirmed);
}

/// Dials once more whom it may have dialled before, and waits until that stands.
async fn dial_again(nodes: &mut [Node], from: usize, peer: PeerId, addr: Multiaddr) {
    let dial = DialOpts::peer_id(peer).addresses(vec![addr]).condition(PeerCondition::Always);
    let dial = dial.allocate_new_port().build();
    let dialled = dial.connection_id();
    nodes[from].swarm.dial(dial).unwrap();
    until(nodes, "a connection", |i, _, event| match event {
        SwarmEvent::ConnectionEstablished { connection_id, .. } if i == from => {
            (*connection_id == dialled).then_some(())
        }
        SwarmEvent::OutgoingConnectionError { connection_id, error, .. } if *connection_id == dialled => {
            panic!("{error}")
        }
        _ => None,
    })
    .await;
}

/// A hole punch by TCP and QUIC from both sides leaves that many, for a moment; a dial-back that comes then is let in.
#[tokio::test]
async fn a_dial_back_finds_room_beside_the_lines_of_a_hole_punch() {
    let later = || Config { autonat_probe_interval: Duration::from_secs(2), ..config() };
    let mut nodes = [Node::start(later()).await, Node::start(later()).await];
    let (server, there, ours) = (nodes[0].id, nodes[0].addr.clone(), nodes[1].addr.clone());
    for _ in 0..6 {
        dial_again(&mut nodes, 1, server, there.clone()).await;
    }
    until(&mut nodes, "the verdict on an address", |i, _, event| {
        let event = verdict(i, event)?;
        assert!(event.result.is_ok() && event.tested_addr == ours, "{event:?}");
        Some(())
    })
    .await;
}

/// A server that takes every request and can dial nobody.
fn lame() -> Config {
    let mut lame = config();
    lame.limits.pending_outbound = 0;
    lame
}

/// What AutoNAT says of an address of node 1, in which no peer id may show.
fn verdict(i: usize, event: &Event) -> Option<&autonat::v2::client::Event> {
    let shown = match event {
        SwarmEvent::Behaviour(BehaviourEvent::AutonatClient(event)) => &event.tested_addr,
        SwarmEvent::ExternalAddrConfirmed { address } | SwarmEvent::NewExternalAddrCandidate { address } => address,
        _ => return None,
    };
    assert!(!shown.iter().any(|part| matches!(part, Protocol::P2p(_))), "{shown}");
    match event {
        SwarmEvent::Behaviour(BehaviourEvent::AutonatClient(event)) if i == 1 => Some(event),
        _ => None,
    }
}

#[tokio::test]
async fn where_one_server_cannot_dial_back_another_is_asked() {
    let mut asking = config();
    // Longer than the first server takes to be gone.
    asking.autonat_retry_after = Duration::from_secs(3);
    let mut nodes = [Node::start(lame()).await, Node::start(asking).await, Node::start(config()).await];
    let (lame, able, ours) = (nodes[0].id, nodes[2].id, nodes[1].addr.clone());
    dial(&mut nodes, 1, 0);
    until(&mut nodes, "a dial-back that fails", |i, node, event| {
        let event = verdict(i, event)?;
        assert!(event.result.is_err() && event.server == lame && event.tested_addr == ours, "{event:?}");
        node.swarm.behaviour_mut().blocked_peers.block_peer(lame);
        Some(())
    })
    .await;
    dial(&mut nodes, 1, 2);
    let (mut arrived, mut confirmed) = (false, false);
    until(&mut nodes, "a dial-back of the same address by another server", |i, _, event| {
        if let Some(event) = verdict(i, event) {
            assert!(event.result.is_ok() && event.server == able && event.tested_addr == ours, "{event:?}");
            arrived = true;
        }
        confirmed |= i == 1 && matches!(event, SwarmEvent::ExternalAddrConfirmed { address } if *address == ours);
        (arrived && confirmed).then_some(())
    })
    .await;
    assert!(nodes[1].swarm.external_addresses().eq([&ours]));
}

#[tokio::test]
async fn an_address_that_nobody_reaches_is_tested_three_times() {
    let mut asking = config();
    asking.autonat_retry_after = Duration::from_millis(50);
    let mut nodes = [Node::start(lame()).await, Node::start(asking).await];
    let (id, ours) = (nodes[1].id, nodes[1].addr.clone());
    dial(&mut nodes, 1, 0);
    let other: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let spelled = |addr: &Multiaddr| {
        let once = addr.clone().with(Protocol::P2p(id));
        BTreeSet::from([addr.clone(), once.clone(), once.with(Protocol::P2p(id))])
    };
    let (mut failures, mut asked) = (BTreeMap::<Multiaddr, usize>::new(), BTreeSet::new());
    for addr in [&ours, &other] {
        until(&mut nodes, "three dial-backs that fail", |i, _, event| {
            if let Some(event) = verdict(i, event) {
                assert!(event.result.is_err());
                *failures.entry(event.tested_addr.clone()).or_default() += 1;
            }
            if let SwarmEvent::Behaviour(BehaviourEvent::AutonatServer(event)) = event {
                assert_eq!((i, event.client), (0, id));
                asked.insert(event.tested_addr.clone());
            }
            (failures.get(addr) >= Some(&3) && spelled(addr).is_subset(&asked)).then_some(())
        })
        .await;
        // Whatever peers claim now, and in whichever spelling: one address is tested no more, another just so.
        for addr in spelled(&ours).union(&spelled(&other)) {
            let claim = FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr });
            nodes[1].swarm.behaviour_mut().autonat_client.on_swarm_event(claim);
        }
    }
    assert_eq!(failures, BTreeMap::from([(ours.clone(), 3), (other.clone(), 3)]));
    assert_eq!(asked, spelled(&ours).union(&spelled(&other)).cloned().collect());
}

/// AutoNAT's servers dial what they are given, behind which libp2p puts the peer's id if it is not there.
#[tokio::test]
async fn an_address_with_one_or_two_peer_ids_leads_where_it_does_with_none() {
    for on in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        // No dial-backs of its own.
        let quiet = || Config { autonat_probe_interval: Duration::from_secs(3600), ..config() };
        let mut nodes = [Node::listen(quiet(), on).await, Node::listen(quiet(), on).await];
        let (there, addr): (PeerId, _) = (nodes[0].id, nodes[0].addr.clone());
        let once = addr.clone().with(Protocol::P2p(there));
        for addr in [addr, once.clone(), once.with(Protocol::P2p(there))] {
            dial_again(&mut nodes, 1, there, addr).await;
        }
    }
}

#[tokio::test]
async fn a_circuit_through_a_relay_becomes_a_direct_line() {
    let mut public = config();
    public.relay_server = true;
    let mut nodes = [Node::start(public).await, Node::start(config()).await, Node::start(config()).await];
    // A relay tells those who reserve where it can be reached, and serves nobody before it knows.
    let (relay, relay_addr) = (nodes[0].id, nodes[0].addr.clone());
    nodes[0].swarm.add_external_address(relay_addr.clone());
    connect(&mut nodes, 1, 0).await;
    connect(&mut nodes, 2, 0).await;

    let circuit = relay_addr.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
    let (hidden, caller) = (nodes[1].id, nodes[2].id);
    nodes[1].swarm.listen_on(circuit.clone()).unwrap();
    let (mut granted, mut obtained) = (false, false);
    until(&mut nodes, "a reservation", |i, _, event| {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::RelayServer(relay::Event::ReservationReqAccepted {
                src_peer_id,
                ..
            })) => granted |= i == 0 && *src_peer_id == hidden,
            SwarmEvent::Behaviour(BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                ..
            })) => obtained |= i == 1 && *relay_peer_id == relay,
            _ => {}
        }
        (granted && obtained).then_some(())
    })
    .await;

    nodes[2].swarm.dial(circuit.with(Protocol::P2p(hidden))).unwrap();
    let mut relayed = false;
    let punched = until(&mut nodes, "a hole punch after the circuit", |i, _, event| match event {
        SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if i == 2 && *peer_id == hidden => {
            relayed |= endpoint.is_relayed();
            None
        }
        SwarmEvent::Behaviour(BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id, result })) => {
            assert!(*remote_peer_id == hidden || *remote_peer_id == caller);
            Some(result.is_ok())
        }
        _ => None,
    })
    .await;
    assert!(relayed, "the first line leads through the relay");
    assert!(punched, "on loopback nothing stands in the way of a direct line");
}

#[tokio::test]
async fn relays_and_upnp_are_off_unless_wanted() {
    let node = Node::start(config()).await;
    assert!(!node.swarm.behaviour().relay_server.is_enabled());
    assert!(!node.swarm.behaviour().upnp.is_enabled());
}

#[tokio::test]
async fn upnp_looks_for_a_gateway_where_it_is_switched_on() {
    let mut home = config();
    home.upnp = true;
    let mut nodes = [Node::start(home).await];
    assert!(nodes[0].swarm.behaviour().upnp.is_enabled());
    until(&mut nodes, "what the search for a gateway found", |_, _, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Upnp(
            upnp::Event::GatewayNotFound | upnp::Event::NonRoutableGateway | upnp::Event::NewExternalAddr { .. },
        )) => Some(()),
        _ => None,
    })
    .await;
}
