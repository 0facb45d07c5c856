use std::time::Duration;

use libp2p::{
    core::ConnectedPoint,
    swarm::behaviour::{ConnectionClosed, ConnectionEstablished, DialFailure, ExpiredListenAddr, NewListenAddr},
};

use super::*;
use crate::peers::{
    dialler::{AT_ONCE, OUTBOUND},
    policy::LASTING,
};

fn node() -> Behaviour {
    // The lowest of many ids: it yields to nobody.
    let local = (0..1000).map(|_| PeerId::random()).min().unwrap();
    Behaviour::new(local, OUTBOUND, Duration::from_secs(60), 1)
}

fn place(n: usize) -> Multiaddr {
    format!("/ip4/20.{}.{}.1/tcp/8468", n / 256, n % 256).parse().unwrap()
}

/// Whom it dials until it has nothing more to do.
fn dials(node: &mut Behaviour) -> Vec<(PeerId, ConnectionId)> {
    let mut cx = Context::from_waker(futures::task::noop_waker_ref());
    let mut dials = Vec::new();
    while let Poll::Ready(event) = node.poll(&mut cx) {
        if let ToSwarm::Dial { opts } = event {
            dials.push((opts.get_peer_id().unwrap(), opts.connection_id()));
        }
        assert!(dials.len() < 1000, "it dials for ever");
    }
    dials
}

fn open(node: &mut Behaviour, peer: PeerId, id: ConnectionId, outbound: bool) {
    let addr = place(1);
    let endpoint = if outbound {
        ConnectedPoint::Dialer { address: addr, role_override: Endpoint::Dialer, port_use: PortUse::New }
    } else {
        ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: addr }
    };
    establish(node, peer, id, &endpoint);
}

fn establish(node: &mut Behaviour, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
    node.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
        peer_id: peer,
        connection_id: id,
        endpoint,
        failed_addresses: &[],
        other_established: 0,
    }));
}

fn close(node: &mut Behaviour, peer: PeerId, id: ConnectionId) {
    let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: place(1) };
    node.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
        peer_id: peer,
        connection_id: id,
        endpoint: &endpoint,
        cause: None,
        remaining_established: 0,
    }));
}

fn fail(node: &mut Behaviour, peer: PeerId, id: ConnectionId, error: &DialError) {
    node.on_swarm_event(FromSwarm::DialFailure(DialFailure { peer_id: Some(peer), error, connection_id: id }));
}

#[test]
fn a_dial_that_is_refused_at_once_is_not_repeated_at_once() {
    let mut node = node();
    (0..3).for_each(|n| assert!(node.learn(PeerId::random(), &[place(n)], Source::Dht)));
    let refused = [
        DialError::DialPeerConditionFalse(PeerCondition::DisconnectedAndNotDialing),
        DialError::NoAddresses,
        DialError::Aborted,
    ];
    for error in refused {
        let first = dials(&mut node);
        first.iter().for_each(|(peer, id)| fail(&mut node, *peer, *id, &error));
        assert!(first.len() <= 3 && dials(&mut node).is_empty(), "{error}");
        assert_eq!(node.sizes()[2], 0);
    }
}

#[test]
fn it_fills_its_places_keeps_them_and_fills_them_again() {
    let mut node = node();
    (0..30).for_each(|n| assert!(node.learn(PeerId::random(), &[place(n)], Source::Dht)));
    for n in 0..500 {
        open(&mut node, PeerId::random(), ConnectionId::new_unchecked(100_000 + n), false);
    }
    let mut all = Vec::new();
    for _ in 0..=OUTBOUND / AT_ONCE {
        let now = dials(&mut node);
        assert!(now.len() <= AT_ONCE);
        now.iter().for_each(|(peer, id)| open(&mut node, *peer, *id, true));
        all.extend(now);
    }
    assert_eq!((all.len(), node.chosen().len()), (OUTBOUND, OUTBOUND));
    let (gone, id) = all[3];
    close(&mut node, gone, id);
    let next = dials(&mut node);
    assert_eq!((node.chosen().len(), next.len()), (OUTBOUND - 1, 1));
    assert_ne!(next[0].0, gone, "it has just hung up");
    assert!(node.is_outbound(&all[0].0) && !node.is_outbound(&gone));
}

fn chosen(node: &Behaviour) -> Vec<PeerId> {
    node.chosen().iter().map(|(peer, _)| *peer).collect()
}

/// An id above the node's: it is the node that dials.
fn above(node: &Behaviour) -> PeerId {
    let local = node.book().local();
    std::iter::repeat_with(PeerId::random).find(|peer| local < *peer).unwrap()
}

#[test]
fn a_lookups_connection_takes_no_place_before_it_is_chosen() {
    let mut node = node();
    let (looked_up, named) = (above(&node), above(&node));
    node.learn(named, &[place(9)], Source::Bootstrap);
    dials(&mut node);
    open(&mut node, looked_up, ConnectionId::new_unchecked(1), true);
    open(&mut node, named, ConnectionId::new_unchecked(2), true);
    assert_eq!(chosen(&node), [named]);
    assert_eq!(node.spare(), [(looked_up, ConnectionId::new_unchecked(1))]);
    assert!(dials(&mut node).is_empty(), "the dialler takes the line over instead of dialling");
    assert!(chosen(&node).contains(&looked_up) && node.spare().is_empty());
}

#[test]
fn lines_are_spare_that_nothing_keeps() {
    let mut node = Behaviour::new(PeerId::random(), 0, Duration::from_secs(60), 1);
    let (line, inbound, held, relay) = (PeerId::random(), PeerId::random(), PeerId::random(), PeerId::random());
    let id = ConnectionId::new_unchecked;
    for (n, peer) in [(1, line), (2, held), (3, relay)] {
        open(&mut node, peer, id(n), true);
    }
    open(&mut node, inbound, id(4), false);
    let spare =
        |node: &Behaviour| node.spare().into_iter().map(|(_, id)| id).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(spare(&node), [id(1), id(2), id(3)].into());

    let hold = node.hold(held);
    let again = node.hold(held);
    let circuit = place(1).with_p2p(relay).unwrap().with(libp2p::multiaddr::Protocol::P2pCircuit);
    let addr = circuit.clone().with_p2p(line).unwrap();
    let through = ConnectedPoint::Dialer { address: addr, role_override: Endpoint::Dialer, port_use: PortUse::New };
    establish(&mut node, line, id(5), &through);
    assert_eq!(spare(&node), [id(1), id(5)].into(), "what a circuit goes through stays");
    drop(hold);
    assert_eq!(spare(&node), [id(1), id(5)].into(), "one of two holds");
    drop(again);
    assert_eq!(spare(&node), [id(1), id(2), id(5)].into());
    assert_eq!(node.only(&[(line, id(1))]), [].into());
    assert_eq!(node.only(&[(line, id(1)), (line, id(5)), (held, id(2))]), [line, held].into());

    node.close(line, id(5));
    node.close(line, id(5));
    assert_eq!((spare(&node), node.trimmed()), ([id(1), id(2)].into(), 1), "told once");
    close(&mut node, line, id(5));
    assert_eq!(spare(&node), [id(1), id(2), id(3)].into());
    let listener = libp2p::core::transport::ListenerId::next();
    let addr = circuit.with_p2p(PeerId::random()).unwrap();
    node.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr { listener_id: listener, addr: &addr }));
    assert_eq!(spare(&node), [id(1), id(2)].into(), "a relay that keeps a place");
    node.on_swarm_event(FromSwarm::ExpiredListenAddr(ExpiredListenAddr { listener_id: listener, addr: &addr }));
    assert_eq!(spare(&node), [id(1), id(2), id(3)].into());
    for (n, peer) in [(1, line), (2, held), (3, relay), (4, inbound)] {
        close(&mut node, peer, id(n));
    }
    assert_eq!(node.sizes(), [0; 4]);
}

#[test]
fn whoever_soon_hangs_up_is_left_alone_for_longer_and_longer() {
    let mut policy = Policy::new(PeerId::random(), OUTBOUND, 1);
    let (peer, mut at, mut connection) = (PeerId::random(), Duration::ZERO, 0);
    let now = |at| Now { at, unix_ms: 0 };
    policy.learn(peer, &[place(1)], Source::Bootstrap, now(at));
    let mut meet = |policy: &mut Policy, at: &mut Duration, lasts: Duration| {
        connection += 1;
        let id = ConnectionId::new_unchecked(connection);
        let mut dialled = 0;
        let before = *at;
        while dialled == 0 {
            policy.dial(now(*at), |_| {
                dialled += 1;
                id
            });
            *at += Duration::from_secs(1);
        }
        let opened = Opened {
            peer,
            connection: id,
            addr: &place(1),
            outbound: true,
            relayed: false,
            via: None,
            source: Source::Other,
        };
        assert!(policy.opened(&opened, now(*at)));
        let waited = at.saturating_sub(before);
        *at += lasts;
        policy.closed(peer, id, now(*at));
        waited
    };
    let waits: Vec<Duration> = (0..6).map(|_| meet(&mut policy, &mut at, Duration::from_millis(100))).collect();
    assert!(waits[0] <= Duration::from_secs(1) && waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
    meet(&mut policy, &mut at, LASTING);
    assert!(meet(&mut policy, &mut at, LASTING) <= Duration::from_secs(1));
}

/// Row 2 of the threats: nothing is noted when a handler is asked for.
#[test]
fn ten_thousand_that_are_denied_leave_every_map_as_it_was() {
    let mut node = node();
    for n in 0..10_000 {
        let (id, peer) = (ConnectionId::new_unchecked(n), PeerId::random());
        node.handle_established_inbound_connection(id, peer, &place(1), &place(2)).unwrap();
        node.handle_established_outbound_connection(id, peer, &place(1), Endpoint::Dialer, PortUse::New).unwrap();
        node.handle_pending_outbound_connection(id, Some(peer), &[], Endpoint::Dialer).unwrap();
    }
    assert_eq!((node.sizes(), node.book().sizes()), ([0; 4], [0; 3]));
}
