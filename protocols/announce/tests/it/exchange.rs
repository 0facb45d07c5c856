//! Two swarms: asking, answering, and everything that can come back instead.

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt, future::poll_fn};
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder,
    identity::Keypair,
    noise,
    request_response::{self, ProtocolSupport},
    swarm::{NetworkBehaviour, SwarmEvent, dummy},
    tcp, yamux,
};
use quelea_announce::{Announcement, Behaviour, Event, FetchError, MAX_FETCHES, SignedAnnouncement, VerifyError};
use quelea_wire::{NetworkId, time::unix_ms};
use std::{io, task::Poll, time::Duration};

const PATIENCE: Duration = Duration::from_secs(20);

fn net() -> NetworkId {
    NetworkId::from_name("announce test")
}

fn swarm<B: NetworkBehaviour>(key: &Keypair, behaviour: B) -> Swarm<B> {
    SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

fn asker() -> Swarm<Behaviour> {
    swarm(&Keypair::generate_ed25519(), Behaviour::new(net()))
}

fn signed(key: &Keypair, network: NetworkId) -> SignedAnnouncement {
    let said = Announcement::new(key.public().to_peer_id(), 1, unix_ms());
    SignedAnnouncement::sign(key, &network, said).unwrap()
}

/// Connects `asker` to `worker`, which from then on runs by itself.
async fn connect<B>(asker: &mut Swarm<Behaviour>, mut worker: Swarm<B>) -> PeerId
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: Send,
{
    worker.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let addr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = worker.select_next_some().await {
            break address;
        }
    };
    let id = *worker.local_peer_id();
    tokio::spawn(async move {
        loop {
            worker.select_next_some().await;
        }
    });
    asker.dial(addr).unwrap();
    tokio::time::timeout(PATIENCE, async {
        while !matches!(asker.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
    })
    .await
    .unwrap();
    id
}

async fn fetched(asker: &mut Swarm<Behaviour>) -> Result<Option<SignedAnnouncement>, FetchError> {
    let answer = async {
        loop {
            if let SwarmEvent::Behaviour(Event::Fetched { result, .. }) = asker.select_next_some().await {
                return result;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap()
}

async fn fetch(asker: &mut Swarm<Behaviour>, peer: PeerId) -> Result<Option<SignedAnnouncement>, FetchError> {
    asker.behaviour_mut().fetch(peer);
    let result = fetched(asker).await;
    assert_eq!(asker.behaviour().under_way(), 0);
    result
}

#[tokio::test]
async fn an_announcement_is_fetched_byte_for_byte() {
    let key = Keypair::generate_ed25519();
    let mut behaviour = Behaviour::new(net());
    let said = signed(&key, net());
    behaviour.set_local(Some(said.clone()));
    let mut asker = asker();
    let worker = connect(&mut asker, swarm(&key, behaviour)).await;
    let heard = fetch(&mut asker, worker).await.unwrap().unwrap();
    assert_eq!(heard.raw(), said.raw());
}

#[tokio::test]
async fn a_peer_that_announces_nothing_says_so() {
    let mut asker = asker();
    let worker = connect(&mut asker, swarm(&Keypair::generate_ed25519(), Behaviour::new(net()))).await;
    assert_eq!(fetch(&mut asker, worker).await.unwrap(), None);
}

#[tokio::test]
async fn nobody_is_asked_without_a_connection() {
    let mut asker = asker();
    let stranger = PeerId::random();
    let id = asker.behaviour_mut().fetch(stranger);
    let event = poll_fn(|cx| match asker.poll_next_unpin(cx) {
        Poll::Ready(Some(SwarmEvent::Behaviour(event))) => Poll::Ready(event),
        other => panic!("expected an answer at once, got {other:?}"),
    })
    .await;
    assert!(matches!(event, Event::Fetched { id: told, peer, result: Err(FetchError::NotConnected) }
        if told == id && peer == stranger));
}

#[tokio::test]
async fn a_peer_of_another_network_does_not_understand() {
    let mut asker = asker();
    let other = Behaviour::new(NetworkId::from_name("another"));
    let worker = connect(&mut asker, swarm(&Keypair::generate_ed25519(), other)).await;
    assert!(matches!(fetch(&mut asker, worker).await, Err(FetchError::Unsupported)));
    let mut asker = self::asker();
    let worker = connect(&mut asker, swarm(&Keypair::generate_ed25519(), dummy::Behaviour)).await;
    assert!(matches!(fetch(&mut asker, worker).await, Err(FetchError::Unsupported)));
}

#[tokio::test]
async fn another_peers_word_is_refused_from_this_one() {
    let (key, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let mut behaviour = Behaviour::new(net());
    behaviour.set_local(Some(signed(&other, net())));
    let mut asker = asker();
    let worker = connect(&mut asker, swarm(&key, behaviour)).await;
    let refused = fetch(&mut asker, worker).await;
    assert!(matches!(refused, Err(FetchError::WrongPeer(who)) if who == other.public().to_peer_id()), "{refused:?}");
}

#[tokio::test]
async fn a_word_signed_for_another_network_is_refused() {
    let key = Keypair::generate_ed25519();
    let mut behaviour = Behaviour::new(net());
    behaviour.set_local(Some(signed(&key, NetworkId::from_name("another"))));
    let mut asker = asker();
    let worker = connect(&mut asker, swarm(&key, behaviour)).await;
    let refused = fetch(&mut asker, worker).await;
    assert!(matches!(refused, Err(FetchError::Invalid(VerifyError::Envelope(_)))), "{refused:?}");
}

#[tokio::test]
async fn who_asks_too_often_is_told_to_wait() {
    let mut asker = asker();
    let worker = connect(&mut asker, swarm(&Keypair::generate_ed25519(), Behaviour::new(net()))).await;
    let mut results = Vec::new();
    for _ in 0..15 {
        results.push(fetch(&mut asker, worker).await);
    }
    assert!(results[..10].iter().all(|result| matches!(result, Ok(None))), "{results:?}");
    // At a request a second, a slow run may let one or two more through.
    assert!(results.iter().any(|result| matches!(result, Err(FetchError::Busy))), "{results:?}");
}

#[tokio::test]
async fn fetches_under_way_are_bounded() {
    let mut asker = asker();
    let worker = connect(&mut asker, swarm(&Keypair::generate_ed25519(), Behaviour::new(net()))).await;
    for _ in 0..MAX_FETCHES + 1 {
        asker.behaviour_mut().fetch(worker);
    }
    assert_eq!(asker.behaviour().under_way(), MAX_FETCHES);
    assert!(matches!(fetched(&mut asker).await, Err(FetchError::TooMany)));
    for _ in 0..MAX_FETCHES {
        let _ = fetched(&mut asker).await;
    }
    assert_eq!(asker.behaviour().under_way(), 0);
}

/// Answers every request with fixed bytes.
#[derive(Clone)]
struct Liar(Vec<u8>);

impl request_response::Codec for Liar {
    type Protocol = StreamProtocol;
    type Request = u8;
    type Response = ();

    async fn read_request<T: futures::AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<u8> {
        let mut byte = [0];
        io.read_exact(&mut byte).await?;
        Ok(byte[0])
    }

    async fn read_response<T: futures::AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        _: &mut T,
    ) -> io::Result<()> {
        Ok(())
    }

    async fn write_request<T: futures::AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        byte: u8,
    ) -> io::Result<()> {
        io.write_all(&[byte]).await
    }

    async fn write_response<T: futures::AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        (): (),
    ) -> io::Result<()> {
        io.write_all(&self.0).await
    }
}

async fn lie(answer: Vec<u8>) -> Result<Option<SignedAnnouncement>, FetchError> {
    let mut liar = swarm(
        &Keypair::generate_ed25519(),
        request_response::Behaviour::with_codec(
            Liar(answer),
            [(net().protocol("announce", 1), ProtocolSupport::Full)],
            request_response::Config::default(),
        ),
    );
    liar.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let addr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = liar.select_next_some().await {
            break address;
        }
    };
    let id = *liar.local_peer_id();
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(request_response::Event::Message {
                message: request_response::Message::Request { channel, .. },
                ..
            }) = liar.select_next_some().await
            {
                liar.behaviour_mut().send_response(channel, ()).unwrap();
            }
        }
    });
    let mut asker = asker();
    asker.dial(addr).unwrap();
    while !matches!(asker.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
    fetch(&mut asker, id).await
}

#[tokio::test]
async fn lies_are_errors() {
    for answer in [vec![], vec![9], vec![1, 0xff, 0xff], vec![1, 4, 0, 1, 2]] {
        let result = lie(answer.clone()).await;
        assert!(matches!(result, Err(FetchError::Io(_))), "{answer:?}: {result:?}");
    }
    let garbage = lie([vec![1, 200, 0], vec![1; 200]].concat()).await;
    assert!(matches!(garbage, Err(FetchError::Invalid(_))), "{garbage:?}");
}
