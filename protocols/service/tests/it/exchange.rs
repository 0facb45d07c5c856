//! Two swarms: calls, answers, and limits.

use std::time::Duration;

use futures::{AsyncReadExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, noise,
    swarm::{NetworkBehaviour, SwarmEvent, dummy},
    tcp, yamux,
};
use quelea_service::{
    Answer, Ask, Behaviour, Event, FrameReader, FrameWriter, MAX_INBOUND_PER_PEER, MAX_OUTPUT, OpenError, PEER_RATE,
    ServiceStream,
};
use quelea_wire::NetworkId;

use crate::{call, listed};

const PATIENCE: Duration = Duration::from_secs(60);

fn swarm<B: NetworkBehaviour>(behaviour: B) -> Swarm<B> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

fn node() -> Swarm<Behaviour> {
    swarm(Behaviour::new(NetworkId::from_name("test")))
}

async fn connected<B: NetworkBehaviour>(client: &mut Swarm<Behaviour>, server: &mut Swarm<B>) -> PeerId {
    server.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let addr: Multiaddr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            break address;
        }
    };
    client.dial(addr).unwrap();
    let peer = *server.local_peer_id();
    while !client.is_connected(&peer) {
        tokio::select! {
            _ = client.select_next_some() => {}
            _ = server.select_next_some() => {}
        }
    }
    peer
}

/// Turns both until `done` has what it wants of their events.
async fn until<B: NetworkBehaviour, T>(
    client: &mut Swarm<Behaviour>,
    server: &mut Swarm<B>,
    mut done: impl FnMut(Option<Event>, Option<B::ToSwarm>) -> Option<T>,
) -> T {
    let both = async {
        loop {
            let found = tokio::select! {
                event = client.select_next_some() => match event {
                    SwarmEvent::Behaviour(event) => done(Some(event), None),
                    _ => None,
                },
                event = server.select_next_some() => match event {
                    SwarmEvent::Behaviour(event) => done(None, Some(event)),
                    _ => None,
                },
            };
            if let Some(found) = found {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, both).await.unwrap()
}

/// Turns both while `work` runs.
async fn during<T>(a: &mut Swarm<Behaviour>, b: &mut Swarm<Behaviour>, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let both = async {
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = a.select_next_some() => {}
                _ = b.select_next_some() => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, both).await.unwrap()
}

/// A stream from `client` to `server`, both ends of it. It is negotiated with what is written first.
async fn stream(client: &mut Swarm<Behaviour>, server: &mut Swarm<Behaviour>) -> (ServiceStream, ServiceStream) {
    let peer = *server.local_peer_id();
    client.behaviour_mut().open(peer);
    let (mut ours, mut theirs) = (None, None);
    until(client, server, |client, server| {
        if let Some(Event::Opened { result, .. }) = client {
            ours = Some(result.unwrap());
        }
        if let Some(Event::Inbound { stream, .. }) = server {
            theirs = Some(stream);
        }
        (ours.is_some() && theirs.is_some()).then_some(())
    })
    .await;
    (ours.unwrap(), theirs.unwrap())
}

#[tokio::test]
async fn a_call_its_progress_and_its_result_cross() {
    let (mut client, mut server) = (node(), node());
    connected(&mut client, &mut server).await;
    let (ours, theirs) = stream(&mut client, &mut server).await;
    assert_eq!((ours.peer(), theirs.peer()), (*server.local_peer_id(), *client.local_peer_id()));
    let wanted = Ask::Call(Box::new(call(&vec![7; 1 << 20])));
    let answers = [
        Answer::Accepted { version: 1, price: 1000 },
        Answer::Progress(b"half".to_vec()),
        Answer::Result { amount: 1000, output: vec![9; MAX_OUTPUT] },
    ];
    let calling = async {
        let (read, write) = ours.split();
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        writer.ask(&wanted).await.unwrap();
        for answer in &answers {
            assert_eq!(reader.answer().await.unwrap().as_ref(), Some(answer));
        }
        assert_eq!(reader.answer().await.unwrap(), None, "the end");
    };
    let providing = async {
        let (read, write) = theirs.split();
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        assert_eq!(reader.ask().await.unwrap().as_ref(), Some(&wanted));
        for answer in &answers {
            writer.answer(answer).await.unwrap();
        }
        writer.close().await.unwrap();
    };
    during(&mut client, &mut server, async { tokio::join!(calling, providing) }).await;
    until_none_are_open(&mut client, &mut server).await;
}

async fn until_none_are_open(client: &mut Swarm<Behaviour>, server: &mut Swarm<Behaviour>) {
    assert_eq!(server.behaviour().inbound_open(), 0, "streams that ended take no place");
    assert_eq!(client.behaviour().opening(), 0);
}

#[tokio::test]
async fn who_hangs_up_is_heard() {
    let (mut client, mut server) = (node(), node());
    connected(&mut client, &mut server).await;
    let (ours, theirs) = stream(&mut client, &mut server).await;
    let work = async {
        let (read, write) = ours.split();
        FrameWriter::new(write).ask(&Ask::List(None)).await.unwrap();
        let (theirs, _write) = theirs.split();
        let mut reader = FrameReader::new(theirs);
        assert_eq!(reader.ask().await.unwrap(), Some(Ask::List(None)));
        drop(read);
        assert!(matches!(reader.ask().await, Ok(None) | Err(_)), "the stream is reset");
    };
    during(&mut client, &mut server, work).await;
}

#[tokio::test]
async fn a_list_is_as_long_as_it_may_be() {
    let (mut client, mut server) = (node(), node());
    connected(&mut client, &mut server).await;
    let (ours, theirs) = stream(&mut client, &mut server).await;
    let all: Vec<_> = (0..64).map(|n| listed(&format!("service-{n:024}"))).collect();
    let said = Answer::Listed(all.iter().cloned().chain([listed("one-too-many")]).collect());
    let work = async {
        FrameWriter::new(theirs).answer(&said).await.unwrap();
        assert_eq!(FrameReader::new(ours).answer().await.unwrap(), Some(Answer::Listed(all)));
    };
    during(&mut client, &mut server, work).await;
}

#[tokio::test]
async fn streams_of_one_peer_are_bounded_and_so_is_their_rate() {
    let (mut client, mut server) = (node(), node());
    let peer = connected(&mut client, &mut server).await;
    let mut kept = Vec::new();
    for _ in 0..MAX_INBOUND_PER_PEER {
        kept.push(stream(&mut client, &mut server).await);
    }
    assert_eq!(server.behaviour().inbound_open(), MAX_INBOUND_PER_PEER);
    client.behaviour_mut().open(peer);
    until(&mut client, &mut server, |_, server| matches!(server, Some(Event::Limited { .. })).then_some(())).await;
    kept.clear();
    // In a moment's rush the rate is what ends it.
    let mut opened = 0;
    while opened <= 4 * PEER_RATE {
        client.behaviour_mut().open(peer);
        let limited = until(&mut client, &mut server, |_, server| match server {
            Some(Event::Limited { peer, .. }) => Some(Some(peer)),
            Some(Event::Inbound { .. }) => Some(None),
            _ => None,
        })
        .await;
        if let Some(limited) = limited {
            assert_eq!(limited, *client.local_peer_id());
            return;
        }
        opened += 1;
    }
    panic!("{opened} streams in a rush, and no limit");
}

#[tokio::test]
async fn a_peer_without_the_protocol_and_one_that_is_not_there_are_told_apart() {
    let mut client = node();
    let mut server = swarm(dummy::Behaviour);
    let peer = connected(&mut client, &mut server).await;
    for (peer, there) in [(peer, true), (PeerId::random(), false)] {
        let wanted = client.behaviour_mut().open(peer);
        let result = until(&mut client, &mut server, |client, _| match client {
            Some(Event::Opened { id, result, .. }) if id == wanted => Some(result),
            _ => None,
        })
        .await;
        assert!(
            matches!((&result, there), (Err(OpenError::Unsupported), true) | (Err(OpenError::NotConnected), false)),
            "{result:?}"
        );
    }
}
