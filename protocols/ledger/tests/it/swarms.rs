//! Two swarms that keep the rules: packets, answers, and what happens to those that cannot be sent.

use std::{collections::BTreeSet, time::Duration};

use futures::future::Either;
use libp2p::{
    PeerId,
    swarm::{SwarmEvent, dummy},
};
use quelea_ledger::{
    behaviour::{Answer, Behaviour, Event, MAX_IN_FLIGHT, MAX_QUEUED, MAX_RETRIES, NotSent, Reply, SendError},
    packet::MAX_PACKET,
};
use quelea_wire::rate::{Limits, Quota, Scope};

use crate::{
    nodes::{connect, connection, node, packet, swarm, told, until},
    samples::network,
};

#[tokio::test]
async fn packets_arrive_once_and_few_are_in_flight() {
    let (mut client, mut server) = (node(), node());
    let peer = connect(&mut client, &mut server).await;
    for n in 0..MAX_QUEUED {
        client.behaviour_mut().send(peer, packet(n as u16)).unwrap();
    }
    assert_eq!(client.behaviour_mut().send(peer, packet(0)), Err(NotSent::PeerFull));
    let (mut sent, mut received) = (0, BTreeSet::new());
    until(&mut client, &mut server, |client, server, event| {
        assert!(client.behaviour().under_way().1 <= MAX_IN_FLIGHT);
        match event {
            Either::Left(event) => match told(event) {
                Some(Event::Sent { .. }) => sent += 1,
                Some(event) => panic!("{event:?}"),
                None => {}
            },
            Either::Right(event) => match told(event) {
                Some(Event::Received { packet, reply, .. }) => {
                    assert!(received.insert(packet), "twice");
                    server.behaviour_mut().reply(reply, Answer::Taken);
                }
                Some(event) => panic!("{event:?}"),
                None => {}
            },
        }
        (sent == MAX_QUEUED).then_some(())
    })
    .await;
    assert_eq!(received, (0..MAX_QUEUED).map(|n| packet(n as u16)).collect());
    assert_eq!(client.behaviour().under_way(), (0, 0));
}

#[tokio::test]
async fn what_cannot_be_sent_is_not_queued() {
    let (mut client, mut server) = (node(), node());
    assert_eq!(client.behaviour_mut().send(PeerId::random(), packet(1)), Err(NotSent::NotConnected));
    let peer = connect(&mut client, &mut server).await;
    assert_eq!(client.behaviour_mut().send(peer, vec![1; MAX_PACKET + 1]), Err(NotSent::TooLong));
    assert_eq!(client.behaviour().under_way(), (0, 0));
}

/// What is longer than any packet of ours but not than the cap goes, and is called no packet by who reads it.
#[tokio::test]
async fn what_is_no_packet_is_refused_and_told_of_on_both_sides() {
    let (mut client, mut server) = (node(), node());
    let peer = connect(&mut client, &mut server).await;
    client.behaviour_mut().send(peer, vec![1; MAX_PACKET]).unwrap();
    let (mut refused, mut misbehaved) = (false, false);
    until(&mut client, &mut server, |_, _, event| {
        match event {
            Either::Left(SwarmEvent::Behaviour(Event::NotSent { packets: 1, error: SendError::Refused, .. })) => {
                refused = true;
            }
            Either::Right(SwarmEvent::Behaviour(Event::Misbehaved { .. })) => misbehaved = true,
            Either::Left(SwarmEvent::Behaviour(event)) | Either::Right(SwarmEvent::Behaviour(event)) => {
                panic!("{event:?}")
            }
            _ => {}
        }
        (refused && misbehaved).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_busy_peer_gets_the_same_again_and_not_for_ever() {
    for busy in 0..=u32::from(MAX_RETRIES) + 1 {
        let (mut client, mut server) = (node(), node());
        let peer = connect(&mut client, &mut server).await;
        client.behaviour_mut().send(peer, packet(5)).unwrap();
        let mut times = 0;
        let sent = until(&mut client, &mut server, |_, server, event| match event {
            Either::Left(event) => match told(event)? {
                Event::Sent { .. } => Some(true),
                Event::NotSent { packets: 1, error: SendError::Busy, .. } => Some(false),
                event => panic!("{event:?}"),
            },
            Either::Right(event) => {
                let Event::Received { packet: received, reply, .. } = told(event)? else { panic!("not a packet") };
                assert_eq!(received, packet(5));
                let answer = if times < busy { Answer::Busy { retry_ms: 0 } } else { Answer::Taken };
                times += 1;
                server.behaviour_mut().reply(reply, answer);
                None
            }
        })
        .await;
        assert_eq!(sent, busy <= u32::from(MAX_RETRIES), "{busy}");
        assert_eq!(times, busy.min(u32::from(MAX_RETRIES)) + 1);
        assert_eq!(client.behaviour().under_way(), (0, 0));
    }
}

/// Replies that are never given hold up what comes after them, and a lost connection drops all of it at once.
#[tokio::test]
async fn what_waits_is_dropped_with_the_last_connection() {
    let (mut client, mut server) = (node(), node());
    let peer = connect(&mut client, &mut server).await;
    for n in 0..100 {
        client.behaviour_mut().send(peer, packet(n)).unwrap();
    }
    let mut held: Vec<Reply> = Vec::new();
    let lost = until(&mut client, &mut server, |client, server, event| {
        match event {
            Either::Left(event) => {
                if let Some(Event::NotSent { packets, error: SendError::ConnectionClosed, .. }) = told(event) {
                    return Some(packets);
                }
            }
            Either::Right(event) => {
                if let Some(Event::Received { reply, .. }) = told(event) {
                    held.push(reply);
                    if held.len() == MAX_IN_FLIGHT {
                        assert_eq!(client.behaviour().under_way(), (100, MAX_IN_FLIGHT));
                        server.disconnect_peer_id(*client.local_peer_id()).unwrap();
                    }
                }
            }
        }
        None
    })
    .await;
    assert_eq!((lost, held.len()), (100, MAX_IN_FLIGHT));
    assert_eq!(client.behaviour().under_way(), (0, 0));
    assert_eq!(client.behaviour_mut().send(peer, packet(1)), Err(NotSent::NotConnected));

    // A new connection begins with nothing.
    connect(&mut client, &mut server).await;
    client.behaviour_mut().send(peer, packet(101)).unwrap();
    let arrived = until(&mut client, &mut server, |_, _, event| match event {
        Either::Left(event) => match told(event) {
            Some(Event::NotSent { .. }) => panic!("of an earlier connection"),
            _ => None,
        },
        Either::Right(event) => match told(event)? {
            Event::Received { packet, .. } => Some(packet),
            _ => None,
        },
    })
    .await;
    assert_eq!(arrived, packet(101));
}

/// When one of two connections closes, what was in flight on it is lost and the rest goes on.
#[tokio::test]
async fn a_second_connection_goes_on_with_what_waits() {
    let (mut client, mut server) = (node(), node());
    let peer = connect(&mut client, &mut server).await;
    let second = connection(&mut client, &mut server).await;
    for n in 0..50 {
        client.behaviour_mut().send(peer, packet(n)).unwrap();
    }
    let (mut held, mut lost, mut sent, mut closed) = (Vec::new(), 0, 0, false);
    until(&mut client, &mut server, |client, server, event| {
        match event {
            Either::Left(SwarmEvent::ConnectionClosed { .. }) => closed = true,
            Either::Left(event) => match told(event) {
                Some(Event::Sent { .. }) => sent += 1,
                Some(Event::NotSent { packets, error: SendError::ConnectionClosed, .. }) => lost += packets,
                Some(event) => panic!("{event:?}"),
                None => {}
            },
            Either::Right(event) => {
                if let Some(Event::Received { reply, .. }) = told(event) {
                    held.push(reply);
                    if held.len() == MAX_IN_FLIGHT && !closed {
                        assert!(client.close_connection(second));
                    }
                }
            }
        }
        // Nothing is answered before, so that it is known what was in flight.
        if closed {
            held.drain(..).for_each(|reply| server.behaviour_mut().reply(reply, Answer::Taken));
        }
        (sent + lost == 50).then_some(())
    })
    .await;
    assert_eq!(lost, MAX_IN_FLIGHT / 2, "libp2p takes connections in turn");
    assert_eq!(client.behaviour().under_way(), (0, 0));
}

#[tokio::test]
async fn who_does_not_speak_it_is_sent_nothing_more() {
    let (mut client, mut server) = (node(), swarm(dummy::Behaviour));
    let peer = connect(&mut client, &mut server).await;
    for n in 0..20 {
        client.behaviour_mut().send(peer, packet(n)).unwrap();
    }
    let mut lost = 0;
    until(&mut client, &mut server, |_, _, event| {
        if let Either::Left(event) = event {
            match told(event) {
                Some(Event::NotSent { packets, error: SendError::Unsupported, .. }) => lost += packets,
                Some(event) => panic!("{event:?}"),
                None => {}
            }
        }
        (lost >= 20).then_some(())
    })
    .await;
    assert_eq!((lost, client.behaviour().under_way()), (20, (0, 0)));
}

#[tokio::test]
async fn a_reply_that_is_dropped_ends_the_exchange() {
    let (mut client, mut server) = (node(), node());
    let peer = connect(&mut client, &mut server).await;
    client.behaviour_mut().send(peer, packet(1)).unwrap();
    let error = until(&mut client, &mut server, |_, _, event| match event {
        Either::Left(SwarmEvent::Behaviour(Event::NotSent { error, .. })) => Some(error),
        _ => None,
    })
    .await;
    assert!(matches!(error, SendError::Io(_)), "{error:?}");
}

/// Of a flood so much is taken as is allowed, and whoever keeps below is not told to wait.
#[tokio::test]
async fn a_flood_is_limited_and_nobody_else_is() {
    const ALLOWED: u32 = 5;
    let hour = |burst| Quota::new(burst, Duration::from_secs(3600));
    let limits = Limits { peer: hour(ALLOWED), prefix: hour(1000), global: hour(1000) };
    let mut server = swarm(Behaviour::with_limits(network(), limits));
    let (mut flooding, mut honest) = (node(), node());
    let peer = connect(&mut flooding, &mut server).await;
    for n in 0..20 {
        flooding.behaviour_mut().send(peer, packet(n)).unwrap();
    }
    let (mut taken, mut limited) = (0, 0);
    until(&mut flooding, &mut server, |_, server, event| {
        if let Either::Right(event) = event {
            match told(event) {
                Some(Event::Received { reply, .. }) => {
                    taken += 1;
                    server.behaviour_mut().reply(reply, Answer::Taken);
                }
                Some(Event::Limited { scope, .. }) => {
                    assert_eq!(scope, Scope::Peer);
                    limited += 1;
                }
                Some(event) => panic!("{event:?}"),
                None => {}
            }
        }
        // Each of those in flight, and then again after a second.
        (limited > MAX_IN_FLIGHT).then_some(())
    })
    .await;
    assert_eq!(taken, ALLOWED);
    let waiting = flooding.behaviour().under_way().0;
    assert!(waiting <= 20 - ALLOWED as usize, "{waiting}");

    connect(&mut honest, &mut server).await;
    for n in 0..ALLOWED {
        honest.behaviour_mut().send(peer, packet(n as u16)).unwrap();
    }
    let mut sent = 0;
    until(&mut honest, &mut server, |_, server, event| {
        match event {
            Either::Left(event) => match told(event) {
                Some(Event::Sent { .. }) => sent += 1,
                Some(event) => panic!("{event:?}"),
                None => {}
            },
            Either::Right(event) => {
                if let Some(Event::Received { reply, .. }) = told(event) {
                    server.behaviour_mut().reply(reply, Answer::Taken);
                }
            }
        }
        (sent == ALLOWED).then_some(())
    })
    .await;
}
