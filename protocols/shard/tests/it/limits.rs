//! What peers cannot make the behaviour hold, and that every opening is answered.

use std::{future::poll_fn, time::Duration};

use futures::{AsyncReadExt, future::join_all};
use libp2p::{
    PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, ToSwarm, behaviour::ConnectionEstablished},
};
use quelea_shard::{Behaviour, Config, OpenError, frame::StreamKind};
use quelea_wire::NetworkId;

use crate::support::{
    nodes::{Node, Transport, config, connection, stream},
    peer, soon,
};

async fn pair(transport: Transport, of_b: Config) -> (Node, Node) {
    let (mut a, mut b) = (Node::start(transport, config()).await, Node::start(transport, of_b).await);
    a.connect(&mut b).await;
    (a, b)
}

/// Waits until the node's streams are as many as expected.
async fn until_inbound_open(node: &Node, expected: usize) {
    soon(async {
        while node.stats().await.inbound_open != expected {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn a_thousand_half_open_streams(transport: Transport) {
    let (a, mut b) = pair(transport, config()).await;
    let cap = config().max_inbound_streams_per_peer;
    let mut held = Vec::new();
    for _ in 0..20 {
        let opening: Vec<_> = join_all((0..50).map(|_| a.opening(b.peer))).await;
        // Streams over the limit are reset at once; some openers hear of it before they have negotiated.
        held.extend(soon(join_all(opening)).await.into_iter().filter_map(|o| o.expect("answered").ok()));
        // The transport lets the attacker hold 256 streams open at its own end, reset or not.
        held.drain(..held.len().saturating_sub(100));
        assert!(b.stats().await.inbound_open <= cap);
    }
    let stats = b.stats().await;
    assert!(stats.inbound_over_peer + stats.inbound_over_queue >= 900, "{stats:?}");
    assert_eq!((stats.inbound_open, stats.inbound_accepted), (cap, cap as u64));
    assert_eq!(a.stats().await.pending_opens, 0);

    // A peer that behaves gets through while all of this is held.
    let mut honest = Node::start(transport, config()).await;
    honest.connect(&mut b).await;
    let mut squatters = Vec::new();
    for _ in 0..cap {
        squatters.push(b.accept().await);
    }
    let (opener, acceptor) = stream(&honest, &mut b, StreamKind::Control).await;
    assert_eq!(b.stats().await.inbound_open, cap + 1);

    // Places come back when the streams are dropped.
    drop((squatters, opener, acceptor));
    until_inbound_open(&b, 0).await;
    drop(held);
    stream(&a, &mut b, StreamKind::Control).await;
}

#[tokio::test]
async fn a_thousand_half_open_streams_over_tcp() {
    a_thousand_half_open_streams(Transport::Tcp).await;
}

#[tokio::test]
async fn a_thousand_half_open_streams_over_quic() {
    a_thousand_half_open_streams(Transport::Quic).await;
}

#[tokio::test]
async fn all_peers_together_have_a_limit() {
    let (a, mut b) = pair(Transport::Tcp, Config { max_inbound_streams_total: 3, ..config() }).await;
    let mut other = Node::start(Transport::Tcp, config()).await;
    other.connect(&mut b).await;
    let first = [stream(&a, &mut b, StreamKind::Bulk).await, stream(&a, &mut b, StreamKind::Decode).await];
    let third = stream(&other, &mut b, StreamKind::Decode).await;
    // The fourth negotiates and is reset.
    if let Ok(mut over) = other.open(b.peer).await {
        let read = soon(over.read(&mut [0; 1])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    let stats = b.stats().await;
    assert_eq!((stats.inbound_open, stats.inbound_over_total, stats.inbound_over_peer), (3, 1, 0));
    drop(first);
    until_inbound_open(&b, 1).await;
    stream(&other, &mut b, StreamKind::Bulk).await;
    drop(third);
}

/// Streams that are opened, dropped and opened again cost their opener its share, and nobody else theirs.
#[tokio::test]
async fn streams_are_not_opened_faster_than_they_are_of_use() {
    let (a, mut b) = pair(Transport::Quic, config()).await;
    for opened in 1..=200 {
        drop(soon(a.open(b.peer)).await);
        let done = async {
            loop {
                while let Ok(accepted) = b.inbound.try_recv() {
                    drop(accepted);
                }
                let stats = b.stats().await;
                if stats.inbound_accepted + stats.inbound_over_rate == opened && stats.inbound_open == 0 {
                    return stats;
                }
                tokio::task::yield_now().await;
            }
        };
        if soon(done).await.inbound_over_rate > 0 {
            break;
        }
    }
    let stats = b.stats().await;
    // A share is sixty-four at once, and six more a second, which a machine can be too slow to use up.
    assert!(stats.inbound_over_rate == 1 || stats.inbound_accepted == 200, "{stats:?}");
    assert!(stats.inbound_accepted >= 64, "{stats:?}");
    let mut honest = Node::start(Transport::Quic, config()).await;
    honest.connect(&mut b).await;
    stream(&honest, &mut b, StreamKind::Control).await;
}

/// Streams that take every place do not keep a peer out that has none: the newest of whoever holds most is broken off.
#[tokio::test]
async fn a_peer_with_nothing_gets_a_place_from_the_one_with_most() {
    let (greedy, mut b) = pair(Transport::Quic, Config { max_inbound_streams_total: 4, ..config() }).await;
    let mut kept = stream(&greedy, &mut b, StreamKind::Control).await;
    let mut more = Vec::new();
    for _ in 0..3 {
        more.push(stream(&greedy, &mut b, StreamKind::Bulk).await);
    }
    let mut honest = Node::start(Transport::Quic, config()).await;
    honest.connect(&mut b).await;
    let first = stream(&honest, &mut b, StreamKind::Control).await;
    let second = stream(&honest, &mut b, StreamKind::Decode).await;
    // Two each now: nobody has anything to give.
    assert!(honest.open(b.peer).await.is_err() || b.inbound.try_recv().is_err());
    let stats = b.stats().await;
    assert_eq!((stats.inbound_displaced, stats.inbound_open, stats.inbound_over_total), (2, 4, 1), "{stats:?}");
    for (mut opener, mut acceptor) in more.drain(1..) {
        let end = soon(acceptor.reader.next()).await;
        assert!(end.is_err(), "{end:?}");
        // Whoever serves the stream drops it then, and its opener hears of it.
        drop(acceptor);
        let end = soon(opener.reader.next()).await;
        assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    }
    let probe = quelea_shard::frame::Probe { session: quelea_shard::frame::SessionId([7; 16]), epoch: 1 };
    kept.0.writer.send(&probe.into()).await.expect("still open");
    assert_eq!(soon(kept.1.reader.next()).await.expect("still open"), Some(probe.into()));
    drop((kept, first, second, more));
    until_inbound_open(&b, 0).await;
}

#[tokio::test]
async fn an_opening_to_nobody_is_answered() {
    let a = Node::start(Transport::Tcp, config()).await;
    assert!(matches!(a.open(peer(1)).await, Err(OpenError::NotConnected)));
    assert_eq!((a.stats().await.open_failed, a.stats().await.pending_opens), (1, 0));
}

#[tokio::test]
async fn networks_do_not_mix() {
    let (a, b) = pair(Transport::Tcp, Config::new(NetworkId::from_name("another"))).await;
    assert!(matches!(a.open(b.peer).await, Err(OpenError::Unsupported)));
}

#[tokio::test]
async fn openings_under_way_are_bounded_and_end_with_the_connection() {
    let (mut a, mut b) = (Node::start(Transport::Tcp, Config { max_pending_opens: 4, ..config() }).await, {
        Node::start(Transport::Tcp, config()).await
    });
    a.connect(&mut b).await;
    let opening = join_all((0..64).map(|_| a.opening(b.peer))).await;
    a.disconnect(b.peer).await;
    let (mut opened, mut too_many, mut closed) = (0, 0, 0);
    for answer in soon(join_all(opening)).await {
        match answer.expect("every opening is answered") {
            Ok(_) => opened += 1,
            Err(OpenError::TooManyPending) => too_many += 1,
            Err(OpenError::ConnectionClosed | OpenError::NotConnected | OpenError::Io(_)) => closed += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(opened + too_many + closed, 64);
    assert_eq!(a.stats().await.pending_opens, 0);
    soon(a.until_connected(b.peer, false)).await;
    assert_eq!(a.stats().await.peers, 0);
    assert!(matches!(a.open(b.peer).await, Err(OpenError::NotConnected)));
}

#[tokio::test]
async fn a_connection_lives_as_long_as_its_streams() {
    let (mut a, mut b) = pair(Transport::Tcp, config()).await;
    let (opener, acceptor) = stream(&a, &mut b, StreamKind::Control).await;
    // Longer than the idle timeout of 300 ms in which a connection without streams closes.
    let closed = tokio::time::timeout(Duration::from_millis(900), a.until_connected(b.peer, false)).await;
    assert!(closed.is_err(), "closed with a stream open");
    drop((opener, acceptor));
    soon(a.until_connected(b.peer, false)).await;
    soon(b.until_connected(a.peer, false)).await;
    assert_eq!((a.stats().await.peers, b.stats().await.peers), (0, 0));
}

#[tokio::test]
async fn a_broken_connection_breaks_its_streams() {
    let (a, mut b) = pair(Transport::Quic, config()).await;
    let (opener, acceptor) = stream(&a, &mut b, StreamKind::Control).await;
    a.disconnect(b.peer).await;
    let (mut one, mut other) = (opener.reader, acceptor.reader);
    for end in [soon(one.next()).await, soon(other.next()).await] {
        assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
    }
    drop((opener.writer, acceptor.writer, one, other));
    until_inbound_open(&b, 0).await;
}

#[test]
fn connections_that_are_denied_later_leave_nothing() {
    let mut behaviour = Behaviour::new(config());
    let addr = "/ip4/192.0.2.1/tcp/1".parse().expect("a multiaddr");
    for n in 0..10_000 {
        let who = libp2p::PeerId::random();
        behaviour.handle_established_inbound_connection(connection(n), who, &addr, &addr).expect("allowed");
        behaviour
            .handle_established_outbound_connection(connection(n), who, &addr, Endpoint::Dialer, PortUse::New)
            .expect("allowed");
        assert!(!behaviour.is_connected(&who));
    }
    assert_eq!(behaviour.stats(), quelea_shard::Stats::default());
}

/// An older connection may lead to the process that the peer was before it was started again.
#[tokio::test]
async fn streams_are_opened_on_the_newest_direct_connection() {
    let (mut behaviour, peer, relay) = (Behaviour::new(config()), PeerId::random(), PeerId::random());
    let direct = "/ip4/198.51.100.1/tcp/1".to_owned();
    for (n, address) in [direct.clone(), direct.clone(), format!("{direct}/p2p/{relay}/p2p-circuit")].iter().enumerate()
    {
        let endpoint = ConnectedPoint::Dialer {
            address: address.parse().expect("an address"),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: ConnectionId::new_unchecked(n),
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: n,
        }));
    }
    behaviour.open(peer);
    let used = soon(poll_fn(|cx| behaviour.poll(cx))).await;
    let ToSwarm::NotifyHandler { handler: NotifyHandler::One(used), .. } = used else { panic!("no stream is opened") };
    assert_eq!(used, ConnectionId::new_unchecked(1));
}
