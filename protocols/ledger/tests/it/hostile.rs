//! Peers that know the protocol's name and none of its rules.

use std::time::Duration;

use futures::{StreamExt, future::Either};
use libp2p::{
    Swarm,
    request_response::{self, Message},
    swarm::SwarmEvent,
};
use quelea_ledger::{
    DecodeError,
    behaviour::{Answer, Behaviour, Event, MAX_IN_FLIGHT, MAX_QUEUED, MAX_STREAMS, NotSent, SendError},
    packet::MAX_PACKET,
};

use crate::nodes::{Hostile, PATIENCE, Say, connect, hostile, node, packet, told, until};

fn say(bytes: &[u8]) -> Say {
    Say { bytes: bytes.to_vec(), silent: false }
}

fn silent(bytes: &[u8]) -> Say {
    Say { bytes: bytes.to_vec(), silent: true }
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&u16::try_from(packet.len()).unwrap().to_le_bytes()[..], packet].concat()
}

/// Says something; what the attacker is answered, while the server takes everything.
async fn answered(attacker: &mut Swarm<Hostile>, server: &mut Swarm<Behaviour>, bytes: Say) -> Vec<u8> {
    let peer = *server.local_peer_id();
    let id = attacker.behaviour_mut().send_request(&peer, bytes);
    until(attacker, server, |_, server, event| match event {
        Either::Left(SwarmEvent::Behaviour(request_response::Event::Message {
            message: Message::Response { request_id, response },
            ..
        })) => (request_id == id).then_some(response.bytes),
        Either::Left(_) => None,
        Either::Right(event) => {
            if let Some(Event::Received { reply, .. }) = told(event) {
                server.behaviour_mut().reply(reply, Answer::Taken);
            }
            None
        }
    })
    .await
}

#[tokio::test]
async fn what_is_no_packet_is_refused_at_once() {
    let (mut attacker, mut server) = (hostile(), node());
    let peer = connect(&mut attacker, &mut server).await;
    let long = (MAX_PACKET as u16 + 1).to_le_bytes();
    let mut version = packet(1);
    version[0] = 2;
    for (bytes, error) in [
        // 4,097 bytes announced: none of them is waited for, or read.
        (silent(&long), DecodeError::Long),
        (silent(&[0xff, 0xff]), DecodeError::Long),
        (say(&[&long[..], &[1; MAX_PACKET + 1]].concat()), DecodeError::Long),
        (silent(&[0, 0]), DecodeError::Short),
        (say(&framed(&[1; 33])), DecodeError::Short),
        (say(&framed(&version)), DecodeError::Field("version")),
        (say(&framed(&[&packet(1)[..], &[0]].concat())), DecodeError::Long),
    ] {
        attacker.behaviour_mut().send_request(&peer, bytes);
        let found = until(&mut attacker, &mut server, |_, _, event| match event {
            Either::Right(SwarmEvent::Behaviour(Event::Misbehaved { error, .. })) => Some(error),
            Either::Right(SwarmEvent::Behaviour(event)) => panic!("{event:?}"),
            _ => None,
        });
        assert_eq!(found.await, error);
    }
    assert_eq!(answered(&mut attacker, &mut server, say(&framed(&version))).await, [2]);
    assert_eq!(answered(&mut attacker, &mut server, say(&framed(&packet(1)))).await, [0], "it may still send a packet");
}

/// Half packets take the places of one connection for as long as one exchange may last, and nobody else's.
#[tokio::test]
async fn half_packets_and_silence_end_in_time() {
    let (mut attacker, mut honest, mut server) = (hostile(), node(), node());
    let peer = connect(&mut attacker, &mut server).await;
    connect(&mut honest, &mut server).await;
    let half = framed(&packet(1));
    for n in 0..2 * MAX_STREAMS {
        attacker.behaviour_mut().send_request(&peer, silent(&half[..n % half.len()]));
    }
    let honest_task = async {
        for n in 0..20 {
            honest.behaviour_mut().send(peer, packet(n)).unwrap();
        }
        until(&mut honest, &mut server, |honest, server, event| {
            match event {
                Either::Left(event) => assert!(matches!(told(event), None | Some(Event::Sent { .. }))),
                Either::Right(event) => {
                    if let Some(Event::Received { reply, peer, .. }) = told(event) {
                        assert_eq!(peer, *honest.local_peer_id());
                        server.behaviour_mut().reply(reply, Answer::Taken);
                    }
                }
            }
            (honest.behaviour().under_way().0 == 0).then_some(())
        })
        .await;
    };
    let silence = async {
        loop {
            attacker.select_next_some().await;
        }
    };
    tokio::select! {
        () = honest_task => {}
        () = silence => unreachable!(),
    }
    // Its places come back, and until then its streams are dropped.
    let mut again = tokio::time::interval(Duration::from_millis(100));
    let back = async {
        loop {
            tokio::select! {
                _ = again.tick() => {
                    attacker.behaviour_mut().send_request(&peer, say(&framed(&packet(2))));
                }
                event = attacker.select_next_some() => {
                    if let SwarmEvent::Behaviour(request_response::Event::Message {
                        message: Message::Response { response, .. }, ..
                    }) = event && response.bytes == [0] {
                        return;
                    }
                }
                event = server.select_next_some() => {
                    if let Some(Event::Received { reply, .. }) = told(event) {
                        server.behaviour_mut().reply(reply, Answer::Taken);
                    }
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
}

/// A peer that takes nothing holds up its own packets, and those in flight end in time.
#[tokio::test]
async fn who_never_answers_holds_up_nobody_else() {
    let (mut client, mut deaf, mut honest) = (node(), hostile(), node());
    let silent = connect(&mut client, &mut deaf).await;
    let other = connect(&mut client, &mut honest).await;
    for n in 0..MAX_QUEUED {
        client.behaviour_mut().send(silent, packet(n as u16)).unwrap();
    }
    assert_eq!(client.behaviour_mut().send(silent, packet(0)), Err(NotSent::PeerFull));
    client.behaviour_mut().send(other, packet(1)).unwrap();
    let deaf = tokio::spawn(async move {
        // It reads packets and keeps what it would answer with.
        let mut held = Vec::new();
        loop {
            let event = deaf.select_next_some().await;
            if let SwarmEvent::Behaviour(request_response::Event::Message {
                message: Message::Request { channel, .. },
                ..
            }) = event
            {
                held.push(channel);
                assert!(held.len() <= 2 * MAX_IN_FLIGHT);
            }
        }
    });
    let (mut sent, mut timed_out) = (0, 0);
    until(&mut client, &mut honest, |client, honest, event| {
        assert!(client.behaviour().under_way().1 <= MAX_IN_FLIGHT + 1);
        match event {
            Either::Left(event) => match told(event) {
                Some(Event::Sent { peer, .. }) => {
                    assert_eq!(peer, other);
                    sent += 1;
                }
                Some(Event::NotSent { peer, packets, error: SendError::Timeout }) => {
                    assert_eq!(peer, silent);
                    timed_out += packets;
                }
                Some(event) => panic!("{event:?}"),
                None => {}
            },
            Either::Right(event) => {
                if let Some(Event::Received { reply, .. }) = told(event) {
                    honest.behaviour_mut().reply(reply, Answer::Taken);
                }
            }
        }
        (sent == 1 && timed_out >= MAX_IN_FLIGHT).then_some(())
    })
    .await;
    assert_eq!(client.behaviour().under_way().0, MAX_QUEUED - timed_out);
    deaf.abort();
}

#[tokio::test]
async fn answers_that_are_none_are_failures() {
    let (mut client, mut liar) = (node(), hostile());
    let peer = connect(&mut client, &mut liar).await;
    for bytes in [&[7][..], &[], &[1, 0, 0]] {
        client.behaviour_mut().send(peer, packet(1)).unwrap();
        let error = until(&mut client, &mut liar, |_, liar, event| match event {
            Either::Left(SwarmEvent::Behaviour(Event::NotSent { error, .. })) => Some(error),
            Either::Left(_) => None,
            Either::Right(event) => {
                if let SwarmEvent::Behaviour(request_response::Event::Message {
                    message: Message::Request { request, channel, .. },
                    ..
                }) = event
                {
                    assert_eq!(request.bytes, framed(&packet(1)));
                    liar.behaviour_mut().send_response(channel, say(bytes)).unwrap();
                }
                None
            }
        })
        .await;
        assert!(matches!(error, SendError::Io(_)), "{error:?}");
    }
    assert_eq!(client.behaviour().under_way(), (0, 0));
}
