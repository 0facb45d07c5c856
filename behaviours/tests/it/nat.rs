//! Being reached: AutoNAT, relays, hole punching, UPnP.

use libp2p::{autonat, dcutr, multiaddr::Protocol, relay, swarm::SwarmEvent, upnp};
use quelea_behaviours::BehaviourEvent;

use crate::harness::{Node, config, connect, until};

#[tokio::test]
async fn autonat_confirms_an_address_by_dialling_back() {
    let mut nodes = [Node::start(config()).await, Node::start(config()).await];
    let client = nodes[1].id;
    connect(&mut nodes, 1, 0).await;
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
