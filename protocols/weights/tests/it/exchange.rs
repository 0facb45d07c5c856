//! Two swarms: questions, answers, and limits.

use std::time::Duration;

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, noise,
    swarm::{NetworkBehaviour, SwarmEvent, dummy},
    tcp, yamux,
};
use quelea_weights::{Answer, AskError, Behaviour, Event, MAX_ASKS, MAX_WAITING, Question, Request};
use quelea_wire::{ModelId, NetworkId};

const PATIENCE: Duration = Duration::from_secs(60);

const REQUEST: Request = Request { model: ModelId([7; 32]), question: Question::Chunks { first: 3, count: 2 } };

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

async fn answered<B: NetworkBehaviour>(
    client: &mut Swarm<Behaviour>,
    server: &mut Swarm<B>,
    mut on_server: impl FnMut(&mut Swarm<B>, B::ToSwarm),
) -> Result<Answer, AskError> {
    let both = async {
        loop {
            tokio::select! {
                event = client.select_next_some() => {
                    if let SwarmEvent::Behaviour(Event::Answered { result, .. }) = event {
                        return result;
                    }
                }
                event = server.select_next_some() => if let SwarmEvent::Behaviour(event) = event {
                    on_server(server, event);
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, both).await.unwrap()
}

#[tokio::test]
async fn a_question_reaches_the_host_and_its_answer_comes_back() {
    let (mut client, mut server) = (node(), node());
    let peer = connected(&mut client, &mut server).await;
    client.behaviour_mut().ask(peer, REQUEST);
    let given = Answer::Chunks(vec![9; 1 << 20]);
    let result = answered(&mut client, &mut server, |server, event| {
        let Event::Asked { id, request, .. } = event else { panic!("{event:?}") };
        assert_eq!(request, REQUEST);
        assert!(server.behaviour_mut().reply(id, given.clone()));
        assert!(!server.behaviour_mut().reply(id, Answer::Unknown), "once");
    });
    assert_eq!(result.await.unwrap(), given);
    assert_eq!(client.behaviour().under_way(), (0, 0));
}

#[tokio::test]
async fn questions_without_an_answer_are_bounded_on_both_sides() {
    let (mut client, mut server) = (node(), node());
    let peer = connected(&mut client, &mut server).await;
    for _ in 0..=MAX_ASKS {
        client.behaviour_mut().ask(peer, REQUEST);
    }
    assert_eq!(client.behaviour().under_way().0, MAX_ASKS);
    let work = async {
        let (mut too_many, mut asked) = (0, 0);
        while too_many == 0 || asked == 0 {
            tokio::select! {
                event = client.select_next_some() => match event {
                    SwarmEvent::Behaviour(Event::Answered { result: Err(AskError::TooMany), .. }) => too_many += 1,
                    // More streams than one connection carries at once.
                    SwarmEvent::Behaviour(Event::Answered { result, .. }) => {
                        assert!(matches!(result, Err(AskError::Io(_))), "{result:?}");
                    }
                    _ => {}
                },
                event = server.select_next_some() => if let SwarmEvent::Behaviour(Event::Asked { .. }) = event {
                    asked += 1;
                    assert!(server.behaviour().under_way().1 <= MAX_WAITING);
                },
            }
        }
        assert_eq!(too_many, 1);
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
}

#[tokio::test]
async fn a_peer_without_the_protocol_and_one_that_is_not_there_are_told_apart() {
    let mut client = node();
    let mut server = swarm(dummy::Behaviour);
    let peer = connected(&mut client, &mut server).await;
    client.behaviour_mut().ask(peer, REQUEST);
    let result = answered(&mut client, &mut server, |_, _| {}).await;
    assert!(matches!(result, Err(AskError::Unsupported)), "{result:?}");
    client.behaviour_mut().ask(PeerId::random(), REQUEST);
    let result = answered(&mut client, &mut server, |_, _| {}).await;
    assert!(matches!(result, Err(AskError::NotConnected)), "{result:?}");
}
