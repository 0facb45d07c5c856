use super::*;

fn listener(n: usize) -> ConnectedPoint {
    let addr: Multiaddr = format!("/ip4/{}.{}.0.1/tcp/1", 1 + n % 200, n / 200).parse().unwrap();
    ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: addr }
}

fn dialer() -> ConnectedPoint {
    ConnectedPoint::Dialer {
        address: "/ip4/198.51.100.1/tcp/1".parse().unwrap(),
        role_override: Endpoint::Dialer,
        port_use: PortUse::New,
    }
}

fn open(behaviour: &mut Behaviour, n: usize, endpoint: &ConnectedPoint) -> PeerId {
    let peer = PeerId::random();
    behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
        peer_id: peer,
        connection_id: ConnectionId::new_unchecked(n),
        endpoint,
        failed_addresses: &[],
        other_established: 0,
    }));
    peer
}

fn close(behaviour: &mut Behaviour, peer: PeerId, id: ConnectionId) {
    behaviour.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
        peer_id: peer,
        connection_id: id,
        endpoint: &listener(0),
        cause: None,
        remaining_established: 0,
    }));
}

/// As the swarm does: closes what is to be closed.
fn settle(behaviour: &mut Behaviour) -> Vec<PeerId> {
    let mut gone = Vec::new();
    while let Some((peer, id)) = behaviour.closing.pop_front() {
        close(behaviour, peer, id);
        gone.push(peer);
    }
    gone
}

#[test]
fn a_thousand_sybils_leave_outbound_kept_and_useful_peers_alone() {
    let mut behaviour = Behaviour::new(&Limits::default());
    let outbound: Vec<PeerId> = (0..30).map(|n| open(&mut behaviour, n, &dialer())).collect();
    let anchor = open(&mut behaviour, 30, &listener(30));
    assert!(behaviour.keep(anchor));
    let useful: Vec<PeerId> = (31..37).map(|n| open(&mut behaviour, n, &listener(n))).collect();
    for (n, peer) in useful.iter().enumerate() {
        if n % 2 == 0 { behaviour.worked(peer) } else { behaviour.pinged(peer, Duration::from_millis(3)) }
    }
    for n in 100..1100 {
        let sybil = open(&mut behaviour, n, &listener(n));
        behaviour.pinged(&sybil, Duration::from_millis(10));
        let gone = settle(&mut behaviour);
        assert!(!gone.iter().any(|peer| outbound.contains(peer) || useful.contains(peer) || *peer == anchor));
    }
    assert_eq!(behaviour.connections.values().filter(|c| c.inbound).count(), 200);
    assert_eq!(behaviour.evicted(), 1000 + 7 - 200);
    assert!(behaviour.remembered() <= 2 * 230 + 1);
}

#[test]
fn outbound_connections_take_places_from_inbound_ones() {
    let mut behaviour = Behaviour::new(&Limits::default());
    for n in 0..200 {
        open(&mut behaviour, n, &listener(n));
    }
    assert_eq!(settle(&mut behaviour).len(), 0);
    for n in 200..300 {
        open(&mut behaviour, n, &dialer());
    }
    assert_eq!(settle(&mut behaviour).len(), 60, "240 in all, 100 of them outbound");
    assert_eq!(behaviour.connections.len(), 240);
}

#[test]
fn the_newcomer_goes_when_everybody_else_is_protected() {
    let mut behaviour = Behaviour::new(&Limits { established_inbound: 3, ..Limits::default() });
    let first: Vec<PeerId> = (0..3).map(|n| open(&mut behaviour, n, &listener(n))).collect();
    let newcomer = open(&mut behaviour, 3, &listener(3));
    assert_eq!(settle(&mut behaviour), [newcomer]);
    first.iter().for_each(|peer| assert!(behaviour.keep(*peer)));
    let kept = (0..2 * MAX_KEPT).filter(|_| behaviour.keep(PeerId::random())).count();
    assert_eq!(kept, MAX_KEPT - 3);
}

#[test]
fn ten_thousand_newcomers_leave_every_map_as_it_was() {
    let mut behaviour = Behaviour::new(&Limits { established_inbound: 40, ..Limits::default() });
    for n in 0..40 {
        open(&mut behaviour, n, &listener(n));
    }
    let before = behaviour.remembered();
    for n in 0..10_000 {
        open(&mut behaviour, 100 + n, &listener(n));
        settle(&mut behaviour);
    }
    assert_eq!(behaviour.remembered(), before);
}
